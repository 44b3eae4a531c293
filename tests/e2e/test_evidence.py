"""What counts as evidence for and against a candidate, and what never may."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.e2e.harness import checks, site, supervised
from tests.e2e.harness.bare import until
from tests.e2e.harness.cradle import kill
from tests.e2e.harness.settings import Settings, probe, write
from tests.e2e.harness.site import Options, Site, sha256
from tests.e2e.harness.supervised import Supervised
from tools.nginx_builds import candidate
from tools.nginx_cache import Build

SLOW = {"interval": "1s", "rise": 2, "fall": 3}
"""The defaults: three failures take longer than a short soak."""
NOT_OBSERVED = "the canary was not observed"
ANOTHER = (
    "server {{ listen 127.0.0.1:{port}; server_name {name}; location / {{ return 404; }} "
    'location = /admin {{ return 200 "admin\\n"; }} }}'
)
"""Another server block, which does not include the private listener."""


def elsewhere(one: Site) -> Settings:
    """A probe listener that no server block includes."""
    (one.folder / "elsewhere").mkdir(exist_ok=True)
    return {"include_file": str(one.folder / "elsewhere" / "probe.conf")}


@contextmanager
def owned(one: Site, **settings: Any) -> Iterator[Supervised]:
    """A supervisor whose probes are all up."""
    with supervised.running(one, settings) as nginx:
        until_up(nginx)
        yield nginx


def until_up(nginx: Supervised) -> None:
    until(
        "all probes up",
        lambda: {each["state"] for each in nginx.status()["probes"]} == {"up"},
        poll=0.05,
    )


def events(nginx: Supervised, name: str) -> list[dict[str, Any]]:
    return [line for line in nginx.log() if line["event"] == name]


# --- a soak that is too short for `fall` failures -----------------------------------------------


@pytest.mark.parametrize("soak", ["1.5s", "0s"])
@pytest.mark.parametrize("included", [False, True], ids=["no-include", "include"])
def test_a_candidate_that_never_answered_well_is_not_committed(
    oldest: Build, newest: Build, soak: str, *, included: bool
) -> None:
    with site.make(oldest) as one:
        listener = {} if included else {"probe_listener": elsewhere(one)}
        probes = [probe(one, **SLOW)]
        windows = {"canary": "1s", "soak": soak}
        with owned(one, probe=probes, upgrade=windows, **listener) as nginx:
            bad = nginx.ctl("upgrade", candidate(newest, "status_500", where="inherited"))
            assert (bad.code, bad.reason) == (4, "probe_failed"), bad
            assert "status 500" in bad.last["detail"]
            assert bad.last["judged"] is True
            # On the public address now and then the candidate answers in the canary, too.
            if included:
                assert "soaking" in bad.last["phases"]
                assert NOT_OBSERVED not in bad.last["detail"]
            checks.assert_rolled_back(nginx, oldest, sha256(oldest.path))
            until_up(nginx)
            good = nginx.ctl("upgrade", newest.path)
            assert (good.code, good.last["judged"]) == (0, True), good
            if included:
                assert NOT_OBSERVED not in good.last["detail"]
            checks.assert_settled(nginx, newest, sha256(newest.path))


# --- another server block -----------------------------------------------------------------------


@pytest.mark.parametrize("case", ["port", "host"])
def test_a_probe_of_another_server_block_counts_from_the_shift_on(
    oldest: Build, newest: Build, case: str
) -> None:
    with site.make(oldest) as one:
        port = one.spare_port if case == "port" else one.port
        one.configure(Options(http=ANOTHER.format(port=port, name="other.test")))
        changes = {"host": "other.test"} if case == "host" else {}
        url = f"http://127.0.0.1:{port}/admin"
        admin = probe(one, name="admin", url=url, expect_body="admin", **changes)
        named = probe(one, host="site.test")
        with owned(one, probe=[admin, named]) as nginx:
            good = nginx.ctl("upgrade", newest.path)
            assert good.code == 0, good
            (told,) = events(nginx, "canary.not_asked")
            assert told["probe"] == "admin"
            assert told["detail"]
            checks.assert_settled(nginx, newest, sha256(newest.path))


# --- long intervals -----------------------------------------------------------------------------


def test_a_long_interval_does_not_keep_a_candidate_from_proving_itself(
    oldest: Build, newest: Build
) -> None:
    with site.make(oldest) as one:
        long = {"interval": "20s", "rise": 3}
        command = one.folder / "probe.sh"
        command.write_text("#!/bin/sh\nexit 0\n")
        command.chmod(0o755)
        probes = [
            probe(one, **long),
            {"name": "port", "type": "tcp", "address": f"127.0.0.1:{one.port}", **long},
            {
                "name": "command", "type": "exec", "command": [str(command)],
                "uses_probe_address": True, **long,
            },
        ]  # fmt: skip
        settings = {"probe": probes, "upgrade": {"start_timeout": "6s"}}
        with supervised.running(one, settings) as nginx:
            until("each has passed", lambda: all(p["detail"] for p in nginx.status()["probes"]))
            bad = nginx.ctl("upgrade", candidate(newest, "status_500"))
            assert (bad.code, bad.reason) == (4, "probe_failed"), bad
            assert bad.last["detail"].startswith("probe health failed 3 times: status 500"), bad
            checks.assert_rolled_back(nginx, oldest, sha256(oldest.path))
            until("each has passed", lambda: all(p["detail"] for p in nginx.status()["probes"]))
            good = nginx.ctl("upgrade", newest.path)
            assert (good.code, good.last["judged"]) == (0, True), good
            assert good.last["phases"]["canary"] < 20, "not by the interval"
            checks.assert_settled(nginx, newest, sha256(newest.path))


# --- before the upgrade -------------------------------------------------------------------------


def test_a_failure_from_before_the_upgrade_condemns_nobody(oldest: Build, newest: Build) -> None:
    with site.make(oldest) as one:
        backend = one.folder / "backend"
        backend.write_text("up")
        command = one.folder / "probe.sh"
        command.write_text(f"#!/bin/sh\ntest -e {backend}\n")
        command.chmod(0o755)
        dependent = {
            "name": "backend", "type": "exec", "command": [str(command)], "interval": "2s",
            "rise": 1, "fall": 3, "uses_probe_address": True,
        }  # fmt: skip
        windows = {"canary": "2500ms", "soak": "500ms"}
        with owned(one, probe=[dependent, probe(one)], upgrade=windows) as nginx:
            backend.unlink()
            until("a failure is seen", lambda: failed_before_it_is_down(nginx), poll=0.02)
            good = nginx.ctl("upgrade", newest.path)
            assert (good.code, good.last["judged"]) == (0, True), good
            (told,) = events(nginx, "probe.cannot_judge")
            assert told["probe"] == "backend"
            checks.assert_settled(nginx, newest, sha256(newest.path))


def failed_before_it_is_down(nginx: Supervised) -> bool:
    seen = nginx.look()["probes"][0]
    return "exit code 1" in (seen["detail"] or "") and seen["state"] == "up"


# --- SIGHUP to the supervisor in a canary -------------------------------------------------------


def test_the_running_judge_keeps_its_probes(oldest: Build, newest: Build) -> None:
    with site.make(oldest) as one:
        windows = {"canary": "2s", "start_timeout": "15s"}
        probes = [probe(one, rise=10, interval="200ms")]
        with owned(one, probe=probes, upgrade=windows) as nginx:
            asked = nginx.begin("upgrade", newest.path, "--hold")
            nginx.until_begun("canary")
            changed = {**nginx.settings, "probe": [probe(one, name="renamed")]}
            write(nginx.toml, changed)
            kill(nginx.pid, 1)
            until("it is read", lambda: events(nginx, "settings.changed"))
            assert nginx.status()["probes"][0]["name"] == "health"
            nginx.until_phase("held")
            assert nginx.status()["probes"][0]["name"] == "health"
            assert nginx.ctl("promote").code == 0
            good = nginx.end(asked)
            assert (good.code, good.last["judged"]) == (0, True), good
            until("the new one", lambda: nginx.status()["probes"][0]["name"] == "renamed")
            until_up(nginx)


# --- without the private listener ---------------------------------------------------------------


@pytest.mark.parametrize("by", ["socket", "header"])
def test_answers_on_the_public_address_are_attributed(
    oldest: Build, newest: Build, by: str
) -> None:
    with site.make(oldest, Options(reuseport=True)) as one:
        header = {"pid_header": "X-Pid"} if by == "header" else {}
        settings: dict[str, Any] = {
            "probe": [probe(one, interval="20ms", **header)],
            "probe_listener": elsewhere(one),
            "upgrade": {"canary": "2s", "soak": "300ms"},
        }
        with owned(one, **settings) as nginx:
            bad = nginx.ctl("upgrade", candidate(newest, "status_500"), "--canary", "60s")
            assert (bad.code, bad.reason) == (4, "probe_failed"), bad
            assert bad.last["detail"].startswith("probe health failed 3 times: status 500"), bad
            assert "soaking" not in bad.last["phases"], bad
            checks.assert_rolled_back(nginx, oldest, sha256(oldest.path))
            until_up(nginx)
            good = nginx.ctl("upgrade", newest.path)
            assert (good.code, good.last["judged"]) == (0, True), good
            assert NOT_OBSERVED not in good.last["detail"]
            checks.assert_settled(nginx, newest, sha256(newest.path))


# --- advice -------------------------------------------------------------------------------------


def advice(nginx: Supervised) -> dict[str, str]:
    """What `nginxctl check` advises; it finds nothing wrong."""
    answer = nginx.ctl("check")
    assert (answer.code, answer.last["ok"]) == (0, True), answer
    found = [one for one in answer.last["findings"] if one["name"] == "advice"]
    return {one["reason"]: one["detail"] for one in found}


def test_check_advises_on_what_will_surprise(oldest: Build) -> None:
    with site.make(oldest) as one:
        one.configure(Options(http=ANOTHER.format(port=one.spare_port, name="other.test")))
        url = f"http://127.0.0.1:{one.spare_port}/admin"
        admin = probe(one, name="admin", url=url, expect_body="admin")
        slow = probe(one, name="slow", timeout="1m", **SLOW)
        with owned(one, probe=[probe(one), admin, slow]) as nginx:
            told = advice(nginx)
            assert sorted(told) == ["not_asked_in_canary", "soak_short", "timeout_impossible"]
            assert "probe admin" in told["not_asked_in_canary"]
            assert "probe slow" in told["soak_short"]
            assert "probe slow" in told["timeout_impossible"]
    with site.make(oldest) as one, owned(one) as nginx:
        assert advice(nginx) == {}
    with site.make(oldest) as one, owned(one, probe_listener=elsewhere(one)) as nginx:
        assert list(advice(nginx)) == ["include_missing"]


# --- outside an upgrade -------------------------------------------------------------------------


def test_a_failing_active_generation_is_reported(oldest: Build) -> None:
    with site.make(oldest) as one:
        flag = one.folder / "www" / "flag"
        flag.write_text("here\n")
        one.configure(Options(server=f"location = /flag {{ root {one.folder}/www; }}"))
        seen = probe(one, name="flag", url=f"{one.url}/flag", expect_body="here")
        with owned(one, probe=[seen]) as nginx:
            flag.unlink()
            until("down", lambda: nginx.status()["probes"][0]["state"] == "down", poll=0.05)
            (shown,) = nginx.status()["probes"]
            assert (shown["name"], shown["generation"]) == ("flag", "g1")
            assert "status 404" in shown["detail"]
            assert shown["since"] is not None
            down = events(nginx, "probe.state_changed")[-1]
            assert down["level"] == "warning"
            assert (down["probe"], down["to_state"], down["generation"]) == ("flag", "down", "g1")
            assert "status 404" in down["detail"]
            assert nginx.status()["state"] == "running"  # reported, and nothing is done about it
            flag.write_text("here\n")
            until_up(nginx)
            back = events(nginx, "probe.state_changed")[-1]
            assert (back["level"], back["to_state"]) == ("info", "up")
