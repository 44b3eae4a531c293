"""What condemns a candidate although no probe failed: each trigger is one pure function.

A trigger looks at what was seen (`Seen`) of the candidate and of the generation before it, and says
why the candidate must not stay, or nothing. What the generation before it did as well is no reason:
that is the site, or the host. A new kind of evidence (as a comparison of what users get from the
two generations) is a signal, and one more row of `TRIGGERS`.

None of them may fire on a healthy upgrade, also on a host that is overloaded. Each has its settings
(`[triggers]`), with which it can be switched off.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from supervisor.core.case import Case as Case
from supervisor.core.case import Trigger as Trigger
from supervisor.core.error_log_rules import condemning
from supervisor.core.growth_rules import descriptors_grow, memory_grows
from supervisor.core.process_rules import cache_manager_died, workers_lost
from supervisor.core.progress_rules import (
    candidate_deaf,
    master_burns_cpu,
    worker_spinning,
    worker_stalled,
)
from supervisor.core.queue_rule import accept_queue_stalled
from supervisor.core.seen import BEFORE
from supervisor.core.signals import LogLine, ProcessEnded, Progress, Queue, Signal, Usage
from supervisor.core.trigger_settings import TriggerSettings
from supervisor.core.usage_settings import UsageSettings


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table: which signals it looks at, and the function."""

    concerns: tuple[type[Signal], ...]
    look: Callable[[Case, TriggerSettings], Trigger | None]


def error_log(case: Case, settings: TriggerSettings) -> Trigger | None:
    """Lines at `emerg`, `alert` or `crit` of a kind that was not there before."""
    known = set(case.seen.lines(BEFORE))
    if case.reference is not None:
        known |= set(case.seen.lines(case.reference))
    line = condemning(
        case.seen.lines(case.candidate), known, settings.error_log_lines, settings.error_log_ignore
    )
    if line is None:
        return None
    where = f" into {line.log}" if line.log else ""
    detail = (
        f"process {line.pid} of the candidate g{case.candidate} wrote{where} "
        f"[{line.level.name.lower()}] {line.text}; nobody wrote such a line before"
    )
    return Trigger(reason="error_log", detail=detail)


def _of_usage(
    rule: Callable[[Case, UsageSettings], Trigger | None],
) -> Callable[[Case, TriggerSettings], Trigger | None]:
    return lambda case, settings: rule(case, settings.usage)


TRIGGERS: tuple[Rule, ...] = (
    Rule((LogLine,), error_log),
    Rule((Usage,), _of_usage(memory_grows)),
    Rule((Usage,), _of_usage(descriptors_grow)),
    Rule((Progress,), _of_usage(master_burns_cpu)),
    Rule((Progress,), _of_usage(candidate_deaf)),
    Rule((Progress,), _of_usage(worker_stalled)),
    Rule((Progress,), _of_usage(worker_spinning)),
    Rule((Queue,), _of_usage(accept_queue_stalled)),
    Rule((ProcessEnded,), _of_usage(cache_manager_died)),
    Rule((ProcessEnded, Usage), _of_usage(workers_lost)),
)


def weigh(
    case: Case,
    settings: TriggerSettings,
    *,
    news: type[Signal] | None = None,
    rules: tuple[Rule, ...] = TRIGGERS,
) -> Trigger | None:
    """The first trigger that fires; `news` asks only those that look at that kind of signal."""
    for rule in rules:
        if news is None or news in rule.concerns:
            found = rule.look(case, settings)
            if found is not None:
                return found
    return None
