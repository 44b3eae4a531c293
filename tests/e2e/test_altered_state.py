"""What lies in the state directory was altered, cut, lost, or names somebody else's process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from supervisor.edges import procfs
from supervisor.edges.journal import encode_line
from tests.e2e.harness import checks, site, supervised
from tests.e2e.harness.bare import until
from tests.e2e.harness.site import put, sha256
from tests.e2e.harness.supervised import Supervised
from tests.e2e.test_package_replacement import kill_everything
from tools.nginx_cache import Build

# --- the journal --------------------------------------------------------------------------------


def newer(text: bytes) -> bytes:
    return text.replace(b'"v":1', b'"v":999')


JOURNALS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut short": lambda text: text[: len(text) * 2 // 3],
    "newer": newer,
    "garbage": lambda _: bytes(range(256)) * 16,
    "a bit flipped": lambda text: text[:30] + bytes([text[30] ^ 1]) + text[31:],
    "no upgrade": lambda _: encode_line(0, {}),
    "another kind of record": lambda _: encode_line(0, {"upgrade_id": 7, "phase": "tea"}),
}


CASES = [
    *((how, True) for how in ("empty", "newer", "garbage", "another kind of record")),
    *((how, False) for how in ("cut short", "a bit flipped", "no upgrade")),
]


@pytest.mark.parametrize(("how", "alive"), CASES)
def test_a_journal_of_an_upgrade_that_was_held(
    oldest: Build, newest: Build, how: str, *, alive: bool
) -> None:
    """Whatever is left of it: nginx serves one generation, which is a good one, and it is said."""
    with site.make(oldest) as one, supervised.running(one) as nginx:
        client = nginx.begin("upgrade", newest.path, "--hold")
        nginx.until_phase("held")
        nginx.die() if alive else kill_everything(nginx)
        nginx.end(client)
        journal = one.folder / "state" / "journal.jsonl"
        text = journal.read_bytes()
        changed = JOURNALS[how](text)
        journal.write_bytes(changed)
        nginx.start()
        status = nginx.until_state("running")
        checks.assert_one_generation(nginx)
        assert status["generations"][0]["version"] in (oldest.version, newest.version)
        checks.assert_serves(
            nginx, oldest if status["generations"][0]["version"] == oldest.version else newest
        )
        aside = list(journal.parent.glob("journal.damaged-*"))
        if how not in ("empty", "cut short"):
            assert [path.read_bytes() for path in aside] == [changed]
            said = [line for line in nginx.log() if line["event"] == "journal.note"]
            assert said, nginx.log_text()
            assert str(aside[0]) in said[0]["detail"]
        # The next upgrade is one like any other.
        assert nginx.ctl("upgrade", newest.path).code == 0
        nginx.until_state("running")
        checks.assert_settled(nginx, newest, sha256(newest.path))


# --- the version store --------------------------------------------------------------------------


def alter(version: Path) -> None:
    """As a failing disk does: the size stays."""
    binary = version / "nginx"
    with binary.open("r+b") as file:
        file.seek(5000)
        file.write(b"altered")


def stored(nginx: Supervised, build: Build) -> Path:
    (found,) = [one for one in nginx.ctl("versions").lines if one.get("version") == build.version]
    return Path(found["binary"]).parent


HARM: dict[str, Callable[[Path], object]] = {
    "altered": alter,
    "lost": shutil.rmtree,
}


@pytest.mark.parametrize("how", list(HARM))
def test_the_stored_version_is_harmed_while_held(oldest: Build, newest: Build, how: str) -> None:
    """The old master still runs it, so a rollback takes it from there; nothing altered is used."""
    with site.make(oldest) as one, supervised.running(one) as nginx:
        client = nginx.begin("upgrade", newest.path, "--hold")
        nginx.until_phase("held")
        HARM[how](stored(nginx, oldest))
        assert nginx.ctl("rollback").code == 0
        assert nginx.end(client).code == 4
        checks.assert_rolled_back(nginx, oldest, sha256(oldest.path))
        assert "store.version_lost" in {line["event"] for line in nginx.log()}
        kill_everything(nginx)
        nginx.start()
        checks.assert_settled(nginx, oldest, sha256(oldest.path))


def test_the_stored_version_is_harmed_and_nobody_runs_it(oldest: Build, newest: Build) -> None:
    """Refused by name; a crash start goes on with what is on disk, and says so."""
    with site.make(oldest) as one, supervised.running(one) as nginx:
        assert nginx.ctl("upgrade", newest.path).code == 0
        nginx.until_state("running")
        alter(stored(nginx, oldest))
        answer = nginx.ctl("rollback")
        assert (answer.code, answer.reason) == (3, "stored_version_damaged"), answer
        checks.assert_settled(nginx, newest, sha256(newest.path))
        alter(stored(nginx, newest))
        put(oldest.path, one.binary)
        (master,) = nginx.masters()
        os.kill(master.pid, signal.SIGKILL)
        until("a restart", lambda: nginx.look()["restarts"] == 1)
        nginx.until_state("running")
        checks.assert_serves(nginx, oldest)  # it is whole, and the stored one is not
        said = [line for line in nginx.log() if line["event"] == "binary.not_restored"]
        assert "its hash differs" in said[0]["detail"], said


# --- claims that name somebody else -------------------------------------------------------------

BYSTANDER = """
import signal, sys
def note(number, _frame):
    with open(sys.argv[1], "a") as file:
        file.write(f"{signal.Signals(number).name}\\n")
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
    signal.signal(number, note)
print("ready", flush=True)
while True:
    signal.pause()
"""


@contextmanager
def bystander(folder: Path) -> Iterator[int]:
    """A process that nobody may signal; it notes every signal that it gets."""
    noted = folder / "noted"
    command = [sys.executable, "-c", BYSTANDER, str(noted)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        try:
            yield other.pid
            assert not noted.exists(), noted.read_text()
            assert other.poll() is None
        finally:
            other.kill()


def start_ticks(pid: int) -> int:
    stat = procfs.read_stat(pid)
    assert stat is not None
    return stat.start


def claim(nginx: Supervised, pid: int, *, exactly: bool) -> None:
    """Every file that names a process names this one; `exactly`: with its own time of start."""
    one = nginx.site
    one.pid_path.write_text(f"{pid}\n")
    one.oldbin_path.write_text(f"{pid}\n")
    record = one.folder / "state" / "masters.json"
    content = json.loads(record.read_text())
    for master in content["masters"]:
        master["pid"] = pid
        if exactly:
            master["start_ticks"] = start_ticks(pid)
    record.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("during", "exactly"), [("idle", False), ("held", True)], ids=["reused", "forged"]
)
def test_every_file_names_a_foreign_process(
    oldest: Build, newest: Build, tmp_path: Path, during: str, *, exactly: bool
) -> None:
    """After a power cut its number is given to somebody else."""
    with (
        bystander(tmp_path) as pid,
        site.make(oldest) as one,
        supervised.running(one) as nginx,
    ):
        if during == "held":
            client = nginx.begin("upgrade", newest.path, "--hold")
            nginx.until_phase("held")
        until("the record", (one.folder / "state" / "masters.json").exists)
        kill_everything(nginx)
        if during == "held":
            nginx.end(client)
        claim(nginx, pid, exactly=exactly)
        nginx.start()
        checks.assert_serves(nginx, oldest)
        one.oldbin_path.unlink(missing_ok=True)
        checks.assert_settled(nginx, oldest, sha256(oldest.path))
        assert nginx.ctl("upgrade", newest.path).code == 0
        nginx.until_state("running")
        checks.assert_settled(nginx, newest, sha256(newest.path))
        assert nginx.ctl("stop").code == 0


def test_the_record_names_a_foreign_process_while_nginx_lives(
    oldest: Build, newest: Build, tmp_path: Path
) -> None:
    """Who the master is can be found without it."""
    with (
        bystander(tmp_path) as pid,
        site.make(oldest) as one,
        supervised.running(one) as nginx,
    ):
        (master,) = nginx.masters()
        until("it is on record", (one.folder / "state" / "masters.json").exists)
        nginx.die()
        claim(nginx, pid, exactly=True)
        nginx.start()
        nginx.until_state("running")
        assert [each.pid for each in nginx.masters()] == [master.pid]
        one.oldbin_path.unlink(missing_ok=True)
        answer = nginx.ctl("upgrade", newest.path)
        if answer.code == 3:  # the pid file names somebody else, which is for a person to see
            assert answer.reason == "pid_file_wrong", answer
            one.pid_path.write_text(f"{master.pid}\n")
            answer = nginx.ctl("upgrade", newest.path)
        assert answer.code == 0, answer
        nginx.until_state("running")
        checks.assert_settled(nginx, newest, sha256(newest.path))
