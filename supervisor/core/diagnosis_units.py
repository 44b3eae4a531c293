"""What nginx would lose on its way from the distribution's nginx.service to the supervisor's unit.

nginx has its limits, its priority, its cgroup and its sandbox from the unit that it is started in.
Each setting that nginx.service has, by its own file or by a drop-in that somebody wrote for a
reason, is compared with what systemd has for the supervisor's unit; what keeps a process alive and
ends it is left out, since that is the supervisor's business now. The environment is compared with
`[nginx] environment`: the supervisor hands nothing else on.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from itertools import pairwise

from supervisor.core.diagnosis import Diagnosis, Level, finding
from supervisor.core.diagnosis_own_unit import of_own_unit
from supervisor.core.settings import NginxSettings
from supervisor.core.unit_file import (
    Assignment,
    UnitSeen,
    UnitsSeen,
    read_cat,
    variables_of,
    words_of,
)

TOPIC = "unit"
OUR_UNIT = "nginx-supervisor.service"
"""The one that the front asks, where nobody has written another one."""
OUR_DROP_IN = "zz-nginx-supervisor.conf"
"""The one that makes nginx.service a front of the supervisor; it sets nothing that is compared."""

_LIMITS = (
    "NOFILE", "CORE", "MEMLOCK", "NPROC", "STACK", "DATA", "AS", "RSS", "FSIZE", "CPU", "LOCKS",
    "SIGPENDING", "MSGQUEUE", "NICE", "RTPRIO", "RTTIME",
)  # fmt: skip
_COMPARED = (
    *(f"Limit{name}" for name in _LIMITS), "Nice", "CPUAffinity", "NUMAPolicy", "NUMAMask",
    "CPUSchedulingPolicy", "CPUSchedulingPriority", "IOSchedulingClass", "IOSchedulingPriority",
    "OOMScoreAdjust", "CoredumpFilter", "User", "Group", "SupplementaryGroups", "Slice", "TasksMax",
    "MemoryMin", "MemoryLow", "MemoryHigh", "MemoryMax", "MemorySwapMax", "CPUQuota", "CPUWeight",
    "IOWeight", "AllowedCPUs",
)  # fmt: skip
"""Looked at in any case; whatever else nginx.service sets is looked at as well."""
_LISTS = (
    "RuntimeDirectory", "StateDirectory", "CacheDirectory", "LogsDirectory",
    "ConfigurationDirectory", "SupplementaryGroups",
)  # fmt: skip
_OURS_NOW = re.compile(
    "Type|PIDFile|Exec.*|ExitType|GuessMainPID|RemainAfterExit|Restart.*|Timeout.*|RuntimeMaxSec|"
    "Kill.*|SendSIG.*|FinalKill.*|Watchdog.*|NotifyAccess|OOMPolicy|SuccessExitStatus|"
    "FileDescriptorStore.*|StartLimit.*|Standard.*|Syslog.*|ReloadSignal|Sockets"
)  # how a process is started, watched and ended
_ENVIRONMENT = ("Environment", "EnvironmentFile", "PassEnvironment", "UnsetEnvironment")
_SANDBOX = re.compile(
    "Protect.*|Private.*|Restrict.*|SystemCall.*|CapabilityBoundingSet|AmbientCapabilities|"
    "NoNewPrivileges|Read.*Paths|InaccessiblePaths|LockPersonality|MemoryDenyWriteExecute|"
    "RemoveIPC|ProcSubset|SecureBits|UMask"
)
_COMMANDS = ("ExecCondition", "ExecStartPre", "ExecStartPost", "ExecStopPost")
_ORDER = ("After", "Requires", "Wants", "BindsTo", "RequiresMountsFor")
_OPTIONS = {"-c": "config", "-p": "prefix", "-e": "error_log", "-g": "globals"}
_NOT_GLOBALS = ("daemon on", "daemon off", "master_process on")


def of_units(seen: UnitsSeen, nginx: NginxSettings) -> Iterator[Diagnosis]:
    """One finding for each difference, or one that says that there is none."""
    theirs, ours = seen.theirs, seen.ours
    if ours is not None:
        yield from of_own_unit(ours)
    if theirs is None or ours is None:
        yield finding(TOPIC, "units", Level.NOTE, f"not compared: {seen.without}")
        return
    if ours.name != OUR_UNIT and ours.name not in theirs.properties.get("Requires", "").split():
        yield finding(
            TOPIC, "units", Level.NOTE,
            f"not compared: {theirs.name} does not ask {ours.name}",
        )  # fmt: skip
        return
    said = [
        one for one in read_cat(theirs.text) if posixpath.basename(one.file) != OUR_DROP_IN
    ]  # fmt: skip
    found = (
        *_of_settings(seen, theirs, ours, said),
        *_of_order(theirs, ours, said),
        *_of_environment(theirs, said, nginx),
        *_of_commands(theirs, said, nginx),
    )
    yield _front(theirs, ours)
    if not found:
        yield finding(
            TOPIC, "units", Level.OK,
            f"{ours.name} gives nginx what {theirs.name} would: limits, environment, priority, "
            "cgroup, order",
        )  # fmt: skip
    yield from found


def _front(theirs: UnitSeen, ours: UnitSeen) -> Diagnosis:
    drop_ins = theirs.properties.get("DropInPaths", "").split()
    state = theirs.properties.get("UnitFileState", "")
    if state == "masked" or any(posixpath.basename(one) == OUR_DROP_IN for one in drop_ins):
        what = "is masked" if state == "masked" else f"asks {ours.name}"
        return finding(TOPIC, "front", Level.OK, f"{theirs.name} {what}: it starts no nginx itself")
    return finding(
        TOPIC, "front", Level.WARN,
        f"{theirs.name} is as the distribution has it: started, or restarted by a package, it "
        "starts a second nginx beside this one, and `systemctl reload` of it is no reload of ours",
        "have it ask the supervisor (docs/migration.md has how, and the way back):",
        f"install -D -m 0644 -t /etc/systemd/system/{theirs.name}.d "
        f"/usr/share/nginx-supervisor/systemd/nginx.service.d/{OUR_DROP_IN}",
        "systemctl daemon-reload",
    )  # fmt: skip


def _of_settings(
    seen: UnitsSeen, theirs: UnitSeen, ours: UnitSeen, said: list[Assignment]
) -> Iterator[Diagnosis]:
    service = [one for one in said if one.section == "Service"]
    others = [one.key for one in service if one.key not in (*_COMPARED, *_ENVIRONMENT)]
    for key in dict.fromkeys((*_COMPARED, *others)):
        lines = [one for one in service if one.key == key]
        # What `show` has under another name is compared as it is written.
        there = theirs.value(key) or " ".join(one.value for one in lines)
        here = ours.value(key)
        if _OURS_NOW.fullmatch(key) or (key in _LISTS and set(there.split()) <= set(here.split())):
            continue
        if there == here:
            yield from _of_running(seen, key, here)
        elif not lines and key.startswith("Limit") and _no_less(here, there):
            continue
        elif lines:
            yield _set_there(lines, here or "not set", theirs, ours)
        else:
            yield finding(
                TOPIC, key, Level.NOTE,
                f"{here or 'not set'} in {ours.name}, and in {theirs.name} systemd's default, "
                f"{there or 'not set'}",
            )  # fmt: skip


def _no_less(here: str, there: str) -> bool:
    """A limit of ours takes nothing away from what systemd's default gives."""
    ours, theirs = (
        [float(part.replace("infinity", "inf")) for part in value.split(":")]
        for value in (here, there)
    )
    return ours[0] >= theirs[0] and ours[-1] >= theirs[-1]


def _set_there(lines: list[Assignment], here: str, theirs: UnitSeen, ours: UnitSeen) -> Diagnosis:
    key, values = lines[-1].key, ", ".join(one.value for one in lines)
    level, advice = Level.WARN, f"with `systemctl edit {ours.name}`, in its [Service] part:"
    if _SANDBOX.fullmatch(key):
        level = Level.NOTE
        advice = (
            f"a part of a sandbox: see the comments in {ours.name} before you add it there, as "
            "the supervisor needs more than nginx does"
        )
    return finding(
        TOPIC, key, level,
        f"{values} in {theirs.name} (by {lines[-1].file}), {here} in {ours.name}",
        advice, *(f"{key}={one.value}" for one in lines),
    )  # fmt: skip


def _of_running(seen: UnitsSeen, key: str, here: str) -> Iterator[Diagnosis]:
    now = seen.running.get(key, here)
    if now != here:
        yield finding(
            TOPIC, key, Level.NOTE,
            f"{here} in both units, and {now} for the nginx that runs: it was started before, or "
            "by something else, or systemd may not give more (in a container)",
            "its next start applies it: `nginxctl adopt --take-over` where the supervisor was "
            "started since, else `systemctl restart` of its unit",
        )  # fmt: skip


def _of_order(theirs: UnitSeen, ours: UnitSeen, said: list[Assignment]) -> Iterator[Diagnosis]:
    for key in _ORDER:
        wanted = [
            word
            for one in said
            if one.section == "Unit" and one.key == key
            for word in one.value.split()
        ]
        missing = [
            one for one in dict.fromkeys(wanted)
            if one not in ours.properties.get(key, "").split() and one != ours.name
        ]  # fmt: skip
        if missing:
            yield finding(
                TOPIC, key, Level.WARN,
                f"{theirs.name} has {' '.join(missing)}, {ours.name} has not",
                f"with `systemctl edit {ours.name}`, in its [Unit] part:",
                f"{key}={' '.join(missing)}",
            )  # fmt: skip


def _of_environment(
    theirs: UnitSeen, said: list[Assignment], nginx: NginxSettings
) -> Iterator[Diagnosis]:
    there = variables_of(theirs.properties.get("Environment", ""))
    missing = {name: text for name, text in there.items() if nginx.environment.get(name) != text}
    if missing:
        now = ", ".join(
            f'{name} is "{text}" there and '
            + (f'"{nginx.environment[name]}" here' if name in nginx.environment else "not set here")
            for name, text in missing.items()
        )
        everything = {**nginx.environment, **missing}
        pairs = ", ".join(f"{name} = {_toml(text)}" for name, text in everything.items())
        yield finding(
            TOPIC, "Environment", Level.WARN,
            f"{now}: nginx gets from the supervisor what [nginx] environment says, nothing else",
            "in the supervisor's configuration, in [nginx]:", f"environment = {{ {pairs} }}",
        )  # fmt: skip
    for one in said:
        if one.section == "Service" and one.key in ("EnvironmentFile", "PassEnvironment"):
            yield finding(
                TOPIC, one.key, Level.WARN,
                f"{one.value} in {theirs.name} (by {one.file}), and [nginx] environment says "
                "which variables nginx gets",
                "write those that nginx needs into [nginx] environment of the supervisor's "
                "configuration",
            )  # fmt: skip


def _of_commands(
    theirs: UnitSeen, said: list[Assignment], nginx: NginxSettings
) -> Iterator[Diagnosis]:
    fragment = theirs.properties.get("FragmentPath", "")
    for one in said:
        if one.key in _COMMANDS and one.file != fragment:
            yield finding(
                TOPIC, one.key, Level.NOTE,
                f"{one.value} in {theirs.name} (by {one.file}) is not run by the supervisor",
                "if it is more than a wait for the pid file, it belongs into a unit of its own "
                "with Before=nginx-supervisor.service, or After= it",
            )  # fmt: skip
    starts = [one for one in said if one.key == "ExecStart"]
    if starts:
        yield from _of_options(starts[-1], nginx)


def _of_options(start: Assignment, nginx: NginxSettings) -> Iterator[Diagnosis]:
    words = words_of(start.value.lstrip("-@:+!"))
    given = {_OPTIONS[name]: text for name, text in pairwise(words)
             if name in _OPTIONS}  # fmt: skip
    given["globals"] = _plain_globals(given.get("globals", ""))
    if words and posixpath.basename(words[0]) == posixpath.basename(nginx.binary):
        given["binary"] = words[0]
    here = {
        "binary": nginx.binary, "config": nginx.config, "prefix": nginx.prefix or "",
        "error_log": nginx.error_log or "", "globals": _plain_globals(nginx.globals or ""),
    }  # fmt: skip
    for key, text in given.items():
        if text and text != here[key]:
            yield finding(
                TOPIC, f"nginx {key}", Level.WARN,
                f"{text} by ExecStart= of {start.file}, {here[key] or 'not set'} in the "
                "supervisor's configuration",
                "in the supervisor's configuration, in [nginx], if it is to stay so:",
                f"{key} = {_toml(text)}",
            )  # fmt: skip


def _plain_globals(text: str) -> str:
    """Without what the supervisor decides."""
    parts = (" ".join(part.split()) for part in text.split(";"))
    return " ".join(f"{part};" for part in parts if part and part not in _NOT_GLOBALS)


def _toml(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
