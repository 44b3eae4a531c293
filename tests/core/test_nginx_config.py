"""The dump of `nginx -T` as facts: tokens, includes, contexts, and odd text that must not raise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.nginx_config import (
    NginxConfig,
    effective,
    folders_of,
    parse_dump,
    parse_globals,
    parse_time,
    under_prefix,
)
from supervisor.core.nginx_listen import AddressKind, Listen, Transport, parse_listen
from supervisor.core.nginx_syntax import Directive, parse

DEBIAN = """\
# configuration file /etc/nginx/nginx.conf:
user www-data;
worker_processes auto;
pid /run/nginx.pid;
error_log /var/log/nginx/error.log;
include /etc/nginx/modules-enabled/*.conf;
env TZ;
env SECRET=x;

events {
\tworker_connections 768;
}

http {
\tinclude /etc/nginx/mime.types;
\tlog_format main '$remote_addr - "$request" {';  # a brace and a # in a string
\tmap $uri $x { default 0; "~^/a{2}" 1; }
\tinclude /etc/nginx/conf.d/*.conf;
\tinclude /etc/nginx/sites-enabled/*;
}

# configuration file /etc/nginx/modules-enabled/50-mod-stream.conf:
load_module modules/ngx_stream_module.so;

# configuration file /etc/nginx/mime.types:

types {
    text/html                                        html htm shtml;
    application/vnd.ms-fontobject eot;
}

# configuration file /etc/nginx/sites-enabled/default:
server {
\tlisten 80 default_server;
\tlisten [::]:80 default_server;
\tinclude snippets/tls.conf;
\troot /var/www/html;
\tlocation ~ "\\.php$" { return 200 "${host}}"; }
}
# configuration file /etc/nginx/snippets/tls.conf:
listen 443 ssl http2 reuseport;
listen unix:/run/site.sock;
"""


def test_error_logs_of_all_contexts_are_found() -> None:
    text = """\
# configuration file /a:
error_log one;
error_log one;
error_log;
error_log { }
include b;
http { error_log syslog:server=unix:/s,nohostname alert; server { location / {
error_log "/var/log/a b" crit; } } }
# configuration file /b:
events { }
stream { error_log stderr; }
"""
    logs = ("one", "syslog:server=unix:/s,nohostname", "/var/log/a b", "stderr")
    assert parse_dump(text).error_logs == logs


def test_a_debian_configuration_is_understood_through_its_includes() -> None:
    config = parse_dump(DEBIAN)
    assert config.problems == ()
    assert config.files == (
        "/etc/nginx/nginx.conf",
        "/etc/nginx/modules-enabled/50-mod-stream.conf",
        "/etc/nginx/mime.types",
        "/etc/nginx/sites-enabled/default",
        "/etc/nginx/snippets/tls.conf",
    )
    assert config.user == ("www-data", None)
    assert config.worker_processes == "auto"
    assert config.expected_workers(online_cpus=6) == 6
    assert config.pid == "/run/nginx.pid"
    assert config.error_logs == ("/var/log/nginx/error.log",)
    assert config.load_modules == ("modules/ngx_stream_module.so",)
    assert config.env == ("TZ", "SECRET=x")
    assert [str(listen) for listen in config.listens] == [
        "0.0.0.0:80",
        "[::]:80",
        "0.0.0.0:443",
        "unix:/run/site.sock",
    ]
    tls = config.listens[2]
    assert (tls.ssl, tls.reuseport, tls.binds, tls.file) == (
        True,
        True,
        True,
        "/etc/nginx/snippets/tls.conf",
    )


def dump(text: str, **more: str) -> str:
    files = {"nginx.conf": text} | {name.replace("_", "."): body for name, body in more.items()}
    return "".join(f"# configuration file /c/{name}:\n{body}\n" for name, body in files.items())


def test_every_fact_of_the_main_context() -> None:
    config = parse_dump(
        dump(
            "user a b; worker_processes 3; daemon off; master_process OFF; pid 'run/n.pid';"
            "worker_shutdown_timeout 1m; lock_file l; error_log stderr notice; error_log two;"
            "load_module a.so; load_module b.so;"
        )
    )
    assert config == NginxConfig(
        files=("/c/nginx.conf",),
        user=("a", "b"),
        worker_processes=3,
        daemon=False,
        master_process=False,
        pid="run/n.pid",
        worker_shutdown_timeout=60.0,
        lock_file="l",
        error_logs=("stderr", "two"),
        load_modules=("a.so", "b.so"),
    )
    assert config.problems == ()
    assert config.expected_workers(online_cpus=9) == 3
    assert parse_dump(dump("daemon on;")).daemon


@pytest.mark.parametrize(
    "directive",
    [
        "worker_processes many",
        "worker_processes 1 2",
        "worker_processes ²",
        "daemon perhaps",
        "daemon",
        "pid",
        "user",
        "user a b c",
        "env",
        "worker_shutdown_timeout soon",
        "worker_shutdown_timeout",
        "include",
        "include /c/not-there.conf",
        "http { server { listen; } }",
    ],
)
def test_what_cannot_be_understood_is_a_problem_and_keeps_the_default(directive: str) -> None:
    end = "" if directive.endswith("}") else ";"
    config = parse_dump(dump(f"{directive}{end} pid /p;"))
    assert len(config.problems) == 1
    assert "/c/nginx.conf: line 1: cannot understand" in config.problems[0]
    assert config.pid == "/p"
    assert (config.worker_processes, config.daemon, config.user) == (1, True, None)


def test_sections_and_their_servers() -> None:
    config = parse_dump(
        dump(
            "http { server { server_name a; } server { listen 8443; ssl on; } server_tokens off; }"
            "stream { server { listen 53 udp; } server { proxy_pass x; } upstream u { server x; } }"
            "mail { server { listen 25; ssl off; } } http; server { listen 1; }"
        ),
        implied_port=8000,
    )
    assert [(listen.section, str(listen), listen.ssl) for listen in config.listens] == [
        ("http", "0.0.0.0:8000", False),
        ("http", "0.0.0.0:8443", True),
        ("stream", "0.0.0.0:53/udp", False),
        ("mail", "0.0.0.0:25", False),
    ]


def test_includes_glob_as_nginx_does() -> None:
    config = parse_dump(
        dump(
            "include b*.conf; include c.d/*; include none*; include /c/[a].conf;",
            b2_conf="env B2;",
            b1_conf="env B1;",
            a_conf="env A;",
            **{"c.d/.hidden": "env HIDDEN;", "c.d/deep/x": "env DEEP;", "c.d/y": "env Y;"},
        )
    )
    assert config.env == ("B1", "B2", "Y", "A")
    assert config.problems == ()


def test_folders_in_which_a_new_file_may_become_part_of_it() -> None:
    text = "http { include conf.d/*.conf; include conf.d/*.conf; include /elsewhere/none*; }"
    config = parse_dump(dump(text))
    assert config.include_patterns == ("/c/conf.d/*.conf", "/elsewhere/none*")
    assert folders_of(config) == {"/c", "/c/conf.d", "/elsewhere"}
    assert folders_of(parse_dump(dump("include sites/*/nginx.conf;"))) is None


def test_a_file_may_be_included_twice_but_not_for_ever() -> None:
    assert parse_dump(dump("include x.conf; include x.conf;", x_conf="env A;")).env == ("A", "A")
    endless = parse_dump(dump("include x.conf;", x_conf="include x.conf;"))
    assert len(endless.problems) == 1
    # Each time anew, that would be three to the power of the deepest include.
    each = "include *.conf; include *.conf; include *.conf; env A;"
    assert set(parse_dump(dump(each, x_conf=each)).env) == {"A"}


def test_lua_blocks_are_stepped_over() -> None:
    lua = """
    http {
      init_by_lua_block {
        -- a comment with }
        --[[ a long one with }
        } ]]
        local a = "}" local b = '\\'}' local c = [==[ } ]] } ]==]
        if a then b = { 1, { 2 } } end
      }
      server { listen 81; content_by_lua_block { ngx.say("}") } }
    }
    """
    config = parse_dump(dump(lua))
    assert [str(listen) for listen in config.listens] == ["0.0.0.0:81"]
    assert config.problems == ()
    endless = parse_dump(dump("pid /p; x_by_lua_block { {"))
    assert endless.problems == ("/c/nginx.conf: line 1: a Lua block does not end",)


def test_tokens() -> None:
    text = 'a "b\\"c" \'d\\\'e\' f\\ g ${h}i{ j$k # no\nl m#n; } o "p\\tq";'
    directives, problems = parse(text)
    assert problems == ()
    assert directives == (
        Directive(
            "a",
            ('b"c', "d'e", "f\\ g", "${h}i"),
            1,
            (Directive("j$k", ("l", "m#n"), 1),),
        ),
        Directive("o", ("p\tq",), 2),
    )


@pytest.mark.parametrize(
    ("text", "expected", "names"),
    [
        (";", ['line 1: unexpected ";"'], []),
        ("a;\n}", ['line 2: unexpected "}"'], ["a"]),
        ("{ a; }", ['line 1: unexpected "{"'], [""]),
        ("a", ['line 1: "a" is not ended by ";"'], ["a"]),
        ("a { b }", ['line 1: "b" is not ended by ";"'], ["a"]),
        (
            "a {\nb {",
            ['line 2: "b" is not closed by "}"', 'line 1: "a" is not closed by "}"'],
            ["a"],
        ),
        ('a "b;', ["line 1: a string or an escape does not end"], ["a"]),
        (
            "a \\",
            ["line 1: a string or an escape does not end", 'line 1: "a" is not ended by ";"'],
            ["a"],
        ),
    ],
)
def test_odd_text_gives_problems(text: str, expected: list[str], names: list[str]) -> None:
    directives, problems = parse(text)
    assert list(problems) == expected
    assert [directive.name for directive in directives] == names


@given(st.text(alphabet="ab \n;{}\"'\\#$[]-=_by_lua_block", max_size=80))
def test_no_text_raises(text: str) -> None:
    parse(text)
    parse("a_by_lua_block {" + text)
    assert parse_dump(dump(f"http {{ server {{ listen {text}")).files[0] == "/c/nginx.conf"


def test_an_empty_dump() -> None:
    config = parse_dump("nothing here")
    assert config.files == ()
    assert config.problems == ("the dump has no configuration file in it",)


def test_globals_are_added() -> None:
    config = parse_dump(dump("worker_processes 2; env A; load_module a.so; user x;"))
    added = parse_globals("daemon off; pid /p; env B; user y z;")
    assert added.files == ()
    both = effective(config, added)
    assert both.daemon is False
    assert both.pid == "/p"
    assert both.env == ("B", "A")
    assert both.worker_processes == 2
    assert both.user == ("y", "z")
    assert both.files == ("/c/nginx.conf",)
    assert effective(config, parse_globals("")) == config


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10.0),
        ("1m 30s", 90.0),
        ("500ms", 0.5),
        ("5", 5.0),
        ("2h", 7200.0),
        ("x", None),
        ("", None),
    ],
)
def test_times(text: str, seconds: float | None) -> None:
    assert parse_time(text) == seconds


def test_paths_under_the_prefix() -> None:
    assert under_prefix("logs/x.pid", "/p/") == "/p/logs/x.pid"
    assert under_prefix("/run/x.pid", "/p") == "/run/x.pid"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("80", ["0.0.0.0:80"]),
        ("*:81", ["0.0.0.0:81"]),
        ("127.0.0.1", ["127.0.0.1:80"]),
        ("LocalHost:82", ["localhost:82"]),
        ("[::1]", ["[::1]:80"]),
        ("[::]:83", ["[::]:83"]),
        ("84-86", ["0.0.0.0:84", "0.0.0.0:85", "0.0.0.0:86"]),
        ("unix:/run/x", ["unix:/run/x"]),
        ("[::1", []),
        ("[::1]x", []),
        ("[::1]:x", []),
        ("host:x", []),
        ("0", []),
        ("65536", []),
        ("9-8", []),
        ("1-60000", []),
    ],
)
def test_listen_addresses(text: str, expected: list[str]) -> None:
    listens = parse_listen((text,), section="http", file="f")
    assert [str(listen) for listen in listens] == expected


def test_listen_options() -> None:
    (listen,) = parse_listen(
        ("[::]:443", "quic", "reuseport", "backlog=5"), section="http", file="f"
    )
    assert listen == Listen(
        kind=AddressKind.TCP6,
        host="::",
        port=443,
        transport=Transport.UDP,
        reuseport=True,
        ssl=True,
        binds=True,
        quic=True,
        section="http",
        file="f",
    )
    assert listen.is_wildcard
    assert listen.address == (AddressKind.TCP6, "::", 443, Transport.UDP)
    assert str(listen) == "[::]:443/udp"
    assert parse_listen((), section="http", file="f") == ()


@pytest.mark.parametrize(
    ("written", "host"),
    [
        ("[0:0::1]:80", "::1"),
        ("[FE80::01]:80", "fe80::1"),
        ("[::ffff:127.0.0.1]:80", "::ffff:127.0.0.1"),
        ("[nonsense]:80", "nonsense"),
    ],
)
def test_an_address_is_spelled_as_the_kernel_does(written: str, host: str) -> None:
    (listen,) = parse_listen((written,), section="http", file="f", line=3)
    assert (listen.host, listen.line) == (host, 3)
