"""Signals, the memory of them, and how the triggers are asked."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from supervisor.core import seen as seen_module
from supervisor.core.seen import ENDS, LINES, SAMPLES, Seen
from supervisor.core.signals import (
    LogLine,
    ProcessEnded,
    ProcessKind,
    Progress,
    Queue,
    Severity,
    Signal,
    Usage,
)
from supervisor.core.trigger_settings import TriggerSettings
from supervisor.core.triggers import Case, Rule, Trigger, weigh

OLD, NEW = 1, 2
LINE = LogLine(generation=NEW, pid=7, level=Severity.ALERT, text="a line", at=10.0)
END = ProcessEnded(
    generation=NEW, pid=7, kind=ProcessKind.WORKER, code=None, signal=9, draining=False, at=11.0
)
USAGE = Usage(
    generation=NEW, pid=7, kind=ProcessKind.CACHE, age=1.0, memory=None, descriptors=3, cpu=0.5,
    at=12.0,
)  # fmt: skip
PROGRESS = Progress(
    generation=NEW, pid=7, kind=ProcessKind.MASTER, age=1.0, state="S", place="sigsuspend",
    awake=0.5, calls=3, turns=4, at=12.0,
)  # fmt: skip
QUEUE = Queue(generation=NEW, address="127.0.0.1:80", waiting=1, limit=511, at=13.0)


def remembering(*signals: Signal) -> Seen:
    seen = Seen()
    for one in signals:
        seen.add(one)
    return seen


def test_each_kind_is_remembered_by_what_it_speaks_of() -> None:
    seen = remembering(LINE, END, USAGE, PROGRESS, QUEUE)
    assert seen.lines(NEW) == {"a line": (LINE,)}
    assert seen.ends(NEW) == (END,)
    assert seen.usage(NEW) == {7: [USAGE]}
    assert seen.progress(NEW) == {7: [PROGRESS]}
    assert seen.queues(NEW) == {("127.0.0.1:80", 0): [QUEUE]}
    assert not seen.lines(OLD)
    assert not seen.ends(OLD)
    assert not seen.usage(OLD)
    assert not seen.queues(OLD)


def test_what_a_process_used_when_it_was_young_is_kept_beside_the_newest() -> None:
    ages = [0.5, 1.0, 1.5, 2.1, 4.0, 31.0, 32.0, *range(40, 40 + SAMPLES), 700.0]
    several = [replace(USAGE, age=float(age), at=float(age)) for age in ages]
    seen = remembering(*several)
    expected = [1.0, 2.1, 31.0, 60.0, 700.0]
    assert [one.age for one in seen.ages(NEW)[7]] == expected
    assert len(seen.usage(NEW)[7]) == SAMPLES
    again = Seen.from_data(seen.to_data(now=0.0), now=0.0)
    assert again.ages(NEW) == seen.ages(NEW)
    assert again.usage(NEW) == seen.usage(NEW)
    seen.keep_only({OLD})
    assert not seen.ages(NEW)


def test_a_line_that_is_nobodys_is_forgotten() -> None:
    line = LogLine(generation=None, pid=1, level=Severity.EMERG, text="who", at=0.0)
    assert remembering(line).to_data(now=0.0) == []


def test_what_is_gone_is_forgotten() -> None:
    seen = remembering(LINE, END, USAGE, PROGRESS, QUEUE)
    seen.keep_only({NEW})
    assert len(seen.to_data(now=20.0)) == 5
    seen.keep_only({OLD})
    assert seen.to_data(now=20.0) == []


def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen()
    for _ in range(2 * max(LINES, ENDS, SAMPLES)):
        for one in (LINE, END, USAGE, PROGRESS, QUEUE):
            seen.add(one)
    assert len(seen.lines(NEW)["a line"]) == LINES
    assert len(seen.ends(NEW)) == ENDS
    assert len(seen.usage(NEW)[7]) == len(seen.queues(NEW)["127.0.0.1:80", 0]) == SAMPLES
    monkeypatch.setattr(seen_module, "SUBJECTS", 2)
    for generation in range(5):
        seen.add(replace(END, generation=generation))
    assert [bool(seen.ends(one)) for one in range(5)] == [False, False, False, True, True]


def test_it_goes_over_to_another_program_with_its_own_clock() -> None:
    data = json.loads(json.dumps(remembering(LINE, END, USAGE, PROGRESS, QUEUE).to_data(now=20.0)))
    there = Seen.from_data(data, now=1020.0)
    (line,) = there.lines(NEW)["a line"]
    assert line == LogLine(generation=NEW, pid=7, level=Severity.ALERT, text="a line", at=1010.0)
    assert there.ends(NEW)[0].kind is ProcessKind.WORKER
    assert there.usage(NEW)[7][0].at == 1012.0
    assert there.queues(NEW)["127.0.0.1:80", 0][0].limit == 511


def case() -> Case:
    return Case(candidate=NEW, reference=OLD, seen=remembering(LINE), alone=True, at=20.0)


def fires(on: Case, _settings: TriggerSettings) -> Trigger | None:
    return Trigger(reason="said", detail=on.seen.lines(on.candidate)["a line"][0].text)


def silent(_case: Case, _settings: TriggerSettings) -> Trigger | None:
    return None


def test_the_first_trigger_that_fires_counts() -> None:
    rules = (Rule((LogLine,), silent), Rule((LogLine,), fires))
    found = weigh(case(), TriggerSettings(), rules=rules)
    assert found == Trigger(reason="said", detail="a line")
    assert weigh(case(), TriggerSettings(), rules=rules[:1]) is None


def test_only_those_that_look_at_the_news_are_asked() -> None:
    rules = (Rule((LogLine,), fires),)
    assert weigh(case(), TriggerSettings(), news=Queue, rules=rules) is None
    assert weigh(case(), TriggerSettings(), news=LogLine, rules=rules) is not None
