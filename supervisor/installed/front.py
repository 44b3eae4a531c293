"""The files by which nginx.service, and Debian's init script of it, lead to the supervisor.

They are links to what is installed, so that an update of it is one of theirs.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import supervisor

DROP_IN = Path("/etc/systemd/system/nginx.service.d/zz-nginx-supervisor.conf")
OWNER_DROP_IN = Path("/etc/systemd/system/nginx-supervisor.service.d/nginx-service-front.conf")
INIT_FUNCTIONS = Path("/usr/lib/lsb/init-functions.d/50-nginx-supervisor")
_PREFIX = Path(supervisor.__file__).resolve().parents[3]
_SOURCES = _PREFIX / "share" / "nginx-supervisor" / "systemd"


def put_up() -> bool:
    """Link what is installed into its places; False where the installation has no such files.

    Somebody's own file in such a place is left there. Raises OSError; not for the init script's,
    without which only that script does not lead to the supervisor (`lacks_hook`).
    """
    source = _SOURCES / "nginx.service.d" / DROP_IN.name
    if not source.is_file():
        return False
    _link(DROP_IN, source)
    owner = _SOURCES / "nginx-supervisor.service.d" / OWNER_DROP_IN.name
    if owner.is_file():
        _link(OWNER_DROP_IN, owner)
    init = _SOURCES / "init-functions.d" / INIT_FUNCTIONS.name
    if init.is_file() and INIT_FUNCTIONS.parent.is_dir():
        with contextlib.suppress(OSError):  # below /usr, which may be read-only
            _link(INIT_FUNCTIONS, init)
    return True


def can_be() -> bool:
    """Whether the installation has the files for a front."""
    return (_SOURCES / "nginx.service.d" / DROP_IN.name).is_file()


def lacks_hook() -> bool:
    """Whether there are init scripts that do not lead to the supervisor."""
    return INIT_FUNCTIONS.parent.is_dir() and not os.path.lexists(INIT_FUNCTIONS)


def is_up() -> bool:
    """Whether nginx.service is a front, also one of a person's making."""
    return os.path.lexists(DROP_IN)


def take_down() -> None:
    """Remove them, whoever made them. Raises OSError where nginx.service stays a front."""
    for path in (DROP_IN, OWNER_DROP_IN):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        INIT_FUNCTIONS.unlink()
    for path in (DROP_IN, OWNER_DROP_IN):
        with contextlib.suppress(OSError):
            path.parent.rmdir()


def _link(place: Path, source: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if not os.path.lexists(place):
        place.symlink_to(source)
