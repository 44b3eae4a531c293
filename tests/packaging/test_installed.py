"""What is decided on the way between units, by what systemctl and nginxctl say.

The way itself is walked in tests/booted/test_deb.py.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from supervisor.installed import front, migrate, migration, package, units
from supervisor.installed.units import OUR_UNIT, Running, StepError
from supervisor.wire import DEFAULT_SOCKET

LOADED = {"LoadState": "loaded", "ActiveState": "inactive", "MainPID": "0"}


@dataclass
class Systemd:
    """Answers as systemctl would; `properties` of each unit, `fails` by the first words."""

    properties: dict[str, dict[str, str]] = field(default_factory=dict)
    fails: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def run(self, command: Sequence[str]) -> str:
        verb, *words = command[1:]
        text = " ".join([verb, *words])
        self.asked.append(text)
        for begin, problem in self.fails.items():
            if text.startswith(begin):
                raise StepError(f"`systemctl {text}` failed (1): {problem}")
        if verb == "show":
            known = self.properties.get(words[0], {"LoadState": "not-found"})
            return "".join(f"{key}={value}\n" for key, value in known.items())
        if verb == "list-units":
            return "".join(f"{name} loaded active running x\n" for name in self.properties)
        return ""

    def did(self, text: str) -> bool:
        return text in self.asked


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Systemd:
    made = Systemd()
    monkeypatch.setattr(units, "_run", made.run)
    monkeypatch.setattr(migration, "_DROP_IN", str(tmp_path / "{unit}.d/zzz.conf"))
    monkeypatch.setattr(front, "DROP_IN", tmp_path / "etc/zz.conf")
    monkeypatch.setattr(front, "INIT_FUNCTIONS", tmp_path / "lsb/50")
    return made


@dataclass
class Answers:
    """What nginxctl says, by its first word; all that it was asked."""

    said: dict[str, tuple[int, str]]
    asked: list[tuple[str, ...]] = field(default_factory=list)

    def tell(self, *words: str) -> tuple[int, str]:
        self.asked.append(words)
        return self.said[" ".join(words)] if " ".join(words) in self.said else self.said[words[0]]


def answer(monkeypatch: pytest.MonkeyPatch, **said: tuple[int, str]) -> Answers:
    made = Answers({name.replace("_", "-"): one for name, one in said.items()})
    monkeypatch.setattr(Running, "nginxctl", lambda one, *words: made.tell(*words))
    return made


def serving(master: int, state: str = "running") -> tuple[int, str]:
    generations = [{"role": "active", "master_pid": master}]
    return 0, json.dumps({"state": state, "generations": generations})


ONE = Running(unit=OUR_UNIT, pid=7, socket="/run/x.sock")


# --- a removal ---


def test_it_is_detached_and_the_unit_is_at_rest(
    systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, status=serving(12), detach=(0, ""))
    assert migration.detach(ONE) == 12
    assert systemd.did(f"stop {OUR_UNIT}")
    assert not any(text.startswith("kill") for text in systemd.asked)


@pytest.mark.parametrize("reason", ["upgrade_in_progress", "reload_in_progress", "starting"])
def test_what_is_under_way_is_waited_for_by_the_person(
    systemd: Systemd, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    answer(monkeypatch, status=serving(12), detach=(3, json.dumps({"reason": reason})))
    with pytest.raises(StepError, match=reason):
        migration.detach(ONE)
    assert systemd.asked == []


@pytest.mark.parametrize(
    "said",
    [
        (3, '{"reason":"previous_generation_draining"}'),
        (3, '{"reason":"not_running"}'),
        (5, "nginxctl: cannot reach the supervisor"),
        (6, "no answer within 300 s"),
        (2, "there is no command 'detach'"),  # a supervisor of long ago
    ],
)
def test_one_that_does_not_leave_is_killed_alone(
    systemd: Systemd, monkeypatch: pytest.MonkeyPatch, said: tuple[int, str]
) -> None:
    answer(monkeypatch, status=serving(12), detach=said)
    systemd.properties[OUR_UNIT] = {"ActiveState": "failed"}
    assert migration.detach(ONE) == 12
    assert systemd.did(f"kill --kill-whom=main --signal=KILL {OUR_UNIT}")
    assert not systemd.did(f"stop {OUR_UNIT}")
    assert systemd.did(f"reset-failed {OUR_UNIT}")


def test_one_that_does_not_answer_is_not_asked_twice(
    systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = answer(monkeypatch, status=(5, "nobody listens there"))
    systemd.properties[OUR_UNIT] = {"ActiveState": "inactive"}
    assert migration.detach(ONE) == 0
    assert answers.asked == [("status",)]


def test_one_that_cannot_be_killed_is_told(
    systemd: Systemd, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(monkeypatch, status=(5, ""))
    monkeypatch.setattr(migration, "WAIT", 0.0)
    monkeypatch.setattr(package, "running", lambda: [ONE])
    systemd.properties[OUR_UNIT] = {"ActiveState": "deactivating"}
    assert package.main(["release"]) == 1
    said = capsys.readouterr().err
    assert f"{OUR_UNIT} cannot leave nginx alone" in said
    assert "is not down" in said


def test_units_without_nginx_are_stopped_after_it(
    systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "running", list)
    systemd.properties = {
        "nginx-supervisor-package.path": {"ActiveState": "active"},
        "nginx-supervisor@x.service": {"ActiveState": "activating"},
        "nginx-supervisor@y.service": {"ActiveState": "inactive"},
    }
    assert package.main(["release"]) == 0
    assert systemd.did("stop nginx-supervisor-package.path")
    assert systemd.did("stop nginx-supervisor@x.service")
    assert not systemd.did("stop nginx-supervisor@y.service")


# --- an update ---


@pytest.mark.parametrize(
    ("said", "code", "words"),
    [
        ((0, ""), 0, "runs the new version"),
        ((6, "gave up after 60 s"), 0, "has not said yet that it is done: gave up"),
        ((3, '{"reason":"self_check_failed","detail":"no start"}'), 1, "failed: no start"),
        ((5, "cannot reach"), 1, "goes on with the version before"),
        ((3, "[]"), 1, "[]"),
        ((1, ""), 1, "no word"),
    ],
)  # fmt: skip
def test_an_update_is_told_as_it_went(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    said: tuple[int, str],
    code: int,
    words: str,
) -> None:
    answer(monkeypatch, self_upgrade=said)
    monkeypatch.setattr(package, "running", lambda: [ONE, ONE])
    assert package.main(["replace"]) == code
    told = capsys.readouterr()
    assert (told.out + told.err).count(words) == 2  # one failure does not keep the other from it


def test_a_held_upgrade_stays_held_in_the_new_program(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = answer(monkeypatch, self_upgrade=(3, '{"reason":"upgrade_held"}'))
    answers.said[f"self-upgrade --now --timeout {package.PATIENCE}"] = (0, "")
    monkeypatch.setattr(package, "running", lambda: [ONE])
    assert package.main(["replace"]) == 0


def test_a_word_that_nobody_knows(capsys: pytest.CaptureFixture[str]) -> None:
    assert package.main(["dance"]) == 2
    assert "replace | release" in capsys.readouterr().err


def test_systemd_that_does_not_answer(systemd: Systemd, capsys: pytest.CaptureFixture[str]) -> None:
    systemd.fails["list-units"] = "Failed to connect to bus"
    assert package.main(["replace"]) == 1
    assert "Failed to connect to bus" in capsys.readouterr().err


# --- going there, and back ---


def nginx_unit(tmp_path: Path, text: str = "Type=forking\nPIDFile={pid}\n") -> dict[str, str]:
    fragment = tmp_path / "nginx.service"
    fragment.write_text("[Service]\n" + text.format(pid=tmp_path / "nginx.pid"))
    return {**LOADED, "FragmentPath": str(fragment)}


def test_what_stands_in_the_way(systemd: Systemd) -> None:
    systemd.properties = {"nginx.service": dict(LOADED), OUR_UNIT: {"LoadState": "not-found"}}
    first, second = migration.objections()
    assert "nginx.service is inactive, so there is nothing to take over" in first
    assert "systemd does not know nginx-supervisor.service" in second
    systemd.properties["nginx.service"] |= {"ActiveState": "active", "BoundBy": "a.service"}
    systemd.properties[OUR_UNIT] = dict(LOADED)
    first, second = migration.objections()
    assert "does not know the main process" in first
    assert "a.service would be stopped together with nginx.service" in second


def test_what_stands_in_the_way_back(
    systemd: Systemd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answer(monkeypatch, status=serving(12))
    systemd.properties["nginx.service"] = {"LoadState": "masked", "FragmentPath": ""}
    assert migration.objections_to_going_back(ONE) == ["nginx.service is masked"]
    systemd.properties["nginx.service"] = nginx_unit(tmp_path, "Type=notify\n")
    assert "no Type=forking" in migration.objections_to_going_back(ONE)[0]
    systemd.properties["nginx.service"] = nginx_unit(tmp_path)
    assert "names nobody, not the master 12" in migration.objections_to_going_back(ONE)[0]
    (tmp_path / "nginx.pid").write_text("12\n")
    assert migration.objections_to_going_back(ONE) == []
    answer(monkeypatch, status=serving(12, "upgrading"))
    with pytest.raises(StepError, match="is upgrading: wait until that is over"):
        migration.back(ONE)


def test_nginx_that_is_in_the_cgroup_of_its_old_unit_is_taken_out_of_it(
    systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answer(monkeypatch, status=serving(12), adopt=(0, ""))
    inside = {12}
    monkeypatch.setattr(migration, "_is_in_nginx_unit", lambda master: master in inside)
    systemd.properties["nginx.service"] = {**LOADED, "RequiredBy": "a.service"}
    assert not migration.is_settled(ONE)
    with pytest.raises(StepError, match=r"a\.service would be stopped"):
        migration.settle(ONE)
    assert not any(text.startswith("stop") for text in systemd.asked)
    systemd.properties["nginx.service"] = {**LOADED, "KillMode": "none"}
    migration.settle(ONE)
    assert ("adopt", "--take-over") in asked.asked
    assert systemd.did("stop nginx.service")
    assert systemd.did(f"enable {OUR_UNIT}")


def test_only_root_and_only_systemd(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert migrate.main([]) == migrate.REFUSED
    assert "only root" in capsys.readouterr().err
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(migrate, "BOOTED", tmp_path / "none")
    assert migrate.main(["--back"]) == migrate.REFUSED
    assert "systemd is not the init system" in capsys.readouterr().err


def test_the_way_back_where_there_is_nothing_to_give(
    systemd: Systemd, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(migrate, "BOOTED", Path("/"))
    monkeypatch.setattr(migrate, "running", lambda name: [])
    systemd.properties["nginx.service"] = dict(LOADED)
    assert migrate.main(["--back"]) == migrate.REFUSED
    systemd.properties["nginx.service"]["MainPID"] = "12"
    assert migrate.main(["--back"]) == migrate.DONE
    assert "nginx.service has nginx already" in capsys.readouterr().out
    systemd.fails["show"] = "no bus"
    assert migrate.main(["--back"]) == migrate.FAILED


def test_nobody_interrupts_it_and_what_a_killed_one_left_is_removed(
    systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = Path(migration._DROP_IN.format(unit="nginx.service"))
    left.parent.mkdir()
    left.write_text("[Service]\nKillMode=none\n")
    went_on = []

    def half_way(given: object) -> int:
        assert not left.exists()
        assert systemd.did("daemon-reload")
        for one in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(one)
        # Ctrl-C reaches what is called too.
        subprocess.run(["sh", "-c", "kill -INT $$; kill -HUP $$"], check=True)
        went_on.append(given)
        return migrate.DONE

    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(migrate, "BOOTED", Path("/"))
    monkeypatch.setattr(migrate, "_forth", half_way)
    before = signal.getsignal(signal.SIGINT)
    assert migrate.main([]) == migrate.DONE
    assert went_on
    assert signal.getsignal(signal.SIGINT) == before


# --- what runs ---


def test_the_supervisors_that_run_are_found_by_their_command(
    systemd: Systemd, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "c.toml"
    config.write_text('[control]\nsocket = "/run/other.sock"\nwhatever = [[[')
    with (
        sleeping() as other,
        sleeping("run", "--config", str(config)) as ours,
        sleeping("run", f"--config={config}") as second,
        sleeping("run", "--conf", str(config)) as odd,
    ):
        systemd.properties = {
            "nginx-supervisor.service": {"MainPID": str(ours.pid)},
            "nginx-supervisor-package.service": {"MainPID": str(other.pid)},
            "nginx-supervisor@second.service": {"MainPID": str(second.pid)},
            "nginx-supervisor@odd.service": {"MainPID": str(odd.pid)},
            "nginx-supervisor@gone.service": {"MainPID": "0"},
        }
        # A file that is no TOML by now says nothing: it is where it would be by default.
        first, written_otherwise = units.running()
        assert first == Running(unit=OUR_UNIT, pid=ours.pid, socket=DEFAULT_SOCKET)
        assert written_otherwise.pid == second.pid
        config.write_text('[control]\nsocket = "/run/other.sock"\nunknown = 1\n')
        assert {one.socket for one in units.running()} == {"/run/other.sock"}
        # Nobody knows what that is: a stop could end nginx.
        odd_one = f"nginx-supervisor@odd.service (process {odd.pid})"
        assert units.unknown() == [odd_one]
        assert package.main(["release"]) == 1
        assert f"cannot tell what {odd_one} is" in capsys.readouterr().err
        assert not any(text.startswith(("stop", "kill")) for text in systemd.asked)


@contextmanager
def sleeping(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process with these arguments, from when it can be seen to have them."""
    command = ["sh", "-c", "echo up; read line", *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        yield process


def test_the_configuration_that_a_unit_names(systemd: Systemd) -> None:
    systemd.properties[OUR_UNIT] = {"ExecStart": "{ argv[]=/x run --config /etc/a.toml ; y }"}
    assert units.config_of(OUR_UNIT) == "/etc/a.toml"
    systemd.properties[OUR_UNIT] = {"ExecStart": "{ argv[]=/x run --config=/etc/b.toml ; y }"}
    assert units.config_of(OUR_UNIT) == "/etc/b.toml"
    assert units.config_of("other.service") is None


def test_systemctl_that_is_not_there_or_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StepError, match="No such file"):
        units._run(["/nowhere/systemctl", "x"])
    with pytest.raises(StepError, match=r"failed \(3\): well"):
        units._run(["sh", "-c", "echo well; exit 3"])
    monkeypatch.setattr(units, "LIMIT", 0.1)
    with pytest.raises(StepError, match=r"did not end within 0\.1 s"):
        units._run(["sleep", "60"])


def test_the_front_is_a_link_and_respects_what_is_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    places = tmp_path / "etc/nginx.service.d/zz.conf", tmp_path / "lsb/50-nginx-supervisor"
    monkeypatch.setattr(front, "DROP_IN", places[0])
    monkeypatch.setattr(front, "INIT_FUNCTIONS", places[1])
    owner = tmp_path / "etc/nginx-supervisor.service.d/front.conf"
    monkeypatch.setattr(front, "OWNER_DROP_IN", owner)
    monkeypatch.setattr(front, "_SOURCES", tmp_path / "share")
    assert not front.put_up()  # a wheel has no such files
    for path in (
        "nginx.service.d/zz.conf", "init-functions.d/50-nginx-supervisor",
        "nginx-supervisor.service.d/front.conf",
    ):  # fmt: skip
        (tmp_path / "share" / path).parent.mkdir(parents=True)
        (tmp_path / "share" / path).write_text("x")
    places[1].parent.mkdir()
    places[1].write_text("mine")
    assert front.put_up()
    assert front.is_up()
    assert places[0].readlink() == tmp_path / "share/nginx.service.d/zz.conf"
    assert places[1].read_text() == "mine"
    assert owner.readlink() == tmp_path / "share/nginx-supervisor.service.d/front.conf"
    front.take_down()
    assert not front.is_up()
    assert not places[0].parent.exists()
    assert not owner.parent.exists()
