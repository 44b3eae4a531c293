"""What nginx would lose between nginx.service and the supervisor's unit, as far as one can tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from supervisor.core.diagnosis import Diagnosis, Level
from supervisor.core.diagnosis_units import of_units
from supervisor.core.settings import parse_settings
from supervisor.core.unit_file import (
    Assignment,
    UnitSeen,
    UnitsSeen,
    read_cat,
    read_show,
    variables_of,
    words_of,
)

FRAGMENT = "/usr/lib/systemd/system/nginx.service"
OVERRIDE = "/etc/systemd/system/nginx.service.d/override.conf"
STOCK = f"""\
# {FRAGMENT}
# Stop dance for nginx
[Unit]
After=network-online.target remote-fs.target
Wants=network-online.target

[Service]
Type=forking
PIDFile=/run/nginx.pid
ExecStartPre=/usr/sbin/nginx -t -q -g 'daemon on; master_process on;'
ExecStart=/usr/sbin/nginx -g 'daemon on; master_process on;'
TimeoutStopSec=5
KillMode=mixed
"""
FRONT = """
# /etc/systemd/system/nginx.service.d/zz-nginx-supervisor.conf
[Unit]
Requires=nginx-supervisor.service
[Service]
Type=oneshot
RemainAfterExit=yes
"""
DEFAULTS = {
    "LimitNOFILE": "524288", "LimitNOFILESoft": "1024", "Nice": "0", "OOMScoreAdjust": "0",
    "TasksMax": "4915", "MemoryMax": "infinity", "CPUQuotaPerSecUSec": "infinity",
    "PrivateTmp": "no", "FragmentPath": FRAGMENT, "Requires": "sysinit.target",
    "After": "network-online.target remote-fs.target", "Wants": "network-online.target",
    "DropInPaths": f"{OVERRIDE} /etc/systemd/system/nginx.service.d/zz-nginx-supervisor.conf",
}  # fmt: skip


def differences(
    override: str = "",
    theirs: Mapping[str, str] = {},
    ours: Mapping[str, str] = {},
    running: Mapping[str, str] = {},
    nginx: Mapping[str, Any] = {},
    stock: str = STOCK,
) -> list[Diagnosis]:
    """What is found between the stock unit with an override and ours, with the front beside it."""
    text = f"{stock}\n# {OVERRIDE}\n{override}\n{FRONT}"
    seen = UnitsSeen(
        theirs=UnitSeen(name="nginx.service", properties={**DEFAULTS, **theirs}, text=text),
        ours=UnitSeen(name="nginx-supervisor.service", properties={**DEFAULTS, **ours}),
        running=running,
    )
    given = {"binary": "/usr/sbin/nginx", "config": "/etc/nginx/nginx.conf", **nginx}
    front, *found = of_units(seen, parse_settings({"nginx": given}).nginx)
    assert (front.name, front.level) == ("front", Level.OK)
    return found


def only(found: list[Diagnosis]) -> Diagnosis:
    (one,) = found
    return one


def test_nothing_is_lost() -> None:
    one = only(differences())
    assert (one.name, one.level) == ("units", Level.OK)
    assert one.seen.startswith("nginx-supervisor.service gives nginx what nginx.service would")


@pytest.mark.parametrize(
    ("shown", "level"),
    [
        ({"DropInPaths": OVERRIDE}, Level.WARN),
        ({}, Level.WARN),
        ({"UnitFileState": "masked"}, Level.OK),
        ({"DropInPaths": f"{OVERRIDE} /etc/x.d/zz-nginx-supervisor.conf"}, Level.OK),
    ],
)
def test_whether_nginx_service_would_start_a_second_nginx(
    shown: dict[str, str], level: Level
) -> None:
    units = UnitsSeen(
        theirs=UnitSeen(name="nginx.service", properties=shown),
        ours=UnitSeen(name="nginx-supervisor.service", properties={}),
    )
    nginx = parse_settings({"nginx": {"binary": "/n", "config": "/c"}}).nginx
    front, _ = of_units(units, nginx)
    assert (front.name, front.level, bool(front.lines)) == ("front", level, level is Level.WARN)


@pytest.mark.parametrize(
    ("required", "names"), [("", ["units"]), ("nginx-supervisor@web.service", ["front", "units"])]
)
def test_another_unit_than_the_front_s_is_not_compared(required: str, names: list[str]) -> None:
    drop_in = "/etc/x.d/zz-nginx-supervisor.conf"
    shown = {"DropInPaths": drop_in, "Requires": f"sysinit.target {required}"}
    units = UnitsSeen(
        theirs=UnitSeen(name="nginx.service", properties=shown),
        ours=UnitSeen(name="nginx-supervisor@web.service", properties={}),
    )
    nginx = parse_settings({"nginx": {"binary": "/n", "config": "/c"}}).nginx
    found = [one for one in of_units(units, nginx) if one.level is not Level.WARN]
    assert [one.name for one in found] == names
    assert all(("asks nginx-supervisor@web" in one.seen) is (one.name == "front") for one in found)


def test_there_is_nothing_to_compare() -> None:
    nginx = parse_settings({"nginx": {"binary": "/n", "config": "/c"}}).nginx
    one = only(list(of_units(UnitsSeen(without="no systemd manages this machine"), nginx)))
    assert (one.level, one.seen) == (Level.NOTE, "not compared: no systemd manages this machine")


def test_a_limit_with_both_values_and_the_line_to_add() -> None:
    one = only(
        differences(
            "[Service]\nLimitNOFILE=65536",
            {"LimitNOFILE": "65536", "LimitNOFILESoft": "65536"},
        )
    )
    assert (one.name, one.level) == ("LimitNOFILE", Level.WARN)
    assert one.seen == (
        f"65536 in nginx.service (by {OVERRIDE}), 1024:524288 in nginx-supervisor.service"
    )
    assert one.advice == "with `systemctl edit nginx-supervisor.service`, in its [Service] part:"
    assert one.lines == ("LimitNOFILE=65536",)


@pytest.mark.parametrize(
    ("line", "name", "theirs", "here"),
    [
        ("Nice=-5", "Nice", {"Nice": "-5"}, "0"),
        ("CPUAffinity=0 2", "CPUAffinity", {"CPUAffinity": "0 2"}, "not set"),
        ("OOMScoreAdjust=-900", "OOMScoreAdjust", {"OOMScoreAdjust": "-900"}, "0"),
        ("TasksMax=100", "TasksMax", {"TasksMax": "100"}, "4915"),
        ("MemoryMax=2G", "MemoryMax", {"MemoryMax": "2147483648"}, "infinity"),
        ("CPUQuota=150%", "CPUQuota", {"CPUQuotaPerSecUSec": "1.5s"}, "infinity"),
        ("User=www", "User", {"User": "www"}, "not set"),
        ("IOReadBandwidthMax=/ 1M", "IOReadBandwidthMax", {}, "not set"),
        ("RuntimeDirectory=nginx", "RuntimeDirectory", {"RuntimeDirectory": "nginx"}, "not set"),
    ],
)
def test_what_somebody_has_set(line: str, name: str, theirs: dict[str, str], here: str) -> None:
    one = only(differences(f"[Service]\n{line}", theirs))
    assert (one.name, one.level, one.lines) == (name, Level.WARN, (line,))
    value = line.partition("=")[2]
    assert (
        one.seen == f"{value} in nginx.service (by {OVERRIDE}), {here} in nginx-supervisor.service"
    )


def test_what_the_supervisor_s_unit_has_as_well_is_no_difference() -> None:
    override = "[Service]\nNice=-5\nRuntimeDirectory=nginx"
    both = {"Nice": "-5"}
    ours = {**both, "RuntimeDirectory": "nginx-supervisor nginx"}
    found = differences(override, {**both, "RuntimeDirectory": "nginx"}, ours)
    assert only(found).level is Level.OK


def test_what_only_the_supervisor_s_unit_has_set_is_said_but_no_loss() -> None:
    one = only(differences(ours={"OOMScoreAdjust": "-500"}))
    assert (one.name, one.level, one.lines) == ("OOMScoreAdjust", Level.NOTE, ())
    assert one.seen == (
        "-500 in nginx-supervisor.service, and in nginx.service systemd's default, 0"
    )
    assert "not set" in only(differences(ours={"CPUAffinity": "1"})).seen
    lost = only(differences(theirs={"AllowedCPUs": "1"}))
    assert lost.seen.startswith("not set in nginx-supervisor.service")


@pytest.mark.parametrize(
    ("soft", "hard", "lost"),
    [
        ("1024", "1048576", False), ("4096", "infinity", False),
        ("1024", "4096", True), ("512", "1048576", True),
    ],
)  # fmt: skip
def test_a_limit_that_is_no_lower_than_the_default_is_no_difference(
    soft: str, hard: str, *, lost: bool
) -> None:
    one = only(differences(ours={"LimitNOFILE": hard, "LimitNOFILESoft": soft}))
    assert (one.name, one.level) == (("LimitNOFILE", Level.NOTE) if lost else ("units", Level.OK))


def test_a_part_of_a_sandbox_is_not_to_be_copied_without_a_look() -> None:
    one = only(differences("[Service]\nPrivateTmp=yes", {"PrivateTmp": "yes"}))
    assert (one.name, one.level, one.lines) == ("PrivateTmp", Level.NOTE, ("PrivateTmp=yes",))
    assert "see the comments" in one.advice


def test_how_a_process_is_started_and_ended_is_not_compared() -> None:
    override = "[Service]\nRestart=always\nRestartSec=1\nWatchdogSec=9\nStandardError=null"
    assert only(differences(override, {"Restart": "always"})).level is Level.OK


def test_a_limit_that_waits_for_the_next_start() -> None:
    seen = {"LimitCORE": "infinity"}
    one = only(differences("[Service]\nLimitCORE=infinity", seen, seen, {"LimitCORE": "0"}))
    assert (one.name, one.level) == ("LimitCORE", Level.NOTE)
    assert one.seen.startswith("infinity in both units, and 0 for the nginx that runs")


def test_what_it_waits_for_at_boot() -> None:
    override = "[Unit]\nRequires=srv.mount nginx-supervisor.service\nAfter=srv.mount\n"
    found = differences(override)
    assert [(one.name, one.level, one.lines) for one in found] == [
        ("After", Level.WARN, ("After=srv.mount",)),
        ("Requires", Level.WARN, ("Requires=srv.mount",)),
    ]


def test_variables_go_into_the_supervisor_s_own_configuration() -> None:
    set_there = {"Environment": '"A=b \\"c" TZ=UTC OK=1'}
    one = only(differences("", set_there, nginx={"environment": {"OK": "1", "TZ": "CET"}}))
    assert (one.name, one.level) == ("Environment", Level.WARN)
    assert 'A is "b "c" there and not set here, TZ is "UTC" there and "CET" here' in one.seen
    assert one.lines == ('environment = { OK = "1", TZ = "UTC", A = "b \\"c" }',)
    same = {"OK": "1", "TZ": "UTC", "A": 'b "c'}
    assert only(differences("", set_there, nginx={"environment": same})).level is Level.OK


def test_files_with_variables_and_variables_of_the_manager() -> None:
    override = "[Service]\nEnvironmentFile=-/etc/default/nginx\nPassEnvironment=LANG"
    found = differences(override)
    assert [(one.name, one.level) for one in found] == [
        ("EnvironmentFile", Level.WARN), ("PassEnvironment", Level.WARN),
    ]  # fmt: skip
    assert found[0].seen.startswith(f"-/etc/default/nginx in nginx.service (by {OVERRIDE})")


def test_commands_that_somebody_has_added() -> None:
    one = only(differences("[Service]\nExecStartPost=/bin/sleep 0.1"))
    assert (one.name, one.level) == ("ExecStartPost", Level.NOTE)
    assert one.seen.startswith("/bin/sleep 0.1 in nginx.service")


def test_arguments_of_nginx() -> None:
    start = (
        "[Service]\nExecStart=\nExecStart=-/opt/nginx -c /srv/n.conf -p /srv -e /srv/log -g "
        '"daemon off; worker_priority  -5;"'
    )
    found = differences(start, nginx={"prefix": "/srv"})
    assert [(one.name, one.lines) for one in found] == [
        ("nginx config", ('config = "/srv/n.conf"',)),
        ("nginx error_log", ('error_log = "/srv/log"',)),
        ("nginx globals", ('globals = "worker_priority -5;"',)),
        ("nginx binary", ('binary = "/opt/nginx"',)),
    ]
    assert found[0].seen == (
        f"/srv/n.conf by ExecStart= of {OVERRIDE}, /etc/nginx/nginx.conf in the supervisor's "
        "configuration"
    )
    assert "not set in the supervisor's" in found[1].seen


def test_a_wrapper_says_nothing_of_the_binary() -> None:
    assert only(differences("[Service]\nExecStart=/usr/bin/numactl /usr/sbin/nginx")).level is (
        Level.OK
    )
    assert only(differences(stock=f"# {FRAGMENT}\n[Service]\nNice=0")).level is Level.OK


# --- what systemctl prints -----------------------------------------------------------------------


def test_read_cat() -> None:
    text = f"""\
stray=1
# {FRAGMENT}
[Service]
# a comment
; another
Environment=A=1 \\
# between
  B=2
ExecStart=/bin/a
noise

# {OVERRIDE}
[Service]
ExecStart=
ExecStart=/bin/b
Environment=C=3
[Unit]
Environment=
"""
    assert read_cat(text) == (
        Assignment("Service", "Environment", "A=1    B=2", FRAGMENT),
        Assignment("Service", "ExecStart", "/bin/b", OVERRIDE),
        Assignment("Service", "Environment", "C=3", OVERRIDE),
    )


def test_read_show() -> None:
    assert dict(read_show("A=1\nB=x=y\n\nnoise\nC=\n")) == {"A": "1", "B": "x=y", "C": ""}


def test_words() -> None:
    assert words_of("a 'b c'") == ("a", "b c")
    assert words_of("a 'b c") == ("a 'b c",)
    assert dict(variables_of("A=1 B")) == {"A": "1"}
