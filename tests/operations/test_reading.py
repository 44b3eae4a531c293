"""What a generation has read is known for as long as it runs, and not believed any longer."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from supervisor.core.config_read import ConfigRead
from supervisor.edges.generation import Generation
from supervisor.operations import reading, reload
from tests.operations.lab import Lab, lab
from tools.nginx_cache import Build

TLS = Path(__file__).parents[1] / "tls"
LISTENS = (
    "ssl_certificate {folder}/site.pem; ssl_certificate_key {folder}/site.pem;"
    " ssl_session_ticket_key {folder}/ticket.key;"
)


async def started(made: Lab) -> Generation:
    shutil.copy(TLS / "first.test.pem", made.folder / "site.pem")
    (made.folder / "ticket.key").write_bytes(os.urandom(48))
    made.configure(listens=LISTENS)
    return await made.start()


def known(generation: Generation) -> ConfigRead:
    read = generation.program.read
    assert read is not None
    return read


@pytest.mark.needs("ssl")
async def test_what_was_read_is_noted_and_learned(oldest: Build) -> None:
    async with lab(oldest) as made:
        active = await started(made)
        noted = known(active)
        assert [str(one) for one in noted.listens] == [f"127.0.0.1:{made.port}"]
        assert [one.contents for one in noted.files] == [None, None]
        assert all(one.identity for one in noted.files)
        await reading.learn_files(made.world)
        certificate, ticket_key = known(active).files
        assert certificate.contents is not None
        assert certificate.contents.certificate is not None
        assert ticket_key.contents is None
        learned = known(active)
        await reading.learn_files(made.world)
        assert known(active) is learned
        # A reload reads all of it again, the certificate that was replaced as well.
        shutil.copy(TLS / "renewed.test.pem", made.folder / "site.pem")
        await reload.reload(made.world)
        assert known(active).files[0].identity != certificate.identity
        assert known(active).files[0].contents is None


@pytest.mark.needs("ssl")
async def test_of_an_adopted_one_only_what_is_older_than_its_workers(oldest: Build) -> None:
    async with lab(oldest) as made:
        active = await started(made)
        since = reading.workers_since(active)
        assert since is not None
        found = reading.believed(active)
        assert found == known(active)
        # As after a renewal an hour later; nobody can set a ctime.
        later, path = since + 3600, made.folder / "site.pem"
        files = tuple(
            replace(one, identity=(*one.identity[:4], int(later * 1e9)))
            if one.path == str(path)
            else one
            for one in known(active).files
        )
        active.program = replace(active.program, read=replace(known(active), files=files))
        found = reading.believed(active)
        assert found is not None
        assert [bool(one.identity) for one in found.files] == [False, True]
        active.program = replace(active.program, config_files=(str(made.folder / "missing"),))
        assert reading.believed(active) is None


async def test_a_note_counts_while_a_worker_lives_that_it_was_written_for(oldest: Build) -> None:
    async with lab(oldest) as made:
        active = await made.start()
        record = reading.to_record(made.world)
        (one,) = record
        assert one.pid == active.master.pid
        assert len(one.workers) == made.workers
        noted = known(active)
        active.program = replace(active.program, read=None)
        assert reading.to_record(made.world) == []
        reading.recall(made.world, [replace(one, boot_id="another")])
        assert active.program.read is None
        reading.recall(made.world, record)
        assert active.program.read == noted
        # Somebody reloads it while no supervisor runs.
        made.configure(workers=3)
        await reload.reload(made.world)
        active.program = replace(active.program, read=None)
        reading.recall(made.world, record)
        assert active.program.read is None


async def test_nothing_is_known_without_workers(oldest: Build) -> None:
    async with lab(oldest) as made:
        active = await made.start()
        active.master.send(signal.SIGKILL)
        active.signal_workers(signal.SIGKILL)
        await active.all_exited()
        assert reading.workers_since(active) is None
        assert reading.believed(active) is None
