"""What has to be true of a site, looked at from outside; each check waits where time is allowed."""

from __future__ import annotations

from tests.e2e.harness.bare import until
from tests.e2e.harness.processes import Seen
from tests.e2e.harness.site import sha256
from tests.e2e.harness.supervised import Supervised
from tools.load import Report
from tools.load_client import Connection, Plan, RequestError
from tools.nginx_cache import Build

ASKED = 12
"""Fresh connections that ask for the version; all have to give the same answer."""


def assert_nothing_lost(report: Report, plan: Plan, *, handovers: int) -> None:
    """No request failed and every download was complete, over so many changes of who serves.

    A connection that is kept open may be closed, once for each generation that leaves, at the
    moment at which it is used again.
    """
    assert report.failures == 0, report
    for kind in ("new", "keepalive", "idle", "slow"):
        assert report.kinds[kind].ok >= 1, report
    assert report.kinds["new"].reused_idle_closed == 0, report
    assert report.kinds["slow"].reused_idle_closed == 0, report
    for kind, connections in (("keepalive", plan.keepalive), ("idle", plan.idle)):
        assert report.kinds[kind].reused_idle_closed <= connections * handovers, report


def served_versions(plan: Plan, number: int = ASKED) -> set[str]:
    """The versions that answer on new connections."""
    versions = set()
    for _ in range(number):
        connection = Connection(plan)
        try:
            versions.add(connection.get("/version", keep=False).version)
        finally:
            connection.close()
    return versions


def assert_serves(supervised: Supervised, build: Build) -> None:
    """Only `build` answers on the public port."""
    assert served_versions(supervised.site.plan()) == {build.version}


def assert_one_generation(supervised: Supervised) -> None:
    """One master with exactly its number of workers, and no process besides them.

    Whatever its title: a candidate that hung in its start has none of nginx's. A site with a cache
    has processes for that too.
    """
    workers = supervised.site.options.workers
    seen: list[Seen] = []

    def right() -> bool:
        living = [one for one in supervised.cradle.living() if one.pid != supervised.pid]
        seen[:] = [one for one in living if not one.title.startswith("nginx: cache ")]
        masters = [one for one in seen if one.is_master]
        accepting = [one for one in seen if one.is_accepting]
        return (
            len(masters) == 1
            and len(accepting) == workers
            and all(one.parent == masters[0].pid for one in living if one is not masters[0])
            and len(seen) == 1 + workers
        )

    # A worker that the master has just replaced, or a probe's command, may still be seen.
    try:
        until("one master and its workers alone", right)
    except TimeoutError as exc:
        raise TimeoutError(f"{exc}: {[str(one) for one in seen]}") from None


def assert_pid_file_right(supervised: Supervised) -> None:
    """The pid file names the one living master, and there is no oldbin file."""
    site = supervised.site
    assert [one.pid for one in supervised.masters()] == [int(site.pid_path.read_text())]
    assert not site.oldbin_path.exists()


def assert_on_disk(supervised: Supervised, sha: str) -> None:
    """The binary that a cold start would run."""
    assert sha256(supervised.site.binary) == sha
    disk = supervised.status()["binary_on_disk"]
    assert disk["sha256"] == sha, disk
    assert disk["matches_active"] is True, disk


def assert_status_running(supervised: Supervised, build: Build) -> None:
    """The supervisor says what is seen from outside."""
    status = supervised.status()
    assert status["state"] == "running", status
    assert status["upgrade"] is None, status
    (generation,) = status["generations"]
    assert generation["role"] == "active"
    assert generation["version"] == build.version
    assert generation["master_pid"] == supervised.masters()[0].pid
    accepting = [one["pid"] for one in generation["workers"] if one["state"] == "accepting"]
    assert sorted(accepting) == sorted(one.pid for one in supervised.nginx() if one.is_worker)


def assert_settled(supervised: Supervised, build: Build, sha: str) -> None:
    """All of the above: one generation of `build`, right files, and the binary on disk."""
    supervised.until_state("running")
    assert_serves(supervised, build)
    assert_one_generation(supervised)
    assert_pid_file_right(supervised)
    assert_on_disk(supervised, sha)
    assert_status_running(supervised, build)


def assert_rolled_back(supervised: Supervised, old: Build, sha: str) -> None:
    """After any rollback: the old version serves, alone, and nothing of the candidate is left."""
    assert_settled(supervised, old, sha)
    include = supervised.site.include
    text = include.read_text() if include.exists() else ""
    # The candidate's private listener must not come back with the next reload.
    assert "listen" not in text, text


def answers(plan: Plan, version: str) -> bool:
    """Whether this version, and no other, answers at the moment; refused connections are a no."""
    try:
        return served_versions(plan, number=4) == {version}
    except RequestError:
        return False
