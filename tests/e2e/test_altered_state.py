"""What lies in the state directory was altered, cut, lost, or names somebody else's process."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from supervisor.edges.journal import encode_line
from tests.e2e.harness import checks, site, supervised
from tests.e2e.harness.site import sha256
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
