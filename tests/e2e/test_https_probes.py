"""Probes over https judge a candidate in its canary, by what it presents and by what it answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from tests import certificates
from tests.e2e.harness import checks, site, supervised
from tests.e2e.harness.bare import until
from tests.e2e.harness.settings import Settings, probe
from tests.e2e.harness.site import Options, Site, sha256
from tests.e2e.harness.supervised import Supervised
from tools.nginx_cache import Build


def https(one: Site, **changes: object) -> Settings:
    """The usual probe, over https at the site's second port."""
    return probe(
        one, url=f"https://127.0.0.1:{one.spare_port}/healthz", host=certificates.NAME,
        ca_file=str(one.folder / "authority.pem"), timeout="5s", **changes,
    )  # fmt: skip


@contextmanager
def secure(build: Build, *, listen: str = "ssl", **changes: object) -> Iterator[Supervised]:
    """A site with https as well, that only a probe over https looks at."""
    with site.make(build) as one:
        pair = certificates.write(one.folder)
        one.configure(
            Options(
                server=f"listen 127.0.0.1:{one.spare_port} {listen};\n"
                f"ssl_certificate {pair.certificate}; ssl_certificate_key {pair.certificate};"
            )
        )
        upgrade = {"start_timeout": "5s"}
        with supervised.running(one, {"probe": [https(one, **changes)], "upgrade": upgrade}) as run:
            until("the probe is up", lambda: run.status()["probes"][0]["state"] == "up", poll=0.05)
            yield run


def events(nginx: Supervised) -> list[str]:
    return [line["event"] for line in nginx.log()]


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
def test_what_the_candidate_presents_is_looked_at_in_the_canary(
    oldest: Build, newest: Build, *, http2: bool
) -> None:
    """The certificate on disk has become bad; the old generation has the good one in memory."""
    with secure(oldest, listen="ssl http2" if http2 else "ssl", http2=http2) as nginx:
        folder = nginx.site.folder
        certificates.write(folder, expired=True)
        bad = nginx.ctl("upgrade", newest.path)
        assert (bad.code, bad.reason) == (4, "probe_failed"), bad
        assert "TLS handshake failed: the certificate has expired" in bad.last["detail"], bad
        assert "soaking" not in bad.last["phases"], bad
        checks.assert_rolled_back(nginx, oldest, sha256(oldest.path))
        certificates.write(folder)
        good = nginx.ctl("upgrade", newest.path)
        assert good.code == 0, good
        assert good.last["judged"] is True
        assert not {"canary.not_asked", "canary.not_observed"} & set(events(nginx))
        checks.assert_settled(nginx, newest, sha256(newest.path))
        assert "[crit]" not in nginx.site.log_text()  # our way to close a connection is no alarm


def test_a_file_that_is_missing_is_told_before_any_upgrade(oldest: Build) -> None:
    with secure(oldest) as nginx:
        authority = nginx.site.folder / "authority.pem"
        authority.unlink()
        found = [one for one in nginx.ctl("check").last["findings"] if one["name"] == "advice"]
        assert [one["reason"] for one in found] == ["tls_file_unusable"]
        assert f"cannot load ca_file {authority}: No such file" in found[0]["detail"]


def test_a_block_without_certificates_of_its_own_is_upgraded_without_such_a_probe(
    oldest: Build, newest: Build
) -> None:
    """It lives on those of the address's default server, which no private listener could."""
    with secure(oldest) as nginx:
        one = nginx.site
        pair = one.folder / "server.pem"
        other = (
            f"server {{ listen 127.0.0.1:{one.spare_port} ssl default_server;"
            f" ssl_certificate {pair}; ssl_certificate_key {pair}; }}"
        )
        one.configure(
            replace(one.options, http=other, server=f"listen 127.0.0.1:{one.spare_port} ssl;")
        )
        assert nginx.ctl("reload").code == 0
        good = nginx.ctl("upgrade", newest.path)
        assert good.code == 0, good
        assert {"probe_listener.without_tls", "canary.not_asked"} <= set(events(nginx))
        why = next(line for line in nginx.log() if line["event"] == "canary.not_asked")
        assert "nginx refuses ssl on the private listener" in why["detail"]
        checks.assert_settled(nginx, newest, sha256(newest.path))
