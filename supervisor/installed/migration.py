"""From nginx.service to nginx-supervisor.service and back, without a refused connection.

systemd must not act on what it believes to own. So nginx.service gets a drop-in, in /run and for
this moment only, with which its stop touches nothing: no ExecStop, no signal to the cgroup, and
no removal of the pid file, which systemd does at the end of a unit with PIDFile=. Then nginx is
nobody's; the supervisor adopts it, and puts a master of its own on the same sockets (`adopt
--take-over`), which is in its own cgroup. Any failure before that gives nginx back.

The way back uses that systemd takes the main process of a Type=forking unit from a pid file of
root's (service_load_pid_file): with an ExecStart that starts nothing, nginx.service is active, and
its main process is the master that serves.

In between, nginx.service is a front where the installation has one: it is active without a process,
and whoever reloads or stops it talks to the supervisor.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from supervisor import wire
from supervisor.installed import front
from supervisor.installed.units import (
    OUR_UNIT,
    Running,
    StepError,
    running,
    show,
    systemctl,
    words_of,
)

NGINX_UNIT = "nginx.service"
# Read after everything else, also after the front.
_DROP_IN = "/run/systemd/system/{unit}.d/zzz-nginx-supervisor-migration.conf"
_TOUCHES_NOTHING = """\
# Written by nginx-supervisor-migrate for a moment; it removes it again.
[Service]
Restart=no
PIDFile=
ExecStop=
ExecStopPost=
KillMode=none
"""
_STAYS_AWAY = """\
# Written for the removal of a supervisor that does not answer; it is removed again.
[Service]
Restart=no
"""
_TAKES_WHAT_RUNS = """\
# Written by nginx-supervisor-migrate for a moment; it removes it again.
[Service]
Type=forking
ExecStartPre=
ExecStart=
ExecStart=/bin/true
ExecStartPost=
"""
_NO_OBSTACLE = ("previous_generation_draining", "not_running")
"""Why a supervisor refuses to detach that may be ended all the same: what drains goes on."""
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WAIT = 30.0
"""Seconds for a unit that is being killed to be down."""

Say = Callable[[str], None]


def _silent(text: str) -> None:
    """Say nothing."""


@contextmanager
def uninterrupted() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP do nothing within, nor to what is called: half a way is no place
    to stop. What a way that was killed has left behind is removed first. Raises StepError."""
    before = {one: signal.signal(one, signal.SIG_IGN) for one in _INTERRUPTS}
    try:
        for unit in (NGINX_UNIT, OUR_UNIT):
            _remove(Path(_DROP_IN.format(unit=unit)))
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _remove(drop_in: Path) -> None:
    if drop_in.exists():
        drop_in.unlink()
        with contextlib.suppress(OSError):
            drop_in.parent.rmdir()
        systemctl("daemon-reload")


def main_pid(unit: str) -> int:
    """The main process of a unit; 0: none."""
    return int(show(unit, "MainPID").get("MainPID") or 0)


def objections() -> list[str]:
    """Why nginx cannot be taken from nginx.service; nothing is changed by asking."""
    found = []
    theirs = show(NGINX_UNIT, "LoadState", "ActiveState", "MainPID")
    if theirs["ActiveState"] != "active":
        found.append(
            f"{NGINX_UNIT} is {theirs['ActiveState']}, so there is nothing to take over; to start "
            f"nginx: systemctl enable --now {OUR_UNIT}, and then this once more"
        )
    elif theirs["MainPID"] == "0":
        found.append(f"systemd does not know the main process of {NGINX_UNIT}: see its PIDFile=")
    found += _depending()
    if show(OUR_UNIT, "LoadState")["LoadState"] != "loaded":
        found.append(f"systemd does not know {OUR_UNIT}: install it, then systemctl daemon-reload")
    return found


def _depending() -> list[str]:
    keys = ("RequiredBy", "BoundBy", "ConsistsOf")
    theirs = show(NGINX_UNIT, *keys)
    others = sorted(
        {name for key in keys for name in theirs.get(key, "").split() if name != OUR_UNIT}
    )
    if not others:
        return []
    return [
        f"{', '.join(others)} would be stopped together with {NGINX_UNIT}: have that depend on "
        f"{OUR_UNIT} first"
    ]


def is_settled(ours: Running) -> bool:
    """Whether everything is done for a supervisor that has nginx, the next boot included."""
    if _is_in_nginx_unit(_serving(ours)) or not _is_enabled(OUR_UNIT):
        return False
    if front.can_be():
        return front.is_up() and show(NGINX_UNIT, "ActiveState")["ActiveState"] == "active"
    return not _is_enabled(NGINX_UNIT)


def settle(ours: Running, say: Say = _silent) -> None:
    """What is left to do where the supervisor has nginx without a migration.

    It has started it, or has adopted one that still is in the cgroup of nginx.service, with which
    systemd would end it. Raises StepError, which says what is left to do.
    """
    if _is_in_nginx_unit(_serving(ours)):
        if found := _depending():
            raise StepError("; ".join(found))
        with _let_go():
            say(f"master {_take_over(ours)} has taken nginx's place, on the same sockets")
    _be_started_at_boot(say)


def _is_in_nginx_unit(master: int) -> bool:
    try:
        lines = Path(f"/proc/{master}/cgroup").read_text().splitlines()
    except OSError:
        return False
    return any(NGINX_UNIT in line.split(":", 2)[2].split("/") for line in lines)


def forth(say: Say = _silent) -> int:
    """Take nginx from nginx.service; the pid of the master that serves then.

    Raises StepError where it was not done: nginx is nginx.service's again, or the text says what
    is left to do.
    """
    master = main_pid(NGINX_UNIT)
    with _let_go():
        say(f"{NGINX_UNIT} has let go of nginx (master {master}), which serves on")
        try:
            ours = _start(master)
            say(f"{OUR_UNIT} has adopted it")
            taken = _take_over(ours)
        except StepError as exc:
            raise StepError(f"{exc}; {_give_back_or_say(master)}") from exc
    say(f"master {taken} has taken its place, on the same sockets")
    _be_started_at_boot(say)
    return taken


def _be_started_at_boot(say: Say) -> None:
    """The front first: two units that start nginx must not both be enabled."""
    try:
        is_front = front.put_up()
    except OSError as exc:
        raise StepError(
            f"{OUR_UNIT} has nginx, but {NGINX_UNIT} cannot be made a front of it ({exc}), and "
            "what starts at boot was not changed: mend that, and do this once more"
        ) from exc
    if is_front:
        systemctl("daemon-reload")
        systemctl("enable", OUR_UNIT)
        systemctl("start", NGINX_UNIT)
        say(f"{OUR_UNIT} starts nginx from now on; {NGINX_UNIT} is a front of it ({front.DROP_IN})")
        if front.lacks_hook():
            say(f"{front.INIT_FUNCTIONS} cannot be made: /etc/init.d/nginx does not lead to it")
        return
    if _is_enabled(NGINX_UNIT):
        systemctl("disable", NGINX_UNIT)
    systemctl("enable", OUR_UNIT)
    say(f"{OUR_UNIT} starts nginx from now on, and {NGINX_UNIT} does not")


@contextmanager
def _let_go() -> Iterator[None]:
    """nginx.service is at rest within, and its processes are not touched by that."""
    with _drop_in(NGINX_UNIT, _TOUCHES_NOTHING):
        seen = show(NGINX_UNIT, "KillMode", "PIDFile", "ExecStop")
        if seen["KillMode"] != "none" or seen.get("PIDFile") or seen.get("ExecStop"):
            raise StepError(
                f"another drop-in of {NGINX_UNIT} overrides that of the migration: a stop would "
                "end nginx; nothing was changed"
            )
        systemctl("stop", NGINX_UNIT)
        yield


def _start(master: int) -> Running:
    systemctl("start", OUR_UNIT)
    ours = running(OUR_UNIT)
    if not ours:
        raise StepError(f"{OUR_UNIT} does not run")
    serving = _serving(ours[0])
    if serving != master:
        raise StepError(
            f"{OUR_UNIT} did not adopt master {master} (it has {serving or 'none'}): its "
            "configuration is of another nginx ([nginx] config, binary)"
        )
    return ours[0]


def _take_over(ours: Running) -> int:
    code, said = ours.nginxctl("adopt", "--take-over")
    if code != wire.ExitCode.DONE:
        raise StepError(f"the take-over was not done: {words_of(said)}")
    return _serving(ours)


def _serving(ours: Running) -> int:
    """The pid of the active generation's master; 0: none serves."""
    generations = ours.status().get("generations")
    if not isinstance(generations, list):
        return 0
    for one in generations:
        if isinstance(one, dict) and one.get("role") == "active":
            return int(one.get("master_pid") or 0)
    return 0


def _give_back_or_say(master: int) -> str:
    try:
        for ours in running(OUR_UNIT):
            detach(ours)
        _end_starts()
    except StepError as exc:
        return f"and {OUR_UNIT} cannot leave again: {exc}; nginx serves on"
    try:
        _hand_to_nginx_unit(master)
    except StepError as exc:
        return f"and {NGINX_UNIT} does not take nginx back: {exc}; nginx serves on, without a unit"
    return f"{NGINX_UNIT} has nginx again, as before"


def _end_starts() -> None:
    """A start that failed is tried again and again. What runs may be what nginx would end with."""
    if pid := main_pid(OUR_UNIT):
        raise StepError(f"it runs as process {pid}, which cannot be asked to leave")
    systemctl("stop", OUR_UNIT)
    forget_failure(OUR_UNIT)


def objections_to_going_back(ours: Running) -> list[str]:
    """Why nginx.service cannot have it; nothing is changed by asking. Raises StepError."""
    theirs = show(NGINX_UNIT, "LoadState", "FragmentPath")
    if theirs["LoadState"] != "loaded":
        return [f"{NGINX_UNIT} is {theirs['LoadState']}"]
    # As it is without the front.
    text = _text_of(theirs["FragmentPath"])
    pid_file = _last_value(text, "PIDFile")
    if _last_value(text, "Type") != "forking" or not pid_file:
        return [f"{NGINX_UNIT} has no Type=forking with a PIDFile=, by which to find nginx"]
    found = []
    status = ours.status()
    if status.get("state") not in ("running", "draining"):
        found.append(f"{ours.unit} is {status.get('state')}: wait until that is over")
    master, named = _serving(ours), _pid_in(pid_file)
    if named != master or not master:
        found.append(f"{pid_file} names {named or 'nobody'}, not the master {master or ''}")
    return found


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _last_value(text: str, key: str) -> str:
    found = [line.partition("=")[2] for line in text.splitlines() if line.startswith(f"{key}=")]
    return found[-1].strip() if found else ""


def back(ours: Running, say: Say = _silent) -> int:
    """Give nginx to nginx.service; the pid of its master. Raises StepError."""
    objections = objections_to_going_back(ours)
    if objections:
        raise StepError("; ".join(objections))
    master = detach(ours)
    say(f"{OUR_UNIT} has let go of nginx (master {master}), which serves on")
    _hand_to_nginx_unit(master)
    say(f"{NGINX_UNIT} has it")
    systemctl("enable", NGINX_UNIT)
    if _is_enabled(OUR_UNIT):
        systemctl("disable", OUR_UNIT)
    say(f"{NGINX_UNIT} starts nginx from now on, and {OUR_UNIT} does not")
    return master


def take_front_down() -> None:
    """nginx.service is the distribution's own again, and at rest; nginx is not touched by that."""
    at_rest = not front.is_up() or main_pid(NGINX_UNIT)  # with a process, it is at work itself
    try:
        with contextlib.nullcontext() if at_rest else _let_go():
            front.take_down()
    except OSError as exc:
        raise StepError(f"{NGINX_UNIT} stays a front: {exc}") from exc
    systemctl("daemon-reload")


def detach(ours: Running) -> int:
    """Have the supervisor leave nginx as it is, and its unit at rest; the pid of nginx's master.

    Where it does not do so when asked, it is killed: that never ends nginx, and the next supervisor
    could adopt it. A front of it is taken down as well, and only then: whoever refuses to leave
    keeps it. Raises StepError.
    """
    try:
        master = _serving(ours)
    except StepError:
        master, code = 0, None
    else:
        code, said = ours.nginxctl("detach")
        if code == wire.ExitCode.REFUSED and not any(f'"{word}"' in said for word in _NO_OBSTACLE):
            raise StepError(f"it does not detach: {words_of(said)}")
    if code != wire.ExitCode.DONE:
        _kill(ours.unit)
    if ours.unit == OUR_UNIT:
        # Before the stop of the unit, with which systemd would stop the front.
        try:
            take_front_down()
        except StepError as exc:
            systemctl("start", ours.unit)
            raise StepError(f"{exc}; {ours.unit} has nginx again") from exc
    if code == wire.ExitCode.DONE:
        systemctl("stop", ours.unit)
    return master


def _kill(unit: str) -> None:
    with _drop_in(unit, _STAYS_AWAY):
        systemctl("kill", "--kill-whom=main", "--signal=KILL", unit)
        _wait_until_down(unit)
    forget_failure(unit)


def forget_failure(unit: str) -> None:
    """A unit that is at rest may be out of systemd's memory, and reset-failed then fails."""
    if show(unit, "ActiveState")["ActiveState"] == "failed":
        systemctl("reset-failed", unit)


def _wait_until_down(unit: str) -> None:
    deadline = time.monotonic() + WAIT
    while show(unit, "ActiveState")["ActiveState"] not in ("failed", "inactive"):
        if time.monotonic() > deadline:
            raise StepError(f"{unit} is not down {WAIT:g} s after its main process was killed")
        time.sleep(0.05)


def _hand_to_nginx_unit(master: int) -> None:
    """Have nginx.service be active with the master that runs. Raises StepError."""
    with _drop_in(NGINX_UNIT, _TAKES_WHAT_RUNS):
        systemctl("start", NGINX_UNIT)
        found = main_pid(NGINX_UNIT)
        if found != master:
            raise StepError(f"the main process of {NGINX_UNIT} is {found or 'none'}, not {master}")
        _move(master, show(NGINX_UNIT, "ControlGroup").get("ControlGroup", ""))


def _move(master: int, cgroup: str) -> None:
    """Into the unit's cgroup; where that fails, a stop by the pid file works all the same."""
    mount = next(
        (line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()
         if line.split()[2] == "cgroup2"), None,
    )  # fmt: skip
    if mount is None or not cgroup:
        return
    procs = Path(mount, cgroup.lstrip("/"), "cgroup.procs")
    for _ in range(2):  # a worker that was forked meanwhile
        for pid in (master, *_children(master)):
            with contextlib.suppress(OSError):
                procs.write_text(f"{pid}\n")


def _children(pid: int) -> list[int]:
    try:
        words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [int(word) for word in words]


def _pid_in(path: str) -> int:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return 0


def _is_enabled(unit: str) -> bool:
    try:
        return systemctl("is-enabled", unit).strip() == "enabled"
    except StepError:
        return False


@contextmanager
def _drop_in(unit: str, text: str) -> Iterator[None]:
    path = Path(_DROP_IN.format(unit=unit))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    try:
        systemctl("daemon-reload")
        yield
    finally:
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()
        systemctl("daemon-reload")
