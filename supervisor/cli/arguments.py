"""The arguments of each command. Only the chosen command's parser is ever built."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from supervisor import wire

PROGRAM = "nginxctl"
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
LONGEST = 365 * 86400.0
"""Seconds: what the supervisor takes as well, in a call as in its configuration."""

Parameters = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command: the method that it calls, and how its arguments become parameters."""

    method: str
    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    parameters: Callable[[argparse.Namespace], Parameters] = lambda given: {}
    operates: bool = True  # it changes something, and may take long
    contradiction: Callable[[argparse.Namespace], str | None] = lambda given: None
    """Why the arguments do not go together, each of them being right."""


def duration(text: str) -> float:
    """Seconds from `250ms`, `10s`, `5m`, `1h` or a plain number.

    Raises:
        argparse.ArgumentTypeError: it is none of these, negative, or longer than a year.
    """
    for unit in _UNITS:
        if text.endswith(unit):
            number, factor = text[: -len(unit)], _UNITS[unit]
            break
    else:
        number, factor = text, 1.0
    try:
        seconds = float(number) * factor
    except ValueError:
        seconds = math.nan
    if not seconds >= 0 or not number[-1:].isdigit():
        raise argparse.ArgumentTypeError(
            f"{text!r} is no duration; write 250ms, 10s, 5m, 1h or a number of seconds"
        )
    if seconds > LONGEST:
        raise argparse.ArgumentTypeError(f"{text!r} is impossible: the longest is a year")
    return seconds


def _patience(text: str) -> float:
    seconds = duration(text)
    if seconds == 0:
        raise argparse.ArgumentTypeError("waiting for 0 seconds is not waiting; use --no-wait")
    return seconds


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text[:10]) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no count; write a number from 1 up")
    return int(text)


def _named(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("it is empty; is a variable of your script not set?")
    return text


def _upgrade_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "binary",
        nargs="?",
        type=_named,
        metavar="BINARY",
        help="absolute path of the new nginx (default: what is now on disk at nginx.binary)",
    )
    parser.add_argument(
        "--canary", type=duration, metavar="D", help="how long both generations accept, such as 10s"
    )
    parser.add_argument(
        "--soak", type=duration, metavar="D", help="how long the new one is watched alone"
    )
    parser.add_argument(
        "--hold", action="store_true", help="after the soak wait for `promote` or `rollback`"
    )
    parser.add_argument("--dry-run", action="store_true", help="check everything, change nothing")
    parser.add_argument(
        "--no-wait", action="store_true", help="return once accepted; `nginxctl status` follows it"
    )
    parser.add_argument(
        "--timeout", type=_patience, metavar="D", help="stop waiting (not upgrading) after this"
    )
    parser.add_argument(
        "--if-changed",
        action="store_true",
        help="do nothing if binary, modules and libraries are those that run",
    )
    parser.add_argument(
        "--in-turn",
        action="store_true",
        help="wait for package managers and for other upgrades first; for units and hooks",
    )
    parser.add_argument(
        "--trust", action="store_true", help="take a binary that others can write to (root only)"
    )


def _upgrade_parameters(given: argparse.Namespace) -> Parameters:
    parameters: Parameters = {}
    if given.binary is not None:
        parameters["binary"] = given.binary
    if given.canary is not None:
        parameters["canary_s"] = given.canary
    if given.soak is not None:
        parameters["soak_s"] = given.soak
    for flag in ("hold", "dry_run", "if_changed", "trust"):
        if getattr(given, flag):
            parameters[flag] = True
    if given.no_wait:
        parameters["wait"] = False
    return parameters


def _upgrade_contradiction(given: argparse.Namespace) -> str | None:
    if not given.dry_run:
        return None
    if given.no_wait:
        return "--dry-run with --no-wait: nobody would hear what it finds; leave one out"
    if given.hold:
        return "--dry-run with --hold: there is nothing to hold, it ends before; leave one out"
    return None


def _rollback_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--to",
        type=_named,
        metavar="VERSION-OR-ID",
        help="a stored version (`nginxctl versions`), or an upgrade to undo",
    )


def _drain_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--now", action="store_true", required=True, help="do not wait for open connections"
    )


def _stop_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--now", action="store_true", help="do not wait for open connections")


def _adopt_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--take-over",
        action="store_true",
        help="put a master of the supervisor's own in its place, on the same sockets: for one "
        "that refuses upgrades, or belongs to another unit",
    )


def _self_upgrade_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--now",
        action="store_true",
        help="in the midst of an upgrade, which goes on in the new supervisor",
    )
    parser.add_argument(
        "--timeout", type=_patience, metavar="D", help="stop waiting for it after this"
    )


def _reload_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--guard",
        action="store_true",
        help="watch the new configuration for a while ([reload] guard), and put the previous files "
        "back and reload again where the probes or the workers fail with it (exit code 4)",
    )


def _history_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit", type=_positive, metavar="N", help="the last N only")
    parser.add_argument(
        "--detail", action="store_true", help="also why, and how long each phase took"
    )


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--live", action="store_true", help="only whether the supervisor works; runs no nginx"
    )
    parser.add_argument(
        "--ready", action="store_true", help="only whether nginx serves: a worker accepts"
    )
    parser.add_argument(
        "--probes", action="store_true", help="as --ready, and no configured probe fails"
    )


def health_flags(given: argparse.Namespace) -> frozenset[str]:
    """Which of `check`'s flags were given."""
    return frozenset(f"--{name}" for name in ("live", "ready", "probes") if getattr(given, name))


def _events_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--follow", action="store_true", help="go on with what comes")


COMMANDS: Mapping[str, Command] = {
    "status": Command(method="Status", summary="what serves, and how it does", operates=False),
    "upgrade": Command(
        method="Upgrade",
        summary="upgrade nginx's binary; rolls back by itself if it is bad",
        add_arguments=_upgrade_arguments,
        parameters=_upgrade_parameters,
        contradiction=_upgrade_contradiction,
    ),
    "promote": Command(
        method="Promote", summary="go on with the upgrade that waits, or commit it while it soaks"
    ),
    "rollback": Command(
        method="Rollback",
        summary="return to the previous version",
        add_arguments=_rollback_arguments,
        parameters=lambda given: {} if given.to is None else {"to": given.to},
    ),
    "reload": Command(
        method="Reload",
        summary="test the configuration, apply it, and see that it serves",
        add_arguments=_reload_arguments,
        parameters=lambda given: {"guard": True} if given.guard else {},
    ),
    "reopen": Command(method="Reopen", summary="reopen the log files in every generation"),
    "drain": Command(
        method="Drain",
        summary="end the old generation now, with its open connections (--now)",
        add_arguments=_drain_arguments,
        parameters=lambda given: {"now": True},
    ),
    "stop": Command(
        method="Stop",
        summary="stop nginx; the supervisor stays",
        add_arguments=_stop_arguments,
        parameters=lambda given: {"now": True} if given.now else {},
    ),
    "start": Command(method="Start", summary="start nginx after a stop"),
    "restart": Command(
        method="Restart",
        summary="stop nginx and start what is on disk; refuses connections meanwhile",
    ),
    "adopt": Command(
        method="Adopt",
        summary="take in a living nginx that somebody else started",
        add_arguments=_adopt_arguments,
        parameters=lambda given: {"take_over": True} if given.take_over else {},
    ),
    "detach": Command(
        method="Detach",
        summary="end the supervisor and leave nginx serving; the next start adopts it",
    ),
    "self-upgrade": Command(
        method="SelfUpgrade",
        summary="replace the supervisor itself by what is on disk; nginx is not touched",
        add_arguments=_self_upgrade_arguments,
        parameters=lambda given: {"now": True} if given.now else {},
    ),
    "history": Command(
        method="History",
        summary="the verdicts so far, the newest last",
        add_arguments=_history_arguments,
        parameters=lambda given: {} if given.limit is None else {"limit": given.limit},
        operates=False,
    ),
    "versions": Command(method="Versions", summary="the versions that are kept", operates=False),
    "events": Command(
        method="Events",
        summary="the supervisor's recent log",
        add_arguments=_events_arguments,
        parameters=lambda given: {"follow": True} if given.follow else {},
        operates=False,
    ),
    "check": Command(
        method="Check",
        summary="test the configurations that are on disk; --live, --ready: for health checks",
        add_arguments=_check_arguments,
        operates=False,
    ),
    "doctor": Command(
        method="Doctor",
        summary="what this site has to judge an upgrade with, and what to add",
        operates=False,
    ),
}


def parser_of(name: str) -> argparse.ArgumentParser:
    """The arguments of command `name`."""
    command = COMMANDS[name]
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} {name}",
        description=command.summary[0].upper() + command.summary[1:] + ".",
        allow_abbrev=False,
    )
    command.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object on each line")
    parser.add_argument("--socket", metavar="PATH", help="the supervisor's control socket")
    return parser


def parse_arguments(name: str, words: list[str]) -> argparse.Namespace:
    """The arguments of command `name`; wrong ones end the process with 2, as argparse does."""
    parser = parser_of(name)
    given = parser.parse_args(words)
    contradiction = COMMANDS[name].contradiction(given)
    if contradiction is not None:
        parser.error(contradiction)
    return given


def usage() -> str:
    """The text of `nginxctl --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {PROGRAM} [--socket PATH] [--json] COMMAND ...",
            "",
            "commands:",
            *lines,
            "",
            "options:",
            f"  --socket PATH  the supervisor's socket (default: $NGINXCTL_SOCKET, "
            f"else {wire.DEFAULT_SOCKET})",
            "  --json         one JSON object on each line, for programs",
            "",
            f"`{PROGRAM} COMMAND --help` explains a command.",
            "exit codes: 0 done, 1 failed, 2 usage, 3 refused (nothing changed), 4 rolled back,",
            "            5 supervisor not reachable or not permitted, 6 gave up waiting",
        ]
    )
