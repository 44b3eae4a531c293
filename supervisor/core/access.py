"""Who may do what: roles, and the users and groups of the configuration that have them.

A role contains the ones below it. It follows from the ids that the kernel gives for the caller,
never from anything that the caller says: the highest of what its uid has and what any of its
groups has. Root, and the user that the supervisor runs as, are admins at least, whatever the
configuration says: both can do as much without the socket.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum

ROOT_UID = 0
NO_ID = 2**32 - 1
"""(uid_t) -1, which is nobody's (chown(2)); larger ones do not exist."""

_NUMBER = re.compile(r"[0-9]{1,10}", re.ASCII)


class Role(IntEnum):
    """What a caller may do; compares by how much that is."""

    NOBODY = 0
    VIEWER = 1  # looks
    OPERATOR = 2  # does what brings no new program onto the host and stops nothing
    ADMIN = 3  # everything but one thing, and so is root on the host: it names files that root runs
    ROOT = 4  # uid 0 alone, whatever the configuration says

    @property
    def word(self) -> str:
        """As the configuration and messages name it."""
        return self.name.lower()


class Kind(Enum):
    """What a name in the configuration is the name of."""

    USER = "user"
    GROUP = "group"


@dataclass(frozen=True, slots=True)
class Who:
    """A user or a group, by name or by number."""

    kind: Kind
    name: str

    def __str__(self) -> str:
        return f"{self.kind.value}:{self.name}"

    @property
    def number(self) -> int | None:
        """The id, where it is given as one and nobody has to be asked for it."""
        return int(self.name) if _NUMBER.fullmatch(self.name) else None


def parse_who(text: str) -> Who:
    """`user:NAME` or `group:NAME`. Raises ValueError, which says what is wrong."""
    kind, colon, name = text.partition(":")
    if not colon or kind not in {one.value for one in Kind}:
        raise ValueError(f'{text!r} is neither "user:NAME" nor "group:NAME"')
    return who_named(Kind(kind), name)


def who_named(kind: Kind, name: str) -> Who:
    """The user or group with this name or number. Raises ValueError, which says what is wrong."""
    who = Who(kind, name)
    beyond = who.number is not None and who.number >= NO_ID
    if beyond or not name or name != name.strip() or ":" in name:
        raise ValueError(f"{name!r} is not the name of a {kind.value}")
    return who


@dataclass(frozen=True, slots=True)
class Grants:
    """Roles by uid and by gid."""

    users: Mapping[int, Role] = field(default_factory=dict)
    groups: Mapping[int, Role] = field(default_factory=dict)

    def role_of(self, uid: int, gids: Iterable[int]) -> Role:
        """The highest role that the user or one of the groups has."""
        roles = [self.users.get(uid, Role.NOBODY)]
        roles += [self.groups.get(gid, Role.NOBODY) for gid in gids]
        return max(roles)


def grants_of(
    roles: Mapping[Role, Iterable[Who]], ids: Mapping[Who, int], *, own_uid: int
) -> Grants:
    """The grants of a configuration; who has no id in `ids` is left out and so gets nothing."""
    users: dict[int, Role] = {}
    groups: dict[int, Role] = {}
    for role in sorted(roles):  # a higher one replaces a lower one
        for who in roles[role]:
            if who in ids:
                (users if who.kind is Kind.USER else groups)[ids[who]] = role
    return Grants({**users, own_uid: Role.ADMIN, ROOT_UID: Role.ROOT}, groups)
