"""What `nginxctl doctor` concludes from what was seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from supervisor.core.diagnosis import (
    ConfigSeen,
    Diagnosis,
    HostSeen,
    Level,
    NginxSeen,
    Site,
    glob_of,
)
from supervisor.core.diagnosis_evidence import diagnose
from supervisor.core.nginx_config import parse_dump
from supervisor.core.nginx_details import ErrorLog, details_of
from supervisor.core.server_blocks import answering, server_blocks
from supervisor.core.settings import Settings, parse_settings
from supervisor.core.unit_file import UnitSeen, UnitsSeen

INCLUDE = "include /run/nginx-supervisor/probe*.conf;"
SITE = """\
# configuration file /etc/nginx/nginx.conf:
worker_processes 2;
worker_shutdown_timeout 10s;
error_log /var/log/nginx/error.log warn;
events {{ worker_connections 1000; }}
http {{
    server {{
        listen 127.0.0.1:8080;
        server_name example.org;
        {inside}
    }}
    server {{ listen 8081; }}
}}
{main}
"""
HOME = {"name": "home", "type": "http", "url": "http://127.0.0.1:8080/", "pid_header": "X-Pid"}
PLAIN = {"name": "home", "type": "http", "url": "http://127.0.0.1:8080/"}
PORT = {"name": "port", "type": "tcp", "address": "127.0.0.1:8080"}
COMMAND = {"name": "command", "type": "exec", "command": ["/bin/true"]}
BOTH_LINES = ("add_header X-Worker-Pid $pid always;", 'pid_header = "X-Worker-Pid"')
WELL = f"{INCLUDE} add_header X-Pid $pid always;"
NGINX = NginxSeen(
    generation="g1", version="1.26.3", pid=77, workers=2, pid_file="/run/nginx.pid",
    needed_bytes=5 * 2**20, available_bytes=900 * 2**20, files_limit=1024, descriptors=30,
)  # fmt: skip
HOST = HostSeen(
    kernel="6.18", supervisor="0.1.0", inet_diag=True, pidfd_getfd=True, exit_info=True,
    ephemeral=(32768, 60999), free_ports=(18931, 18932, 18933), held=(True, 1),
)  # fmt: skip

SAME = UnitSeen(name="same.service", properties={"UnitFileState": "masked"})
UNITS = UnitsSeen(theirs=SAME, ours=replace(SAME, name="nginx-supervisor.service"))


def settings(*probes: dict[str, object], **tables: Any) -> Settings:
    nginx = {"binary": "/usr/sbin/nginx", "config": "/etc/nginx/nginx.conf"}
    return parse_settings({"nginx": nginx, "probe": list(probes), **tables})


def seen(inside: str = WELL, main: str = "", workers: int = 2) -> ConfigSeen:
    dump = SITE.format(inside=inside, main=main)
    return ConfigSeen(
        config=parse_dump(dump), details=details_of(dump), blocks=server_blocks(dump),
        workers=workers,
    )  # fmt: skip


def site(**changes: Any) -> Site:
    facts: dict[str, Any] = {
        "settings": settings(HOME), "nginx": NGINX, "host": HOST, "config": seen(),
        "probes": (("home", "up"),), "units": UNITS,
    }  # fmt: skip
    return Site(**{**facts, **changes})


def levels(one: Site) -> dict[str, str]:
    """The findings that are not `ok`."""
    return {found.name: found.level.value for found in diagnose(one) if found.level is not Level.OK}


def about(one: Site, name: str) -> Diagnosis:
    (found,) = [found for found in diagnose(one) if found.name == name]
    return found


def test_a_site_that_has_everything() -> None:
    found = diagnose(site())
    assert {one.level for one in found} == {Level.OK}
    assert [one.topic for one in found] == sorted(
        (one.topic for one in found), key=["nginx", "evidence", "host", "unit"].index
    )
    assert [one.name for one in found] == [
        "running", "configuration", "upgradable", "pid_file", "memory", "store", "files", "drain",
        "private_listener", "response_header", "socket_owner", "probe home", "error_log", "ports",
        "supervisor", "kernel", "held_listeners", "front", "units",
    ]  # fmt: skip
    assert about(site(), "running").seen == "g1, nginx 1.26.3, master 77, 2 workers accepting"
    assert about(site(), "private_listener").seen == (
        "the server block at /etc/nginx/nginx.conf:6 (example.org) includes "
        "/run/nginx-supervisor/probe.conf: in a canary the candidate is asked alone"
    )


NGINX_IS_ODD: dict[str, tuple[dict[str, object], str, str]] = {
    "no worker": ({"workers": 0}, "running", "problem"),
    "refuses": ({"why_not_upgradable": "it is stopped"}, "upgradable", "problem"),
    "pid file": ({"pid_file_problem": "it names 5"}, "pid_file", "problem"),
    "oldbin": ({"oldbin_master": 6}, "oldbin", "problem"),
    "memory": ({"available_bytes": 2**20}, "memory", "problem"),
    "store": ({"stored": False}, "store", "warn"),
    "files": ({"files_limit": 512}, "files", "warn"),
    "more workers": ({"workers": 3}, "workers", "note"),
    "blind": ({"descriptors": None}, "socket_owner", "warn"),
}


@pytest.mark.parametrize("case", NGINX_IS_ODD)
def test_what_is_odd_about_nginx(case: str) -> None:
    changes, name, level = NGINX_IS_ODD[case]
    assert levels(site(nginx=replace(NGINX, **changes))) == {name: level}  # type: ignore[arg-type]


def test_a_limit_that_cannot_be_seen_is_not_told() -> None:
    assert "files" not in [
        one.name for one in diagnose(site(nginx=replace(NGINX, files_limit=None)))
    ]


def test_without_nginx_only_the_rest_is_told() -> None:
    one = site(nginx=None, host=replace(HOST, held=(True, 0)))
    assert levels(one) == {"running": "problem", "held_listeners": "warn"}
    assert "socket_owner" not in [found.name for found in diagnose(one)]


def test_without_the_configuration_what_depends_on_it_is_left_out() -> None:
    refused = site(config=None, refused="line 3")
    assert levels(refused) == {"configuration": "problem"}
    assert about(refused, "configuration").seen == "line 3"
    busy = site(config=None, nginx=None, busy="the supervisor is busy (canary)")
    assert levels(busy) == {"configuration": "note"}
    assert about(busy, "configuration").seen == "not looked at: the supervisor is busy (canary)"


def test_reuseport_with_another_number_of_workers() -> None:
    reuse = f"{WELL} listen 127.0.0.1:8090 reuseport;"
    held = (("127.0.0.1:8080", 1), ("127.0.0.1:8090", 2))
    one = site(nginx=replace(NGINX, reuseport_counts=held), config=seen(reuse, workers=4))
    assert levels(one) == {"workers": "problem"}
    assert about(one, "workers").lines == ("worker_processes 2;",)
    same = site(nginx=replace(NGINX, reuseport_counts=held), config=seen(reuse))
    assert levels(same) == {}


def test_drain() -> None:
    dump = SITE.replace("worker_shutdown_timeout 10s;", "")
    for inside, level in (
        (WELL, "note"),
        (f"{WELL} location / {{ proxy_set_header Upgrade $http_upgrade; proxy_pass b; }}", "warn"),
    ):  # fmt: skip
        text = dump.format(inside=inside, main="")
        config = ConfigSeen(
            config=parse_dump(text), details=details_of(text), blocks=server_blocks(text), workers=2
        )
        assert levels(site(config=config)) == {"drain": level}


# --- ways -------------------------------------------------------------------------------------


def test_without_the_include_it_says_where_it_belongs() -> None:
    one = site(config=seen("add_header X-Pid $pid;"))
    assert levels(one) == {"private_listener": "warn", "probe home": "note"}
    found = about(one, "private_listener")
    assert found.lines == ("include /run/nginx-supervisor/probe*.conf;",)
    assert found.advice == (
        "in the server block at /etc/nginx/nginx.conf:6 (example.org), which answers the probes, "
        "then nginxctl reload:"
    )
    elsewhere = {"name": "other", "type": "tcp", "address": "127.0.0.1:8081"}
    several = site(config=seen(""), settings=settings(PLAIN, {**PORT, "name": "b"}, elsewhere))
    assert "which answers most probes" in about(several, "private_listener").advice
    nobody = site(config=seen(""), settings=settings(COMMAND))
    assert about(nobody, "private_listener").advice == (
        "in the one server block that the probes look at, then nginxctl reload:"
    )


def test_the_include_in_two_places() -> None:
    one = site(config=seen(f"{WELL} }} server {{ listen 8082; {INCLUDE}"))
    found = about(one, "private_listener")
    assert (found.level, found.seen[:15]) == (Level.PROBLEM, "2 server blocks")


def test_the_folder_of_the_include() -> None:
    one = site(host=replace(HOST, include_folder_problem="it does not exist"))
    assert levels(one) == {"private_listener": "warn", "probe home": "note"}
    about(one, "private_listener")  # one finding, which does not also say that all is well


@pytest.mark.parametrize(
    ("inside", "probe", "level", "lines"),
    [
        (INCLUDE, PLAIN, "note", BOTH_LINES),
        (WELL, PLAIN, "note", ('pid_header = "X-Pid"',)),
        ("", PLAIN, "warn", BOTH_LINES),
        (INCLUDE, HOME, "warn", ("add_header X-Pid $pid always;",)),
    ],
)  # fmt: skip
def test_the_header(
    inside: str, probe: dict[str, object], level: str, lines: tuple[str, ...]
) -> None:
    found = about(site(config=seen(inside), settings=settings(probe)), "response_header")
    assert (found.level.value, found.lines) == (level, lines)


def test_only_http_has_headers() -> None:
    one = site(settings=settings(PORT), probes=())
    assert "response_header" not in [found.name for found in diagnose(one)]


# --- probes -----------------------------------------------------------------------------------


def test_without_a_probe() -> None:
    one = site(settings=settings())
    assert levels(one) == {"probes": "warn"}
    assert "ports" not in [found.name for found in diagnose(one)]


def test_what_each_probe_is_worth() -> None:
    down = site(probes=(("home", "down"),))
    assert levels(down) == {"probe home": "warn"}
    elsewhere = {"name": "other", "type": "tcp", "address": "127.0.0.1:8081"}
    one = site(settings=settings(HOME, PORT, elsewhere))
    assert about(one, "probe port").seen == (
        "asked in the canary and in the soak (a tcp probe is answered by the kernel: it says "
        "little of a worker)"
    )
    assert about(one, "probe other").level is Level.NOTE
    assert about(one, "probe other").seen.startswith(
        "not asked in the canary, it judges from the shift on: 127.0.0.1:8081 is not"
    )
    without = site(settings=settings(HOME, COMMAND), config=seen("add_header X-Pid $pid;"))
    assert "happens to be a worker's of the candidate" in about(without, "probe home").seen
    assert about(without, "probe command").seen.endswith(
        "a command's answer cannot be traced to a worker"
    )
    able = {**COMMAND, "uses_probe_address": True}
    assert about(site(settings=settings(able)), "probe command").seen == (
        "asked in the canary and in the soak"
    )
    addressed = site(settings=settings(able), config=seen(""))
    assert "cannot be traced" in about(addressed, "probe command").seen


def test_times_that_do_not_fit() -> None:
    one = site(settings=settings(HOME, upgrade={"soak": "1s"}))
    assert levels(one) == {"soak_short": "note"}


# --- logs, ports, host --------------------------------------------------------------------------


def test_error_logs() -> None:
    for main, level, many in (
        ("error_log /var/log/b.log;", "ok", 1),
        ("error_log /var/log/b.log crit;", "ok", 1),
        ("error_log /dev/null crit;", "warn", 1),
        ("error_log /var/log/b.log alert; error_log /var/log/c.log emerg;", "warn", 2),
    ):
        found = [one for one in diagnose(site(config=seen(main=main))) if one.name == "error_log"]
        assert [one.level.value for one in found] == [level] * many
    assert found[1].seen == (
        "/etc/nginx/nginx.conf:13 has its error log at emerg: lines at alert and crit are hidden, "
        "also from whoever judges a candidate"
    )
    assert ErrorLog(target="x", level="nonsense").hides == ()


def test_ports() -> None:
    assert levels(site(host=replace(HOST, free_ports=()))) == {"ports": "warn"}
    low = site(host=replace(HOST, ephemeral=(1024, 65000)))
    assert about(low, "ports").lines == ("sysctl -w net.ipv4.ip_local_reserved_ports=18931-18934",)
    assert levels(site(host=replace(HOST, ephemeral=None))) == {}
    for span in ((1024, 18930), (18935, 60000)):
        assert levels(site(host=replace(HOST, ephemeral=span))) == {}


def test_the_host() -> None:
    one = site(host=replace(HOST, inet_diag=False, exit_info=False, state_problem="it is full"))
    assert levels(one) == {"kernel": "note", "state": "problem"}
    assert "inet_diag (" in about(one, "kernel").seen
    assert "pidfd_getfd (" not in about(one, "kernel").seen
    assert levels(site(host=replace(HOST, held=(False, 0)))) == {"held_listeners": "warn"}
    off = site(
        host=replace(HOST, held=(False, 0)),
        settings=settings(HOME, restart={"hold_listeners": False}),
    )
    assert levels(off) == {"held_listeners": "note"}


def test_machine_code_where_the_unit_forbids_it() -> None:
    pcre, lua = seen(main="pcre_jit on;"), seen(inside=f"{WELL} content_by_lua_file /x.lua;")
    forbidden = replace(HOST, executable_memory=False)
    assert levels(site(config=pcre)) == levels(site(host=forbidden)) == {}
    assert levels(site(host=forbidden, config=None, busy="so")) == {"configuration": "note"}
    assert levels(site(host=forbidden, config=seen(main="pcre_jit off;"))) == {}
    assert levels(site(host=forbidden, config=pcre)) == {"machine_code": "note"}
    assert levels(site(host=forbidden, config=lua)) == {"machine_code": "warn"}
    assert "(content_by_lua_file)" in about(site(host=forbidden, config=lua), "machine_code").seen
    shared = seen(main="http { lua_shared_dict kept 1m; }")
    assert levels(site(host=forbidden, config=shared)) == {"machine_code": "warn"}


def test_the_glob() -> None:
    assert glob_of("/run/a/probe.conf") == "/run/a/probe*.conf"
    assert glob_of("/run/a/probe") == "/run/a/probe*"


# --- details ----------------------------------------------------------------------------------


def test_details() -> None:
    dump = SITE.format(
        inside="listen 443 quic; location / { fastcgi_pass b; }",
        main="worker_rlimit_nofile 9000; worker_rlimit_nofile x; error_log syslog:server=u;",
    )
    details = details_of(dump)
    assert (details.worker_connections, details.worker_rlimit_nofile) == (1000, 9000)
    assert (details.quic, details.proxies, details.passes_websockets) == (True, True, False)
    assert [(one.target, one.level) for one in details.error_logs] == [
        ("/var/log/nginx/error.log", "warn"), ("syslog:server=u", "error"),
    ]  # fmt: skip
    assert details_of("").main_file == ""


def test_who_answers_a_probe() -> None:
    blocks = server_blocks(SITE.format(inside="", main=""))
    home, port, command = settings(PLAIN, PORT, COMMAND).probes
    assert answering(home, blocks) is answering(port, blocks) is blocks[0]
    assert (blocks[0].file, blocks[0].line) == ("/etc/nginx/nginx.conf", 6)
    assert answering(command, blocks) is None
    (nobody,) = settings({**PORT, "address": "127.0.0.1:9999"}).probes
    assert answering(nobody, blocks) is None
