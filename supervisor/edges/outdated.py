"""What of a generation's program is another file on disk by now: binary, modules, libraries."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from supervisor.edges.mapped_libraries import Outdated, outdated_libraries
from supervisor.edges.placing import sha256_of
from supervisor.edges.stored_version import StoredVersion


def outdated(binary: Path, runs: StoredVersion | None, pids: Iterable[int]) -> tuple[Outdated, ...]:
    """What a start from `binary` would find changed against what `pids` run, the version `runs`.

    Of a version that is not known only the libraries are told. Configuration is none of it: a
    reload applies that. Blocks: it reads whole files. Never raises.
    """
    found: list[Outdated] = []
    modules: Iterable[str] = ()
    if runs is not None:
        modules = runs.modules
        files = [("binary", binary, runs.sha256)]
        files += [("module", Path(path), sha256) for path, sha256 in runs.modules.items()]
        for kind, path, sha256 in files:
            change = _change(path, sha256)
            if change is not None:
                found.append(Outdated(kind=kind, path=str(path), change=change))
    return (*found, *outdated_libraries(pids, but=modules))


def _change(path: Path, sha256: str) -> str | None:
    try:
        return None if sha256_of(path) == sha256 else "replaced"
    except OSError:
        return "replaced" if path.exists() else "deleted"
