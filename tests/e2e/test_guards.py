"""What an upgrade would change besides the binary is told before the first signal."""

from __future__ import annotations

import shutil
import ssl
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.harness import site, supervised
from tests.e2e.harness.bare import until
from tests.e2e.harness.site import Options, Site
from tests.e2e.harness.supervised import Answer, Supervised
from tools.nginx_builds import builds, lacks
from tools.nginx_cache import Build

WITHOUT_HTTP3 = [one for one in builds() if lacks(one, "http_v3")][:1]
TLS = Path(__file__).parents[1] / "tls"


def put(name: str, path: Path) -> None:
    """As certbot does: a new file takes the place of the old one."""
    fresh = path.with_suffix(".new")
    shutil.copy(TLS / f"{name}.test.pem", fresh)
    fresh.chmod(0o600)
    fresh.rename(path)


def pem(one: Site) -> Path:
    return one.folder / "site.pem"


def configure(one: Site, *, zone: str = "1m", extra: str = "", tls: str = "ssl") -> None:
    """Zones, a cache, an upstream, an https listener; `extra` goes into http."""
    http = f"""
        limit_req_zone $binary_remote_addr zone=rates:{zone} rate=1000r/s;
        proxy_cache_path {one.folder}/cache keys_zone=cached:1m;
        ssl_session_cache shared:sessions:1m;
        upstream backend {{ zone backend 64k; server 127.0.0.1:1; }}
        {extra}
        server {{
            listen 127.0.0.1:{one.spare_port} {tls};
            ssl_certificate {pem(one)};
            ssl_certificate_key {pem(one)};
            return 200 "tls";
        }}"""
    one.configure(Options(http=http))


def until_noted(nginx: Supervised) -> None:
    """Return when what nginx has read is on record, with what its certificate says."""
    record = nginx.site.folder / "state" / "configurations.json"
    until("the note", lambda: record.exists() and "fingerprint" in record.read_text(), poll=0.02)


def told(answer: Answer, severity: str = "warning") -> dict[str, list[str]]:
    """The details by guard; the events have to be those of the verdict."""
    events = [line for line in answer.lines if line["event"] == "warning"]
    keys = ("guard", "severity", "detail")
    assert [{key: one[key] for key in keys} for one in events] == answer.last["warnings"]
    found: dict[str, list[str]] = {}
    for one in events:
        if one["severity"] == severity:
            found.setdefault(one["guard"], []).append(one["detail"])
    return found


def dry_run(nginx: Supervised, binary: Path) -> Answer:
    answer = nginx.ctl("upgrade", binary, "--dry-run")
    assert answer.code == 0, answer
    assert answer.reason == "dry_run"
    return answer


def served(one: Site) -> str:
    return ssl.get_server_certificate(("127.0.0.1", one.spare_port))


def text_of(name: str) -> str:
    return (TLS / f"{name}.test.pem").read_text().partition("-----BEGIN CERT")[2]


@pytest.mark.needs("ssl")
def test_what_else_an_upgrade_would_change(oldest: Build, newest: Build) -> None:
    with site.make(oldest) as one:
        put("first", pem(one))
        configure(one)
        with supervised.running(one) as nginx:
            answer = dry_run(nginx, newest.path)
            assert told(answer) == {}
            notes = told(answer, "note")
            assert list(notes) == ["session_tickets", "shared_zones"]
            zones = {detail.split(" ")[0]: detail for detail in notes["shared_zones"]}
            assert set(zones) == {
                "limit_req_zone", "proxy_cache_path", "ssl_session_cache", "zone",
            }  # fmt: skip
            assert f"rates 1m ({one.config}:" in zones["limit_req_zone"]

            until_noted(nginx)
            # Everything changes on disk, and nobody reloads.
            put("other", pem(one))
            configure(one, zone="2m", extra=f"server {{ listen 127.0.0.1:{one.ports[-1]}; }}",
                      tls="")  # fmt: skip
            warnings = told(answer := dry_run(nginx, newest.path))
            assert set(warnings) == {"listeners", "certificates", "shared_zones"}
            assert f"127.0.0.1:{one.spare_port} no longer speaks TLS" in warnings["listeners"][0]
            (certificate,) = warnings["certificates"]
            assert "has site.test until 2095-01-01" in certificate
            assert "now has site.test until 2055-01-01" in certificate
            assert "with another key, WHICH ENDS EARLIER" in certificate
            assert "NO LONGER for www.site.test" in certificate
            assert "grows from 1m to 2m" in warnings["shared_zones"][0]
            (added,) = told(answer, "note")["listeners"]
            assert f"127.0.0.1:{one.ports[-1]} ({one.config}:" in added

            # The next supervisor knows it as well, and so does the log.
            nginx.die()
            nginx.start()
            again = told(dry_run(nginx, newest.path))
            assert again == warnings
            lines = [line for line in nginx.log() if line["event"] == "preflight.warning"]
            assert {line["guard"] for line in lines} == set(warnings)
            assert {line["level"] for line in lines} == {"warning"}

            # A reload makes what runs what is on disk.
            assert nginx.ctl("reload").code == 0
            assert told(dry_run(nginx, newest.path)) == {}
            assert "PRIVATE KEY" not in (one.folder / "state" / "configurations.json").read_text()


@pytest.mark.needs("ssl")
def test_warnings_are_kept_with_the_verdict_and_with_what_is_committed(
    oldest: Build, newest: Build
) -> None:
    with site.make(oldest) as one:
        put("first", pem(one))
        configure(one, extra=f"server {{ listen 127.0.0.1:{one.ports[-1]}; }}")
        with supervised.running(one) as nginx:
            until_noted(nginx)
            put("same_key", pem(one))
            configure(one)
            answer = nginx.ctl("upgrade", newest.path)
            assert answer.code == 0, answer
            warnings = told(answer)
            assert set(warnings) == {"listeners", "certificates"}
            (dropped,) = warnings["listeners"]
            assert f"127.0.0.1:{one.ports[-1]} is no longer listened on ({one.config}:" in dropped
            assert "another key" not in warnings["certificates"][0]
            assert nginx.history()[-1]["warnings"] == answer.last["warnings"]
            assert text_of("same_key").strip() in served(one).replace("\r", "") + "\n"
            nginx.until_state("running")
            # What was committed has read what is on disk.
            assert told(dry_run(nginx, newest.path)) == {}


@pytest.mark.needs("ssl")
def test_a_guard_that_refuses(oldest: Build, newest: Build) -> None:
    levels: dict[str, Any] = {"guards": {"certificates": "refuse", "shared_zones": "off"}}
    with site.make(oldest) as one:
        put("first", pem(one))
        configure(one)
        with supervised.running(one, levels) as nginx:
            until_noted(nginx)
            put("expired", pem(one))
            answer = nginx.ctl("upgrade", newest.path)
            assert answer.code == 3, answer
            assert answer.reason == "certificate_changed"
            assert "HAS EXPIRED at 2011-01-01" in answer.last["detail"]
            first, second = told(answer)["certificates"]
            assert "HAS EXPIRED" in first
            assert "ENDS EARLIER" in second
            assert "shared_zones" not in told(answer, "note")
            assert nginx.history()[-1]["warnings"] == answer.last["warnings"]
            assert one.binary.read_bytes() == oldest.path.read_bytes()


@pytest.mark.needs("ssl")
def test_a_key_that_does_not_belong_to_the_certificate(oldest: Build, newest: Build) -> None:
    """nginx's own test says that, so no key is ever looked at."""
    with site.make(oldest) as one:
        put("first", pem(one))
        configure(one)
        with supervised.running(one) as nginx:
            text = one.config.read_text()
            other = TLS / "other.test.pem"
            key = f"ssl_certificate_key {pem(one)};"
            assert key in text
            one.config.write_text(text.replace(key, f"ssl_certificate_key {other};"))
            answer = nginx.ctl("upgrade", newest.path, "--dry-run")
            assert answer.code == 3, answer
            assert answer.reason == "config_rejected"


@pytest.mark.needs("ssl")
def test_an_adopted_nginx_has_not_read_what_is_younger_than_its_workers(
    oldest: Build, newest: Build
) -> None:
    with site.make(oldest) as one:
        put("first", pem(one))
        configure(one)
        with supervised.running(one) as nginx:
            (master,) = nginx.masters()
            until_noted(nginx)
            workers = [psutil.Process(one.pid) for one in nginx.nginx() if not one.is_master]
            began = max(one.create_time() for one in workers)
            # The clocks of files and of processes are coarse; below that, nothing can be told.
            until("a later time", lambda: time.time() > began + 0.1)
            nginx.die()
            for name in ("masters.json", "configurations.json"):
                (one.folder / "state" / name).unlink()
            put("renewed", pem(one))
            nginx.start()
            (adopted,) = nginx.masters()
            assert adopted.pid == master.pid
            (certificate,) = told(dry_run(nginx, newest.path))["certificates"]
            assert "it was changed after the running workers were started" in certificate
            assert "now it is for site.test, valid until 2099-01-01" in certificate


@pytest.mark.parametrize("build", builds()[-1:], ids=str)
@pytest.mark.parametrize("without", WITHOUT_HTTP3, ids=str)
def test_http3_is_best_effort_and_an_older_build_lacks_it(build: Build, without: Build) -> None:
    with site.make(build) as one:
        put("first", pem(one))
        configure(one, tls="quic")
        with supervised.running(one) as nginx:
            (quic,) = told(dry_run(nginx, build.path))["quic"]
            assert quic.startswith(f"http3 on 127.0.0.1:{one.spare_port}/udp is best effort")
            answer = nginx.ctl("upgrade", without.path, "--dry-run")
            assert (answer.code, answer.reason) == (3, "module_missing"), answer
            configure(one)
            warnings = told(dry_run(nginx, without.path))
            (lost,) = warnings["modules"]
            assert lost.startswith("the new build lacks what the running one has: ")
            use = f"--with-http_v3_module (for listen 127.0.0.1:{one.spare_port} quic in "
            assert use in lost
            assert f"{one.spare_port}/udp is no longer listened on" in warnings["listeners"][0]
