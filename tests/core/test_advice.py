"""Settings that are legal and will surprise."""

from __future__ import annotations

import tomllib

import pytest

from supervisor.core.advice import advise
from supervisor.core.server_blocks import server_blocks
from supervisor.core.settings import parse_settings

HOME = 'name = "home"\ntype = "http"\nurl = "http://127.0.0.1/"\n'
INCLUDE = "include /run/nginx-supervisor/probe*.conf;"


def told(probe: str, *servers: str, upgrade: str = "") -> list[str]:
    text = f'[nginx]\nbinary = "/n"\nconfig = "/c"\n[upgrade]\n{upgrade}\n'
    text += f"[[probe]]\n{probe}" if probe else ""
    blocks = " ".join(f"server {{ {one} }}" for one in servers)
    dump = f"# configuration file /c/nginx.conf:\nhttp {{ {blocks} }}\n"
    return [one.reason for one in advise(parse_settings(tomllib.loads(text)), server_blocks(dump))]


def test_the_defaults_need_no_advice() -> None:
    assert told(HOME, f"listen 80; {INCLUDE}") == []


def test_nothing_is_said_about_probes_that_are_not_there() -> None:
    assert told("", "listen 80;", upgrade="soak = 0") == []


@pytest.mark.parametrize(
    ("servers", "reasons"),
    [
        (("listen 80;",), ["include_missing"]),
        ((f"listen 80; {INCLUDE}", f"listen 80; {INCLUDE}"), ["include_repeated"]),
        ((f"listen 81; {INCLUDE}", "listen 80;"), ["not_asked_in_canary"]),
    ],
)
def test_the_place_of_the_include(servers: tuple[str, ...], reasons: list[str]) -> None:
    assert told(HOME, *servers) == reasons


@pytest.mark.parametrize(
    ("probe", "upgrade", "reasons"),
    [
        ("", 'soak = "2s"', ["soak_short"]),
        ("fall = 1", 'soak = "1s"', []),
        ('timeout = "20s"', "", ["timeout_impossible"]),
        ('timeout = "14s"', "", []),
        ('max_latency = "2s"', "", ["timeout_impossible"]),
        ('max_latency = "1s"', "", []),
    ],
)
def test_times_that_do_not_go_together(probe: str, upgrade: str, reasons: list[str]) -> None:
    assert told(HOME + probe, f"listen 80; {INCLUDE}", upgrade=upgrade) == reasons


def test_a_command_has_no_latency() -> None:
    command = 'name = "c"\ntype = "exec"\ncommand = ["/bin/true"]\nuses_probe_address = true'
    assert told(command, f"listen 80; {INCLUDE}") == []


@pytest.mark.parametrize(("more", "reasons"), [("verify = false", ["not_verified"]), ("", [])])
def test_a_probe_that_takes_any_certificate_is_told(more: str, reasons: list[str]) -> None:
    probe = f'name = "home"\ntype = "http"\nurl = "https://127.0.0.1/"\n{more}'
    assert told(probe, f"listen 443 ssl; {INCLUDE}") == reasons
