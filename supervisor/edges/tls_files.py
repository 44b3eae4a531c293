"""The certificates and other files of TLS that a configuration names, as they are on disk now.

They may be anything: nginx has accepted the paths, and somebody may have replaced the files since.
So each is looked at before it is opened, nothing but a regular file is opened, no more than
`LARGEST` is read, and a file system that hangs holds up a thread and not the caller.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import trio

from supervisor.core.certificate import certificates_in, parse_certificate
from supervisor.core.config_read import ConfigRead, Contents, Kind, TlsFile
from supervisor.edges.files import closing

LARGEST = 4 * 2**20
"""Bytes: more than any bundle of certificates has, and less than what would be felt."""

IDENTIFY_LIMIT = 1.0
"""Seconds that a start of nginx waits for the identities of its files."""

LOOK_LIMIT = 5.0
"""Seconds for all files together; nginx reads the same ones in each of its tests."""


def identified(read: ConfigRead) -> ConfigRead:
    """`read` with the identity of each file now, and no contents. Blocks for a stat of each."""
    return replace(
        read,
        files=tuple(replace(one, identity=identity(one.path), contents=None) for one in read.files),
    )


def identity(path: str) -> tuple[int, ...]:
    """Device, inode, size and times of what is there; empty where nothing is."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return _identity(found)


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


async def look(read: ConfigRead, known: ConfigRead | None = None) -> ConfigRead:
    """`read` with identity and contents of each file now; what is `known` is not read again.

    Files that took too long say so. Cancelling leaves a thread to end by itself.
    """
    return await _in_time(partial(_look, read, known), read)


async def identified_in_time(read: ConfigRead) -> ConfigRead | None:
    """`identified`; None where a file system did not answer. Cancelling leaves a thread behind."""
    if not read.files:
        return read
    with trio.move_on_after(IDENTIFY_LIMIT):
        return await trio.to_thread.run_sync(identified, read, abandon_on_cancel=True)
    return None


async def learn(read: ConfigRead) -> ConfigRead:
    """`read` with the contents of the files that are still the ones it names."""
    return await _in_time(partial(_learn, read), read)


async def _in_time(work: partial[ConfigRead], read: ConfigRead) -> ConfigRead:
    with trio.move_on_after(LOOK_LIMIT):
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True)
    late = Contents(problem=f"its file system did not answer within {LOOK_LIMIT:g} s")
    return replace(read, files=tuple(replace(one, contents=late) for one in read.files))


def _look(read: ConfigRead, known: ConfigRead | None) -> ConfigRead:
    before = {one.path: one for one in (known.files if known is not None else ())}
    files = []
    for one in read.files:
        now = replace(one, identity=identity(one.path))
        files.append(replace(now, contents=_same(now, before) or _contents(now)))
    return replace(read, files=tuple(files))


def _same(file: TlsFile, before: Mapping[str, TlsFile]) -> Contents | None:
    was = before.get(file.path)
    if was is None or was.kind is not file.kind or was.contents is None or was.contents.problem:
        return None
    return was.contents if file.identity and was.identity == file.identity else None


def _learn(read: ConfigRead) -> ConfigRead:
    files = []
    for one in read.files:
        contents = one.contents
        if contents is None and one.identity:
            contents = _contents(one)
        files.append(replace(one, contents=contents))
    return replace(read, files=tuple(files))


def _contents(file: TlsFile) -> Contents | None:
    """What is in the file that has the identity of `file`; a secret one is not opened."""
    if file.kind.is_secret:
        return None
    try:
        found = os.stat(file.path)
        if not stat.S_ISREG(found.st_mode):
            return Contents(problem="it is no regular file")
        if found.st_size > LARGEST:
            return Contents(problem=f"it has {found.st_size} bytes, more than are looked at")
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        with closing(os.open(file.path, flags)) as fd:
            opened = os.fstat(fd)
            data = os.pread(fd, LARGEST, 0) if stat.S_ISREG(opened.st_mode) else b""
            after = os.fstat(fd)
    except OSError as exc:
        return Contents(problem=f"it cannot be read: {exc.strerror}")
    if not file.identity == _identity(opened) == _identity(after):
        return Contents(problem="it was changed before it could be looked at")
    return contents_of(file.kind, data)


def contents_of(kind: Kind, data: bytes) -> Contents:
    """What these bytes of a public file are worth comparing by.

    Of a file with certificates only these count: there may be a private key beside them, of which
    not even a digest is kept.
    """
    if kind not in (Kind.CERTIFICATE, Kind.TRUSTED):
        return Contents(digest=hashlib.sha256(data).hexdigest())
    found = certificates_in(data)
    if not found:
        return Contents(problem="no certificate is found in it")
    digest = hashlib.sha256()
    for der in found:
        digest.update(hashlib.sha256(der).digest())
    own = parse_certificate(found[0]) if kind is Kind.CERTIFICATE else None
    return Contents(digest=digest.hexdigest(), certificate=own)
