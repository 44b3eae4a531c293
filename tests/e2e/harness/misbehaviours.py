"""Runs the thirty misbehaviours and writes the table: `make misbehaviours`.

    python -m tests.e2e.harness.misbehaviours [--rounds 3] [--core] [--print] [NAME ...]

Each is run so often, one after the other, from the oldest to the newest version; the healthy
candidate too, under the name `none`. The page is docs/misbehaviours.md; `--print` shows it instead,
and so do names, which leave out all others. `--core` gives the site only those probes that there
were when the list was written: with a supervisor of that time it tells whether `passes_core` is
right.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tests.e2e.harness.misbehaving import (
    LONG,
    Misbehaviour,
    Outcome,
    Probes,
    Windows,
    listed,
    run,
)
from tools.nginx_builds import builds
from tools.nginx_cache import Build

PAGE = Path(__file__).resolve().parents[3] / "docs" / "misbehaviours.md"
HEALTHY = "none"
MOST_TEXT = 200

NOT_CAUGHT: Mapping[str, str] = {
    "master_ignores_signals": (
        "a master without handlers for these signals is found in /proc (`candidate_deaf`); this "
        "one has them, and they do nothing. That shows only when it is told to leave, which is "
        "when the next one is to follow it, and QUIT or WINCH as a test would end what they test. "
        "The next upgrade works: this master obeys USR2, and is ended by TERM, then KILL, after "
        "`drain_timeout`"
    ),
    "unprobed_location_fails": (
        "the answers of one location are known to its users alone; nginx writes a line of the "
        "level `error` for each, as it does for every visitor of a missing page. A probe of that "
        "location catches it. Comparing what users get from both generations would, and is not "
        "there yet"
    ),
}
"""Why, for those that are known to get through."""


def main(arguments: Sequence[str]) -> int:
    """Run, and write or print; the exit status is 1 where a run left something in disorder."""
    parser = argparse.ArgumentParser(description="the thirty misbehaviours, on real nginx")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--core", action="store_true", help="only the probes of the first core")
    parser.add_argument("--print", action="store_true", help="print the page, do not write it")
    parser.add_argument("names", nargs="*", metavar="NAME")
    options = parser.parse_args(arguments)
    probes = Probes.CORE if options.core else Probes.ALL
    entries = {one.name: one for one in listed()}
    chosen = options.names or [*entries, HEALTHY]
    old, new = builds()[0], builds()[-1]

    outcomes: dict[str, list[Outcome]] = {name: [] for name in chosen}
    broken: list[str] = []
    for number in range(options.rounds):
        for name in chosen:
            began = time.monotonic()
            try:
                outcome = run(name, old, new, LONG, probes)
            # Whatever went wrong is told at the end, and the others are run all the same.
            except Exception as exc:  # noqa: BLE001
                broken.append(f"{name}: {exc!r}")
                notes = "\n".join(getattr(exc, "__notes__", ()))
                print(f"{name}: BROKEN {exc!r}\n{notes[-6000:]}", file=sys.stderr, flush=True)
                continue
            outcomes[name].append(outcome)
            took = time.monotonic() - began
            print(f"{number + 1} {took:.1f} s {outcome}", file=sys.stderr, flush=True)

    text = page([entries[name] for name in chosen if name in entries], outcomes, LONG, old, new)
    if options.print or options.names or options.core:
        print(text)
    elif not broken:
        PAGE.write_text(text, encoding="utf-8")
    for line in broken:
        print(line, file=sys.stderr)
    return 1 if broken else 0


# --- the page


def page(
    entries: Sequence[Misbehaviour],
    outcomes: Mapping[str, Sequence[Outcome]],
    windows: Windows,
    old: Build,
    new: Build,
) -> str:
    """The page, in Markdown."""
    caught = [one for one in entries if _all_caught(outcomes[one.name])]
    missed = [one for one in entries if one not in caught]
    rounds = max((len(outcomes[one.name]) for one in entries), default=0)
    lines = [
        "# Thirty misbehaviours",
        "",
        "What happens to an upgrade whose new nginx goes wrong. Each row is a real nginx that",
        "really does it (`tests/nginx`), written down in `tests/e2e/misbehaviours.toml` before",
        "anything was built to notice it. `make misbehaviours` runs them all and writes this page.",
        "",
        f"Every upgrade is from {old.version} to a candidate made of {new.version}, of a site with",
        "eight workers, a second port that no probe asks, https with HTTP/2, a proxy cache and a",
        "redirect, while three users ask for all of it, some 70 requests a second, on two cores",
        "that others use as well. The phases are shorter than in production:",
        f"{windows}.",
        "The triggers are the defaults, and the probes are four: a page with its status, body and",
        "time (`max_latency` 250 ms), the redirect with its place, and https with verification,",
        "over HTTP/1.1 and over HTTP/2.",
        "",
        "- *caught by*: the reason of the verdict, with the evidence in the supervisor's own words",
        "  (numbers differ from run to run)",
        "- *in*: the phase in which that was",
        "- *back after*: from the candidate's first bad act, which it notes itself, to the old",
        "  generation serving again: before the shift, when it had never stopped to, to the end of",
        "  the candidate's master; after it, to its first good answer. The median of "
        f"{rounds} runs",
        "- *failed*: requests of the users that failed, of all that they made, in the worst run,",
        "  which goes on for a moment after the verdict",
        "- *core*: whether it got through all that judged a candidate when the list was written",
        "",
        f"**{len(caught)} of {len(entries)} are caught**, in each of {rounds} runs.",
        "",
        "| misbehaviour | what it does | core | caught by | in | back after | failed |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [_row(one, outcomes[one.name]) for one in entries]
    lines += ["", *_missed(missed), *_healthy(outcomes.get(HEALTHY, ()))]
    return "\n".join(lines).rstrip() + "\n"


def _all_caught(outcomes: Sequence[Outcome]) -> bool:
    return bool(outcomes) and all(one.caught for one in outcomes)


def _row(entry: Misbehaviour, outcomes: Sequence[Outcome]) -> str:
    core = "committed" if entry.passes_core else "caught"
    cells = [f"`{entry.name}`", entry.what, core, "", "", "", _failed(outcomes)]
    caught = [one for one in outcomes if one.caught]
    if caught and len(caught) == len(outcomes):
        by = Counter((one.reason, _tidy(one.detail)) for one in caught)
        (_, detail), _ = by.most_common(1)[0]
        reasons = ", ".join(f"`{reason}`" for reason in _words(one.reason for one in caught))
        back = [one.back for one in caught if one.back is not None]
        cells[3] = f"{reasons}: {detail}"
        cells[4] = ", ".join(_words(one.phase for one in caught))
        cells[5] = f"{statistics.median(back):.2f} s" if back else "unknown"
    else:
        cells[3] = f"**not caught** ({len(caught)} of {len(outcomes)} runs)"
    return "| " + " | ".join(cells) + " |"


def _failed(outcomes: Sequence[Outcome]) -> str:
    if not outcomes:
        return ""
    worst = max(outcomes, key=lambda one: one.failures)
    return f"{worst.failures} of {worst.requests}"


def _words(words: Iterable[str]) -> list[str]:
    """Each once, the most frequent first."""
    return [word for word, _ in Counter(words).most_common()]


def _tidy(detail: str) -> str:
    text = detail.replace("|", "\\|").replace("\n", " ")
    return text if len(text) <= MOST_TEXT else text[: text.rindex(" ", 0, MOST_TEXT)] + " ..."


def _missed(missed: Sequence[Misbehaviour]) -> list[str]:
    if not missed:
        return []
    lines = ["## Not caught", ""]
    for one in missed:
        why = NOT_CAUGHT.get(one.name, "no trigger and no probe of this site shows it")
        lines.append(f"- `{one.name}` ({one.what}): {why}. Its users would notice: {one.users}.")
    return [*lines, ""]


def _healthy(outcomes: Sequence[Outcome]) -> list[str]:
    if not outcomes:
        return []
    committed = sum(one.verdict == "committed" for one in outcomes)
    failed = sum(one.failures for one in outcomes)
    requests = sum(one.requests for one in outcomes)
    return [
        "## The counterpart",
        "",
        "A healthy candidate of the same version, on the same site with the same settings, was",
        f"committed in {committed} of {len(outcomes)} runs; {failed} of {requests} requests",
        "failed.",
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
