"""Which files change when a configuration is taken back."""

from __future__ import annotations

import pytest

from supervisor.core.restore_plan import RestorePlan, include_patterns, plan_restore

MAIN, ONE, TWO = "/etc/nginx/nginx.conf", "/etc/nginx/conf.d/one.conf", "/etc/nginx/conf.d/two.conf"
PATTERNS = ("/etc/nginx/conf.d/*.conf",)


def plan(
    old: dict[str, str], new: dict[str, str], found: dict[str, str] | None = None
) -> RestorePlan:
    return plan_restore(old=old, new=new, found=new if found is None else found, patterns=PATTERNS)


def test_changed_new_and_deleted_files() -> None:
    old = {MAIN: "a", ONE: "b"}
    assert plan(old, old) == RestorePlan()
    assert plan(old, {MAIN: "A", ONE: "b"}) == RestorePlan(put=(MAIN,))
    assert plan(old, {MAIN: "a"}) == RestorePlan(put=(ONE,))
    assert plan(old, {**old, TWO: "c"}) == RestorePlan(aside=(TWO,))


def test_a_new_file_that_the_previous_configuration_would_not_read_stays() -> None:
    old = {MAIN: "a"}
    for path in ("/etc/nginx/snippets/tls.conf", "/etc/nginx/conf.d/.x.conf", "/etc/nginx/x.conf"):
        assert plan(old, {**old, path: "c"}) == RestorePlan()


def test_done_by_half_it_goes_on() -> None:
    old, new = {MAIN: "a", ONE: "b"}, {MAIN: "A", ONE: "B", TWO: "c"}
    assert plan(old, new, {MAIN: "a", ONE: "B"}) == RestorePlan(put=(ONE,))
    assert plan(old, new, old) == RestorePlan()


@pytest.mark.parametrize(
    "found",
    [{MAIN: "other", ONE: "B", TWO: "c"}, {ONE: "B", TWO: "c"}, {MAIN: "A", ONE: "B", TWO: "x"}],
)
def test_what_somebody_has_changed_since_is_left_with_everything_else(
    found: dict[str, str],
) -> None:
    old, new = {MAIN: "a", ONE: "b"}, {MAIN: "A", ONE: "B", TWO: "c"}
    seen = plan(old, new, found)
    assert len(seen.changed) == 1
    assert (seen.put, seen.aside) == ((), ())


def test_patterns_at_every_depth() -> None:
    files = {
        MAIN: "http { include conf.d/*.conf; include mime.types; server { location / {"
        " include /srv/*/[ab].conf; } } } include;",
        ONE: "upstream x { include ../peers/?; }",
    }
    assert include_patterns(files, main=MAIN) == {
        "/etc/nginx/conf.d/*.conf", "/srv/*/[ab].conf", "/etc/nginx/../peers/?",
    }  # fmt: skip
