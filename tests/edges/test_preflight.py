"""Each way in which an upgrade cannot go well is refused by name, and nothing is changed."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from supervisor.core.errors import Refusal
from supervisor.core.guard_settings import Guard, GuardSettings, Level
from supervisor.core.guards import Finding, Severity
from supervisor.core.nginx_listen import Listen, parse_listen
from supervisor.edges import holders, pidfile, preflight_checks, sockets
from supervisor.edges.files import RealDisk
from supervisor.edges.placing import Placement, sha256_of
from supervisor.edges.preflight import (
    Active,
    Check,
    Installation,
    NoChange,
    Plan,
    Request,
    preflight,
)
from supervisor.edges.preflight_draft import Draft
from supervisor.edges.store import Origin, VersionStore
from tests.edges.running_nginx import RunningNginx, free_port
from tools.nginx_builds import builds, candidate

OLD, NEW = builds()[0], builds()[-1]


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[RunningNginx]:
    with RunningNginx(tmp_path / "nginx", OLD) as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> VersionStore:
    return VersionStore(tmp_path / "state", 3)


@pytest.fixture
def offered(tmp_path: Path) -> Path:
    path = tmp_path / "offered" / "nginx"
    path.parent.mkdir()
    shutil.copy(NEW.path, path)
    path.chmod(0o755)
    return path


def installation(nginx: RunningNginx) -> Installation:
    return Installation(
        destination=nginx.binary,
        arguments=nginx.arguments,
        environment={},
        prefix=str(nginx.folder),
        globals=None,
        probe_include=nginx.folder / "probe.conf",
        announce=lambda: None,
        uid=os.getuid(),
    )


def active(nginx: RunningNginx) -> Active:
    return Active(
        master=nginx.identity,
        workers=nginx.workers(),
        pid_path=nginx.pid_path,
        version_id=None,
        env=(),
    )


async def ask(
    nginx: RunningNginx, store: VersionStore, request: Request, who: Active | None = None
) -> Plan | NoChange:
    return await preflight(
        request, installation=installation(nginx), active=who or active(nginx), store=store
    )


async def refused(
    nginx: RunningNginx, store: VersionStore, request: Request, who: Active | None = None
) -> Refusal:
    """The refusal, after which everything is as before."""
    before = nginx.binary.read_bytes(), nginx.workers(), nginx.pid_path.lstat().st_ino
    with pytest.raises(Refusal) as caught:
        await ask(nginx, store, request, who)
    assert (nginx.binary.read_bytes(), nginx.workers(), nginx.pid_path.lstat().st_ino) == before
    assert [path.name for path in nginx.binary.parent.iterdir()] == ["nginx"]
    assert caught.value.detail.startswith("cannot ")
    return caught.value


async def test_an_offered_binary_passes(
    nginx: RunningNginx, store: VersionStore, offered: Path
) -> None:
    plan = await ask(nginx, store, Request(binary=offered))
    assert isinstance(plan, Plan)
    assert plan.build.version == plan.stored.version == NEW.version
    assert plan.stored.sha256 == sha256_of(NEW.path)
    assert plan.config.worker_processes == 2
    assert plan.warnings == ()
    assert list(plan.seconds) == [check.name for check in preflight_checks.CHECKS]
    assert plan.staged.placement is Placement.RENAME
    assert nginx.binary.read_bytes() == OLD.path.read_bytes()
    plan.install()
    plan.discard()
    assert nginx.binary.read_bytes() == NEW.path.read_bytes()
    assert [path.name for path in nginx.binary.parent.iterdir()] == ["nginx"]


async def test_a_dry_run_leaves_nothing(
    nginx: RunningNginx, store: VersionStore, offered: Path
) -> None:
    plan = await ask(nginx, store, Request(binary=offered))
    assert isinstance(plan, Plan)
    plan.discard()
    plan.discard()
    assert nginx.binary.read_bytes() == OLD.path.read_bytes()
    assert [path.name for path in nginx.binary.parent.iterdir()] == ["nginx"]


async def test_what_a_package_put_on_disk_passes(
    nginx: RunningNginx, store: VersionStore, offered: Path
) -> None:
    offered.rename(nginx.binary)
    plan = await ask(nginx, store, Request())
    assert isinstance(plan, Plan)
    assert plan.staged.placement is Placement.ALREADY_THERE
    assert plan.build.version == NEW.version


async def test_the_same_again(nginx: RunningNginx, store: VersionStore) -> None:
    running = store.take(nginx.binary, modules={}, origin=Origin.DISK)
    who = replace(active(nginx), version_id=running.id)
    assert await ask(nginx, store, Request(if_changed=True), who) == NoChange(
        version=OLD.version, version_id=running.id
    )
    assert isinstance(await ask(nginx, store, Request(), who), Plan)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("wrapper", "binary_not_nginx"),
        ("truncated", "binary_truncated"),
        ("wrong_architecture", "binary_wrong_architecture"),
        ("not_nginx", "binary_not_nginx"),
        ("not_executable", "binary_not_executable"),
        ("empty", "binary_not_nginx"),
    ],
)
async def test_bad_binaries(
    nginx: RunningNginx, store: VersionStore, offered: Path, kind: str, reason: str
) -> None:
    shutil.copy(candidate(NEW, kind), offered)
    assert (await refused(nginx, store, Request(binary=offered))).reason == reason


async def test_binaries_that_cannot_be_taken(
    nginx: RunningNginx, store: VersionStore, offered: Path
) -> None:
    for path, reason in [
        (Path("sbin/nginx"), "relative_path"),
        (offered.parent / "missing", "binary_missing"),
        (offered.parent, "binary_not_nginx"),
    ]:
        assert (await refused(nginx, store, Request(binary=path))).reason == reason
    offered.parent.chmod(0o777)
    refusal = await refused(nginx, store, Request(binary=offered))
    assert refusal.reason == "binary_not_trusted"
    assert str(offered.parent) in refusal.detail
    assert isinstance(await ask(nginx, store, Request(binary=offered, trust=True)), Plan)


async def test_a_configuration_that_the_new_binary_rejects(
    nginx: RunningNginx, store: VersionStore, offered: Path
) -> None:
    nginx.configure(http="nonsense on;")
    refusal = await refused(nginx, store, Request(binary=offered))
    assert refusal.reason == "config_rejected"
    assert 'unknown directive "nonsense"' in refusal.detail


async def test_a_candidate_that_could_not_be_ready_in_time(
    nginx: RunningNginx, store: VersionStore, offered: Path
) -> None:
    """It would be rolled back and marked as bad, for the size of its configuration."""
    short = replace(installation(nginx), start_timeout=0.0001)
    with pytest.raises(Refusal) as caught:
        await preflight(
            Request(binary=offered), installation=short, active=active(nginx), store=store
        )
    assert caught.value.reason == "start_timeout_too_short"
    assert "raise start_timeout in [upgrade]" in caught.value.detail
    assert [path.name for path in nginx.binary.parent.iterdir()] == ["nginx"]


@pytest.mark.needs("twin", "stub_status")
async def test_a_module_that_the_new_binary_lacks(
    nginx: RunningNginx, store: VersionStore, offered: Path
) -> None:
    nginx.configure(http=f"server {{ listen 127.0.0.1:{free_port()}; stub_status; }}")
    shutil.copy(candidate(NEW, "without_stub_status"), offered)
    refusal = await refused(nginx, store, Request(binary=offered))
    assert refusal.reason == "module_missing"
    assert "--with-http_stub_status_module" in refusal.detail


@pytest.mark.needs("marker")
async def test_dynamic_modules_of_another_version(
    nginx: RunningNginx, store: VersionStore, offered: Path
) -> None:
    module = nginx.folder / "marker.so"
    shutil.copy(OLD.marker_module, module)
    nginx.configure(main=f"load_module {module};")
    refusal = await refused(nginx, store, Request(binary=offered))
    assert refusal.reason == "module_mismatch"
    shutil.copy(NEW.marker_module, module)
    plan = await ask(nginx, store, Request(binary=offered))
    assert isinstance(plan, Plan)
    assert plan.stored.modules == {str(module): sha256_of(NEW.marker_module)}
    assert [each.id for each in store.versions()][-1] == plan.stored.id
    plan.discard()


@pytest.mark.needs("marker")
async def test_a_stored_version_comes_with_its_modules(
    nginx: RunningNginx, store: VersionStore, offered: Path
) -> None:
    module = nginx.folder / "marker.so"
    shutil.copy(OLD.marker_module, module)
    old = store.take(nginx.binary, modules={str(module): module}, origin=Origin.DISK)
    shutil.copy(offered, nginx.folder / "n")
    (nginx.folder / "n").rename(nginx.binary)
    shutil.copy(NEW.marker_module, nginx.folder / "m")
    (nginx.folder / "m").rename(module)
    nginx.configure(main=f"load_module {module};")
    plan = await ask(nginx, store, Request(version_id=old.id))
    assert isinstance(plan, Plan)
    assert module.read_bytes() == OLD.marker_module.read_bytes()
    plan.discard()
    assert module.read_bytes() == NEW.marker_module.read_bytes()
    nginx.configure(main=f"load_module {module};", http="nonsense on;")
    assert (await refused(nginx, store, Request(version_id=old.id))).reason == "config_rejected"
    assert module.read_bytes() == NEW.marker_module.read_bytes()
    old.binary.write_bytes(b"damaged")
    refusal = await refused(nginx, store, Request(version_id=old.id))
    assert refusal.reason == "stored_version_damaged"


async def test_a_stored_version_without_modules(
    nginx: RunningNginx, store: VersionStore, offered: Path
) -> None:
    stored = store.take(offered, modules={})
    plan = await ask(nginx, store, Request(version_id=stored.id))
    assert isinstance(plan, Plan)
    assert plan.stored.version == NEW.version
    plan.install()
    assert nginx.binary.read_bytes() == NEW.path.read_bytes()


async def test_master_process_off(nginx: RunningNginx, store: VersionStore, offered: Path) -> None:
    nginx.configure(main="master_process off;")
    refusal = await refused(nginx, store, Request(binary=offered))
    assert refusal.reason == "master_process_off"


async def test_pid_files(nginx: RunningNginx, store: VersionStore, offered: Path) -> None:
    request = Request(binary=offered)
    pidfile.repair(nginx.pid_path, os.getpid())
    assert (await refused(nginx, store, request)).reason == "pid_file_wrong"
    nginx.pid_path.unlink()
    nginx.pid_path.symlink_to(nginx.config)
    text = nginx.config.read_text()
    assert (await refused(nginx, store, request)).reason == "pid_file_is_symlink"
    assert nginx.config.read_text() == text
    nginx.pid_path.unlink()
    with pytest.raises(Refusal) as caught:
        await ask(nginx, store, request)
    assert caught.value.reason == "pid_file_wrong"
    assert not nginx.pid_path.exists()


async def test_an_old_master_that_was_left(
    nginx: RunningNginx, store: VersionStore, offered: Path, tmp_path: Path
) -> None:
    oldbin = pidfile.oldbin_path(nginx.pid_path)
    with RunningNginx(tmp_path / "other", OLD) as other:
        pidfile.repair(oldbin, other.identity.pid)
        refusal = await refused(nginx, store, Request(binary=offered))
        assert refusal.reason == "oldbin_master_alive"
        assert str(other.identity.pid) in refusal.detail
    assert isinstance(await ask(nginx, store, Request(binary=offered)), Plan)
    pidfile.repair(oldbin, os.getpid())  # lives, and is no nginx
    assert isinstance(await ask(nginx, store, Request(binary=offered)), Plan)


async def test_usr2_to_processes_that_cannot_take_it(
    nginx: RunningNginx, store: VersionStore, offered: Path
) -> None:
    with subprocess.Popen(["sleep", "600"]) as other:
        identity = pidfile.identity_of(other.pid)
        assert identity is not None
        pidfile.repair(nginx.pid_path, other.pid)
        who = replace(active(nginx), master=identity)
        refusal = await refused(nginx, store, Request(binary=offered), who)
        assert refusal.reason == "usr2_would_be_refused"
        assert "no handler" in refusal.detail
        other.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, other.pid, os.WSTOPPED)
        refusal = await refused(nginx, store, Request(binary=offered), who)
        assert "is stopped" in refusal.detail
        other.kill()


async def test_a_master_that_is_upgrading_already(
    nginx: RunningNginx, store: VersionStore, offered: Path
) -> None:
    os.kill(nginx.identity.pid, signal.SIGUSR2)
    oldbin = pidfile.oldbin_path(nginx.pid_path)
    with trio.fail_after(30):
        while not (oldbin.exists() and nginx.pid_path.exists() and nginx.pid_path.read_text()):
            await trio.sleep(0.001)
    new = pidfile.identity_of(int(nginx.pid_path.read_text()))
    assert new is not None
    who = replace(active(nginx), pid_path=oldbin)
    refusal = await refused(nginx, store, Request(binary=offered), who)
    assert refusal.reason == "foreign_upgrade"
    assert f"process {new.pid} is the new master" in refusal.detail
    both = replace(active(nginx), master=new)
    refusal = await refused(nginx, store, Request(binary=offered), both)
    assert refusal.reason == "oldbin_master_alive"
    pidfd = os.pidfd_open(new.pid)
    os.kill(new.pid, signal.SIGTERM)
    with trio.fail_after(30):
        await trio.lowlevel.wait_readable(pidfd)
        while oldbin.exists():
            await trio.sleep(0.001)
    os.close(pidfd)


async def test_a_new_address_that_somebody_else_holds(
    nginx: RunningNginx, store: VersionStore, offered: Path
) -> None:
    for family, host, shown in [
        (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET6, "::1", "[::1]"),
    ]:
        with socket.socket(family) as foreign:
            foreign.bind((host, 0))
            foreign.listen()
            address = f"{shown}:{foreign.getsockname()[1]}"
            nginx.configure(http=f"server {{ listen {address}; }}")
            refusal = await refused(nginx, store, Request(binary=offered))
        assert refusal.reason == "listen_address_busy"
        assert address in refusal.detail
        assert f"process {os.getpid()} " in refusal.detail
    assert isinstance(await ask(nginx, store, Request(binary=offered)), Plan)


async def test_a_name_is_not_looked_up(
    nginx: RunningNginx, store: VersionStore, offered: Path
) -> None:
    nginx.configure(http=f"server {{ listen localhost:{free_port()}; }}")
    assert isinstance(await ask(nginx, store, Request(binary=offered)), Plan)


async def test_a_tcp_listener_that_goes_is_a_warning(
    nginx: RunningNginx, store: VersionStore, offered: Path
) -> None:
    nginx.configure(listen=f"listen 127.0.0.1:{free_port()};")
    plan = await ask(nginx, store, Request(binary=offered))
    assert isinstance(plan, Plan)
    dropped, added = plan.warnings
    assert dropped.severity is Severity.WARNING
    assert dropped.detail.startswith(f"127.0.0.1:{nginx.port} is no longer listened on: ")
    assert added.severity is Severity.NOTE
    assert f"({nginx.config}:6)" in added.detail


async def test_a_unix_listener_that_goes(
    tmp_path: Path, store: VersionStore, offered: Path
) -> None:
    path = tmp_path / "s.sock"
    http = f"server {{ listen unix:{path}; }}"
    with RunningNginx(tmp_path / "nginx", OLD, http=http) as nginx:
        assert isinstance(await ask(nginx, store, Request(binary=offered)), Plan)
        nginx.configure()
        refusal = await refused(nginx, store, Request(binary=offered))
        assert refusal.reason == "unix_listener_dropped"
        assert str(path) in refusal.detail
        assert path.is_socket()


async def test_reuseport_with_another_number_of_workers(
    tmp_path: Path, store: VersionStore, offered: Path
) -> None:
    folder = tmp_path / "nginx"
    port, probe_port = free_port(), free_port()
    http = f"server {{ listen 127.0.0.1:{port} reuseport; include {folder}/probe*.conf; }}"
    folder.mkdir()
    (folder / "probe.conf").write_text(f"listen 127.0.0.1:{probe_port} reuseport;")
    with RunningNginx(folder, OLD, http=http) as nginx:
        assert isinstance(await ask(nginx, store, Request(binary=offered)), Plan)
        text = nginx.config.read_text()
        nginx.config.write_text(text.replace("worker_processes 2", "worker_processes 3"))
        refusal = await refused(nginx, store, Request(binary=offered))
        assert refusal.reason == "reuseport_workers_changed"
        assert "2 sockets" in refusal.detail
        assert "3 workers" in refusal.detail
        # Without the user's own listener only the probe listener is left, which does not count.
        nginx.config.write_text(
            nginx.config.read_text().replace(f"listen 127.0.0.1:{port} reuseport;", "")
        )
        plan = await ask(nginx, store, Request(binary=offered))
        assert isinstance(plan, Plan)


async def test_reuseport_that_is_taken_out_is_refused(
    tmp_path: Path, store: VersionStore, offered: Path
) -> None:
    """With as many workers as before: all sockets but one would have nobody, and clients hang."""
    port = free_port()
    http = f"server {{ listen 127.0.0.1:{port} reuseport; }} server {{ listen 127.0.0.1:{port}; }}"
    with RunningNginx(tmp_path / "nginx", OLD, http=http) as nginx:
        assert isinstance(await ask(nginx, store, Request(binary=offered)), Plan)
        nginx.configure(http=http.replace(" reuseport", ""))
        refusal = await refused(nginx, store, Request(binary=offered))
        assert refusal.reason == "reuseport_workers_changed"
        assert f"127.0.0.1:{port} ({nginx.config}:6) has lost its reuseport" in refusal.detail
        # Whoever knows better may say so, and is told all the same.
        lenient = replace(installation(nginx), guards=GuardSettings(reuseport=Level.WARN))
        heard: list[Finding] = []
        plan = await preflight(
            Request(binary=offered), installation=replace(lenient, tell=heard.append),
            active=active(nginx), store=store,
        )  # fmt: skip
        assert isinstance(plan, Plan)
        assert [one.guard for one in heard] == [Guard.REUSEPORT]
        assert tuple(heard) == plan.warnings


async def test_reuseport_that_is_new_does_no_harm(
    tmp_path: Path, store: VersionStore, offered: Path
) -> None:
    """The one socket that all have shared becomes the first worker's."""
    http = f"server {{ listen 127.0.0.1:{free_port()}; }}"
    with RunningNginx(tmp_path / "nginx", OLD, http=http) as nginx:
        nginx.configure(http=http.replace(";", " reuseport;"))
        plan = await ask(nginx, store, Request(binary=offered))
        assert isinstance(plan, Plan)
        assert plan.warnings == ()


async def test_the_number_of_workers_may_come_from_the_command_line(
    tmp_path: Path, store: VersionStore, offered: Path
) -> None:
    http = f"server {{ listen 127.0.0.1:{free_port()} reuseport; }}"
    with RunningNginx(tmp_path / "nginx", OLD, http=http) as nginx:
        text = nginx.config.read_text()
        nginx.config.write_text(text.replace("worker_processes 2;", ""))
        for given, passes in (("worker_processes 2;", True), ("worker_processes 3;", False)):
            how = replace(
                installation(nginx), globals=given, arguments=(*nginx.arguments, "-g", given)
            )
            asked = preflight(
                Request(binary=offered), installation=how, active=active(nginx), store=store
            )
            if passes:
                assert isinstance(await asked, Plan)
            else:
                with pytest.raises(Refusal, match="asks for 3 workers"):
                    await asked


@pytest.mark.needs("stream")
async def test_a_unix_listener_for_datagrams_that_goes(
    tmp_path: Path, store: VersionStore, offered: Path
) -> None:
    path = tmp_path / "d.sock"
    stream = f"stream {{ server {{ listen unix:{path} udp; return x; }} }}"
    with RunningNginx(tmp_path / "nginx", OLD, main=stream) as nginx:
        nginx.configure(main=stream)
        assert isinstance(await ask(nginx, store, Request(binary=offered)), Plan)
        nginx.configure()
        refusal = await refused(nginx, store, Request(binary=offered))
        assert refusal.reason == "unix_listener_dropped"
        assert str(path) in refusal.detail


async def test_memory(
    nginx: RunningNginx, store: VersionStore, offered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sockets.proportional_memory([nginx.identity.pid, *nginx.workers(), 2**22]) > 10_000
    assert sockets.available_memory() > 0
    monkeypatch.setattr(sockets, "available_memory", lambda: 1000)
    refusal = await refused(nginx, store, Request(binary=offered))
    assert refusal.reason == "not_enough_memory"


async def test_cancelling_undoes_what_was_done(
    nginx: RunningNginx, store: VersionStore, offered: Path
) -> None:
    reached = trio.Event()

    async def wait(_draft: Draft) -> None:
        reached.set()
        await trio.sleep_forever()

    checks = []
    for check in preflight_checks.CHECKS:
        checks.append(check)
        if check.name == "copy":
            checks.append(Check("wait", wait))
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            await preflight(
                Request(binary=offered),
                installation=installation(nginx),
                active=active(nginx),
                store=store,
                checks=checks,
            )

        nursery.start_soon(run)
        with trio.fail_after(30):
            await reached.wait()
        assert len(list(nginx.binary.parent.iterdir())) == 2
        nursery.cancel_scope.cancel()
    assert [path.name for path in nginx.binary.parent.iterdir()] == ["nginx"]


class NoPlaceIn(RealDisk):
    """The real disk, but one folder takes no files."""

    def __init__(self, folder: Path, code: int) -> None:
        self.folder = folder
        self.code = code

    def create(self, path: Path, *, mode: int) -> int:
        if path.is_relative_to(self.folder):
            raise OSError(self.code, os.strerror(self.code))
        return super().create(path, mode=mode)


@pytest.mark.parametrize(
    ("where", "code", "reason"),
    [
        ("nginx/sbin", errno.EROFS, "binary_directory_read_only"),
        ("nginx/sbin", errno.ENOSPC, "no_space"),
        ("state", errno.ENOSPC, "no_space"),
        ("state", errno.EROFS, "state_not_writable"),
    ],
)
async def test_no_place_to_write(
    nginx: RunningNginx, tmp_path: Path, offered: Path, where: str, code: int, reason: str
) -> None:
    store = VersionStore(tmp_path / "state", 3, disk=NoPlaceIn(tmp_path / where, code))
    assert (await refused(nginx, store, Request(binary=offered))).reason == reason


def test_held_sockets(nginx: RunningNginx) -> None:
    held = sockets.held_by(nginx.identity.pid)
    assert held is not None
    assert [(host, port) for _, host, port, _ in held.counts] == [("127.0.0.1", nginx.port)]
    assert sockets.held_by(2**22) is None


@pytest.mark.needs("stream")
def test_held_sockets_where_descriptors_may_not_be_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.sock"
    http = f"server {{ listen unix:{path}; listen [::1]:{free_port()}; }}"
    main = "error_log syslog:server=127.0.0.1:9;"
    main += f"stream {{ server {{ listen 127.0.0.1:{free_port()} udp; return x; }} }}"
    with RunningNginx(tmp_path / "nginx", OLD, main=main, http=http) as nginx:
        taken = sockets.held_by(nginx.identity.pid)
        assert taken is not None
        assert len(taken.counts) == 4
        assert taken.unix_paths == {str(path)}

        def forbidden(_pidfd: int, _fd: int) -> int:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(sockets.linux, "take_fd", forbidden)
        assert sockets.held_by(nginx.identity.pid) == taken


@pytest.mark.parametrize(
    ("held", "listen", "covered"),
    [
        ("*:80", "127.0.0.1:80", True),
        ("*:80", "127.0.0.1:81", False),
        ("*:80", "[::1]:80", False),
        ("[::]:80", "[::1]:80", True),
        ("127.0.0.1:80", "*:80", False),
        ("unix:/a", "unix:/a", True),
        ("unix:/a", "unix:/b", False),
    ],
)
def test_what_a_held_socket_covers(held: str, listen: str, covered: bool) -> None:  # noqa: FBT001
    (have,) = parse_listen((held,), section="http", file="f")
    (want,) = parse_listen((listen,), section="http", file="f")
    assert sockets.HeldSockets(Counter([have.address])).covers(want) is covered
    (bound,) = parse_listen((listen, "bind"), section="http", file="f")
    assert sockets.HeldSockets(Counter([have.address])).covers(bound) is (held == listen)


@pytest.mark.parametrize("text", ["127.0.0.1", "[::1]", "localhost", "unix:/nowhere"])
def test_free_and_untried_addresses_are_not_busy(text: str) -> None:
    place = text if text.startswith("unix") else f"{text}:{free_port()}"
    (listen,) = parse_listen((place, "reuseport"), section="http", file="f")
    assert not sockets.is_busy(listen)
    assert holders.holder_of(listen) == holders.UNSEEN


def test_a_datagram_holder_is_named() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as foreign:
        foreign.bind(("127.0.0.1", 0))
        port = foreign.getsockname()[1]
        (listen,) = parse_listen((f"127.0.0.1:{port}", "udp"), section="stream", file="f")
        assert sockets.is_busy(listen)
        assert f"process {os.getpid()} " in holders.holder_of(listen)
        assert f"process {os.getpid()} " in holders.holder_of(wildcard(listen))


def wildcard(listen: Listen) -> Listen:
    return replace(listen, host="0.0.0.0")
