"""Which tests a build of NGINX_BUILDS is not enough for.

A test says what it needs of its builds, and is left out, listed and counted where one of them
lacks it:

    @pytest.mark.needs("marker")

The words are those of `tools.nginx_cache.lacks`. The builds are the test's own parameters; a test
that has none of them in its parameters uses the oldest and the newest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pytest

from tools.nginx_builds import Build, builds, lacks, shown_by

MARKER = "needs(feature, ...): left out, and listed, where a build of the test lacks the feature"
PROPERTY = "lacks"
"""Where a report carries what is missing, through pytest-xdist too."""


def leave_out_what_lacks_something(item: pytest.Item) -> None:
    """Skips the test where one of its builds lacks what it needs, and notes that in its report."""
    needed = [feature for mark in item.iter_markers("needs") for feature in mark.args]
    missing = missing_features(needed, builds_of(item)) if needed else ""
    if missing:
        item.user_properties.append((PROPERTY, missing))
        pytest.skip(missing)


def builds_of(item: pytest.Item) -> tuple[Build, ...]:
    """The builds among the parameters of a test, else the oldest and the newest."""
    callspec = getattr(item, "callspec", None)
    given = callspec.params.values() if callspec is not None else ()
    return tuple(_builds_in(given)) or (builds()[0], builds()[-1])


def _builds_in(values: Iterable[object]) -> Iterator[Build]:
    for value in values:
        if isinstance(value, Build):
            yield value
        elif isinstance(value, tuple):
            yield from _builds_in(value)


def missing_features(needed: Iterable[str], among: Sequence[Build]) -> str:
    """What is missing in which builds, in words; empty where they have everything."""
    without = {feature: [str(one) for one in among if lacks(one, feature)] for feature in needed}
    return "; ".join(
        f"no {' or '.join(shown_by(feature))} in nginx {', '.join(versions)}"
        for feature, versions in without.items()
        if versions
    )


def summarize(reporter: pytest.TerminalReporter) -> None:
    """The list by name and count; tests that were skipped otherwise are named apart."""
    if reporter.config.option.collectonly:
        return
    skipped = reporter.stats.get("skipped", [])
    missing = [dict(one.user_properties).get(PROPERTY) for one in skipped]
    lacking = [(one, said) for one, said in zip(skipped, missing, strict=True) if said]
    others = [one for one, said in zip(skipped, missing, strict=True) if not said]
    reporter.write_sep("=", "tests that need a feature which a build lacks")
    reporter.write_line(f"{len(lacking)} of them" if lacking else "none")
    for one, said in lacking:
        reporter.write_line(f"  {one.nodeid}: {said}")
    if others:
        reporter.write_sep("=", "tests that were skipped for another reason")
        reporter.write_line(f"{len(others)} of them")
    for one in others:
        said = one.longrepr[2] if isinstance(one.longrepr, tuple) else one.longrepr
        reporter.write_line(f"  {one.nodeid}: {said}")
