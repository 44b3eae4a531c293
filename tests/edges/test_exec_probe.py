"""Probes that are commands: what they get, whose rights they have, and that none stays behind."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest
import trio

from supervisor.core.observation import DETAIL_BYTES, Outcome
from supervisor.core.probe_settings import ExecProbe
from supervisor.edges.exec_probe import Identity, check_exec
from tests.edges.probe_targets import LIMIT, WORKER, execute, script


async def test_exit_codes_decide() -> None:
    good = await execute(script("echo fine; exit 0"))
    assert (good.outcome, good.detail) == (Outcome.PASS, "exit code 0: fine")
    quiet = await execute(script("exit 3"))
    assert (quiet.outcome, quiet.detail) == (Outcome.FAIL, "exit code 3")
    killed = await execute(script("echo why >&2; kill -9 $$"))
    assert (killed.outcome, killed.detail) == (Outcome.FAIL, "ended by signal 9: why")


async def test_a_command_gets_little() -> None:
    text = "env | sort; ls /proc/self/fd | sort -n | tr '\\n' ' '; pwd; umask"
    found = await execute(script(text), PROBE_ADDRESS="127.0.0.1:18931")
    lines = found.detail.removeprefix("exit code 0: ").splitlines()
    names = {line.partition("=")[0] for line in lines[:-2]} - {"PWD", "_", "SHLVL", "OLDPWD"}
    assert names == {"LANG", "PATH", "PROBE_ADDRESS", "PROBE_NAME"}
    assert lines[-2] == "0 1 2 3 /"  # 3 is ls reading the folder
    assert lines[-1] == "0022"


async def test_a_command_runs_as_the_worker() -> None:
    found = await execute(script("id -u; id -g; id -G; cat /proc/self/stat"))
    uid, gid, groups, stat = found.detail.removeprefix("exit code 0: ").splitlines()
    if os.geteuid() == 0:
        assert (int(uid), int(gid), groups) == (*WORKER, gid)
    else:
        assert int(uid) == os.geteuid()
    session = int(stat.rpartition(")")[2].split()[3])
    assert session != os.getsid(0)


async def test_a_command_runs_as_the_user_that_is_named() -> None:
    name = pwd.getpwuid(os.geteuid()).pw_name
    found = await execute(script("id -un", user=name))
    assert found.detail == f"exit code 0: {name}"
    unknown = await execute(script("true", user="no-such-user"))
    assert unknown.detail == "cannot run as no-such-user: no such user"
    assert unknown.outcome is Outcome.FAIL


async def test_never_as_root_by_accident(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    found = await check_exec(script("true"), None, {})
    assert (found.outcome, found.detail) == (
        Outcome.FAIL, "cannot run: nginx's worker user is not known; set user",
    )  # fmt: skip


async def test_an_unprivileged_supervisor_runs_it_as_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    found = await check_exec(script("id -u"), Identity(*WORKER), {})
    assert found.detail == f"exit code 0: {real}"


async def test_a_command_that_cannot_be_run(tmp_path: Path) -> None:
    own = pwd.getpwuid(os.geteuid()).pw_name
    missing = await execute(
        ExecProbe(name="n", command=(str(tmp_path / "none"),), user=own, timeout=LIMIT)
    )
    assert missing.outcome is Outcome.FAIL
    assert missing.detail == f"cannot run {tmp_path}/none: No such file or directory"
    (tmp_path / "text").write_text("no program")
    (tmp_path / "text").chmod(0o755)
    wrong = await check_exec(
        ExecProbe(name="n", command=(str(tmp_path / "text"),), user=own, timeout=LIMIT),
        None,
        {},
    )
    assert wrong.outcome is Outcome.FAIL
    assert "cannot run" in wrong.detail


async def test_long_output_is_cut_and_never_holds_the_command_up() -> None:
    found = await execute(script("head -c 1000000 /dev/zero | tr '\\0' x; exit 1"))
    assert found.detail == "exit code 1: " + "x" * DETAIL_BYTES


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


async def until_gone(pid: int) -> None:
    with trio.fail_after(LIMIT):
        while alive(pid):
            await trio.sleep(0.01)


async def test_a_command_that_takes_too_long_is_killed_with_its_group() -> None:
    found = await execute(script("sleep 1000 & echo $! $$; wait", timeout=3.0))
    assert found.outcome is Outcome.FAIL
    assert found.detail.startswith("timed out after 3 s: the command still ran: ")
    for pid in found.detail.rpartition(": ")[2].split():
        await until_gone(int(pid))


async def test_what_a_command_leaves_in_its_group_is_ended() -> None:
    found = await execute(script("sleep 1000 & echo $!"))
    assert found.outcome is Outcome.PASS
    await until_gone(int(found.detail.rpartition(" ")[2]))


async def test_a_descendant_that_keeps_the_pipe_holds_nothing_up() -> None:
    found = await execute(script("setsid sleep 1000 & echo $!"))
    pid = int(found.detail.rpartition(" ")[2])
    try:
        assert found.outcome is Outcome.PASS
    finally:
        if alive(pid):
            os.kill(pid, 9)


async def test_cancelling_ends_the_command(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    own = pwd.getpwuid(os.geteuid()).pw_name
    command = script(f"echo $$ > {told}; exec sleep 1000", user=own)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(execute, command)
        with trio.fail_after(LIMIT):
            while not (told.exists() and told.read_text().endswith("\n")):
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert not Path(f"/proc/{told.read_text().strip()}").exists()
