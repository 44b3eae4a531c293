"""What each guard says of two generations, and what of it refuses an upgrade."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from supervisor.core.certificate import Certificate
from supervisor.core.config_read import (
    NOTHING_READ,
    ConfigRead,
    Contents,
    Kind,
    Place,
    TlsFile,
    Use,
    Zone,
)
from supervisor.core.guard_settings import DEFAULT_GUARDS, Guard, GuardSettings, Level
from supervisor.core.guards import (
    MOST_FINDINGS,
    Comparison,
    Finding,
    Severity,
    bounded,
    findings,
    refusal,
    unix_listeners_dropped,
)
from supervisor.core.nginx_listen import Listen, parse_listen
from supervisor.core.nginx_version import NginxBuild
from supervisor.core.settings import parse_settings

BUILD = NginxBuild("1.26.3", "nginx", (), "/p", "OpenSSL 3.0.13", tls_names=True)
NOW = 1_800_000_000.0
DAY = 86400.0
HERE = Place(file="/c/n.conf", line=7)
PROBE = "/run/probe.conf"


def listens(*texts: str, file: str = "/c/n.conf") -> tuple[Listen, ...]:
    return tuple(
        one
        for line, text in enumerate(texts, 1)
        for one in parse_listen(tuple(text.split()), section="http", file=file, line=line)
    )


def compare(candidate: ConfigRead, **more: object) -> Comparison:
    return Comparison(
        candidate=candidate,
        **{"build": BUILD, "workers": 2, "now": NOW, "ours": PROBE, **more},  # type: ignore[arg-type]
    )


def told(guard: Guard, compared: Comparison) -> list[str]:
    """`warning: ...` or `note: ...` of one guard."""
    return [
        f"{one.severity.value}: {one.detail}"
        for one in findings(compared, DEFAULT_GUARDS)
        if one.guard is guard
    ]


def held(*texts: str, **counts: int) -> dict[object, int]:
    return {one.address: counts.get(f"n{n}", 1) for n, one in enumerate(listens(*texts))}


# --- listeners ---------------------------------------------------------------------------------


def test_a_dropped_listener_is_told_with_its_place() -> None:
    running = ConfigRead(listens=listens("80", "127.0.0.1:8443 ssl"))
    candidate = ConfigRead(listens=listens("80"))
    compared = compare(candidate, running=running, held=held("80", "127.0.0.1:8443"))
    (one,) = told(Guard.LISTENERS, compared)
    assert one.startswith("warning: 127.0.0.1:8443 is no longer listened on (/c/n.conf:2 had it):")


def test_the_kernel_goes_before_the_configuration() -> None:
    """What was read says 81, and nginx holds 82: somebody reloaded it, and nobody has seen that."""
    running, candidate = ConfigRead(listens=listens("81")), ConfigRead(listens=listens("80"))
    (one, note) = told(Guard.LISTENERS, compare(candidate, running=running, held=held("82")))
    assert one.startswith("warning: 0.0.0.0:82 is no longer listened on: from")
    assert note.startswith("note: new listeners: 0.0.0.0:80 (/c/n.conf:1);")
    (one, note) = told(Guard.LISTENERS, compare(candidate, running=running))
    assert one.startswith("warning: 0.0.0.0:81 is no longer listened on (/c/n.conf:1 had it)")


def test_nothing_is_known() -> None:
    (one,) = told(Guard.LISTENERS, compare(ConfigRead(listens=listens("80"))))
    assert one.startswith("note: the active master's sockets may not be looked at")
    assert unix_listeners_dropped(compare(ConfigRead())) == {}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("127.0.0.1:80", "localhost:80"),  # a name may mean that address
        ("80", "80"),
        ("[::]:80", "[0::0]:80"),
    ],
)
def test_what_is_the_same(before: str, after: str) -> None:
    candidate = ConfigRead(listens=listens(after))
    assert told(Guard.LISTENERS, compare(candidate, held=held(before))) == []


@pytest.mark.parametrize(
    ("listen", "added"),
    [
        ("127.0.0.1:80", False),  # the wildcard takes its connections
        ("[::1]:80", True),
        ("127.0.0.1:80 bind", True),
        ("unix:/s", True),
        ("localhost:81", False),
    ],
)
def test_what_is_added(listen: str, *, added: bool) -> None:
    candidate = ConfigRead(listens=listens("80", listen))
    assert bool(told(Guard.LISTENERS, compare(candidate, held=held("80")))) is added


def test_the_private_listener_comes_and_goes() -> None:
    private = listens("127.0.0.1:18931 reuseport", file=PROBE)
    running = ConfigRead(listens=(*listens("80"), *private))
    candidate = ConfigRead(listens=listens("80"))
    both = held("80", "127.0.0.1:18931")
    assert told(Guard.LISTENERS, compare(candidate, running=running, held=both)) == []
    assert told(Guard.LISTENERS, compare(running, running=candidate, held=held("80"))) == []
    assert told(Guard.REUSEPORT, compare(running, held={**both, private[0].address: 5})) == []


def test_tls_comes_or_goes() -> None:
    plain = ConfigRead(listens=listens("80", "81"))
    tls = ConfigRead(listens=listens("80 ssl", "80", "81"))
    sockets = held("80", "81")
    (one,) = told(Guard.LISTENERS, compare(tls, running=plain, held=sockets))
    assert one.startswith("warning: 0.0.0.0:80 speaks TLS from now on (/c/n.conf:1)")
    (one,) = told(Guard.LISTENERS, compare(plain, running=tls, held=sockets))
    assert "no longer speaks TLS" in one


def test_unix_listeners() -> None:
    running = ConfigRead(listens=listens("unix:/a"))
    gone = ConfigRead(listens=listens("unix:/b"))
    sockets = held("unix:/a", "unix:/b")
    assert unix_listeners_dropped(compare(gone, held=sockets)) == {"/a": ""}
    known = compare(gone, running=running, held=sockets)
    assert unix_listeners_dropped(known) == {"/a": " (/c/n.conf:1 had it)"}
    datagrams = listens("unix:/a udp")
    other = compare(ConfigRead(listens=datagrams), running=running, held=held("unix:/a"))
    assert list(unix_listeners_dropped(other)) == ["/a"]  # another socket in the same place
    # Where the sockets may not be looked at, what was read has to do.
    assert unix_listeners_dropped(compare(gone, running=running)) == {"/a": " (/c/n.conf:1 had it)"}
    assert told(Guard.LISTENERS, known) == []  # a refusal says it


# --- reuseport ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listen", "sockets", "wrong"),
    [
        ("80 reuseport", 2, ""),
        ("80 reuseport", 4, "80 (/c/n.conf:1) has reuseport with 4 sockets"),
        ("80 reuseport", 3, "asks for 2 workers"),
        ("80 reuseport", 1, ""),  # it is new: the one that all shared becomes the first worker's
        ("80", 2, "has lost its reuseport: the running generation has 2 sockets"),
        ("80", 1, ""),
        ("81 reuseport", 0, ""),
    ],
)
def test_reuseport(listen: str, sockets: int, wrong: str) -> None:
    candidate = ConfigRead(listens=listens(listen))
    before: Mapping[object, int] = held("80", n0=sockets)
    found = told(Guard.REUSEPORT, compare(candidate, held=before))
    assert bool(found) is bool(wrong)
    assert wrong in "".join(found)


def test_reuseport_is_said_once_for_several_servers() -> None:
    candidate = ConfigRead(listens=listens("80", "80 reuseport", "80"))
    assert told(Guard.REUSEPORT, compare(candidate, held=held("80", n0=2))) == []
    assert len(told(Guard.REUSEPORT, compare(candidate, held=held("80", n0=4)))) == 1
    assert told(Guard.REUSEPORT, compare(candidate)) == []


# --- shared memory -----------------------------------------------------------------------------


def zone(name: str, size: str = "10m", directive: str = "limit_req_zone") -> Zone:
    return Zone(name=name, size=size, directive=directive, place=HERE)


def test_zones_start_cold() -> None:
    every = (
        zone("one"), zone("two"), zone("c", directive="proxy_cache_path"), zone("x", directive="y"),
    )  # fmt: skip
    rates, cache, other = told(Guard.SHARED_ZONES, compare(ConfigRead(zones=every)))
    assert rates.startswith(
        "note: limit_req_zone one 10m (/c/n.conf:7), two 10m (/c/n.conf:7) starts empty: request"
    )
    assert "cache loader" in cache
    assert "its contents are lost" in other


@pytest.mark.parametrize(
    ("was", "size", "change"),
    [
        ("10m", "10240k", None),
        ("10m", "1g", "grows from 10m to 1g"),
        ("64k", "65535", "shrinks from 64k to 65535"),
    ],
)
def test_zones_of_another_size(was: str, size: str, change: str | None) -> None:
    running = ConfigRead(zones=(zone("one", was),))
    candidate = ConfigRead(zones=(zone("one", size), zone("new")))
    first, *rest = told(Guard.SHARED_ZONES, compare(candidate, running=running))
    assert len(rest) == (change is not None)
    assert change is None or first.startswith(f"warning: limit_req_zone one {change}")


# --- QUIC --------------------------------------------------------------------------------------


def test_quic_is_best_effort() -> None:
    quic = ConfigRead(listens=listens("443 quic", "443 ssl"))
    (one,) = told(Guard.QUIC, compare(quic))
    assert one.startswith("warning: http3 on 0.0.0.0:443/udp is best effort")
    assert len(told(Guard.QUIC, compare(ConfigRead(), running=quic))) == 1
    assert told(Guard.QUIC, compare(ConfigRead(listens=listens("443 ssl")))) == []


# --- TLS ---------------------------------------------------------------------------------------

FIRST = Certificate(
    subject="site.test", names=("site.test", "www.site.test"), fingerprint="1", key="k",
    not_before=NOW - DAY, not_after=NOW + DAY,
)  # fmt: skip


def pem(
    certificate: Certificate | None = FIRST,
    *,
    digest: str = "d",
    changed: float = NOW - 10 * DAY,
    **more: object,
) -> TlsFile:
    return TlsFile(
        path="/tls/site.pem", place=HERE, identity=(1, 2, 3, 4, int(changed * 1e9)),
        contents=Contents(digest=digest, certificate=certificate),
        **{"kind": Kind.CERTIFICATE, **more},  # type: ignore[arg-type]
    )  # fmt: skip


def tls(running: TlsFile | None, candidate: TlsFile, since: float | None = NOW - DAY) -> list[str]:
    was = None if running is None else ConfigRead(files=(running,))
    compared = compare(ConfigRead(files=(candidate,)), running=was, since=since)
    return told(Guard.CERTIFICATES, compared)


def test_a_certificate_that_is_the_same() -> None:
    assert tls(pem(), pem()) == []
    assert tls(pem(), pem(changed=NOW)) == []  # touched, or put back from a backup


def test_a_renewed_certificate() -> None:
    renewed = replace(FIRST, fingerprint="2", key="l", not_after=NOW + 90 * DAY)
    (one,) = tls(pem(), pem(renewed, digest="e", changed=NOW))
    assert one.startswith(
        "warning: /tls/site.pem (/c/n.conf:7): the running generation has site.test "
        "until 2027-01-16 08:00 UTC, the file now has site.test until 2027-04-15 08:00 UTC, with "
        "another key; to change that alone, reload"
    )
    same_key = replace(renewed, key="k")
    (one,) = tls(pem(), pem(same_key, digest="e", changed=NOW))
    assert "key" not in one


def test_a_certificate_that_is_worse() -> None:
    worse = replace(FIRST, fingerprint="2", names=("site.test",), not_after=NOW + 1)
    (one,) = tls(pem(), pem(worse, digest="e", changed=NOW))
    assert "WHICH ENDS EARLIER; it is NO LONGER for www.site.test" in one


@pytest.mark.parametrize(
    ("certificate", "told_so"),
    [
        (replace(FIRST, not_after=NOW - DAY), "HAS EXPIRED at 2027-01-14 08:00 UTC"),
        (replace(FIRST, not_before=NOW + DAY), "IS NOT VALID before 2027-01-16 08:00 UTC"),
        (replace(FIRST, not_before=1e30), "IS NOT VALID before a time beyond all calendars"),
    ],
)
def test_a_certificate_out_of_its_time(certificate: Certificate, told_so: str) -> None:
    (one,) = tls(pem(certificate), pem(certificate))
    assert one.startswith("warning: the certificate for site.test in /tls/site.pem (/c/n.conf:7)")
    assert told_so in one


def test_another_chain_behind_the_same_certificate() -> None:
    (one,) = tls(pem(), pem(digest="e", changed=NOW))
    assert one.startswith("note: ")
    assert "what follows it was replaced" in one


def test_other_public_files() -> None:
    was, now = (pem(None, digest=one, kind=Kind.REVOKED) for one in "de")
    (one,) = tls(was, replace(now, identity=(9,)))
    assert one.startswith("warning: revocation list /tls/site.pem (/c/n.conf:7): it was replaced")
    assert tls(was, replace(was, identity=(9,))) == []


def test_a_file_whose_old_contents_nobody_knows() -> None:
    for contents in (None, Contents(problem="unreadable")):
        unknown = replace(pem(), contents=contents)
        (one,) = tls(unknown, pem(changed=NOW))
        assert "it was replaced since the running generation has read it; now it is for" in one


@pytest.mark.parametrize(
    ("since", "changed", "warned"),
    [
        (NOW - DAY, NOW, True),
        (NOW - DAY, NOW - 2 * DAY, False),
        (None, NOW, False),
    ],
)
def test_without_a_note_the_start_of_the_workers_tells(
    since: float | None, changed: float, *, warned: bool
) -> None:
    for was in (None, replace(pem(), identity=(), contents=None)):
        found = tls(was, pem(changed=changed), since)
        assert bool(found) is warned
        assert "changed after the running workers were started" in "".join(found) or not warned


def test_what_cannot_be_compared() -> None:
    (one,) = tls(pem(), replace(pem(), contents=Contents(problem="it cannot be read: gone")))
    assert one == "note: /tls/site.pem (/c/n.conf:7) is not compared: it cannot be read: gone"
    (one,) = tls(pem(), replace(pem(), contents=None))
    assert "it was not looked at" in one
    variable, cut = told(Guard.CERTIFICATES, compare(ConfigRead(by_variable=2, cut=True)))
    assert variable.startswith("note: 2 certificate directives name their files by variables")
    assert cut.startswith("note: the configuration is larger")


def test_session_tickets_without_key_files() -> None:
    speaks = ConfigRead(listens=listens("443 ssl"))
    (one,) = told(Guard.SESSION_TICKETS, compare(speaks))
    assert one.startswith("note: without ssl_session_ticket_key each generation makes its own")
    assert told(Guard.SESSION_TICKETS, compare(replace(speaks, tickets=False))) == []
    assert told(Guard.SESSION_TICKETS, compare(ConfigRead(listens=listens("80")))) == []


def ticket_key(path: str, *identity: int) -> TlsFile:
    return TlsFile(path=path, kind=Kind.TICKET_KEY, place=HERE, identity=identity)


def tickets(running: tuple[TlsFile, ...] | None, *candidate: TlsFile) -> list[str]:
    was = None if running is None else ConfigRead(files=running)
    read = ConfigRead(listens=listens("443 ssl"), files=candidate)
    compared = compare(read, running=was, since=NOW - DAY)
    return told(Guard.SESSION_TICKETS, compared)


def test_session_ticket_keys() -> None:
    old, new = int((NOW - 2 * DAY) * 1e9), int(NOW * 1e9)
    known = (ticket_key("/k1", 1, old), ticket_key("/k2", 2, old))
    assert tickets(known, *known) == []
    rotated = (ticket_key("/k1", 3, new), ticket_key("/k2", 1, old))
    (one,) = tickets(known, *rotated)
    assert one.startswith("warning: session ticket key /k1 (/c/n.conf:7): it was replaced since")
    (one,) = tickets(None, *rotated)
    assert "/k1" in one
    assert "changed after the running workers started" in one
    assert tickets((ticket_key("/k2"),), ticket_key("/k1"), ticket_key("/k2", 2, old)) == []


# --- what was built in -------------------------------------------------------------------------


def built(*arguments: str, **more: object) -> NginxBuild:
    return replace(BUILD, configure_arguments=arguments, **more)  # type: ignore[arg-type]


def modules(
    running: NginxBuild | None,
    candidate: NginxBuild,
    has_read: ConfigRead | None = None,
    will_read: ConfigRead = NOTHING_READ,
) -> list[str]:
    compared = compare(will_read, build=candidate, running_build=running, running=has_read)
    return told(Guard.MODULES, compared)


def test_a_build_that_lacks_a_module() -> None:
    running = built("--with-http_stub_status_module", "--with-debug")
    use = Use(option="--with-http_stub_status_module", directive="stub_status", place=HERE)
    (one,) = modules(running, built(), ConfigRead(uses=(use,)))
    assert one == (
        "warning: the new build lacks what the running one has: --with-debug, "
        "--with-http_stub_status_module (for stub_status in /c/n.conf:7)"
    )
    assert modules(running, running) == []
    assert modules(None, built()) == []


def test_a_module_that_is_loaded_no_more() -> None:
    running, candidate = ConfigRead(modules=("a.so", "b.so")), ConfigRead(modules=("a.so",))
    (one,) = modules(None, built(), running, candidate)
    assert "no longer loads b.so" in one


@pytest.mark.parametrize(
    ("was", "now", "words"),
    [
        ("OpenSSL 3.0.13", "OpenSSL 3.0.13", ""),
        ("OpenSSL 3.0.2", "OpenSSL 3.0.13", ""),
        ("OpenSSL 3.0.13", "OpenSSL 3.0.2", "an older TLS library: OpenSSL 3.0.2, and OpenSSL 3"),
        ("OpenSSL 3.0.13", "OpenSSL 1.1.1w", "older"),
        ("OpenSSL 1.1.1w", "OpenSSL 1.1.1", "older"),
        ("OpenSSL 1.1.1w", "LibreSSL 3.8.2", "another TLS library: LibreSSL 3.8.2"),
        ("OpenSSL 3.0.13", "", "no TLS library, the running one has OpenSSL 3.0.13"),
        ("", "OpenSSL 3.0.13", ""),
    ],
)
def test_the_tls_library(was: str, now: str, words: str) -> None:
    found = modules(built(tls_library=was), built(tls_library=now))
    assert bool(found) is bool(words)
    assert words in "".join(found)


def test_server_names_in_tls() -> None:
    (one,) = modules(built(), built(tls_names=False))
    assert "cannot tell servers apart" in one


def test_defaults_that_were_built_in() -> None:
    running = built("--user=www", "--group=web", "--prefix=/a")
    candidate = built("--user=nginx", "--group=nginx", "--prefix=/b", "--lock-path=/l")
    user, paths = modules(running, candidate)
    assert user.startswith("warning: the workers would run as nginx, and not as www:web:")
    assert paths.startswith(
        "note: the builds have other defaults: --prefix /a -> /b, --lock-path unset -> /l;"
    )
    (only_paths,) = modules(running, candidate, will_read=ConfigRead(user=("x",)))
    assert only_paths == paths
    assert "as nobody, and not as www:web" in modules(running, built("--prefix=/a"))[0]


# --- levels ------------------------------------------------------------------------------------


def test_levels() -> None:
    compared = compare(ConfigRead(listens=listens("80", "443 quic")), held=held("81"))
    assert {one.guard for one in findings(compared, DEFAULT_GUARDS)} == {
        Guard.LISTENERS, Guard.QUIC, Guard.SESSION_TICKETS,
    }  # fmt: skip
    off = GuardSettings(quic=Level.OFF, listeners=Level.REFUSE, session_tickets=Level.REFUSE)
    found = findings(compared, off)
    assert {one.guard for one in found} == {Guard.LISTENERS, Guard.SESSION_TICKETS}
    assert [one.severity for one in found] == [Severity.WARNING, Severity.NOTE, Severity.NOTE]
    assert refusal(found, DEFAULT_GUARDS) is None
    objection = refusal(found, off)
    assert objection is not None
    assert objection.reason == "listener_dropped"
    assert objection.detail.startswith("cannot upgrade: 0.0.0.0:81 is no longer listened on")
    assert objection.detail.endswith('(guards.listeners = "refuse")')


@pytest.mark.parametrize("guard", Guard)
def test_each_guard_has_a_reason(guard: Guard) -> None:
    settings = GuardSettings(**{guard.value: Level.REFUSE})
    objection = refusal([Finding(guard=guard, detail="x" * 1000)], settings)
    assert objection is not None
    assert "_" in objection.reason


def test_only_reuseport_refuses_unless_asked_for() -> None:
    levels = {guard: DEFAULT_GUARDS.of(guard) for guard in Guard}
    assert levels.pop(Guard.REUSEPORT) is Level.REFUSE
    assert set(levels.values()) == {Level.WARN}


def test_a_way_back_is_not_refused_but_for_what_lets_clients_hang() -> None:
    every = GuardSettings(**{guard.value: Level.REFUSE for guard in Guard})
    back = every.on_the_way_back()
    assert {guard for guard in Guard if back.of(guard) is Level.REFUSE} == {Guard.REUSEPORT}
    off = GuardSettings(quic=Level.OFF, reuseport=Level.WARN)
    assert off.on_the_way_back() == off


def test_what_is_told_is_bounded() -> None:
    many = ConfigRead(zones=tuple(zone(str(n), directive=f"d{n}") for n in range(40)))
    found = findings(compare(many, held=held("81")), DEFAULT_GUARDS)
    assert len(found) == 41
    assert found[0].severity is Severity.WARNING
    assert len(bounded(found)) == MOST_FINDINGS
    assert bounded(found)[:-1] == found[: MOST_FINDINGS - 1]
    assert bounded(found)[-1].detail.startswith("10 more findings are not shown")
    assert bounded(found[:5]) == found[:5]
    zones = tuple(zone(str(n)) for n in range(40))
    (one,) = findings(compare(ConfigRead(zones=zones), held={}), DEFAULT_GUARDS)
    assert "and 32 more" in one.detail
    assert len(Finding(guard=Guard.QUIC, detail="x" * 1000).to_data()["detail"]) == 512


def test_the_settings() -> None:
    nginx = {"binary": "/n", "config": "/c"}
    assert parse_settings({"nginx": nginx}).guards == DEFAULT_GUARDS
    parsed = parse_settings({"nginx": nginx, "guards": {"quic": "off", "listeners": "refuse"}})
    assert parsed.guards == GuardSettings(quic=Level.OFF, listeners=Level.REFUSE)
