"""What `nginx -V` says about a build: version, flavour, and the paths that were compiled in.

Paths that were not given to `configure` stay relative in the binary and follow `-p` at run time
(auto/options, auto/init in nginx's source), hence `NginxBuild.at_prefix`.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from dataclasses import dataclass, replace

_DEFAULT_PREFIX = "/usr/local/nginx"
_VERSION = re.compile(r"^[\w.-]+ version: ([A-Za-z][\w-]*)/v?(\d+(?:\.\d+)+)", re.MULTILINE)
_ARGUMENTS = re.compile(r"^configure arguments:(.*)$", re.MULTILINE)
_UNKNOWN_DIRECTIVE = re.compile(r'unknown directive "([^"]+)"')
_REQUIRES = re.compile(r"requires (ngx_\w+_module)")

# The directives by which a configuration most often betrays a module that is off unless asked for.
# nginx names only the directive that it does not know; the rest is told by comparing two builds.
_MODULE_OF_DIRECTIVE = (
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
    (re.compile(r"ssl_preread"), "--with-stream_ssl_preread_module"),
    (re.compile(r"mail"), "--with-mail"),
    (re.compile(r"thread_pool"), "--with-threads"),
)


@dataclass(frozen=True, slots=True)
class NginxBuild:
    """One build of nginx or of a server derived from it.

    `version` is the bare number ("1.22.1"); `flavour` is "nginx", "openresty", "angie", "tengine" …
    """

    version: str
    flavour: str
    configure_arguments: tuple[str, ...]
    prefix: str

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
        return self._value("--user") or "nobody"

    @property
    def group(self) -> str | None:
        """The workers' group; None where configure chose it from the machine that built it."""
        return self._value("--group") or self._value("--user")

    def _value(self, option: str) -> str | None:
        start = f"{option}="
        given = [argument for argument in self.configure_arguments if argument.startswith(start)]
        return given[-1][len(start) :] if given else None

    def _path(self, option: str, default: str) -> str:
        return posixpath.normpath(posixpath.join(self.prefix, self._value(option) or default))


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
    build = NginxBuild(version[2], version[1].lower(), words, _DEFAULT_PREFIX)
    # An empty prefix means the current folder, and every nginx here is started in "/".
    given = build._value("--prefix")  # noqa: SLF001 - the class's own module
    return build if given is None else replace(build, prefix=given or "/")


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


def module_of_error(line: str) -> str | None:
    """The configure option of the module that an [emerg] line of nginx misses, if it tells.

    A directive that is in no table is answered with `directive NAME`.
    """
    if match := _REQUIRES.search(line):
        return "--with-" + match[1].removeprefix("ngx_")
    match = _UNKNOWN_DIRECTIVE.search(line)
    if match is None:
        return None
    for pattern, option in _MODULE_OF_DIRECTIVE:
        if pattern.fullmatch(match[1]):
            return option
    return f"directive {match[1]}"
