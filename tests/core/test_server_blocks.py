"""Which server block answers a probe: only the one with the private listener may be asked there."""

from __future__ import annotations

import pytest

from supervisor.core.probe_settings import ExecProbe, parse_probe
from supervisor.core.server_blocks import (
    PrivateTls,
    ServerBlock,
    private_tls,
    server_blocks,
    why_not_in_canary,
    why_not_traceable,
)

FILE = "/run/ns/probe.conf"
INCLUDE = "include /run/ns/probe*.conf;"


def blocks(*servers: str, stream: str = "") -> tuple[ServerBlock, ...]:
    text = " ".join(f"server {{ {one} }}" for one in servers)
    dump = f"# configuration file /c/nginx.conf:\nhttp {{ {text} }} stream {{ {stream} }}\n"
    return server_blocks(dump, implied_port=8000)


def why(
    *servers: str, url: str = "http://127.0.0.1:80/", stream: str = "", **more: object
) -> str | None:
    probe = parse_probe({"name": "p", "type": "http", "url": url, **more}, 1)
    return why_not_in_canary(probe, blocks(*servers, stream=stream), FILE)


def test_blocks_are_read_with_their_includes_names_and_listens() -> None:
    dump = (
        "# configuration file /c/nginx.conf:\n"
        "http { include sites/*; server { listen 81 default_server; } }\n"
        "stream { server { listen 53 udp; include none/*.conf; } }\n"
        "# configuration file /c/sites/a:\n"
        f"server {{ server_name A.test *.a.test; {INCLUDE} include /c/more; }}\n"
        f"# configuration file {FILE}:\n"
        "listen 127.0.0.1:18931 reuseport;\n"
        "# configuration file /c/more:\n"
        "listen 82;\n"
    )
    first, second, third = server_blocks(dump)
    assert first.names == ("a.test", "*.a.test")
    assert [str(one) for one in first.listens] == ["127.0.0.1:18931", "0.0.0.0:82"]
    assert first.includes == ("/run/ns/probe*.conf", "/c/more")
    assert first.reads(FILE)
    assert first.reads("/c/more")
    assert not first.reads("/run/ns/other.conf")
    assert second.default_on == frozenset(second.listens)
    assert (third.section, third.includes) == ("stream", ("/c/none/*.conf",))
    assert not third.reads(FILE)


@pytest.mark.parametrize("text", ["", "nonsense", "# configuration file /c/n:\nhttp { server {"])
def test_odd_text_never_raises(text: str) -> None:
    server_blocks(text)


def test_a_server_without_listen_has_the_implied_one() -> None:
    (block,) = blocks(INCLUDE)
    assert [str(one) for one in block.listens] == ["0.0.0.0:8000"]
    assert blocks(stream="server { proxy_pass x; }")[0].listens == ()


def test_without_the_include_nobody_is_asked() -> None:
    assert why("listen 80;") == f"no server block includes {FILE}"


@pytest.mark.parametrize(
    ("listen", "url"),
    [
        ("listen 80;", "http://127.0.0.1:80/"),
        ("listen 80;", "http://127.0.0.1/"),
        ("listen *:80;", "http://10.0.0.1/"),
        ("listen 80;", "http://0.0.0.0/"),
        ("listen 80;", "http://localhost/"),
        ("listen localhost:80;", "http://localhost/"),
        ("listen 127.0.0.1:80;", "http://localhost/"),
        ("listen 80; listen [::]:80;", "http://localhost/"),
        ("listen [::]:80;", "http://[::1]/"),
        ("listen [::1]:80;", "http://[0:0::1]/"),
        ("listen 80;", "http://site.test/"),
        ("listen site.test:80;", "http://site.test/"),
        ("listen 8000-8009;", "http://127.0.0.1:8004/"),
        ("", "http://127.0.0.1:8000/"),
    ],
)
def test_an_address_of_the_block_with_the_include(listen: str, url: str) -> None:
    assert why("listen 99;", f"{listen} {INCLUDE}", url=url) is None


@pytest.mark.parametrize(
    ("own", "other", "url"),
    [
        ("listen 80;", "listen 81;", "http://127.0.0.1:81/"),
        ("listen 80;", "listen 127.0.0.1:80;", "http://127.0.0.1/"),
        ("listen 80;", "listen [::]:80;", "http://[::1]/"),
        ("listen 80;", "listen [::]:80;", "http://localhost/"),
        ("listen 80;", "listen 10.0.0.1:80;", "http://site.test/"),
        ("listen 80;", "listen site.test:80;", "http://10.0.0.1/"),
        ("listen 80;", "listen 443 quic; listen 81;", "http://127.0.0.1:81/"),
        ("listen site.test:80;", "listen 127.0.0.1:80;", "http://127.0.0.1/"),
    ],
)
def test_an_address_of_another_block(own: str, other: str, url: str) -> None:
    assert why(f"{own} {INCLUDE}", other, url=url, host="x") is not None


def test_an_address_of_nobody() -> None:
    told = why(f"listen 80; {INCLUDE}", "listen 81 quic;", url="http://127.0.0.1:81/")
    assert told == "nothing in the configuration listens on 127.0.0.1:81"
    told = why(f"listen 80; {INCLUDE}", url="http://[::1]:80/")
    assert told == "nothing in the configuration listens on [::1]:80"


@pytest.mark.parametrize(
    ("path", "listens"), [("/run/a.sock", True), ("/run/../run/a.sock", True), ("/run/b", False)]
)
def test_a_unix_socket(path: str, *, listens: bool) -> None:
    told = why(f"listen unix:/run/a.sock; {INCLUDE}", "listen 80;", unix=path)
    assert told == (None if listens else f"nothing in the configuration listens on {path}")


@pytest.mark.parametrize(
    ("own", "other", "host", "asked"),
    [
        ("server_name a.test;", "server_name b.test;", "a.test", True),
        ("server_name a.test;", "server_name b.test;", "A.test.:80", True),
        ("server_name a.test;", "server_name b.test;", "b.test", False),
        ("server_name a.test;", "server_name a.test;", "a.test", False),  # the first one wins
        ("server_name a.test;", "server_name b.test;", "c.test", False),
        ("listen 80 default_server;", "server_name b.test;", "c.test", True),
        ("listen 80 default_server;", "server_name b.test;", "[::1]:80", True),
        ("listen 80 default_server;", "server_name b.test;", "b.test", False),
        ("listen 80 default_server;", "server_name ~^c;", "c.test", False),
        ("listen 80 default_server;", "server_name $hostname;", "c.test", False),
        ("server_name *.a.test;", "server_name b.test;", "x.a.test", True),
        ("server_name *.a.test;", "server_name x.a.test;", "x.a.test", False),
        ("server_name *.a.test;", "server_name *.x.a.test;", "y.x.a.test", False),
        ("server_name *.x.a.test;", "server_name .a.test;", "y.x.a.test", True),
        ("server_name .a.test;", "server_name b.test;", "a.test", True),
        ("server_name a.*;", "server_name b.test;", "a.test", True),
        ("server_name a.*;", "server_name *.test;", "a.test", False),
        ("server_name a.test;", "server_name ~^a;", "a.test", True),
    ],
)
def test_where_blocks_share_an_address_the_host_decides(
    own: str, other: str, host: str, *, asked: bool
) -> None:
    listen = "" if "listen" in own else "listen 80;"
    told = why(f"listen 80; {other}", f"{listen} {own} {INCLUDE}", host=host)
    assert (told is None) is asked, told
    assert told is None or "another server block" in told


def test_without_a_default_server_the_first_block_is_it() -> None:
    own, other = f"listen 80; server_name a.test; {INCLUDE}", "listen 80; server_name b.test;"
    assert why(own, other, host="c.test") is None
    assert why(other, own, host="c.test") is not None


def test_a_connection_alone_needs_no_name() -> None:
    probe = parse_probe({"name": "p", "type": "tcp", "address": "127.0.0.1:80"}, 1)
    found = blocks("listen 80; server_name b.test;", f"listen 80; server_name a.test; {INCLUDE}")
    assert why_not_in_canary(probe, found, FILE) is None


# --- TLS ---


@pytest.mark.parametrize(
    ("own", "other", "found"),
    [
        ("listen 80;", "listen 443 ssl;", None),
        ("listen 80; listen 443 ssl;", "listen 80;", PrivateTls(http2=False)),
        ("listen 443 ssl http2;", "listen 80;", PrivateTls(http2=True)),
        ("listen 443;", "listen 443 ssl http2;", PrivateTls(http2=True)),
        ("listen 443 ssl;", "listen 81 ssl http2;", PrivateTls(http2=False)),
        ("listen 80 http2; listen 443 ssl;", "", PrivateTls(http2=False)),
        ("listen 443 quic; listen 80;", "", None),
    ],
)
def test_the_private_listener_speaks_tls_as_the_block_does(
    own: str, other: str, found: PrivateTls | None
) -> None:
    assert private_tls(blocks(other, f"{own} {INCLUDE}"), FILE) == found


def test_without_the_include_nothing_speaks_tls() -> None:
    assert private_tls(blocks("listen 443 ssl;"), FILE) is None


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://127.0.0.1/", None),
        ("http://127.0.0.1/", None),
        ("http://127.0.0.1:443/", "127.0.0.1:443 speaks TLS, and the url begins with http://"),
        ("https://127.0.0.1:80/", "127.0.0.1:80 does not speak TLS"),
    ],
)
def test_the_scheme_is_the_one_of_the_address(url: str, told: str | None) -> None:
    found = why(f"listen 80; listen 443 ssl; {INCLUDE}", url=url)
    assert found == told or (found is not None and told is not None and found.startswith(told))


@pytest.mark.parametrize(
    ("names", "asked"),
    [
        ({"host": "a.test"}, True),
        ({"host": "b.test"}, False),
        ({"host": "a.test", "server_name": "b.test"}, False),
        ({"host": "b.test", "server_name": "a.test"}, False),
        ({"host": "a.test", "server_name": "127.0.0.1"}, False),  # then b.test, the default
    ],
)
def test_both_names_have_to_choose_the_block(names: dict[str, str], *, asked: bool) -> None:
    told = why(
        "listen 443 ssl; server_name b.test;", f"listen 443; server_name a.test; {INCLUDE}",
        url="https://127.0.0.1/", **names,
    )  # fmt: skip
    assert (told is None) is asked, told
    nameless = names.get("server_name") == "127.0.0.1"
    assert told is None or ("without a name in the handshake" in told) is nameless


def test_a_stream_server_may_have_the_include() -> None:
    probe = parse_probe({"name": "p", "type": "tcp", "address": "127.0.0.1:99"}, 1)
    found = blocks("listen 80;", stream=f"server {{ listen 99; {INCLUDE} }}")
    assert why_not_in_canary(probe, found, FILE) is None


@pytest.mark.parametrize("uses", [True, False])
def test_a_command_says_itself_whether_it_asks_there(*, uses: bool) -> None:
    probe = ExecProbe(name="p", command=("/bin/true",), uses_probe_address=uses)
    told = why_not_in_canary(probe, (), FILE)
    assert told == (None if uses else "the command does not use PROBE_ADDRESS")


@pytest.mark.parametrize(
    ("settings", "traceable"),
    [
        ({"type": "http", "url": "http://x/"}, True),
        ({"type": "http", "url": "http://x/", "unix": "/s"}, False),
        ({"type": "http", "url": "http://x/", "unix": "/s", "pid_header": "X-Pid"}, True),
        ({"type": "tcp", "address": "x:1"}, True),
        ({"type": "tcp", "address": "/s"}, False),
        ({"type": "exec", "command": ["/bin/true"]}, False),
    ],
)
def test_what_can_be_traced_on_a_public_address(
    settings: dict[str, object], *, traceable: bool
) -> None:
    probe = parse_probe({"name": "p", **settings}, 1)
    assert (why_not_traceable(probe) is None) is traceable
