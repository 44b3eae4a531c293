"""The configuration: what is right becomes values, what is wrong becomes advice."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.access import Kind, Role, Who
from supervisor.core.duration import LONGEST, parse_duration
from supervisor.core.errors import ConfigError
from supervisor.core.probe_settings import (
    ExecProbe,
    HttpProbe,
    TcpAddress,
    TcpProbe,
    UnixAddress,
)
from supervisor.core.restart_policy import RestartPolicy
from supervisor.core.settings import (
    ControlSettings,
    LogFormat,
    LogLevel,
    LogSettings,
    NginxSettings,
    OnForeignStop,
    ProbeListenerSettings,
    RestartSettings,
    Settings,
    StateSettings,
    StopSettings,
    SyslogSettings,
    UpgradeSettings,
    nginx_argv,
    parse_settings,
)
from supervisor.core.tls_settings import TlsSettings
from supervisor.core.trigger_settings import TriggerSettings
from supervisor.core.usage_settings import UsageSettings

ROOT = Path(__file__).parents[2]
NGINX = '[nginx]\nbinary = "/sbin/nginx"\nconfig = "/etc/nginx.conf"\n'
HTTP = 'name = "home"\ntype = "http"\nurl = "http://h/"\n'


def parse(text: str) -> Settings:
    return parse_settings(tomllib.loads(text))


def problem(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert caught.value.reason == "bad_configuration"
    return caught.value.detail


def only_probe(text: str) -> Any:
    (probe,) = parse(f"{NGINX}[[probe]]\n{text}").probes
    return probe


# --- what is right ---


def test_the_smallest_file_has_the_documented_defaults() -> None:
    settings = parse(NGINX)
    assert settings == Settings(nginx=NginxSettings(binary="/sbin/nginx", config="/etc/nginx.conf"))
    assert settings.nginx.on_foreign_stop is OnForeignStop.RESTART
    assert settings.upgrade.drain_timeout == 600
    assert settings.control.mode == 0o600


def test_the_defaults_of_restarts_are_the_policys() -> None:
    settings, policy = RestartSettings(), RestartPolicy()
    for name in ("backoff_initial", "backoff_max", "crash_limit", "crash_interval"):
        assert getattr(settings, name) == getattr(policy, name)
    assert settings.start_limit == policy.start_limit
    assert settings.start_limit_interval == policy.start_limit_interval


def test_every_key_is_taken() -> None:
    settings = parse(
        """
        [nginx]
        binary = "/opt/nginx"
        config = "/opt/nginx.conf"
        prefix = "/opt"
        globals = "worker_processes 2;"
        error_log = "stderr"
        environment = { TZ = "UTC", EMPTY = "" }
        inherit_variable = "ANGIE"
        on_foreign_stop = "stop"
        [control]
        socket = "/run/c.sock"
        mode = "0660"
        group = "web"
        viewers = ["user:bob", "group:4"]
        operators = []
        admins = ["user:alice"]
        [state]
        directory = "/var/lib/n"
        keep_versions = 2
        [probe_listener]
        include_file = "/run/p.conf"
        ports = "1000-1001"
        [upgrade]
        start_timeout = 1
        canary = "0s"
        soak = 0
        drain_timeout = "1h"
        shift_timeout = "2s"
        rollback_quit_timeout = "3s"
        rollback_term_timeout = "4s"
        [restart]
        backoff_initial = "1s"
        backoff_max = "1s"
        crash_limit = 0
        crash_interval = "5s"
        start_limit = 0
        start_limit_interval = "6s"
        start_timeout = "7s"
        [stop]
        quit_timeout = "0s"
        term_timeout = "8s"
        kill_timeout = "9s"
        [triggers]
        worker_deaths = 2
        respawns = 0
        respawn_interval = "10m"
        usage_interval = "100ms"
        memory_factor = 0
        memory_floor_mb = 2
        descriptors_factor = 4
        descriptors_floor = 5
        growing_for = "6s"
        master_cpu_for = 7
        worker_cpu_for = 8
        stalled_for = 9
        deaf_for = "0s"
        cache_deaths = 10
        losses = 11
        loss_interval = "12s"
        [syslog]
        socket = "/run/l.sock"
        mode = "0622"
        [log]
        format = "console"
        level = "debug"
        """
    )
    assert settings.nginx == NginxSettings(
        binary="/opt/nginx", config="/opt/nginx.conf", prefix="/opt",
        globals="worker_processes 2;", error_log="stderr",
        environment={"TZ": "UTC", "EMPTY": ""}, inherit_variable="ANGIE",
        on_foreign_stop=OnForeignStop.STOP,
    )  # fmt: skip
    bob, alice = Who(Kind.USER, "bob"), Who(Kind.USER, "alice")
    assert settings.control == ControlSettings(
        socket="/run/c.sock", mode=0o660, group=Who(Kind.GROUP, "web"),
        viewers=(bob, Who(Kind.GROUP, "4")), admins=(alice,),
    )  # fmt: skip
    assert settings.control.roles[Role.OPERATOR] == ()
    assert settings.control.roles[Role.ADMIN] == (alice,)
    assert settings.state == StateSettings(directory="/var/lib/n", keep_versions=2)
    assert settings.probe_listener == ProbeListenerSettings(
        include_file="/run/p.conf", first_port=1000, last_port=1001
    )
    assert settings.upgrade == UpgradeSettings(
        start_timeout=1, canary=0, soak=0, drain_timeout=3600, shift_timeout=2,
        rollback_quit_timeout=3, rollback_term_timeout=4,
    )  # fmt: skip
    assert settings.restart == RestartSettings(
        backoff_initial=1, backoff_max=1, crash_limit=0, crash_interval=5, start_limit=0,
        start_limit_interval=6, start_timeout=7,
    )  # fmt: skip
    assert settings.stop == StopSettings(quit_timeout=0, term_timeout=8, kill_timeout=9)
    assert settings.triggers == TriggerSettings(
        worker_deaths=2, respawns=0, respawn_interval=600,
        usage=UsageSettings(
            interval=0.1, memory_factor=0, memory_floor_mb=2, descriptors_factor=4,
            descriptors_floor=5, growing_for=6, master_cpu_for=7, worker_cpu_for=8,
            stalled_for=9, deaf_for=0, cache_deaths=10, losses=11, loss_interval=12,
        ),
    )  # fmt: skip
    assert settings.syslog == SyslogSettings(socket="/run/l.sock", mode=0o622)
    assert settings.log == LogSettings(format=LogFormat.CONSOLE, level=LogLevel.DEBUG)


def test_the_arguments_of_nginx() -> None:
    least = NginxSettings(binary="/sbin/nginx", config="/c")
    assert nginx_argv(least) == ("-c", "/c")
    most = NginxSettings(
        binary="/sbin/nginx", config="/c", prefix="/p", globals="g;", error_log="/e"
    )
    assert nginx_argv(most) == ("-p", "/p", "-c", "/c", "-e", "/e", "-g", "g;")


def test_an_error_log_may_be_a_path() -> None:
    settings = parse(NGINX + 'error_log = "/var/log/e.log"')
    assert settings.nginx.error_log == "/var/log/e.log"


def test_a_probe_listener_may_keep_its_ports() -> None:
    settings = parse(NGINX + '[probe_listener]\ninclude_file = "/run/x.conf"')
    assert settings.probe_listener == ProbeListenerSettings(include_file="/run/x.conf")


def test_the_sample_can_be_used() -> None:
    text = (ROOT / "conf/nginx-supervisor.toml").read_text()
    settings = parse(text)
    assert [probe.name for probe in settings.probes] == ["home"]
    # What is commented out is right as well.
    more = re.sub(r"^# (?=\[\[|[a-z_]+ = )", "", text, flags=re.MULTILINE)
    assert [probe.type for probe in parse(more).probes] == ["http", "http", "tcp", "exec"]


def test_every_key_is_documented() -> None:
    text = (ROOT / "docs/configuration.md").read_text()
    for source in ("settings", "probe_settings", "tls_settings", "trigger_settings"):
        code = (ROOT / f"supervisor/core/{source}.py").read_text()
        keys = set(re.findall(r"\btable\.\w+\(\s*\"(\w+)\"", code)) - {"probe"}
        assert keys
        assert [key for key in keys if f"| `{key}` |" not in text] == []


def test_the_documented_defaults_are_the_real_ones() -> None:
    text = (ROOT / "docs/configuration.md").read_text()
    written = NGINX
    for table, body in re.findall(r"^## `\[(\w+)\]`$(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL):
        written += "" if table == "nginx" else f"[{table}]\n"
        for key, default in re.findall(r"^\| `(\w+)` \| `(.+?)` \|", body, re.MULTILINE):
            written += f"{key} = {default}\n"
    assert written.count("\n") > 35
    assert parse(written) == parse(NGINX)
    tcp = 'name = "n"\ntype = "tcp"\naddress = "h:1"\n'
    probes = text[text.index("## `[[probe]]`") : text.index("### ")]
    common = re.findall(r"^\| `(\w+)` \| `(.+?)` \|", probes, re.MULTILINE)
    assert len(common) == 5
    assert only_probe(tcp + "".join(f"{k} = {d}\n" for k, d in common)) == only_probe(tcp)


# --- probes ---


def test_an_http_probe_with_little() -> None:
    probe = only_probe(HTTP)
    assert probe == HttpProbe(
        name="home", url="http://h/", address=TcpAddress("h", 80), target="/", host="h"
    )
    assert (probe.interval, probe.timeout, probe.rise, probe.fall) == (1, 1, 2, 3)
    assert probe.expect_status == {200}


def test_an_http_probe_with_everything() -> None:
    probe = only_probe(
        """
        name = "a.b-c_1"
        type = "http"
        url = "http://[::1]:8080/p/q?x=1&y"
        unix = "/run/n.sock"
        host = "www.example.org"
        headers = { Accept = "text/html", X-Empty = "" }
        expect_status = [200, 302]
        expect_body = "^ok$"
        max_latency = "100ms"
        pid_header = "X-Pid"
        interval = "2s"
        timeout = "3s"
        rise = 1
        fall = 1
        """
    )
    assert probe == HttpProbe(
        name="a.b-c_1", url="http://[::1]:8080/p/q?x=1&y", address=UnixAddress("/run/n.sock"),
        target="/p/q?x=1&y", host="www.example.org",
        headers={"Accept": "text/html", "X-Empty": ""}, expect_status=frozenset({200, 302}),
        expect_body=re.compile("^ok$"), max_latency=0.1, pid_header="X-Pid", interval=2, timeout=3,
        rise=1, fall=1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("url", "address", "target", "host"),
    [
        ("http://127.0.0.1:8080", TcpAddress("127.0.0.1", 8080), "/", "127.0.0.1:8080"),
        ("http://[::1]:81/x", TcpAddress("::1", 81), "/x", "[::1]:81"),
        ("http://Name?q", TcpAddress("name", 80), "/?q", "Name"),
    ],
)
def test_urls(url: str, address: TcpAddress, target: str, host: str) -> None:
    probe = only_probe(f'name = "n"\ntype = "http"\nurl = "{url}"')
    assert (probe.address, probe.target, probe.host) == (address, target, host)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:80", TcpAddress("127.0.0.1", 80)),
        ("[::1]:80", TcpAddress("::1", 80)),
        ("mail.example.org:25", TcpAddress("mail.example.org", 25)),
        ("/run/x.sock", UnixAddress("/run/x.sock")),
    ],
)
def test_tcp_addresses(text: str, address: TcpAddress | UnixAddress) -> None:
    probe = only_probe(f'name = "n"\ntype = "tcp"\naddress = "{text}"')
    assert probe == TcpProbe(name="n", address=address)


def test_an_exec_probe() -> None:
    probe = only_probe('name = "n"\ntype = "exec"\ncommand = ["/bin/true", "-x"]\nuser = "nobody"')
    assert probe == ExecProbe(name="n", command=("/bin/true", "-x"), user="nobody")
    assert not probe.uses_probe_address
    asking = only_probe(
        'name = "n"\ntype = "exec"\ncommand = ["/bin/true"]\nuses_probe_address = true'
    )
    assert isinstance(asking, ExecProbe)
    assert asking.uses_probe_address


# --- what is wrong ---

LONG = "/" + "x" * 107


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot do without binary in [nginx]"),
        ('[nginx]\nbinary = "/n"', "cannot do without config in [nginx]"),
        ('ngnix = 1\n', "unknown key ngnix in the configuration: did you mean nginx?"),
        (NGINX + 'binray = "/n"', "unknown key binray in [nginx]: did you mean binary?"),
        (NGINX + "[upgrade]\nsok = 1", "unknown key sok in [upgrade]: did you mean soak?"),
        (NGINX + "[log]\nzzz = 1", "unknown key zzz in [log]: did you mean "),
        ("nginx = 3", "cannot use nginx: it has to be a table, [nginx]"),
        ('[nginx]\nbinary = "sbin/nginx"\nconfig = "/c"', "'sbin/nginx' is a relative path"),
        ('[nginx]\nbinary = "/n"\nconfig = "nginx.conf"', "'nginx.conf' is a relative path"),
        ('[nginx]\nbinary = 5\nconfig = "/c"', "5 is not a string"),
        ('[nginx]\nbinary = ""\nconfig = "/c"', "binary in [nginx]: it is empty"),
        ('[nginx]\nbinary = "/a\\u0000b"\nconfig = "/c"', "a zero byte"),
        (NGINX + 'prefix = "opt"', "relative path"),
        (NGINX + 'error_log = "logs/error.log"', "relative path"),
        (NGINX + 'inherit_variable = "A=B"', "not the name of a variable"),
        (NGINX + 'environment = "TZ=UTC"', "is not a table"),
        (NGINX + 'environment = { "a b" = "c" }', "not the name of a variable"),
        (NGINX + "environment = { TZ = 1 }", "environment.TZ in [nginx]: 1 is not a string"),
        (NGINX + 'environment = { NGINX = "3;" }', "hands sockets on"),
        (NGINX + 'on_foreign_stop = "ignore"', "'ignore' is none of restart, stop"),
        (NGINX + "on_foreign_stop = 1", "1 is none of restart, stop"),
        (NGINX + f'[control]\nsocket = "{LONG}"', "has 108 bytes"),
        (NGINX + '[control]\nsocket = "c.sock"', "relative path"),
        (NGINX + "[control]\nmode = 660", 'write it as a string, "0660"'),
        (NGINX + '[control]\nmode = "rw"', "not a file mode"),
        (NGINX + '[control]\ngroup = "group:web"', "'group:web' is not the name of a group"),
        (NGINX + '[control]\nviewers = "user:bob"', "is not an array"),
        (NGINX + '[control]\nviewers = ["bob"]', "neither \"user:NAME\" nor \"group:NAME\""),
        (NGINX + '[control]\nadmins = [0]', "0 is not a string"),
        (NGINX + '[state]\ndirectory = "."', "relative path"),
        (NGINX + "[state]\nkeep_versions = 0", "0 is not from 1 to 1000"),
        (NGINX + "[state]\nkeep_versions = true", "True is not a whole number"),
        (NGINX + "[state]\nkeep_versions = 1.5", "1.5 is not a whole number"),
        (NGINX + '[probe_listener]\ninclude_file = "/run/x/"', "is a folder"),
        (NGINX + '[probe_listener]\nports = "18931"', "is no range"),
        (NGINX + "[probe_listener]\nports = 18931", "18931 is not a string"),
        (NGINX + '[probe_listener]\nports = "5-4"', "not an ascending range"),
        (NGINX + '[probe_listener]\nports = "0-4"', "not an ascending range"),
        (NGINX + '[probe_listener]\nports = "65535-65536"', "not an ascending range"),
        (NGINX + '[probe_listener]\nports = "5-5"', "has 1 ports"),
        (NGINX + '[probe_listener]\nports = "1-65"', "has 65 ports"),
        (NGINX + '[upgrade]\ncanary = "-5s"', "'-5s' is not a duration"),
        (NGINX + "[upgrade]\ncanary = -5", "-5 is impossible"),
        (NGINX + "[upgrade]\ncanary = nan", "nan is impossible"),
        (NGINX + "[upgrade]\ncanary = inf", "inf is impossible"),
        (NGINX + "[upgrade]\ncanary = 1" + "0" * 400, "is impossible"),
        (NGINX + '[upgrade]\ncanary = "5 minutes"', "is not a duration"),
        (NGINX + '[upgrade]\ncanary = "5d"', "unknown unit 'd'"),
        (NGINX + '[upgrade]\ncanary = "5"', "has no unit"),
        (NGINX + "[upgrade]\ncanary = true", "True is not a duration"),
        (NGINX + "[upgrade]\ncanary = [5]", "is not a duration"),
        (NGINX + '[upgrade]\nstart_timeout = "0s"', "more than 0 seconds"),
        (NGINX + '[restart]\nbackoff_initial = "31s"', "longer than backoff_max"),
        (NGINX + '[log]\nformat = "xml"', "'xml' is none of json, console, journal, auto"),
        (NGINX + "[probe]\n" + HTTP, "a table of its own, [[probe]]"),
        ("probe = [1]\n" + NGINX, "a table of its own, [[probe]]"),
        (NGINX + ("[[probe]]\n" + HTTP) * 2, "two probes with the name home"),
    ],
)  # fmt: skip
def test_wrong_files_get_advice(text: str, said: str) -> None:
    assert said in problem(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('type = "http"', "cannot do without name in [[probe]] number 1"),
        ('name = "a b"', "is not made of letters"),
        ('name = "n"', "cannot do without type in [[probe]] n"),
        ('name = "n"\ntype = "icmp"', "'icmp' is none of http, tcp, exec"),
        ('name = "n"\ntype = "http"', "cannot do without url in [[probe]] n"),
        (HTTP + 'command = ["/x"]', "unknown key command in [[probe]] home: did you mean "),
        (HTTP + "rise = 0", "0 is not from 1 to 1000"),
        (HTTP + 'interval = "0s"', "more than 0 seconds"),
        (HTTP + 'unix = "x.sock"', "relative path"),
        (HTTP + f'unix = "{LONG}"', "has 108 bytes"),
        (HTTP + 'host = "a b"', "cannot be a Host header"),
        (HTTP + 'headers = { "X Y" = "z" }', "cannot be a request header"),
        (HTTP + 'headers = { X = "a\\r\\nb" }', "cannot be a request header"),
        (HTTP + 'headers = { Host = "z" }', "use the key host"),
        (HTTP + 'headers = { Connection = "close" }', "leave it out"),
        (HTTP + "expect_status = 200", "is not an array with something in it"),
        (HTTP + "expect_status = []", "is not an array with something in it"),
        (HTTP + "expect_status = [100]", "not a final HTTP status"),
        (HTTP + "expect_status = [true]", "not a final HTTP status"),
        (HTTP + 'expect_status = ["200"]', "not a final HTTP status"),
        (HTTP + 'expect_body = "("', "is no regular expression"),
        (HTTP + 'pid_header = "X Y"', "is not the name of a header"),
        ('name = "n"\ntype = "tcp"\naddress = "localhost"', "is no address"),
        ('name = "n"\ntype = "tcp"\naddress = "h:99999"', "is no address"),
        ('name = "n"\ntype = "tcp"\naddress = "h:0"', "is no address"),
        ('name = "n"\ntype = "tcp"\naddress = "u@h:80"', "is no address"),
        ('name = "n"\ntype = "tcp"\naddress = "h:80/x"', "is no address"),
        (f'name = "n"\ntype = "tcp"\naddress = "{LONG}"', "has 108 bytes"),
        ('name = "n"\ntype = "exec"\ncommand = ["true"]', "'true' is a relative path"),
        ('name = "n"\ntype = "exec"\ncommand = "/bin/true"', "is not an array"),
        ('name = "n"\ntype = "exec"\ncommand = [""]', "it is empty"),
        (
            'name = "n"\ntype = "exec"\ncommand = ["/x"]\nuses_probe_address = 1',
            "1 is neither true nor false",
        ),
    ],
)
def test_wrong_probes_get_advice(text: str, said: str) -> None:
    assert said in problem(f"{NGINX}[[probe]]\n{text}")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://h/", "h/", "http:///x", "http://h:0/", "http://h:x/", "http://[::1/", "http://u:p@h/",
        "http://h/#f", "http://h/a b", "http://h/\\u00fc", "http://h/\\n",
    ],
)  # fmt: skip
def test_what_is_no_url(url: str) -> None:
    assert " is no URL" in problem(f'{NGINX}[[probe]]\nname = "n"\ntype = "http"\nurl = "{url}"')


def only_https(text: str = "") -> HttpProbe:
    probe = only_probe(f'name = "n"\ntype = "http"\nurl = "https://h/"\n{text}')
    assert isinstance(probe, HttpProbe)
    return probe


def test_an_https_probe_with_little() -> None:
    probe = only_https()
    assert probe.address == TcpAddress("h", 443)
    assert probe.tls == TlsSettings(server_name="h")
    assert probe.tls.verify
    assert probe.tls.sni == "h"


def test_an_https_probe_with_everything() -> None:
    probe = only_https(
        """
        host = "Www.example.org:8443"
        server_name = "TLS.example.org"
        ca_file = "/etc/ca.pem"
        client_certificate = "/etc/client.pem"
        client_key = "/etc/client.key"
        http2 = true
        follow_redirects = 3
        """
    )
    assert probe.tls == TlsSettings(
        server_name="TLS.example.org", ca_file="/etc/ca.pem", http2=True,
        client_certificate="/etc/client.pem", client_key="/etc/client.key",
    )  # fmt: skip
    assert probe.tls.sni == "tls.example.org"
    assert probe.follow_redirects == 3
    unverified = only_https("verify = false").tls
    assert unverified == TlsSettings(server_name="h", verify=False)


@pytest.mark.parametrize(
    ("host", "name", "sni"),
    [
        ("www.example.org.:81", "www.example.org", "www.example.org"),
        ("[::1]:81", "::1", None),
        ("127.0.0.1:81", "127.0.0.1", None),
    ],
)
def test_whom_a_certificate_has_to_name(host: str, name: str, sni: str | None) -> None:
    tls = only_https(f'host = "{host}"').tls
    assert tls is not None
    assert (tls.server_name, tls.sni) == (name, sni)


def test_a_redirect_may_be_expected() -> None:
    probe = only_probe(HTTP + 'expect_status = [301]\nexpect_location = "^https://"')
    assert probe.expect_location == re.compile("^https://")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('ca_file = "ca.pem"', "is a relative path"),
        ('ca_file = "/ca.pem"\nverify = false', "nobody looks at it"),
        ('client_key = "/key.pem"', "add client_certificate"),
        ('host = "a_b!c"', "cannot use server_name"),
        ('server_name = "a b"', "is neither a host name nor an address"),
        ("http2 = 1", "1 is neither true nor false"),
        ('http2 = true\nheaders = { TE = "x" }', "HTTP/2 has no such header"),
        ("follow_redirects = 11", "11 is not from 0 to 10"),
        ('expect_location = "x"', "add expect_status = [301]"),
        ('expect_status = [301]\nexpect_location = "("', "is no regular expression"),
        ('expect_status = [301]\nexpect_location = "x"\nfollow_redirects = 1', "either followed"),
        ('expect_body = "a{99999999999999999999}"', "is no regular expression"),
        ('servername = "x"', "did you mean server_name"),
    ],
)
def test_wrong_settings_of_https_get_advice(text: str, said: str) -> None:
    assert said in problem(
        f'{NGINX}[[probe]]\nname = "n"\ntype = "http"\nurl = "https://h/"\n{text}'
    )


@pytest.mark.parametrize(
    "text",
    [
        'server_name = "x"', "verify = true", 'ca_file = "/x"', 'client_certificate = "/x"',
        'client_key = "/x"', "http2 = false",
    ],
)  # fmt: skip
def test_settings_of_https_are_for_https_alone(text: str) -> None:
    assert "it is for https alone" in problem(f"{NGINX}[[probe]]\n{HTTP}{text}")


def test_https_needs_ports_for_two_generations() -> None:
    text = f'{NGINX}[probe_listener]\nports = "20000-20002"\n[[probe]]\nname = "n"\ntype = "http"\n'
    assert "has 3 ports" in problem(f'{text}url = "https://h/"')
    assert parse(f'{text}url = "http://h/"').probe_listener.last_port == 20002


# --- durations ---


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("250ms", 0.25), ("10s", 10), ("5m", 300), ("1h", 3600), ("0.5s", 0.5), (0, 0), (1.5, 1.5)],
)
def test_durations(value: object, seconds: float) -> None:
    assert parse_duration(value) == pytest.approx(seconds)


@pytest.mark.parametrize("value", ["", "s", "1.s", "+1s", "1 s", "1S", "\u0661s", "9" * 400 + "s"])
def test_what_is_no_duration(value: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(value)


@given(st.text() | st.floats() | st.integers() | st.booleans() | st.none())
def test_durations_are_possible_or_refused(value: object) -> None:
    try:
        seconds = parse_duration(value)
    except ValueError:
        return
    assert 0 <= seconds <= LONGEST


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
))  # fmt: skip
def test_nothing_in_a_table_breaks_the_reader(value: object) -> None:
    good = {"binary": "/n", "config": "/c"}
    keys = ["nginx", "upgrade", "probe", "log"]
    documents: list[dict[str, object]] = [{"nginx": good, key: value} for key in keys]
    documents += [{"nginx": good, "probe": [{"name": "n", "type": "http", "url": value}]}]
    for document in documents:
        try:
            parse_settings(document)
        except ConfigError:
            continue
