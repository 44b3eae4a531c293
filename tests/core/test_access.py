"""Roles: how the configuration names people, and which role follows from the kernel's ids."""

from __future__ import annotations

import pytest

from supervisor.core.access import Grants, Kind, Role, Who, grants_of, parse_who, who_named


@pytest.mark.parametrize(
    ("text", "who", "number"),
    [
        ("user:alice", Who(Kind.USER, "alice"), None),
        ("group:adm", Who(Kind.GROUP, "adm"), None),
        ("user:domain users", Who(Kind.USER, "domain users"), None),
        ("user:0", Who(Kind.USER, "0"), 0),
        ("group:4294967294", Who(Kind.GROUP, "4294967294"), 4294967294),
        ("user:99999999999", Who(Kind.USER, "99999999999"), None),  # a name, if anything
    ],
)
def test_users_and_groups(text: str, who: Who, number: int | None) -> None:
    assert parse_who(text) == who
    assert who.number == number
    assert str(who) == text


@pytest.mark.parametrize("text", ["alice", "", ":", "uid:1000", "User:alice", "group"])
def test_what_is_neither(text: str) -> None:
    with pytest.raises(ValueError, match='is neither "user:NAME" nor "group:NAME"'):
        parse_who(text)


@pytest.mark.parametrize("name", ["", " alice", "alice\n", "group:adm", "4294967295", "9999999999"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a group"):
        who_named(Kind.GROUP, name)
    with pytest.raises(ValueError, match="is not the name of a user"):
        parse_who(f"user:{name}")


def test_the_highest_role_counts_whatever_gives_it() -> None:
    grants = Grants({1000: Role.VIEWER}, {4: Role.OPERATOR, 5: Role.ADMIN})
    assert grants.role_of(1000, []) is Role.VIEWER
    assert grants.role_of(1000, [4]) is Role.OPERATOR
    assert grants.role_of(7, [4, 5, 6]) is Role.ADMIN
    assert grants.role_of(7, [7]) is Role.NOBODY


ALICE, BOB, WEB = Who(Kind.USER, "alice"), Who(Kind.USER, "bob"), Who(Kind.GROUP, "web")
IDS = {ALICE: 1000, WEB: 1000}


def test_grants_of_a_configuration() -> None:
    roles = {Role.ADMIN: [ALICE], Role.VIEWER: [ALICE, BOB, WEB], Role.OPERATOR: [WEB]}
    grants = grants_of(roles, IDS, own_uid=33)
    assert grants.role_of(1000, [1]) is Role.ADMIN, "a user's number is no group's"
    assert grants.role_of(1, [1000]) is Role.OPERATOR
    assert grants.users.keys() == {0, 33, 1000}, "bob is unknown, and gives nobody anything"


def test_root_and_the_own_user_cannot_be_made_less() -> None:
    root, own = Who(Kind.USER, "0"), Who(Kind.USER, "33")
    grants = grants_of({Role.VIEWER: [root, own]}, {root: 0, own: 33}, own_uid=33)
    assert grants.role_of(0, []) is Role.ROOT
    assert grants.role_of(33, []) is Role.ADMIN
    assert grants_of({}, {}, own_uid=0).role_of(0, []) is Role.ROOT


def test_a_role_contains_those_below_it() -> None:
    assert sorted(Role) == [Role.NOBODY, Role.VIEWER, Role.OPERATOR, Role.ADMIN, Role.ROOT]
    assert [one.word for one in Role] == ["nobody", "viewer", "operator", "admin", "root"]
