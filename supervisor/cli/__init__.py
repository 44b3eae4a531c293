"""nginxctl: tells a running supervisor what to do, and shows what it answers.

`nginxctl --json status` is called by monitoring, often and on small machines, so this module and
what it imports stay cheap: argparse, json and socket are loaded by the commands that need them.
"""

from __future__ import annotations

import os
import sys

from supervisor import wire
from supervisor.cli import output
from supervisor.cli.connection import ClientError, Connection

READ_TIMEOUT = 10.0
"""Seconds for a call that only looks: the supervisor answers those at once."""


class Options:
    """What stands before or after the command, the same for all commands."""

    __slots__ = ("json", "socket")

    def __init__(self) -> None:
        self.socket = os.environ.get("NGINXCTL_SOCKET") or wire.DEFAULT_SOCKET
        self.json = False


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code (`wire.ExitCode`)."""
    try:
        output.insist_on_output()
        return _run(sys.argv[1:] if argv is None else argv)
    except ClientError as error:
        output.complain(f"nginxctl: {error.message}")
        return error.code
    except KeyboardInterrupt:
        output.complain("nginxctl: interrupted")
        return wire.ExitCode.GAVE_UP


def _run(words: list[str]) -> int:
    options = Options()
    rest = _take_options(words, options)
    if options.json and rest == ["status"]:
        return _json_status(options)
    if rest[:1] == ["check"] and len(rest) > 1:
        from supervisor.cli.commands import HEALTH_FLAGS, check_health

        if HEALTH_FLAGS.issuperset(rest[1:]):
            return check_health(frozenset(rest[1:]), options)
    from supervisor.cli.commands import run_command

    return run_command(rest, options)


def _take_options(words: list[str], options: Options) -> list[str]:
    """Take the options before the command; returns the command and what follows it."""
    rest = list(words)
    while rest and rest[0].startswith("-") and rest[0] not in {"-h", "--help", "--version"}:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name == "--json" and not equals:
            options.json = True
        elif name == "--socket" and (equals or rest):
            options.socket = value if equals else rest.pop(0)
        else:
            cause = "needs a path" if name == "--socket" else "is no option"
            raise ClientError(wire.ExitCode.USAGE, f"{word} {cause}; try `nginxctl --help`")
    if rest and rest[-1] == "--json" and len(rest) > 1 and "--" not in rest:
        options.json = True  # people put it last; this spares that form the argument parser too
        rest.pop()
    return rest


def _json_status(options: Options) -> int:
    with Connection(options.socket, timeout=READ_TIMEOUT) as connection:
        connection.send(wire.encode_call(f"{wire.INTERFACE}.Status"))
        message = connection.receive()
    status = wire.plain_parameters(message)
    if status is None:
        from supervisor.cli.commands import show_status_reply

        return show_status_reply(message)
    output.raw_line(status)
    return wire.ExitCode.DONE
