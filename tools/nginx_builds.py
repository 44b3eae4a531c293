"""The nginx builds and bad candidates, for the tests and the demo.

    for old, new in ascending_pairs():
        bad = candidate(new, "status_500", where="inherited", delay_ms=500)

Importing it builds nothing; `make nginx` does.
"""

from __future__ import annotations

import sys
from functools import cache
from itertools import combinations

from tools.build_nginx import finished_slots
from tools.given_builds import check_given
from tools.nginx_cache import (
    FEATURES,
    FILES,
    MARKER_MODULE,
    SINCE,
    Build,
    BuildsError,
    builds_folder,
    cache_folder,
    given_builds_folder,
    lacks,
    shown_by,
)
from tools.nginx_candidates import COMPILED, KINDS, MADE, candidate

__all__ = [
    "COMPILED",
    "FEATURES",
    "FILES",
    "KINDS",
    "MADE",
    "MARKER_MODULE",
    "SINCE",
    "Build",
    "BuildsError",
    "ascending_pairs",
    "builds",
    "builds_folder",
    "cache_folder",
    "candidate",
    "lacks",
    "shown_by",
]


@cache
def builds() -> tuple[Build, ...]:
    """All nginx builds in ascending order. Raises BuildsError if `make nginx` has not made them."""
    given = given_builds_folder()
    if given is not None:
        return tuple(check_given(given))
    folder = builds_folder()
    found = tuple(sorted(finished_slots(folder).values())) if folder.is_dir() else ()
    if len(found) < 2:
        raise BuildsError(f"cannot find two nginx builds in {folder}: run `make nginx`")
    return found


def ascending_pairs() -> tuple[tuple[Build, Build], ...]:
    """Every (older, newer) pair."""
    return tuple(combinations(builds(), 2))


if __name__ == "__main__":
    for each in builds():
        missing = [name for name in (*FEATURES, *FILES) if lacks(each, name)]
        sys.stdout.write(f"{each.version} {each.path} lacks: {', '.join(missing) or 'nothing'}\n")
