"""What people see: aligned, ASCII of our own, and nothing that could steer a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

Fields = dict[str, object]

_NEXT_STEPS = {
    "refused": "nothing was changed",
    "rolled_back": "the previous generation serves; `nginxctl history` keeps this verdict",
    "failed": "a person is needed: see `nginxctl status` and the supervisor's log",
}


class Timeline:
    """The lines of one operation, with the time since it was asked for."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._begin = time.monotonic()

    def line(self, event: Fields) -> str:
        """One event as a line."""
        elapsed = time.monotonic() - self._begin
        if event.get("event") == "verdict":
            return f"{elapsed:9.3f} s  {self._verdict(event)}"
        words = [text(event.get("phase") or event.get("event")).ljust(12)]
        words += [text(event[key]) for key in ("generation", "version") if event.get(key)]
        words += [text(event[key]) for key in ("reason", "detail") if event.get(key)]
        if event.get("event") == "accepted" and event.get("upgrade_id"):
            words.append(text(event["upgrade_id"]))
        return f"{elapsed:9.3f} s  {'  '.join(words)}".rstrip()

    def _verdict(self, event: Fields) -> str:
        parts = [text(event.get("verdict")).ljust(12)]
        if event.get("from_version") and event.get("to_version"):
            parts.append(f"{text(event['from_version'])} -> {text(event['to_version'])}")
        if event.get("reason"):
            parts.append(text(event["reason"]))
        if event.get("verdict") == "committed" and event.get("judged") is False:
            parts.append("(no probe judged it)")
        return "  ".join(parts).rstrip()

    def explanation(self, event: Fields) -> Iterator[str]:
        """Why it did not end well, and what to do: for stderr."""
        verdict = text(event.get("verdict"))
        yield f"nginxctl: {self._name} {verdict}: {text(event.get('reason'))}"
        if event.get("detail"):
            yield f"  {text(event['detail'])}"
        if verdict in _NEXT_STEPS:
            yield f"  {_NEXT_STEPS[verdict]}"


def status(found: Fields) -> Iterator[str]:
    """The reply of Status."""
    why = [text(found[key]) for key in ("reason", "detail") if found.get(key)]
    yield _row("state", text(found.get("state")) + (f"  ({': '.join(why)})" if why else ""))
    upgrade = _fields(found.get("upgrade"))
    if upgrade:
        yield _row("upgrade", _words(upgrade, "id", "phase", "candidate"))
    for generation in _each(found.get("generations")):
        yield from _generation(generation)
    disk = _fields(found.get("binary_on_disk"))
    differs = "  (not what runs)" if disk.get("matches_active") is False else ""
    yield _row("on disk", _words(disk, "version", "path") + differs)
    if found.get("config_matches_active") is False:
        yield _row("config", "on disk it differs from what runs: `nginxctl reload` applies it")
    held = _fields(found.get("held_listeners"))
    addresses = held.get("addresses")
    names = "  ".join(text(one) for one in addresses) if isinstance(addresses, list) else ""
    yield _row("held", f"{text(held.get('count', 0))} listeners  {names}".rstrip())
    for probe in _each(found.get("probes")):
        yield _row("probe", _words(probe, "name", "type", "state", "generation", "since", "detail"))
    yield _row("restarts", text(found.get("restarts", 0)))
    last = _fields(found.get("last_verdict"))
    if last:
        yield _row("last", _verdict_line(last))


def _generation(generation: Fields) -> Iterator[str]:
    master = generation.get("master_pid")
    yield _row(
        text(generation.get("role")),
        f"{_words(generation, 'id', 'version', 'binary')}  "
        + (f"master {text(master)}" if master is not None else "no master"),
    )
    by_state: dict[str, list[str]] = {}
    for worker in _each(generation.get("workers")):
        by_state.setdefault(text(worker.get("state")), []).append(text(worker.get("pid")))
    for state, pids in by_state.items():
        yield _row("", f"{len(pids)} {state}: {' '.join(pids)}")
    if not by_state:
        yield _row("", "no workers")


def history(found: Fields) -> Iterator[str]:
    """The reply of History."""
    for entry in _each(found.get("entries")):
        yield f"{text(entry.get('time')):<24}  {_verdict_line(entry)}"


def versions(found: Fields) -> Iterator[str]:
    """The reply of Versions."""
    rows = []
    for version in _each(found.get("versions")):
        marks = {"active": "active", "on_disk": "on disk", "good": "good"}
        notes = ", ".join(word for key, word in marks.items() if version.get(key))
        modules = version.get("modules")
        count = f"{len(modules)} modules" if isinstance(modules, list) else ""
        rows.append([*(text(version.get(key)) for key in ("version", "id")), count, notes])
    yield from _table(rows)


def check(found: Fields) -> Iterator[str]:
    """The reply of Check."""
    for finding in _each(found.get("findings")):
        word = "ok" if finding.get("ok") is True else "FAILED"
        yield f"{word:<7} {_words(finding, 'name', 'reason', 'detail')}"


def log_event(entry: Fields) -> str:
    """One LogEvent."""
    fields = [f"{text(key)}={text(value)}" for key, value in _fields(entry.get("fields")).items()]
    return "  ".join([_words(entry, "time", "level", "event"), *fields])


def text(value: object) -> str:
    """`value` on one line, without characters that a terminal obeys."""
    if value is None:
        return "-"
    return "".join(c if c.isprintable() else "?" for c in " ".join(str(value).split("\n")))


def _verdict_line(verdict: Fields) -> str:
    words = _words(verdict, "upgrade_id", "operation", "verdict", "reason")
    if verdict.get("from_version") and verdict.get("to_version"):
        words += f"  {text(verdict['from_version'])} -> {text(verdict['to_version'])}"
    elapsed = verdict.get("elapsed_s")
    return words + (f"  {elapsed:.3f} s" if isinstance(elapsed, int | float) else "")


def _row(label: str, content: str) -> str:
    return f"{label:<10} {content}".rstrip()


def _words(fields: Fields, *keys: str) -> str:
    return "  ".join(text(fields[key]) for key in keys if fields.get(key) is not None)


def _table(rows: list[list[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def _fields(value: object) -> Fields:
    return value if isinstance(value, dict) else {}


def _each(value: object) -> Iterable[Fields]:
    return [_fields(one) for one in value] if isinstance(value, list) else []
