"""What people see: aligned, ASCII of our own, and nothing that could steer a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import zip_longest

Fields = dict[str, object]

_NEXT_STEPS = {
    "refused": "nothing was changed",
    "rolled_back": "the previous generation serves, nothing is urgent; for the cause see "
    "`nginxctl history --detail` and `nginxctl events`",
    "failed": "a person is needed: see `nginxctl status` and the supervisor's log",
}
_CORRECT_IT = "nginx serves with the previous configuration: correct the new one, reload again"
_TRIES_AGAIN = (
    "`nginxctl status` tells whether the supervisor tries again by itself; in state `degraded` it "
    "does not, and a person is needed"
)
_UNPROVED = "`nginxctl promote` goes on with it all the same, `nginxctl rollback` takes it back"
_UNWATCHED = "(no probe passed before it: `nginxctl status` tells how they are now)"
_HELD = "`nginxctl promote` commits it, `nginxctl rollback` takes it back"
_STOPPED = (
    "nginx is stopped: `nginxctl start` starts it (where the supervisor was told to end, its own "
    "next start does)"
)
_ORPHANS_SERVE = (
    "these workers still serve: do not stop nginx or end them, correct the cause; the next start "
    "that succeeds takes over"
)


class Timeline:
    """The lines of one operation, with the time since it was asked for."""

    def __init__(self, name: str, width: int | None = None) -> None:
        self._name = name
        self._width = width  # of the terminal, where it is one
        self._begin = time.monotonic()
        self._said = ""  # a detail is said once, not by the trigger and by each phase after it

    def line(self, event: Fields) -> str:
        """One event as a line."""
        elapsed = time.monotonic() - self._begin
        if event.get("event") == "verdict":
            return f"{elapsed:9.3f} s  {self._verdict(event)}"
        if event.get("event") == "warning":
            return "\n".join(_warning(f"{elapsed:9.3f} s  ", event, self._width))
        words = [text(event.get("phase") or event.get("event")).ljust(12)]
        words += [text(event[key]) for key in ("generation", "version") if event.get(key)]
        if event.get("reason"):
            words.append(text(event["reason"]))
        detail = text(event.get("detail") or "")
        if detail and detail != self._said:
            words.append(detail)
            self._said = detail
        if event.get("event") == "accepted" and event.get("upgrade_id"):
            words.append(text(event["upgrade_id"]))
        if event.get("phase") == "held":
            words.append(_HELD)
        return f"{elapsed:9.3f} s  {'  '.join(words)}".rstrip()

    def _verdict(self, event: Fields) -> str:
        parts = [text(event.get("verdict")).ljust(12), _versions(event)]
        if event.get("reason"):
            parts.append(text(event["reason"]))
        if event.get("verdict") == "done" and event.get("detail"):
            parts.append(text(event["detail"]))
        if event.get("verdict") == "committed" and event.get("judged") is False:
            parts.append(_UNWATCHED if self._name == "reload" else "(no probe judged it)")
        parts.append(_gaps(event))
        # Of a binary the versions tell.
        parts += [
            _words(one, "path", "change")
            for one in _each(event.get("changed"))
            if one.get("kind") == "library"
        ]
        return "  ".join(filter(None, parts)).rstrip()

    def explanation(self, event: Fields) -> Iterator[str]:
        """Why it did not end well, and what to do: for stderr."""
        verdict = text(event.get("verdict"))
        yield f"nginxctl: {self._name} {verdict}: {text(event.get('reason'))}"
        if event.get("detail"):
            yield f"  {text(event['detail'])}"
        if verdict == "failed" and event.get("reason") == "stopping":
            yield f"  {_STOPPED}"
        elif verdict == "failed" and self._name in {"start", "restart"}:
            yield f"  {_TRIES_AGAIN}"
        elif verdict == "rolled_back" and event.get("reason") == "stopped":
            yield f"  {_STOPPED}"
        elif verdict == "rolled_back" and event.get("reason") == "operator":
            yield "  the previous generation serves, as an operator wanted"
        elif verdict == "rolled_back" and self._name == "reload":
            yield f"  {_CORRECT_IT}"
        elif verdict in _NEXT_STEPS:
            yield f"  {_NEXT_STEPS[verdict]}"


def status(found: Fields) -> Iterator[str]:
    """The reply of Status."""
    upgrade = _fields(found.get("upgrade"))
    yield _row("state", text(found.get("state")) + _why(found, upgrade))
    if upgrade:
        yield from _upgrade(upgrade)
    generations = _each(found.get("generations"))
    successor = upgrade.get("candidate") if upgrade.get("phase") in _STANDS_BY else None
    for generation in generations:
        yield from _generation(generation, successor)
    if found.get("state") in _DOWN and any(map(_serves_on, generations)):
        yield _row("", _ORPHANS_SERVE)
    yield _row("on disk", _on_disk(_fields(found.get("binary_on_disk")), generations, upgrade))
    yield from _package(_fields(found.get("binary_on_disk")))
    if changed := _each(found.get("changed")):
        yield _row("changed", _changed(changed) + ("" if upgrade else f": {_TAKES_IT}"))
    if found.get("config_matches_active") is False:
        yield _row("config", "on disk it differs from what runs: `nginxctl reload` applies it")
    held = _fields(found.get("held_listeners"))
    if held.get("available"):
        addresses = held.get("addresses")
        names = "  ".join(text(one) for one in addresses) if isinstance(addresses, list) else ""
        noun = "listener" if held.get("count") == 1 else "listeners"
        yield _row("held", f"{text(held.get('count', 0))} {noun}  {names}".rstrip())
    elif held.get("detail"):
        yield _row("held", f"unavailable: {text(held['detail'])}")
    for probe in _each(found.get("probes")):
        since = f"  since {moment(probe['since'])}" if probe.get("since") else ""
        yield _row("probe", _words(probe, "name", "type", "state", "generation", "detail") + since)
    yield from _error_logs(_fields(found.get("error_logs")))
    yield _row("restarts", text(found.get("restarts", 0)))
    if found.get("supervisor_started"):
        yield _row("supervisor", _supervisor(found))
    last = _fields(found.get("last_verdict"))
    if last:
        yield _row("last", "  ".join(filter(None, _verdict_cells(last))))


def _error_logs(logs: Fields) -> Iterator[str]:
    """What cannot be read of them, and the last severe lines."""
    for unread in _each(logs.get("unread")):
        yield _row("log unread", _words(unread, "path", "detail"))
    for line in _each(logs.get("lines"))[-_LINES:]:
        whose = _words(line, "generation") or "of another process"
        yield _row("log", f"{moment(line.get('time'))}  {whose}  {_words(line, 'pid', 'log')}")
        yield _row("", f"[{text(line.get('severity'))}] {text(line.get('line'))}")


def _supervisor(found: Fields) -> str:
    """Which program it is, and since when; the two moments differ once it has replaced itself."""
    words = _words(found, "supervisor_version")
    pid, started = found.get("supervisor_pid"), found.get("supervisor_started")
    words += f"  (pid {text(pid)}) since {moment(started)}"
    replaced = found.get("supervisor_replaced")
    return f"{words}, replaced {moment(replaced)}" if replaced else words


def _why(found: Fields, upgrade: Fields) -> str:
    """Reason and detail of the state, where they say more than the state and the phase do."""
    shown = {found.get("state"), upgrade.get("phase")}
    why = [text(found[key]) for key in ("reason", "detail") if found.get(key)]
    if why and found.get("reason") in shown:
        del why[0]
    doubt = upgrade.get("inconclusive")
    if doubt and why and why[-1].endswith(text(doubt)):
        del why[-1]  # it is said below, with what to do
    return f"  ({': '.join(why)})" if why else ""


def _upgrade(upgrade: Fields) -> Iterator[str]:
    words = _words(upgrade, "id", "phase", "candidate")
    if upgrade.get("from_version") and upgrade.get("to_version"):
        words += f"  {text(upgrade['from_version'])} -> {text(upgrade['to_version'])}"
    spent, whole = upgrade.get("phase_elapsed_s"), upgrade.get("elapsed_s")
    if isinstance(spent, int | float) and isinstance(whole, int | float):
        words += f"  ({spent:.1f} s in this phase, {whole:.1f} s in all)"
    yield _row("upgrade", words)
    if evidence := _evidence(upgrade):
        yield _row("", evidence)
    if upgrade.get("inconclusive"):
        yield _row("", f"inconclusive: {text(upgrade['inconclusive'])}")
        if upgrade.get("phase") == "canary":
            yield _row("", _UNPROVED)
    if upgrade.get("phase") == "held":
        yield _row("", _HELD)


def _on_disk(disk: Fields, generations: Iterable[Fields], upgrade: Fields) -> str:
    """The file that a cold start would run; one that could not be run stands out."""
    path = text(disk.get("path"))
    if disk.get("sha256") is None:
        return f"MISSING: {path}  (no file that can be read is there)"
    if disk.get("matches_active") is True:
        return _words(disk, "version", "path")
    if disk.get("version") is None:
        return f"NOT NGINX: {path}  (the file names no version of nginx)"
    return _words(disk, "version", "path") + _differs(disk, generations, upgrade)


def _package(disk: Fields) -> Iterator[str]:
    """Whose the file on disk is, and who has put it there where it is not the package's own."""
    package = _fields(disk.get("package"))
    if not package:
        return
    words = f"{_words(package, 'name', 'version')}  ({text(package.get('manager'))}"
    if package.get("state") != "installed":
        words += f": {text(package.get('state'))}"
    words += ")"
    if package.get("intact") is False:
        who = "the supervisor" if disk.get("placed_by") == "supervisor" else "somebody else"
        words += f", but {who} has put another file there"
    yield _row("package", words)


def _changed(changed: Iterable[Fields]) -> str:
    """Which files a generation runs that are others on disk."""
    told = ", ".join(_words(one, "kind", "path", "change") for one in changed)
    return f"not as what runs: {told}"


def _differs(disk: Fields, generations: Iterable[Fields], upgrade: Fields) -> str:
    if disk.get("matches_active") is not False:
        return ""
    for one in generations:
        if one.get("role") == "candidate" and one.get("sha256") == disk.get("sha256"):
            return "  (the candidate's)"
    return "  (not what runs)" if upgrade else f"  (not what runs: {_TAKES_IT})"


_TAKES_IT = "`nginxctl upgrade` judges and takes it"
_STANDS_BY = frozenset({"soaking", "held", "committing"})
"""The phases in which the active generation has given up its workers to the candidate."""

_LINES = 3
"""Lines of nginx's error logs that a status shows."""
_DOWN = frozenset({"starting", "backoff", "degraded"})


def _serves_on(generation: Fields) -> bool:
    """An orphan: its master is dead, and its workers accept connections all the same."""
    workers = _each(generation.get("workers"))
    accepting = any(worker.get("state") == "accepting" for worker in workers)
    return accepting and generation.get("master_pid") is None


def _generation(generation: Fields, successor: object) -> Iterator[str]:
    by_state: dict[str, list[str]] = {}
    for worker in _each(generation.get("workers")):
        by_state.setdefault(text(worker.get("state")), []).append(text(worker.get("pid")))
    # An active generation without workers looks like an outage, and here it is none.
    stands_by = bool(successor) and generation.get("role") == "active"
    stands_by = stands_by and "accepting" not in by_state
    master = generation.get("master_pid")
    yield _row(
        "standby" if stands_by else text(generation.get("role")),
        f"{_words(generation, 'id', 'version', 'binary')}  "
        + (f"master {text(master)}" if master is not None else "no master"),
    )
    for state, pids in by_state.items():
        yield _row("", f"{len(pids)} {state}: {' '.join(pids)}")
    if stands_by:
        gone = "are leaving" if by_state else "have left"
        yield _row("", f"its workers {gone}, all new connections are {text(successor)}'s")
        if master is None:
            yield _row("", "it is gone; a rollback would start it afresh")
    elif not by_state:
        yield _row("", "no workers")
    upgradable = _fields(generation.get("upgradable"))
    if upgradable.get("ok") is False:
        yield _row("", f"{text(upgradable.get('reason'))}: {text(upgradable.get('detail'))}")


def history(found: Fields) -> Iterator[str]:
    """The reply of History, one line for each verdict."""
    entries = _each(found.get("entries"))
    if not entries:
        yield "no upgrade yet"
    yield from _table([_verdict_cells(entry) for entry in entries])


def history_in_detail(found: Fields, width: int | None = None) -> Iterator[str]:
    """The same, and below each line its detail and how long each phase took."""
    entries = _each(found.get("entries"))
    for line, entry in zip(history(found), entries or [{}], strict=True):
        yield line
        if entry.get("detail"):
            yield f"    {text(entry['detail'])}"
        if phases := _phases(entry.get("phases")):
            yield f"    {phases}"
        if evidence := _evidence(entry):
            yield f"    {evidence}"
        if changed := _each(entry.get("changed")):
            yield f"    {_changed(changed)}"
        warnings = _each(entry.get("warnings"))
        notes = [one for one in warnings if one.get("severity") == "note"]
        for warning in warnings:
            if warning not in notes:
                yield from _warning("    ", warning, width)
        if notes:
            named = dict.fromkeys(text(one.get("guard")) for one in notes)
            count = "1 note" if len(notes) == 1 else f"{len(notes)} notes"
            yield f"    {count} of {', '.join(named)} (all of them: --json)"


def _evidence(entry: Fields) -> str:
    """By which ways answers were known to be the candidate's, and how many workers gave one."""
    if not isinstance(entry.get("canary_observed"), bool):
        return ""
    ways = entry.get("attribution")
    words = [text(way).replace("_", " ") for way in ways] if isinstance(ways, list) else []
    said = "observed" if entry["canary_observed"] else "not observed"
    coverage = _fields(entry.get("coverage"))
    seen = f"{text(coverage.get('answered'))} of {text(coverage.get('workers'))} workers answered"
    return f"canary {said}; answers known by: {', '.join(words) or 'nothing'}; {seen}"


def _warning(head: str, warning: Fields, width: int | None) -> Iterator[str]:
    """What a guard says; in a terminal of `width` wrapped behind its head, else on one line."""
    head += f"{text(warning.get('severity') or 'warning'):<12}  "
    said = f"{text(warning.get('guard'))}: {text(warning.get('detail'))}"
    room = 0 if width is None else width - len(head)
    line = ""
    for word in said.split(" "):
        if line and room >= _NARROWEST and len(line) + 1 + len(word) > room:
            yield head + line
            head, line = " " * len(head), word
        else:
            line = f"{line} {word}" if line else word
    yield head + line


_NARROWEST = 20


def _phases(value: object) -> str:
    """How long each phase took, in their order in time."""
    phases = [
        (name, spent) for name, spent in _fields(value).items() if isinstance(spent, int | float)
    ]
    phases.sort(key=lambda phase: _order(phase[0]))
    return ", ".join(f"{text(name)} {spent:.3f} s" for name, spent in phases)


PHASES = (
    "preflight", "spawning", "canary", "shifting", "soaking", "held", "committing", "rolling_back",
)  # fmt: skip
"""In the order in time, which a JSON object does not keep."""


def _order(phase: str) -> int:
    return PHASES.index(phase) if phase in PHASES else len(PHASES)


def versions(found: Fields) -> Iterator[str]:
    """The reply of Versions."""
    rows = []
    for version in _each(found.get("versions")):
        marks = {"active": "active", "on_disk": "on disk", "good": "good"}
        notes = [word for key, word in marks.items() if version.get(key)]
        if version.get("good") is False:
            notes.append("rejected")
        modules = version.get("modules")
        count = f"{len(modules)} modules" if isinstance(modules, list) else ""
        stored = f"stored {moment(version['stored'])}" if version.get("stored") else ""
        number = text(version.get("version") or "unknown")
        rows.append([number, text(version.get("id")), count, ", ".join(notes), stored])
    yield from _table(rows)


def check(found: Fields) -> Iterator[str]:
    """The reply of Check."""
    for finding in _each(found.get("findings")):
        word = "ok" if finding.get("ok") is True else "FAILED"
        if finding.get("ok") is True and finding.get("reason"):
            word = "note"  # advice: nothing is wrong, and it will surprise
        yield f"{word:<7} {_words(finding, 'name', 'reason', 'detail')}"


def log_event(entry: Fields) -> str:
    """One LogEvent."""
    fields = [
        f"{text(key)}={_plain(key, value)}"
        for key, value in _fields(entry.get("fields")).items()
        if key != "time" and value not in (None, "", [], {})
    ]
    return "  ".join([moment(entry.get("time")), _words(entry, "level", "event"), *fields])


def _plain(key: str, value: object) -> str:
    """A value of the log as people write it, whatever it is made of."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(text(one) for one in value)
    if isinstance(value, dict):
        if key == "phases":
            return _phases(value)
        return ", ".join(f"{text(name)} {text(one)}" for name, one in value.items())
    return text(value)


def moment(value: object) -> str:
    """A time of the interface as people read it: `2026-01-02 03:04:05.678 UTC`."""
    written = text(value)
    day, between, rest = written.partition("T")
    clock = rest.removesuffix("Z").removesuffix("+00:00")
    if not between or clock == rest:
        return written
    return f"{day} {clock} UTC"


def text(value: object) -> str:
    """`value` on one line, without characters that a terminal obeys."""
    if value is None:
        return "-"
    return "".join(c if c.isprintable() else "?" for c in " ".join(str(value).split("\n")))


def _verdict_cells(verdict: Fields) -> list[str]:
    """When, which, what was asked for, how it ended, from where to where, why, how long it took."""
    elapsed = verdict.get("elapsed_s")
    cells = [moment(verdict["time"])] if verdict.get("time") else []
    cells += [text(verdict.get(key)) for key in ("upgrade_id", "operation", "verdict")]
    cells += [_versions(verdict), text(verdict.get("reason"))]
    cells.append(f"{elapsed:.3f} s" if isinstance(elapsed, int | float) else "")
    return [*cells, _gaps(verdict)]


def _gaps(verdict: Fields) -> str:
    """What nobody has seen of the candidate; nothing where all was seen, or there was none."""
    if verdict.get("verdict") != "committed":
        return ""
    if verdict.get("canary_observed") is False and verdict.get("judged") is not False:
        return "(canary not observed)"
    coverage = _fields(verdict.get("coverage"))
    answered, workers = coverage.get("answered"), coverage.get("workers")
    if not isinstance(answered, int) or not isinstance(workers, int) or answered >= workers:
        return ""
    return f"({answered} of {workers} workers seen answering)" if answered else ""


def _versions(verdict: Fields) -> str:
    """From where to where; of a rollback where it went back to, since the arrow was not taken."""
    old, new = verdict.get("from_version"), verdict.get("to_version")
    if not old or not new or verdict.get("verdict") == "done":
        return ""
    if verdict.get("verdict") != "rolled_back":
        return f"{text(old)} -> {text(new)}"
    if verdict.get("operation") == "incident":  # after the commit: the way back is the whole of it
        old, new = new, old
    return f"back to {text(old)}, not {text(new)}"


def _row(label: str, content: str) -> str:
    return f"{label:<10} {content}".rstrip()


def _words(fields: Fields, *keys: str) -> str:
    return "  ".join(text(fields[key]) for key in keys if fields.get(key) is not None)


def _table(rows: list[list[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        yield "  ".join(cells).rstrip()


def _fields(value: object) -> Fields:
    return value if isinstance(value, dict) else {}


def _each(value: object) -> list[Fields]:
    return [_fields(one) for one in value] if isinstance(value, list) else []
