"""The `env` and `load_module` directives of a configuration, read without nginx.

`env` says what an nginx gets in its environment, so it has to be known before it is run for the
first time: it may need one of the variables to run at all (LD_LIBRARY_PATH). And an nginx cannot be
asked for its modules where their files were replaced under it: it would open the new ones. Only the
main context has these directives, and what it includes. What cannot be read or understood is left
out here: nginx itself says what is wrong with it, and its own dump has the last word.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path

from supervisor.core.nginx_syntax import Directive, parse
from supervisor.edges.files import read_regular

_LARGEST = 16 * 2**20


def env_directives(config: Path) -> tuple[str, ...]:
    """`NAME` or `NAME=value` of each `env`, in nginx's order. Blocks on the disk, never raises."""
    return tuple(_of_file(config, config.parent, name="env", seen=set()))


def module_directives(config: Path) -> tuple[str, ...]:
    """What each `load_module` names, as written. Blocks on the disk, never raises."""
    return tuple(_of_file(config, config.parent, name="load_module", seen=set()))


def _of_file(path: Path, folder: Path, *, name: str, seen: set[Path]) -> Iterator[str]:
    """Each file once, though files may include one another: nothing is gained by a second time."""
    if path in seen:
        return
    seen.add(path)
    try:
        text = read_regular(path.resolve(), limit=_LARGEST).decode("utf-8", "surrogateescape")
    except (OSError, RuntimeError):  # a RuntimeError is a loop of links, up to Python 3.12
        return
    for directive in parse(text)[0]:
        if directive.block is not None or len(directive.arguments) != 1:
            continue
        if directive.name == name:
            yield directive.arguments[0]
        elif directive.name == "include":
            for included in _included(directive, folder):
                yield from _of_file(included, folder, name=name, seen=seen)


def _included(directive: Directive, folder: Path) -> list[Path]:
    """As nginx resolves it: against the folder of the first file, sorted (ngx_conf_include)."""
    return [Path(path) for path in sorted(glob.glob(str(folder / directive.arguments[0])))]
