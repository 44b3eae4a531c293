"""Runs one command: sends the call, shows the replies, and turns the end into an exit code."""

from __future__ import annotations

import json
from collections.abc import Iterator

from supervisor import wire
from supervisor.cli import READ_TIMEOUT, Options, output
from supervisor.cli.connection import ClientError, Connection, LostError, WaitEnded, is_gone
from supervisor.cli.output import OutputLostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from supervisor.cli.arguments import Command
    from supervisor.cli.render import Timeline

Fields = dict[str, object]

HEALTH_FLAGS = frozenset({"--live", "--ready", "--probes"})

CHECK_TIMEOUT = 120.0
"""Seconds for `check` and `doctor`, which load nginx's whole configuration."""

_EXIT_CODES = {
    "committed": wire.ExitCode.DONE,
    "done": wire.ExitCode.DONE,
    "failed": wire.ExitCode.FAILED,
    "refused": wire.ExitCode.REFUSED,
    "rolled_back": wire.ExitCode.ROLLED_BACK,
}
_ERROR_CODES = {
    f"{wire.INTERFACE}.NotPermitted": wire.ExitCode.UNREACHABLE,
    f"{wire.INTERFACE}.Busy": wire.ExitCode.UNREACHABLE,
    f"{wire.SERVICE_INTERFACE}.InvalidParameter": wire.ExitCode.USAGE,
    f"{wire.SERVICE_INTERFACE}.MethodNotFound": wire.ExitCode.REFUSED,
    f"{wire.SERVICE_INTERFACE}.MethodNotImplemented": wire.ExitCode.REFUSED,
    f"{wire.SERVICE_INTERFACE}.InterfaceNotFound": wire.ExitCode.UNREACHABLE,
}


class SupervisorEndsError(WaitEnded):
    """The supervisor says that it ends before the operation does."""


def run_command(words: list[str], options: Options) -> int:
    """Run the command that `words` begin with."""
    from supervisor.cli.arguments import COMMANDS, health_flags, parse_arguments, usage

    if not words:
        output.complain(usage())
        return wire.ExitCode.USAGE
    name, *rest = words
    if name in {"-h", "--help", "help"}:
        output.line(usage())
        return wire.ExitCode.DONE
    if name == "--version":
        from importlib.metadata import version

        output.line(f"nginxctl {version('nginx-supervisor')}")
        return wire.ExitCode.DONE
    if name not in COMMANDS:
        raise ClientError(wire.ExitCode.USAGE, f"there is no command {name!r}; {_nearest(name)}")
    given = parse_arguments(name, rest)
    options.json = options.json or given.json
    options.socket = given.socket or options.socket
    if name == "check" and (asked := health_flags(given)):
        return check_health(asked, options)
    command = COMMANDS[name]
    parameters = command.parameters(given)
    if getattr(given, "in_turn", False):
        return _operate_in_turn(name, command, parameters, options, given.timeout)
    if command.operates:
        return _operate(name, command, parameters, options, getattr(given, "timeout", None))
    if name == "events":
        return _events(parameters, options)
    return _look(name, command, parameters, options, in_detail=getattr(given, "detail", False))


def check_health(asked: frozenset[str], options: Options) -> int:
    """`check` with `HEALTH_FLAGS`, for the probes of an orchestrator; raises ClientError.

    They run every few seconds for as long as a container lives, so this is cheap. That the
    supervisor answers at all is what `--live` asks: its engine has to.
    """
    with Connection(options.socket, timeout=READ_TIMEOUT) as connection:
        connection.send(wire.encode_call(f"{wire.INTERFACE}.Health"))
        found = parsed(connection.receive()).parameters
    problem = _health_problem(asked, found)
    if options.json:
        output.line(_json({**found, "ok": problem is None}))
    if problem is None:
        return wire.ExitCode.DONE
    output.complain(f"nginxctl: {problem}")
    return wire.ExitCode.FAILED


def _health_problem(asked: frozenset[str], found: Fields) -> str | None:
    if asked & {"--ready", "--probes"} and found.get("ready") is not True:
        why = f": {found['detail']}" if found.get("detail") else ""
        return f"no worker accepts connections ({found.get('state')}){why}"
    down = _list(found.get("probes_down"))
    if "--probes" in asked and down:
        return f"probes that fail: {', '.join(map(str, down))}"
    return None


def show_status_reply(message: bytes) -> int:
    """Show a reply of Status that is not in our service's own form, or an error."""
    reply = parsed(message)
    if reply.continues:
        raise WaitEnded(
            "cannot understand the supervisor's answer: it goes on, as none was asked to"
        )
    output.line(_json(reply.parameters))
    return wire.ExitCode.DONE


def exit_code(command: str, verdict: Fields) -> int:
    """The exit code for the last event of `command`.

    `rollback` is done when the old version serves: that is so when the upgrade that ran was
    rolled back. A rollback after a commit is an upgrade of its own; when that is rolled back,
    the newer version still serves, and then the verdict's operation is the rollback itself.
    """
    word = verdict.get("verdict")
    if command == "rollback" and word == "rolled_back" and verdict.get("operation") != "rollback":
        return wire.ExitCode.DONE
    return _EXIT_CODES.get(str(word), wire.ExitCode.FAILED)


def _operate(
    name: str, command: Command, parameters: Fields, options: Options, timeout: float | None
) -> int:
    return _show_end(name, *_ask(name, command, parameters, options, timeout))


def _operate_in_turn(
    name: str, command: Command, parameters: Fields, options: Options, timeout: float | None
) -> int:
    """As `_operate`, once nobody else is at it, and again for what came meanwhile.

    What is to be done where nothing runs, or nothing has changed, is done.
    """
    from supervisor.cli import turn

    code: int = wire.ExitCode.DONE
    while True:
        turn.wait_for_packages()
        with turn.Rest(options.socket) as rest:
            before = turn.status(options.socket)
            if not turn.is_free(before):
                rest.wait()
                continue
            last, timeline = _ask(name, command, parameters, options, timeout)
            word, reason = last.get("verdict"), last.get("reason")
            if word == "refused" and reason in turn.BUSY:
                rest.wait()
                continue
            if word == "done" or (word == "refused" and reason == "not_running"):
                return code
            code = _show_end(name, last, timeline)
            if word == "committed" and parameters.get("if_changed") is True:
                if turn.is_as(before, turn.status(options.socket)):
                    return code  # what an upgrade does not mend is tried once
                continue
            if word == "rolled_back" and isinstance(last.get("kept"), str):
                parameters = {**parameters, "binary": last["kept"]}
                continue
            after = turn.status(options.socket)
            if word != "rolled_back" or turn.is_as(before, after):
                return code


def _show_end(name: str, last: Fields, timeline: Timeline) -> int:
    if last.get("event") == "accepted":
        return wire.ExitCode.DONE
    code = exit_code(name, last)
    if code != wire.ExitCode.DONE:
        output.complain("\n".join(timeline.explanation(last)))
    return code


def _ask(
    name: str, command: Command, parameters: Fields, options: Options, timeout: float | None
) -> tuple[Fields, Timeline]:
    """The last reply, all of them shown."""
    from supervisor.cli.render import Timeline

    timeline = Timeline(name, output.width())
    last: Fields = {}
    with Connection(options.socket, timeout=timeout) as connection:
        try:
            for reply in _replies(connection, command, parameters):
                last = _fields(reply.parameters.get("progress"))
                output.line(_json(last) if options.json else timeline.line(last))
        except SupervisorEndsError as ends:
            raise _is_left(name, ends.message) from ends
        except LostError as lost:
            gone = is_gone(options.socket)
            raise (_is_left if gone else _goes_on)(name, lost.message) from lost
        except WaitEnded as ended:
            raise _goes_on(name, ended.message) from ended
        except OutputLostError as lost:
            if last.get("event") != "verdict":
                raise _goes_on(name, lost.message) from lost
            output.complain(f"nginxctl: {lost.message}")
        except KeyboardInterrupt:
            raise _goes_on(name, "interrupted") from None
    return last, timeline


def _goes_on(name: str, cause: str) -> ClientError:
    text = f"{cause}; the {name} goes on: `nginxctl status` shows it"
    if name == "upgrade":
        text += ", `nginxctl rollback` takes it back"
    return ClientError(wire.ExitCode.GAVE_UP, text)


def _is_left(name: str, cause: str) -> ClientError:
    """The supervisor ended without a verdict: it was killed, and nginx lives on without it."""
    text = f"{cause}; the supervisor is gone and the {name} stands where it was"
    if name in {"upgrade", "promote", "rollback"}:
        text += ": the next supervisor finishes it or rolls it back (then: `nginxctl history`)"
    else:
        text += ": start the supervisor, then see `nginxctl status`"
    return ClientError(wire.ExitCode.GAVE_UP, text)


def _look(
    name: str, command: Command, parameters: Fields, options: Options, *, in_detail: bool
) -> int:
    timeout = CHECK_TIMEOUT if name in {"check", "doctor"} else READ_TIMEOUT
    with Connection(options.socket, timeout=timeout) as connection:
        (reply,) = _replies(connection, command, parameters, more=False)
    found = reply.parameters
    if options.json:
        rows = {"history": "entries", "versions": "versions"}.get(name)
        objects = [found] if rows is None else _list(found.get(rows))
        for one in objects:
            output.line(_json(one))
    else:
        from supervisor.cli import render
        from supervisor.cli.render_doctor import doctor

        show = {
            "status": render.status,
            "history": lambda one: (
                render.history_in_detail(one, output.width()) if in_detail else render.history(one)
            ),
            "versions": render.versions,
            "check": render.check,
            "doctor": doctor,
        }[name]
        for line in show(found):
            output.line(line)
    failed = name in {"check", "doctor"} and found.get("ok") is not True
    return wire.ExitCode.FAILED if failed else wire.ExitCode.DONE


def _events(parameters: Fields, options: Options) -> int:
    from supervisor.cli.arguments import COMMANDS
    from supervisor.cli.render import log_event

    follow = parameters.get("follow") is True
    timeout = None if follow else READ_TIMEOUT
    try:
        with Connection(options.socket, timeout=timeout) as connection:
            for reply in _replies(connection, COMMANDS["events"], parameters, more=follow):
                for entry in map(_fields, _list(reply.parameters.get("entries"))):
                    flat = {**_fields(entry.get("fields")), **entry}
                    flat.pop("fields", None)
                    if not output.line(_json(flat) if options.json else log_event(entry)):
                        return wire.ExitCode.DONE  # else `events --follow | head` never ends
    except KeyboardInterrupt:
        return wire.ExitCode.DONE
    return wire.ExitCode.DONE


def _replies(
    connection: Connection, command: Command, parameters: Fields, *, more: bool = True
) -> Iterator[wire.Reply]:
    method = f"{wire.INTERFACE}.{command.method}"
    connection.send(wire.encode_call(method, parameters or None, more=more))
    while True:
        reply = parsed(connection.receive())
        yield reply
        if not reply.continues:
            return


def parsed(message: bytes) -> wire.Reply:
    """The reply in `message`, unless it is an error, which is raised."""
    try:
        reply = wire.parse_reply(message)
    except wire.FrameError as exc:
        raise WaitEnded(f"cannot understand the supervisor's answer: {exc}") from exc
    if reply.error is None:
        return reply
    told = reply.parameters
    detail = str(told.get("detail") or "")
    if reply.error == f"{wire.INTERFACE}.Interrupted":
        raise SupervisorEndsError(detail)
    if reply.error in {f"{wire.INTERFACE}.GaveWay", f"{wire.INTERFACE}.InternalError"}:
        raise WaitEnded(detail)
    if not detail:
        subject = " ".join(str(value) for value in told.values())
        detail = f"the supervisor answers {reply.error.rpartition('.')[2]}: {subject}"
    raise ClientError(_ERROR_CODES.get(reply.error, wire.ExitCode.FAILED), detail)


def _nearest(name: str) -> str:
    from difflib import get_close_matches

    from supervisor.cli.arguments import COMMANDS

    near = get_close_matches(name, COMMANDS, n=1)
    return f"did you mean {near[0]!r}?" if near else "try `nginxctl --help`"


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _fields(value: object) -> Fields:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
