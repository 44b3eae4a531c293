"""What the soak and the benchmark rely on: no lost request goes unseen or is explained away."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from supervisor.edges.socket_owners import connection_inode, owner_of
from tests.e2e.harness import site
from tests.e2e.harness.bare import Bare, until
from tests.e2e.harness.cradle import Cradle
from tests.e2e.harness.site import Options, Site
from tools import casualties
from tools.casualties import Killed, unexplained
from tools.nginx_builds import builds
from tools.quick_load import Failure, QuickLoad, QuickPlan, Tally

Running = tuple[Site, Bare]


@pytest.fixture
def running() -> Iterator[Running]:
    with site.make(builds()[-1], Options(workers=1)) as one, Cradle() as cradle:
        nginx = Bare(one, cradle)
        nginx.start()
        yield one, nginx


def plan(one: Site, **changes: object) -> QuickPlan:
    return QuickPlan(**{"port": one.port, "at_once": 4, **changes})  # type: ignore[arg-type]


def after(running: Running, number: signal.Signals, **changes: object) -> Tally:
    """What is counted in a load during which the master gets a signal."""
    one, nginx = running
    with QuickLoad(plan(one, **changes)) as load:
        while load.lap().ok == 0:
            time.sleep(0.01)
        os.kill(nginx.master, number)
        until("failures", lambda: bool(load.lap().failed), poll=0.02)
        load.stop()
    assert load.total.sent == load.total.ok + sum(load.total.failed.values())
    assert load.total.pending == 0
    return load.total


def test_every_request_of_a_quiet_site_is_good(running: Running) -> None:
    one, _ = running
    with QuickLoad(plan(one, requests=501)) as load:
        until("all of them", lambda: (load.lap(), load.total.sent)[1] == 501, poll=0.02)
        load.stop()
    total = load.total
    assert (total.ok, total.failures, total.no_port) == (501, [], 0)
    assert total.versions == {builds()[-1].version: 501}
    assert 0 < total.latency(0.5) <= total.latency(1.0)


def test_a_site_that_was_stopped_refuses(running: Running) -> None:
    assert after(running, signal.SIGTERM).failed["refused"] > 0


def test_a_site_without_workers_lets_clients_wait(running: Running) -> None:
    total = after(running, signal.SIGWINCH, timeout=0.3)
    assert total.failed["timeout"] > 0
    assert total.failed["refused"] == 0


@pytest.mark.parametrize(
    ("setting", "cause"),
    [
        ({"path": "/gone"}, "bad"),
        ({"body": "other\n"}, "bad"),
        ({"path": "/cut"}, "cut"),
    ],
)
def test_a_wrong_answer_is_bad(running: Running, setting: dict[str, str], cause: str) -> None:
    one, nginx = running
    places = "location = /cut { return 444; } location = /gone { return 410; }"
    one.configure(Options(workers=1, server=places))
    before = {seen.pid for seen in nginx.workers(nginx.master)}
    os.kill(nginx.master, signal.SIGHUP)
    until("the reload", lambda: not before & {s.pid for s in nginx.workers(nginx.master)})
    with QuickLoad(plan(one, requests=20, **setting)) as load:
        until("all of them", lambda: (load.lap(), load.total.sent)[1] == 20, poll=0.02)
    assert load.total.failed == {cause: 20}, load.total.failures[:3]


def test_a_kill_names_exactly_whom_the_worker_had_accepted(running: Running) -> None:
    one, nginx = running
    (worker,) = [seen.pid for seen in nginx.workers(nginx.master)]
    address = ("127.0.0.1", one.port)
    with socket.create_connection(address) as taken, socket.socket() as waiting:
        taken.sendall(b"GET / HTTP/1.1\r\n")
        until("it is accepted", lambda: _owner(taken, worker) == worker)
        os.kill(worker, signal.SIGSTOP)
        waiting.connect(address)  # into the queue of a worker that accepts no more
        waiting.sendall(b"GET / HTTP/1.0\r\n\r\n")
        began = time.monotonic()
        (killed,) = casualties.kill([worker], port=one.port)
        assert killed.accepted == {taken.getsockname()}
        assert _lost(taken)
        waiting.settimeout(20.0)
        assert b" 200 " in waiting.recv(65536)  # the next worker has it
        lost = Failure(
            cause="reset", address="127.0.0.1", port=taken.getsockname()[1],
            began=began - 1, ended=time.monotonic(), text="",
        )  # fmt: skip
    assert unexplained([lost], [killed]) == []
    assert unexplained([lost], []) == [lost]
    other = Killed(pid=1, at=killed.at, accepted=frozenset({("127.0.0.1", 1)}))
    assert unexplained([lost], [other]) == [lost]
    too_late = Killed(pid=1, at=killed.at + 60, accepted=killed.accepted)
    assert unexplained([lost], [too_late]) == [lost]


def test_a_kill_behind_its_back_is_not_explained(running: Running) -> None:
    one, nginx = running
    with QuickLoad(plan(one)) as load:
        while not load.total.failures:
            load.lap()
            victims = [seen.pid for seen in nginx.workers(nginx.master) if seen.is_accepting]
            for victim in victims:
                os.kill(victim, signal.SIGKILL)
        load.stop()
    left = unexplained(load.total.failures, [])
    assert left == load.total.failures
    assert {one.cause for one in left} <= {"reset", "cut"}


def _owner(client: socket.socket, pid: int) -> int | None:
    inode = connection_inode(client.getpeername(), client.getsockname())
    return None if inode is None else owner_of(inode, [pid])


def _lost(client: socket.socket) -> bool:
    client.settimeout(20.0)
    try:
        return client.recv(100) == b""
    except ConnectionResetError:
        return True
