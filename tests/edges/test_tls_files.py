"""The files of TLS, whatever stands where they were."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from supervisor.core.config_read import ConfigRead, Kind, Place, TlsFile
from supervisor.edges import tls_files
from supervisor.edges.tls_files import contents_of, identified, identified_in_time, learn, look

TLS = Path(__file__).parents[1] / "tls"
FIRST, RENEWED = ((TLS / f"{name}.test.pem").read_bytes() for name in ("first", "renewed"))
CERTIFICATE = FIRST[FIRST.index(b"-----BEGIN CERT") :]


def read(*paths: Path, kind: Kind = Kind.CERTIFICATE) -> ConfigRead:
    place = Place(file="f", line=1)
    return ConfigRead(
        files=tuple(TlsFile(path=str(path), kind=kind, place=place) for path in paths)
    )


@pytest.fixture
def pem(tmp_path: Path) -> Path:
    path = tmp_path / "site.pem"
    path.write_bytes(FIRST)
    return path


async def test_a_certificate_is_looked_at(pem: Path) -> None:
    (file,) = (await look(read(pem))).files
    assert file.identity == tls_files.identity(str(pem)) != ()
    assert file.contents is not None
    assert file.contents.certificate is not None
    assert file.contents.certificate.subject == "site.test"
    # What has the identity of a known file is not read again.
    known = replace(file, contents=replace(file.contents, digest="known"))
    (again,) = (await look(read(pem), ConfigRead(files=(known,)))).files
    assert again.contents == known.contents
    os.utime(pem)
    (again,) = (await look(read(pem), ConfigRead(files=(known,)))).files
    assert again.contents == file.contents


async def test_what_is_learned_later_is_what_was_there_before(pem: Path, tmp_path: Path) -> None:
    noted = identified(read(pem))
    assert [one.contents for one in noted.files] == [None]
    (learned,) = (await learn(noted)).files
    assert learned.contents is not None
    assert learned.contents.certificate is not None
    other = tmp_path / "other.pem"
    other.write_bytes(RENEWED)
    other.rename(pem)
    (late,) = (await learn(noted)).files
    assert late.contents is not None
    assert late.contents.problem == "it was changed before it could be looked at"
    # What was learned stays; and a file that was not there has nothing to be learned of.
    assert (await learn(replace(noted, files=(learned,)))).files == (learned,)
    missing = identified(read(tmp_path / "missing"))
    assert await learn(missing) == missing


def test_a_private_key_beside_the_certificate_counts_for_nothing() -> None:
    together, alone = (
        contents_of(Kind.CERTIFICATE, FIRST),
        contents_of(Kind.CERTIFICATE, CERTIFICATE),
    )
    assert together == alone
    assert together.digest != hashlib.sha256(FIRST).hexdigest()
    assert contents_of(Kind.TRUSTED, FIRST + RENEWED).certificate is None
    assert contents_of(Kind.TRUSTED, FIRST + RENEWED).digest != together.digest
    assert contents_of(Kind.CERTIFICATE, b"no PEM").problem == "no certificate is found in it"
    broken = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    assert contents_of(Kind.CERTIFICATE, broken).certificate is None
    parameters = contents_of(Kind.PARAMETERS, b"dh")
    assert parameters.digest == hashlib.sha256(b"dh").hexdigest()


async def test_a_secret_is_not_opened(pem: Path) -> None:
    (file,) = (await look(read(pem, kind=Kind.TICKET_KEY))).files
    assert file.identity
    assert file.contents is None


def fifo(path: Path) -> None:
    os.mkfifo(path)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def loop(path: Path) -> None:
    path.symlink_to(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (fifo, "it is no regular file"),
        (Path.mkdir, "it is no regular file"),
        (device, "it is no regular file"),
        (sparse, "it has 1099511627776 bytes, more than are looked at"),
        (loop, "it cannot be read: Too many levels of symbolic links"),
        (lambda path: None, "it cannot be read: No such file or directory"),
    ],
)
async def test_what_is_no_certificate(
    make: Callable[[Path], None], problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "site.pem"
    make(path)
    with trio.fail_after(30):
        (file,) = (await look(read(path))).files
    assert file.contents is not None
    assert file.contents.problem == problem


async def test_a_file_system_that_does_not_answer_holds_up_nobody(
    pem: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    stat = os.stat

    def hang(path: str) -> os.stat_result:
        if path == str(pem):
            answers.wait(60)
        return stat(path)

    monkeypatch.setattr(os, "stat", hang)
    monkeypatch.setattr(tls_files, "LOOK_LIMIT", 0.05)
    monkeypatch.setattr(tls_files, "IDENTIFY_LIMIT", 0.05)
    try:
        with trio.fail_after(30):
            (file,) = (await look(read(pem))).files
            assert await identified_in_time(read(pem)) is None
            assert await identified_in_time(ConfigRead()) == ConfigRead()
    finally:
        answers.set()
    assert file.contents is not None
    assert file.contents.problem == "its file system did not answer within 0.05 s"
