"""What `nginx -V` says about a build: version, flavour, and the paths that were compiled in.

Paths that were not given to `configure` stay relative in the binary and follow `-p` at run time
(auto/options, auto/init in nginx's source), hence `NginxBuild.at_prefix`.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

_DEFAULT_PREFIX = "/usr/local/nginx"
_VERSION = re.compile(r"^[\w.-]+ version: ([A-Za-z][\w-]*)/v?(\d+(?:\.\d+)+)", re.MULTILINE)
_ARGUMENTS = re.compile(r"^configure arguments:(.*)$", re.MULTILINE)
_TLS_LIBRARY = re.compile(r"^(?:built|running|compiled) with (\S+) (\S+)", re.MULTILINE)
_TLS_NAMES = re.compile(r"^TLS SNI support enabled", re.MULTILINE)
_NUMBERS = re.compile(r"\d+|[a-z]+")
_UNKNOWN_DIRECTIVE = re.compile(r'unknown directive "([^"]+)"')
_REQUIRES = re.compile(r"requires (ngx_\w+_module)")

# The directives by which a configuration most often betrays a module that is off unless asked for.
# nginx names only the directive that it does not know; the rest is told by comparing two builds.
_MODULE_OF_DIRECTIVE = (
    (re.compile(r"ssl_preread"), "--with-stream_ssl_preread_module"),
    (re.compile(r"ssl_.*|ssl"), "--with-http_ssl_module"),
    (re.compile(r"http2.*"), "--with-http_v2_module"),
    (re.compile(r"http3.*|quic_.*"), "--with-http_v3_module"),
    (re.compile(r"stub_status"), "--with-http_stub_status_module"),
    (re.compile(r"set_real_ip_from|real_ip_.*"), "--with-http_realip_module"),
    (re.compile(r"addition_types|add_before_body|add_after_body"), "--with-http_addition_module"),
    (re.compile(r"auth_request.*"), "--with-http_auth_request_module"),
    (re.compile(r"dav_.*|create_full_put_path"), "--with-http_dav_module"),
    (re.compile(r"flv"), "--with-http_flv_module"),
    (re.compile(r"mp4.*"), "--with-http_mp4_module"),
    (re.compile(r"gunzip.*"), "--with-http_gunzip_module"),
    (re.compile(r"gzip_static"), "--with-http_gzip_static_module"),
    (re.compile(r"image_filter.*"), "--with-http_image_filter_module"),
    (re.compile(r"geoip_.*"), "--with-http_geoip_module"),
    (re.compile(r"perl.*"), "--with-http_perl_module"),
    (re.compile(r"random_index"), "--with-http_random_index_module"),
    (re.compile(r"secure_link.*"), "--with-http_secure_link_module"),
    (re.compile(r"slice"), "--with-http_slice_module"),
    (re.compile(r"sub_filter.*"), "--with-http_sub_module"),
    (re.compile(r"xslt_.*|xml_entities"), "--with-http_xslt_module"),
    (re.compile(r"stream"), "--with-stream"),
    (re.compile(r"mail"), "--with-mail"),
    (re.compile(r"thread_pool"), "--with-threads"),
)

_OF_SECTION = {
    ("stream", "--with-http_ssl_module"): "--with-stream_ssl_module",
    ("stream", "--with-http_realip_module"): "--with-stream_realip_module",
    ("stream", "--with-http_geoip_module"): "--with-stream_geoip_module",
    ("stream", "--with-stream_ssl_preread_module"): "--with-stream_ssl_preread_module",
    ("mail", "--with-http_ssl_module"): "--with-mail_ssl_module",
}
"""The same directives are other modules' in the sections besides http."""

_WITHOUT = re.compile(r"--without-(?:http_|stream_|mail_)?(.*?)(?:_module)?")
_NAMED_OTHERWISE = {
    "access": r"(allow|deny)$",
    "browser": r"(ancient|modern)_browser",
    "charset": r"(override_|source_)?charset",
    "http": r"http$",
    "referer": r"(valid_referers|referer_hash)",
    "rewrite": r"(rewrite|return|if|set|break|rewrite_log|uninitialized_variable_warn)$",
    "upstream_hash": r"hash$",
    "upstream_ip_hash": r"ip_hash$",
    "upstream_keepalive": r"keepalive",
    "upstream_least_conn": r"least_conn$",
    "upstream_random": r"random$",
    "upstream_zone": r"zone$",
}
"""Where the directives of a module do not begin with its name."""

_TOLD_BY_NAME = {option for _, option in _MODULE_OF_DIRECTIVE} | set(_OF_SECTION.values())
"""The modules whose directives are known here: no other directive is theirs."""


@dataclass(frozen=True, slots=True)
class NginxBuild:
    """One build of nginx or of a server derived from it.

    `version` is the bare number ("1.22.1"); `flavour` is "nginx", "openresty", "angie", "tengine" …
    """

    version: str
    flavour: str
    configure_arguments: tuple[str, ...]
    prefix: str
    tls_library: str = ""  # with its version, "OpenSSL 3.0.13"; empty: it has none
    tls_names: bool = False  # it can tell servers apart by the name that a client asks for (SNI)

    def at_prefix(self, prefix: str | None) -> NginxBuild:
        """The same build started with `-p prefix`; itself when there is none."""
        return self if prefix is None else replace(self, prefix=prefix)

    @property
    def sbin_path(self) -> str:
        """Where `make install` would put the binary."""
        return self._path("--sbin-path", "sbin/nginx")

    @property
    def conf_path(self) -> str:
        """The configuration that is read without `-c`."""
        return self._path("--conf-path", "conf/nginx.conf")

    @property
    def pid_path(self) -> str:
        """The pid file where no `pid` directive names one."""
        return self._path("--pid-path", "logs/nginx.pid")

    @property
    def error_log_path(self) -> str:
        """The error log until the configuration names one."""
        return self._path("--error-log-path", "logs/error.log")

    @property
    def modules_path(self) -> str:
        """Where dynamic modules are installed."""
        return self._path("--modules-path", "modules")

    @property
    def user(self) -> str:
        """Who the workers run as where no `user` directive says so."""
        return self.option("--user") or "nobody"

    @property
    def group(self) -> str | None:
        """The workers' group; None where configure chose it from the machine that built it."""
        return self.option("--group") or self.option("--user")

    def option(self, name: str) -> str | None:
        """The value that configure was given for `name`; the last one, as in configure."""
        start = f"{name}="
        given = [argument for argument in self.configure_arguments if argument.startswith(start)]
        return given[-1][len(start) :] if given else None

    def _path(self, option: str, default: str) -> str:
        return posixpath.normpath(posixpath.join(self.prefix, self.option(option) or default))


def parse_build(text: str) -> NginxBuild | None:
    """What the output of `nginx -V` says; None where it is not nginx's."""
    version = _VERSION.search(text)
    arguments = _ARGUMENTS.search(text)
    if version is None or arguments is None:
        return None
    try:
        words = tuple(shlex.split(arguments[1]))
    except ValueError:  # a quote inside an option's value; the paths matter more than that option
        words = tuple(arguments[1].split())
    library = _TLS_LIBRARY.search(text)
    build = NginxBuild(
        version[2], version[1].lower(), words, _DEFAULT_PREFIX,
        tls_library="" if library is None else f"{library[1]} {library[2]}",
        tls_names=_TLS_NAMES.search(text) is not None,
    )  # fmt: skip
    # An empty prefix means the current folder, and every nginx here is started in "/".
    given = build.option("--prefix")
    return build if given is None else replace(build, prefix=given or "/")


@lru_cache(maxsize=4096)
def option_of_directive(name: str, *, section: str = "http") -> str | None:
    """The configure option of the module that has the directive; None where no table knows it."""
    for pattern, option in _MODULE_OF_DIRECTIVE:
        if pattern.fullmatch(name):
            if section in ("stream", "mail"):
                return _OF_SECTION.get((section, option))
            return option
    return None


def older_library(running: str, candidate: str) -> bool:
    """Whether `candidate` is an older version of the same library than `running`."""
    (name, was), (other, now) = (_library(one) for one in (running, candidate))
    return name == other and now < was


def _library(text: str) -> tuple[str, list[tuple[int, str]]]:
    """Its name, and its version in an order: 1.1.1w is newer than 1.1.1, 3.0.13 than 3.0.2."""
    name, _, version = text.partition(" ")
    parts = _NUMBERS.findall(version)
    return name, [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def lost_modules(running: NginxBuild, candidate: NginxBuild) -> tuple[str, ...]:
    """The configure options whose module `running` has and `candidate` lacks."""
    have, get = set(running.configure_arguments), set(candidate.configure_arguments)
    with_options = {option for option in have - get if option.startswith("--with-")}
    # The same module as a dynamic one is there, if only by load_module; values are not features.
    with_options = {
        option for option in with_options if "=" not in option and f"{option}=dynamic" not in get
    }
    added = {
        option for option in have - get if option.startswith(("--add-module=", "--add-dynamic"))
    }
    without = {option for option in get - have if option.startswith("--without-")}
    return tuple(sorted(with_options | added | without))


def lost_with_unknown_directives(running: NginxBuild, candidate: NginxBuild) -> tuple[str, ...]:
    """Those of `lost_modules` that may explain a directive that no table here knows."""
    lost = lost_modules(running, candidate)
    return tuple(
        one for one in lost
        if not one.startswith("--with-") or (one.endswith("_module") and one not in _TOLD_BY_NAME)
    )  # fmt: skip


def left_out(options: Iterable[str], directive: str) -> tuple[str, ...]:
    """Those of `options` (`--without-…`) that leave out the module which has the directive."""
    return tuple(
        one for one in options
        if (match := _WITHOUT.fullmatch(one)) is not None
        and re.match(_NAMED_OTHERWISE.get(match[1], f"{match[1]}(_|$)"), directive)
    )  # fmt: skip


def module_of_error(line: str) -> str | None:
    """The configure option of the module that an [emerg] line of nginx misses, if it tells.

    A directive that is in no table is answered with `directive NAME`.
    """
    if match := _REQUIRES.search(line):
        return "--with-" + match[1].removeprefix("ngx_")
    if 'invalid parameter "quic"' in line:  # of a version that has never heard of it
        return "--with-http_v3_module"
    match = _UNKNOWN_DIRECTIVE.search(line)
    if match is None:
        return None
    for pattern, option in _MODULE_OF_DIRECTIVE:
        if pattern.fullmatch(match[1]):
            return option
    return f"directive {match[1]}"
