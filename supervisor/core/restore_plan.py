"""Which files of a configuration have to change so that the previous one is on disk again.

Theory
------
Three states of each file: as the previous configuration read it, as the new one did, and as it is
now. A file that is as the new configuration read it is ours to put back. One that is neither as the
old nor as the new one was changed by somebody since: nothing is overwritten then, and nothing else
is put back either, since half of a configuration is none.

A file that only the new configuration reads stays where it is, unless a pattern of the previous one
(`include conf.d/*.conf`) would read it: that is moved aside. Patterns are looked for at every depth
of the previous configuration, and matched as nginx does (glob(3)).
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from supervisor.core.nginx_syntax import Directive, parse

_GLOB = re.compile(r"[*?\[]")  # what makes ngx_conf_include() look for several files


@dataclass(frozen=True, slots=True, kw_only=True)
class RestorePlan:
    """What to do, path by path."""

    put: tuple[str, ...] = ()  # get their previous content
    aside: tuple[str, ...] = ()  # are moved away
    changed: tuple[str, ...] = ()  # were changed by somebody since: nothing may be done


def plan_restore(
    *,
    old: Mapping[str, str],
    new: Mapping[str, str],
    found: Mapping[str, str],
    patterns: Iterable[str],
) -> RestorePlan:
    """The plan; each mapping has the hash of a file's content by path, without missing files."""
    put, aside, changed = [], [], []
    wanted = tuple(patterns)
    for path in sorted(old.keys() | new.keys()):
        before, loaded, now = old.get(path), new.get(path), found.get(path)
        if now == before:
            continue
        if before is None and not any(_matches(path, one) for one in wanted):
            continue
        if now != loaded:
            changed.append(path)
        elif before is None:
            aside.append(path)
        else:
            put.append(path)
    if changed:
        return RestorePlan(changed=tuple(changed))
    return RestorePlan(put=tuple(put), aside=tuple(aside))


def include_patterns(files: Mapping[str, str], *, main: str) -> frozenset[str]:
    """Every pattern that the configuration in `files` (text by path) includes; absolute.

    nginx takes a relative one against the folder of the `main` file (ngx_conf_full_name).
    """
    folder = posixpath.dirname(main)
    found = set()
    for text in files.values():
        directives, _ = parse(text)
        for one in _everything(directives):
            if one.name == "include" and len(one.arguments) == 1 and _GLOB.search(one.arguments[0]):
                found.add(posixpath.join(folder, one.arguments[0]))
    return frozenset(found)


def _everything(directives: Iterable[Directive]) -> Iterator[Directive]:
    for one in directives:
        yield one
        if one.block is not None:
            yield from _everything(one.block)


def _matches(path: str, pattern: str) -> bool:
    names, patterns = path.split("/"), pattern.split("/")
    return len(names) == len(patterns) and all(
        fnmatchcase(name, wanted) and not (name.startswith(".") and not wanted.startswith("."))
        for name, wanted in zip(names, patterns, strict=True)
    )
