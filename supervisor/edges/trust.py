"""Can anybody but root (or this instance's own user) change what a path leads to?

A binary is run with nginx's rights, so whoever can replace it, or rename one of its folders, has
those rights too. Each component is looked at by itself, symlinks as well: the owner must be
trusted, and nobody else may write. A sticky folder that all can write to (/tmp) keeps others from
renaming what is not theirs, so it is fine when the next component belongs to somebody trusted.
Access control lists show in the group bits of the mode (acl(5)), so they are covered.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from pathlib import Path

from supervisor.core.errors import Refusal

_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_MOST_LINKS = 40  # the kernel's own limit, path_resolution(7)


def trusted_path(path: Path, uid: int) -> Path:
    """The real path of the file, of which each component only root or `uid` can change.

    Open what is returned, not `path`: that is what was looked at. Raises Refusal `relative_path`,
    `binary_missing`, `binary_unreadable`, or `binary_not_trusted` naming the component and the
    remedy.
    """
    if not path.is_absolute():
        raise Refusal(
            "relative_path", f"cannot use the binary {path}: the path must begin with a slash"
        )
    trusted = frozenset({0, uid})
    real = Path("/")
    entering = _look(real, path)
    rest = deque(path.parts[1:])
    links = 0
    _check(real, entering, trusted, path, parent=None)
    while rest:
        name = rest.popleft()
        if name == "..":
            real = real.parent
            entering = _look(real, path)
            continue
        parent, real = entering, real / name
        entering = _look(real, path)
        _check(real, entering, trusted, path, parent=parent)
        if stat.S_ISLNK(entering.st_mode):
            links += 1
            if links > _MOST_LINKS:
                raise Refusal("binary_missing", f"cannot use the binary {path}: too many links")
            target = Path(os.readlink(real))
            real = Path("/") if target.is_absolute() else real.parent
            rest.extendleft(reversed([part for part in target.parts if part != "/"]))
            entering = _look(real, path)
    return real


def _look(component: Path, path: Path) -> os.stat_result:
    try:
        return component.lstat()
    except (FileNotFoundError, NotADirectoryError) as exc:
        where = "" if component == path else f" ({component})"
        raise Refusal(
            "binary_missing", f"cannot use the binary {path}: there is no such file{where}"
        ) from exc
    except OSError as exc:
        raise Refusal(
            "binary_unreadable",
            f"cannot use the binary {path}: {component}: {exc.strerror}; give the supervisor"
            " the right to read it",
        ) from exc


def _check(
    component: Path,
    found: os.stat_result,
    trusted: frozenset[int],
    path: Path,
    *,
    parent: os.stat_result | None,
) -> None:
    mode = stat.S_IMODE(found.st_mode)
    wrong = remedy = ""
    owners = "root" if trusted == {0} else f"root or uid {max(trusted)}"
    if found.st_uid not in trusted:
        wrong = f"{component} belongs to uid {found.st_uid} (mode {mode:04o})"
        remedy = f"chown {max(trusted)} {component}"
        if parent is not None and parent.st_mode & stat.S_IWOTH:
            remedy = "copy it to a folder of your own first"
    elif mode & _WRITABLE_BY_OTHERS and not _is_safe_though_writable(found):
        wrong = f"{component} can be written to by others (uid {found.st_uid}, mode {mode:04o})"
        remedy = f"chmod go-w {component}"
    if wrong:
        raise Refusal(
            "binary_not_trusted",
            f"cannot trust the binary {path}: {wrong}, and only {owners} may be able to change it;"
            f" {remedy}, or upgrade with --trust as root",
        )


def _is_safe_though_writable(found: os.stat_result) -> bool:
    """A link's mode means nothing, and in a sticky folder only the owner of a name can change it.

    (The owner of the next component is checked in its turn.)
    """
    is_sticky_folder = stat.S_ISDIR(found.st_mode) and bool(found.st_mode & stat.S_ISVTX)
    return is_sticky_folder or stat.S_ISLNK(found.st_mode)
