"""`nginx -V` as a value."""

from __future__ import annotations

import pytest

from supervisor.core.nginx_version import (
    NginxBuild,
    left_out,
    lost_modules,
    lost_with_unknown_directives,
    module_of_error,
    option_of_directive,
    parse_build,
)

DEBIAN = """\
nginx version: nginx/1.22.1 (Ubuntu)
built with OpenSSL 3.0.8 7 Feb 2023 (running with OpenSSL 3.0.19 27 Jan 2026)
TLS SNI support enabled
configure arguments: --with-cc-opt='-g -O2 -fPIC' --prefix=/usr/share/nginx\
 --conf-path=/etc/nginx/nginx.conf --error-log-path=/var/log/nginx/error.log\
 --pid-path=/run/nginx.pid --modules-path=/usr/lib/nginx/modules\
 --with-threads --user=www-data --add-dynamic-module=/build/x
"""


def test_a_distribution_s_build() -> None:
    build = parse_build(DEBIAN)
    assert build is not None
    assert (build.version, build.flavour, build.prefix) == ("1.22.1", "nginx", "/usr/share/nginx")
    assert build.configure_arguments[0] == "--with-cc-opt=-g -O2 -fPIC"
    assert build.conf_path == "/etc/nginx/nginx.conf"
    assert build.pid_path == "/run/nginx.pid"
    assert build.error_log_path == "/var/log/nginx/error.log"
    assert build.modules_path == "/usr/lib/nginx/modules"
    assert build.sbin_path == "/usr/share/nginx/sbin/nginx"
    assert (build.user, build.group) == ("www-data", "www-data")


@pytest.mark.parametrize(
    ("first_line", "version", "flavour"),
    [
        ("nginx version: openresty/1.21.4.1", "1.21.4.1", "openresty"),
        ("Angie version: Angie/1.4.0", "1.4.0", "angie"),
        ("Tengine version: Tengine/2.3.3", "2.3.3", "tengine"),
        ("nginx version: nginx/1.31.4 (nginx-plus)", "1.31.4", "nginx"),
    ],
)
def test_flavours(first_line: str, version: str, flavour: str) -> None:
    build = parse_build(f"{first_line}\nconfigure arguments:\n")
    assert build == NginxBuild(version, flavour, (), "/usr/local/nginx")


def test_paths_that_were_not_configured_follow_the_prefix() -> None:
    build = parse_build("nginx version: nginx/1.2.3\nconfigure arguments: --pid-path=run/x.pid")
    assert build is not None
    assert build.conf_path == "/usr/local/nginx/conf/nginx.conf"
    moved = build.at_prefix("/srv")
    assert moved.pid_path == "/srv/run/x.pid"
    assert moved.error_log_path == "/srv/logs/error.log"
    assert build.at_prefix(None) is build
    assert (build.user, build.group) == ("nobody", None)


def test_odd_output() -> None:
    assert parse_build("apache 2.4\nconfigure arguments: --x") is None
    assert parse_build("nginx version: nginx/1.2.3") is None
    build = parse_build("nginx version: nginx/1.2.3\nconfigure arguments: --a --b='x --prefix=")
    assert build is not None
    assert build.configure_arguments == ("--a", "--b='x", "--prefix=")
    assert build.prefix == "/"


def build_with(*arguments: str) -> NginxBuild:
    return NginxBuild("1.2.3", "nginx", arguments, "/p")


def test_lost_modules() -> None:
    running = build_with(
        "--prefix=/a",
        "--with-threads",
        "--with-stream",
        "--with-http_v2_module",
        "--with-cc-opt=-O2",
        "--add-module=echo",
    )
    candidate = build_with(
        "--prefix=/b", "--with-threads", "--with-stream=dynamic", "--without-http_scgi_module"
    )
    assert lost_modules(running, candidate) == (
        "--add-module=echo",
        "--with-http_v2_module",
        "--without-http_scgi_module",
    )
    assert lost_modules(running, running) == ()


def test_only_a_module_whose_directives_are_not_known_explains_an_unknown_one() -> None:
    running = build_with(
        "--with-compat", "--with-http_v3_module", "--with-stream_realip_module",
        "--with-google_perftools_module", "--add-module=echo",
    )  # fmt: skip
    assert lost_with_unknown_directives(running, build_with("--without-http_scgi_module")) == (
        "--add-module=echo",
        "--with-google_perftools_module",
        "--without-http_scgi_module",
    )
    mistyped = build_with("--with-compat", "--with-http_v3_module")
    assert lost_with_unknown_directives(mistyped, build_with()) == ()


@pytest.mark.parametrize(
    ("said", "library", "names"),
    [
        (
            "built with OpenSSL 3.0.19 27 Jan 2026\nTLS SNI support enabled\n",
            "OpenSSL 3.0.19",
            True,
        ),
        ("built with OpenSSL 3.0.1 (running with OpenSSL 3.0.2)\n", "OpenSSL 3.0.1", False),
        ("built with LibreSSL 3.8.2\nTLS SNI support disabled\n", "LibreSSL 3.8.2", False),
        ("", "", False),
    ],
)
def test_the_tls_library(said: str, library: str, *, names: bool) -> None:
    build = parse_build(f"nginx version: nginx/1.2.3\n{said}configure arguments: --x")
    assert build is not None
    assert (build.tls_library, build.tls_names) == (library, names)


@pytest.mark.parametrize(
    ("directive", "section", "option"),
    [
        ("stub_status", "http", "--with-http_stub_status_module"),
        ("ssl_certificate", "http", "--with-http_ssl_module"),
        ("ssl_certificate", "stream", "--with-stream_ssl_module"),
        ("ssl_preread", "stream", "--with-stream_ssl_preread_module"),
        ("set_real_ip_from", "stream", "--with-stream_realip_module"),
        ("ssl", "mail", "--with-mail_ssl_module"),
        ("secure_link", "mail", None),
        ("brotli", "http", None),
        ("stream", "", "--with-stream"),
    ],
)
def test_what_a_directive_takes(directive: str, section: str, option: str | None) -> None:
    assert option_of_directive(directive, section=section) == option


@pytest.mark.parametrize(
    ("line", "option"),
    [
        (
            'nginx: [emerg] unknown directive "stub_status" in /c:1',
            "--with-http_stub_status_module",
        ),
        ('unknown directive "ssl_certificate" in /c:1', "--with-http_ssl_module"),
        ('unknown directive "brotli" in /c:1', "directive brotli"),
        ('invalid parameter "quic" in /c:1', "--with-http_v3_module"),
        (
            'the "ssl" parameter requires ngx_http_ssl_module in /c:1',
            "--with-http_ssl_module",
        ),
        ("open() failed", None),
    ],
)
def test_the_module_that_an_error_tells_of(line: str, option: str | None) -> None:
    assert module_of_error(line) == option


@pytest.mark.parametrize(
    ("directive", "option"),
    [
        ("scgi_temp_path", "--without-http_scgi_module"),
        ("allow", "--without-http_access_module"),
        ("ancient_browser", "--without-http_browser_module"),
        ("gzip", None),
        ("access_log", None),
    ],
)
def test_a_directive_names_the_module_that_was_left_out(directive: str, option: str | None) -> None:
    options = (
        "--without-http_access_module", "--without-http_browser_module", "--without-pcre",
        "--without-http_scgi_module", "--with-http_ssl_module",
    )  # fmt: skip
    assert left_out(options, directive) == (() if option is None else (option,))
