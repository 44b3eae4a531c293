"""What is noted of a configuration, and that the note survives as data."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core import config_read
from supervisor.core.certificate import Certificate
from supervisor.core.config_read import (
    ConfigRead,
    Contents,
    Kind,
    Place,
    TlsFile,
    from_data,
    read_of,
    to_data,
)
from supervisor.core.nginx_config import effective, parse_dump, parse_globals


def read(main: str, *, globals_: str = "", **files: str) -> ConfigRead:
    dump = f"# configuration file /c/nginx.conf:\n{main}\n"
    for name, text in files.items():
        dump += f"# configuration file /c/{name}.conf:\n{text}\n"
    return read_of(dump, effective(parse_dump(dump), parse_globals(globals_)))


SITE = """\
user www;
load_module modules/a.so;
http {
    limit_req_zone $binary_remote_addr zone=one:10m rate=1r/s;
    proxy_cache_path /var/cache levels=1:2 keys_zone=cache:64k inactive=1m;
    ssl_session_cache builtin:1000 shared:SSL:1m;
    ssl_session_ticket_key keys/now.key;
    map $host $x { ssl_certificate no.pem; default 1; }
    upstream backend { zone backend 128k; server 127.0.0.1:1; }
    include sites/*.conf;
    lua_shared_dict words 2m;
}
stream { server { listen 853 ssl; ssl_certificate /etc/dot.pem; } }
"""
SERVER = """\
server {
    listen 443 ssl http2;
    listen [0::1]:443 quic reuseport;
    ssl_certificate a.pem;
    ssl_certificate /c/sites/../a.pem;
    ssl_certificate $ssl_server_name.pem;
    ssl_certificate_key a.key;
    ssl_dhparam dh.pem;
    location / { limit_req zone=one burst=5; proxy_ssl_trusted_certificate up.pem;
        stub_status; }
}
"""


def test_a_whole_site() -> None:
    dump_read = read(SITE, **{"sites/one": SERVER})
    assert [str(one) for one in dump_read.listens] == [
        "0.0.0.0:443", "[::1]:443/udp", "0.0.0.0:853",
    ]  # fmt: skip
    assert [(one.file, one.line) for one in dump_read.listens[:2]] == [
        ("/c/sites/one.conf", 2),
        ("/c/sites/one.conf", 3),
    ]
    assert [(one.directive, one.name, one.size) for one in dump_read.zones] == [
        ("limit_req_zone", "one", "10m"),
        ("proxy_cache_path", "cache", "64k"),
        ("ssl_session_cache", "SSL", "1m"),
        ("zone", "backend", "128k"),
        ("lua_shared_dict", "words", "2m"),
    ]
    assert str(dump_read.zones[3].place) == "/c/nginx.conf:9"
    assert [(one.path, one.kind) for one in dump_read.files] == [
        ("/c/keys/now.key", Kind.TICKET_KEY),
        ("/c/a.pem", Kind.CERTIFICATE),
        ("/c/dh.pem", Kind.PARAMETERS),
        ("/c/up.pem", Kind.TRUSTED),
        ("/etc/dot.pem", Kind.CERTIFICATE),
    ]
    assert [one.kind.is_secret for one in dump_read.files[:2]] == [True, False]
    assert dump_read.by_variable == 1
    assert {one.option: (one.directive, one.place.line) for one in dump_read.uses} == {
        "--with-http_ssl_module": ("ssl_session_cache", 6),
        "--with-http_v2_module": ("listen 443 ssl http2", 2),
        "--with-http_v3_module": ("listen [0::1]:443 quic reuseport", 3),
        "--with-http_stub_status_module": ("stub_status", 10),
        "--with-stream": ("stream", 13),
        "--with-stream_ssl_module": ("listen 853 ssl", 13),
    }
    assert (dump_read.modules, dump_read.user) == (("modules/a.so",), ("www",))
    assert dump_read.uses_tls
    assert dump_read.tickets
    assert not dump_read.cut


def test_what_comes_from_the_command_line() -> None:
    dump_read = read("events {}", globals_="user a b; load_module x.so;")
    assert (dump_read.user, dump_read.modules) == (("a", "b"), ("x.so",))
    assert not dump_read.uses_tls


@pytest.mark.parametrize(
    ("text", "tickets"),
    [
        ("http { ssl_session_tickets off; }", False),
        ("http { ssl_session_tickets off; server { ssl_session_tickets on; } }", True),
        ("http { }", True),
    ],
)
def test_session_tickets(text: str, *, tickets: bool) -> None:
    assert read(text).tickets is tickets


@pytest.mark.parametrize(
    "text",
    [
        "ssl_certificate data:$cert; ssl_certificate engine:x:y; ssl_certificate store:pkcs11:x;",
        "ssl_certificate; ssl_certificate a b; ssl_certificate '';",
        "ssl_certificate_key a.key;",
        "zone a; zone a b; ssl_session_cache none; ssl_session_cache shared:a;",
        "limit_req zone=a; proxy_cache_path /x keys_zone=a;",
    ],
)
def test_what_is_no_file_and_no_zone(text: str) -> None:
    dump_read = read(f"http {{ {text} }}")
    assert (dump_read.files, dump_read.zones) == ((), ())


def test_includes_that_lead_nowhere_or_in_circles() -> None:
    loop = "include loop.conf; location / { include loop.conf; stub_status; }"
    text = "http { include none; include a b; server { include loop.conf; } }"
    assert len(read(text, loop=loop).uses) == 1
    deep = "http { include a.conf; }"
    files = {f"f{n}": f"include f{n + 1}.conf; lua_shared_dict z{n} 1k;" for n in range(40)}
    dump_read = read(deep, a="include f0.conf;", **files)
    assert len(dump_read.zones) == 31  # the 32nd include is not followed
    blocks = "location / { " * 30 + "lua_shared_dict z 1m;" + "}" * 30
    assert read(f"http {{ {blocks} }}").zones == ()
    assert read_of("", parse_dump("")) == ConfigRead()


def test_more_than_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_read, "MOST_ZONES", 1)
    monkeypatch.setattr(config_read, "MOST_FILES", 1)
    assert not read("http { zone a 1k; ssl_certificate a; }").cut
    zones, files = read("http { zone a 1k; zone b 1k; }"), read("ssl_certificate a; ssl_crl b;")
    assert (len(zones.zones), zones.cut) == (1, True)
    assert (len(files.files), files.cut) == (1, True)
    monkeypatch.setattr(config_read, "MOST_LISTENS", 1)
    listens = read("http { server { listen 1; listen 2; } }")
    assert (len(listens.listens), listens.cut) == (1, True)
    monkeypatch.setattr(config_read, "_MOST_DIRECTIVES", 2)
    assert read("events {} http { zone a 1k; }").cut


# --- as data -----------------------------------------------------------------------------------

CERTIFICATE = Certificate(
    subject="s", names=("a", "b"), not_before=1.5, not_after=2.0, fingerprint="f", key="k"
)
WHOLE = read(SITE, **{"sites/one": SERVER})
SEEN = ConfigRead(
    files=(
        TlsFile(
            path="/a", kind=Kind.CERTIFICATE, place=Place(file="f", line=1),
            identity=(1, 2, 3, 4, 5), contents=Contents(digest="d", certificate=CERTIFICATE),
        ),
        TlsFile(
            path="/b", kind=Kind.REVOKED, place=Place(file="f", line=2),
            contents=Contents(problem="gone"),
        ),
    ),
    user=("a",),
)  # fmt: skip


@pytest.mark.parametrize("whole", [WHOLE, SEEN, ConfigRead()])
def test_it_survives_as_data(whole: ConfigRead) -> None:
    assert from_data(json.loads(json.dumps(to_data(whole)))) == whole
    assert "line" in str(to_data(WHOLE)["listens"][0])


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(json.dumps({**to_data(SEEN), "listens": [
        to_data(WHOLE)["listens"][0]
    ]}))  # fmt: skip
    change(data)
    return data


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.pop("zones"),
        lambda data: data.update(more=1),
        lambda data: data.update(cut=1),
        lambda data: data.update(by_variable="1"),
        lambda data: data.update(modules=[1]),
        lambda data: data.update(files=[{}]),
        lambda data: data["listens"][0].update(kind="x"),
        lambda data: data["listens"][0].update(port="80"),
        lambda data: data["listens"][0].update(host=1),
        lambda data: data["files"][0].update(identity=["x"]),
        lambda data: data["files"][0]["contents"]["certificate"].update(key=None),
        lambda data: data["files"][0]["contents"]["certificate"].update(not_after="x"),
    ],
)
def test_what_is_no_note(change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        from_data(changed(change))


@given(st.text(alphabet="abzoneh{};=:/.*$ \n\"'1mincludsr", max_size=200))
def test_any_text_is_read_without_an_accident(text: str) -> None:
    found = read(f"http {{ {text}", sites=text)
    assert from_data(to_data(found)) == found
