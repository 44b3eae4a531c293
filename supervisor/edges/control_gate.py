"""The roles in force, kept apart from the loop that asks for them.

Names of users and groups may come from a directory server, and looking one up may take as long as
that server likes. So it is done in a thread, when the configuration was read; until it is done only
the callers whom its outcome decides about wait, and root, the supervisor's own user, and whoever
is given by number never do. A name that nobody knows gives nothing to anybody: that is said, and
is no reason to leave nginx alone.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterator

import structlog
import trio

from supervisor.core.access import Kind, Role, Who, grants_of
from supervisor.core.settings import ControlSettings
from supervisor.edges.peers import Peer

LOOK_UP_TIMEOUT = 5.0
"""Seconds that a caller waits for a look-up that is under way."""

_OTHERS_CONNECT = stat.S_IWGRP | stat.S_IWOTH  # connect(2) asks for write permission (unix(7))

_log = structlog.get_logger()


class Gate:
    """Tells a caller's role: asked by the control socket, told by whoever reads the configuration.

    What is given by number is in force from the construction on, names are from `take` on.
    """

    def __init__(self, control: ControlSettings, *, own_uid: int) -> None:
        self._own_uid = own_uid
        self._settled = trio.Event()
        self._put(control)

    def role_now(self, peer: Peer) -> Role:
        """The role by what is known at this moment."""
        return self._grants.role_of(peer.uid, (peer.gid, *peer.groups))

    async def role_of(self, peer: Peer, needed: Role) -> Role:
        """The role; where it is below `needed`, names that are being looked up are waited for.

        For `LOOK_UP_TIMEOUT` at most, and then the role is what it is without them.
        """
        if self.role_now(peer) < needed and not self._settled.is_set():
            with trio.move_on_after(LOOK_UP_TIMEOUT):
                await self._settled.wait()
        return self.role_now(peer)

    async def take(self, control: ControlSettings) -> None:
        """Put the roles of `control` in force, and the mode and group of its socket's file.

        Who had a role and has none in `control` loses it at once. Cancelling leaves the thread
        that looks names up to itself; of two that overlap the later one counts.
        """
        self._put(control)
        ids = await trio.to_thread.run_sync(look_up, control, abandon_on_cancel=True)
        if control is not self._control:
            return
        self._put(control, ids)
        for setting, who in _named(control):
            if who not in ids:
                _log.warning(
                    "control.name_unknown",
                    setting=setting,
                    name=str(who),
                    detail=f"{unknown(setting, who)}; SIGHUP looks again",
                )
        open_socket(control, ids)

    def _put(self, control: ControlSettings, looked_up: dict[Who, int] | None = None) -> None:
        waited_for = [who for _, who in _named(control) if who.number is None]
        if looked_up is None and waited_for:
            if self._settled.is_set():
                self._settled = trio.Event()
        else:
            self._settled.set()
        numbers = {who: who.number for _, who in _named(control) if who.number is not None}
        ids = {**numbers, **(looked_up or {})}
        self._control = control
        self._grants = grants_of(control.roles, ids, own_uid=self._own_uid)


def look_up(control: ControlSettings) -> dict[Who, int]:
    """The ids of all users and groups in `control` that exist. Blocks, perhaps for long."""
    found: dict[Who, int] = {}
    for who in {who for _, who in _named(control)}:
        number = who.number
        try:
            if number is not None:
                found[who] = number
            elif who.kind is Kind.USER:
                found[who] = pwd.getpwnam(who.name).pw_uid
            else:
                found[who] = grp.getgrnam(who.name).gr_gid
        except (KeyError, ValueError, OSError):  # ValueError: no name at all, such as a surrogate
            continue
    return found


def notes_on(control: ControlSettings) -> list[str]:
    """What a person should know about who may connect and who has which role. Blocks."""
    ids = look_up(control)
    notes = [unknown(setting, who) for setting, who in _named(control) if who not in ids]
    return notes + ([closed] if (closed := _closed_to_roles(control)) else [])


def unknown(setting: str, who: Who) -> str:
    """What is wrong with a name that nobody knows, and what that means."""
    meaning = "the socket's file keeps its group" if setting == "group" else "nobody gets a role"
    return (
        f"cannot find the {who.kind.value} {who.name!r} of {setting} in [control]: "
        f"{meaning} by it; correct the name"
    )


def open_socket(control: ControlSettings, ids: dict[Who, int]) -> None:
    """Give the socket's file its mode and group; where that is refused, say so and go on."""
    if closed := _closed_to_roles(control):
        _log.warning("control.closed_to_roles", detail=closed)
    gid = os.getegid() if control.group is None else ids.get(control.group, os.getegid())
    try:
        found = os.lstat(control.socket)
        if not stat.S_ISSOCK(found.st_mode):
            return  # somebody else's by now
        if found.st_gid != gid:
            os.chown(control.socket, -1, gid, follow_symlinks=False)
        if stat.S_IMODE(found.st_mode) != control.mode:
            os.chmod(control.socket, control.mode)
    except OSError as exc:
        _log.warning(
            "control.socket_access",
            path=control.socket,
            detail=f"cannot give the control socket {control.socket!r} the group {gid} and the "
            f"mode {control.mode:04o}: {exc.strerror}; only root can give it to a group that the "
            "supervisor is not in",
        )


def _closed_to_roles(control: ControlSettings) -> str | None:
    if not any(control.roles.values()) or control.mode & _OTHERS_CONNECT:
        return None
    return (
        f"roles are given in [control], and mode {control.mode:04o} lets nobody else connect to "
        'the socket: set mode = "0660" and group, or mode = "0666" (the roles decide then)'
    )


def _named(control: ControlSettings) -> Iterator[tuple[str, Who]]:
    for role, whos in control.roles.items():
        yield from ((f"{role.word}s", who) for who in whos)
    if control.group is not None:
        yield "group", control.group
