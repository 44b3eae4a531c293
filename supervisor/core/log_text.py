"""A log event in words: the line that a person reads in the journal, and how loud it is there.

The fields of an event are for filters; a person who was woken reads one line after the other. So
each line begins with what it is about (the upgrade, a generation, a probe), says what happened in
words, and ends with why. An event that has no words of its own is shown as it is: its name, its
reason and detail, and the rest of its fields.

What others have written (nginx, and through nginx its clients) may be anything: whatever would
begin another line or speak to a terminal is shown as an escape.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

Event = Mapping[str, object]

PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2, "exception": 3}
"""syslog's numbers (syslog(3)) for the levels of a log event."""
NOTICE = 5
"""For what is no trouble, and still what one looks for first: `journalctl -p notice`."""
_NOTABLE = frozenset(
    {"supervisor.started", "upgrade.requested", "upgrade.verdict", "reload.verdict"}
)
_SEVERITIES = {"emerg": 3, "alert": 3, "crit": 3, "error": 3, "warn": 4}
"""nginx's, none above `err`: the journal would tell everybody at a terminal of an `emerg`."""

COMMITTED = "7168d325d29f4b77a1365be7f0bcffce"
ROLLED_BACK = "0b6d140f23b547e59a325a6b12eb1d6e"
REFUSED = "b4b8e3f26ecc44ba88ce472117403dba"
FAILED = "190eb992d73a425ebc4f2896da6c2314"
RELOAD_TAKEN_BACK = "f2e8c768ce294647960934874c9e2bec"
RELOAD_FAILED = "0a6964bdf0a4423e90bb57f57507c3f2"
DEGRADED = "3afbbc298d3249ebafe90a0af669e923"
INCIDENT = "276fa31defc74bafba7a1ecbf848890c"
"""What systemd's catalog knows these events by (systemd/nginx-supervisor.catalog); they stay."""

_VERDICT_IDS = {
    ("upgrade.verdict", "committed"): COMMITTED,
    ("upgrade.verdict", "rolled_back"): ROLLED_BACK,
    ("upgrade.verdict", "refused"): REFUSED,
    ("upgrade.verdict", "failed"): FAILED,
    ("reload.verdict", "rolled_back"): RELOAD_TAKEN_BACK,
    ("reload.verdict", "failed"): RELOAD_FAILED,
}
_LOUD = {"rolled_back": "ROLLED BACK", "failed": "FAILED", "degraded": "DEGRADED"}
_COMMON = frozenset({
    "event", "level", "timestamp", "upgrade_id", "phase", "generation", "reason", "detail",
    "exception", "caller_pid", "caller_uid",
})  # fmt: skip
_FIELD = 512
"""Characters of a field that has no words of its own."""
_UNSAFE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def priority(event: Event) -> int:
    """syslog's number for how loud `event` is."""
    given = PRIORITIES.get(str(event.get("level")), PRIORITIES["info"])
    if event.get("event") == "nginx.error_line":
        return min(given, _SEVERITIES.get(str(event.get("severity")), given))
    if given == PRIORITIES["info"] and event.get("event") in _NOTABLE:
        return NOTICE
    return given


def message_id(event: Event) -> str | None:
    """What the catalog explains `event` by; None for most."""
    name, state = event.get("event"), event.get("to_state")
    if state == "degraded":
        return DEGRADED
    if name == "supervisor.incident":
        return INCIDENT
    if name == "request.refused" and event.get("upgrade_id"):
        return REFUSED
    return _VERDICT_IDS.get((str(name), str(event.get("verdict"))))


def message(event: Event) -> str:
    """`event` in one line for people; more lines only where an exception is told."""
    words = _WORDS.get(str(event.get("event")), _plain)
    text = printable(words(event))
    exception = event.get("exception")
    if exception:
        lines = (printable(line) for line in str(exception).splitlines())
        return "\n".join((text, *lines))
    return text


def printable(text: str) -> str:
    """`text` in one line, and without anything that a terminal would obey."""
    return _UNSAFE.sub(lambda found: _escape(found[0]), text)


def _escape(one: str) -> str:
    if one in "\n\r":
        return " "
    code = ord(one)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


# --- in words -------------------------------------------------------------------------------


def _requested(event: Event) -> str:
    who = f" by uid {event['caller_uid']}" if "caller_uid" in event else ""
    if "caller_pid" in event:
        who += f" (pid {event['caller_pid']})"
    return (
        f"{event.get('operation')} {event.get('upgrade_id')}: asked for{who}"
        f"{_rest(event, but={'operation'})}"
    )


def _phase(event: Event) -> str:
    return f"upgrade: {_came(event)}{_of(event)}{_why(event)}"


def _state(event: Event) -> str:
    return f"nginx: {_came(event)}{_of(event)}{_why(event)}"


def _came(event: Event) -> str:
    return f"{_state_name(event.get('from_state'))} -> {_state_name(event.get('to_state'))}"


def _state_name(state: object) -> str:
    """As `nginxctl status` calls it: an idle supervisor's nginx is anything but that."""
    return "running" if state == "idle" else _loud(state)


def _verdict(event: Event) -> str:
    verdict, before, after = (event.get(key) for key in ("verdict", "from_version", "to_version"))
    versions = f" from {before} to {after}" if before and after else ""
    serves = f"; nginx {before} serves" if verdict == "rolled_back" and before else ""
    phases, spent = event.get("phases"), ""
    if isinstance(phases, Mapping) and phases:
        each = ", ".join(f"{name} {_seconds(took)}" for name, took in phases.items())
        spent = f" [{_seconds(event.get('elapsed_s'))}: {each}]"
    return (
        f"{event.get('operation')} {event.get('upgrade_id')}{versions}: "
        f"{_judgement(event)}{serves}{spent}"
    )


def _judgement(event: Event) -> str:
    return f"{_loud(event.get('verdict'))} ({event.get('reason')}): {event.get('detail')}"


def _reload_begun(event: Event) -> str:
    return f"reload {event.get('upgrade_id')}: begun{', guarded' if event.get('guarded') else ''}"


def _reload_verdict(event: Event) -> str:
    by = " by somebody else" if event.get("by") == "foreign" else ""
    spent = _seconds(event.get("elapsed_s"))
    return f"reload{by} {event.get('upgrade_id')}: {_judgement(event)} [{spent}]"


def _refused(event: Event) -> str:
    number = f" {event['upgrade_id']}" if event.get("upgrade_id") else ""
    return f"{event.get('operation', 'request')}{number}: refused{_why(event)}"


def _rollback_step(event: Event) -> str:
    return f"upgrade: rolling back: {str(event.get('step')).replace('_', ' ')}"


def _restored(event: Event) -> str:
    return f"files put back on disk: {_listed(event.get('files'))} ({event.get('version_id')})"


def _warning(event: Event) -> str:
    return f"upgrade: {event.get('severity')} ({event.get('guard')}): {event.get('detail')}"


def _observed(event: Event) -> str:
    return f"upgrade: {event.get('window')}{_of(event)}: {event.get('detail')}"


def _exited(event: Event) -> str:
    kind = str(event.get("event")).removesuffix(".exited").replace("_", " ")
    told = " after draining" if event.get("draining") else ""
    return f"{event.get('generation')}: {kind} {event.get('pid')} {event.get('detail')}{told}"


def _probe(event: Event) -> str:
    detail = f": {event.get('detail')}" if event.get("detail") else ""
    return f"probe {event.get('probe')}: {event.get('to_state')}{_of(event)}{detail}"


def _called(event: Event) -> str:
    return f"control: {event.get('method')} by uid {event.get('uid')} (pid {event.get('pid')})"


def _nginx_wrote(event: Event) -> str:
    return f"nginx{_of(event, before=' ')}: {event.get('line')}"


def _error_line(event: Event) -> str:
    return (
        f"nginx{_of(event, before=' ')} [{event.get('severity')}] {event.get('pid')}: "
        f"{event.get('line')} ({event.get('log')})"
    )


def _held(event: Event) -> str:
    changes = (("now holds", event.get("taken")), ("lets go of", event.get("dropped")))
    told = (f"{word} {_listed(several)}" for word, several in changes if several)
    return f"listeners{_of(event)}: {'; '.join(told)}"


def _listed(several: object) -> str:
    return ", ".join(map(str, several)) if isinstance(several, list | tuple) else str(several)


def _started(event: Event) -> str:
    return f"nginx-supervisor {event.get('version')} started with {event.get('config')}"


def _exiting(event: Event) -> str:
    return f"nginx-supervisor ends with exit status {event.get('code')}"


def _dropped(event: Event) -> str:
    return f"log: {event.get('count')} lines are missing here: nobody took them in time"


def _plain(event: Event) -> str:
    return f"{event.get('event')}{_of(event)}{_why(event)}{_rest(event)}"


_WORDS: Mapping[str, Callable[[Event], str]] = {
    "upgrade.requested": _requested,
    "upgrade.state_changed": _phase,
    "supervisor.state_changed": _state,
    "upgrade.verdict": _verdict,
    "reload.begun": _reload_begun,
    "reload.verdict": _reload_verdict,
    "store.restored": _restored,
    "request.refused": _refused,
    "rollback.step": _rollback_step,
    "preflight.warning": _warning,
    "candidate.observed": _observed,
    "probe.state_changed": _probe,
    "control.called": _called,
    "nginx.output": _nginx_wrote,
    "nginx.error_line": _error_line,
    "listeners.held": _held,
    "supervisor.started": _started,
    "supervisor.exiting": _exiting,
    "log.dropped": _dropped,
    **dict.fromkeys(("worker.exited", "cache.exited", "master.exited"), _exited),
}


def _of(event: Event, *, before: str = ", ") -> str:
    return f"{before}{event['generation']}" if event.get("generation") else ""


def _why(event: Event) -> str:
    told = (event.get("reason"), event.get("detail"))
    return "".join(f": {one}" for one in told if one not in (None, ""))


def _rest(event: Event, *, but: frozenset[str] | set[str] = frozenset()) -> str:
    fields = [
        f"{name}={_listed(value)[:_FIELD]}"
        for name, value in event.items()
        if name not in _COMMON and name not in but and value not in (None, "", [], ())
    ]
    return f" ({', '.join(fields)})" if fields else ""


def _loud(word: object) -> str:
    return _LOUD.get(str(word), str(word))


def _seconds(spent: object) -> str:
    return f"{spent:.2f} s" if isinstance(spent, int | float) else str(spent)
