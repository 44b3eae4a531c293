"""Versions: copied, verified, put in place atomically, restored whole, pruned with care."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from supervisor.core.errors import OperationFailed, Refusal
from supervisor.edges import placing
from supervisor.edges.files import RealDisk
from supervisor.edges.placing import Placement
from supervisor.edges.sources import mapped_file
from supervisor.edges.store import Origin, StoredVersion, VersionStore


class Clock:
    """A second passes with each look."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


class Failing(RealDisk):
    """Fails the nth call of one operation, as a crash or a full disk would."""

    def __init__(self, operation: str, *, at: int, code: int = errno.ENOSPC) -> None:
        original = getattr(self, operation)
        calls = iter(range(1_000_000))

        def sometimes(*args: object, **more: object) -> object:
            if next(calls) == at:
                raise OSError(code, os.strerror(code))
            return original(*args, **more)

        setattr(self, operation, sometimes)


@pytest.fixture
def store(tmp_path: Path) -> VersionStore:
    return VersionStore(tmp_path / "state", 2, now=Clock())


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def put(path: Path, content: bytes, mode: int = 0o755) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)
    return path


def taken(store: VersionStore, tmp_path: Path, content: bytes, **modules: bytes) -> StoredVersion:
    binary = put(tmp_path / "offered" / "nginx", content)
    paths = {name: put(tmp_path / "modules" / f"{name}.so", body) for name, body in modules.items()}
    named = {str(path): path for path in paths.values()}
    return store.take(binary, modules=named, version="1.22.1")


def test_a_version_is_binary_and_modules(store: VersionStore, tmp_path: Path) -> None:
    version = taken(store, tmp_path, b"one", m=b"module", n=b"module")
    module = str(tmp_path / "modules" / "m.so")
    assert version.sha256 == sha(b"one")
    assert version.modules[module] == sha(b"module")
    assert version.binary.read_bytes() == b"one"
    assert version.module(module).read_bytes() == b"module"
    assert version.good is None
    assert store.verify(version.id) == version
    assert store.versions() == (version,)
    names = sorted(path.name for path in version.folder.iterdir())
    assert names == sorted(["nginx", "meta.json", f"{sha(b'module')}.so"])
    assert store.directory.stat().st_mode & 0o777 == 0o700


def test_taking_again_changes_nothing(store: VersionStore, tmp_path: Path) -> None:
    first = store.mark_good(taken(store, tmp_path, b"one").id)
    again = taken(store, tmp_path, b"one")
    assert again == first
    assert [path.name for path in store.directory.iterdir()] == [first.id]
    assert taken(store, tmp_path, b"one", m=b"x").id != first.id
    known = store.take(tmp_path / "offered" / "nginx", modules={}, version="1.2.3")
    assert (known.id, known.version, known.good) == (first.id, "1.2.3", True)
    assert store.set_version(first.id, "1.2.4") == store.get(first.id)


def test_a_damaged_version_is_never_used_and_repaired_by_taking_it(
    store: VersionStore, tmp_path: Path
) -> None:
    version = store.mark_good(taken(store, tmp_path, b"one").id)
    version.binary.write_bytes(b"bad")
    with pytest.raises(Refusal) as caught:
        store.verify(version.id)
    assert caught.value.reason == "stored_version_damaged"
    with pytest.raises(Refusal) as caught:
        store.install(version.id, tmp_path / "nginx")
    assert caught.value.reason == "stored_version_damaged"
    assert not any(tmp_path.glob("*nginx*"))
    version.binary.unlink()
    with pytest.raises(Refusal):
        store.verify(version.id)
    repaired = taken(store, tmp_path, b"one")
    assert store.verify(repaired.id).good is True


def test_what_cannot_be_taken(store: VersionStore, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/bin/sh")
    for name, reason in [
        ("missing", "binary_missing"),
        ("fifo", "binary_unreadable"),
        ("link", "binary_unreadable"),
        (".", "binary_unreadable"),
    ]:
        with pytest.raises(Refusal) as caught:
            store.take(tmp_path / name, modules={})
        assert caught.value.reason == reason, name
    gone = store.take(Path("/bin/sh").resolve(), modules={"/m.so": tmp_path / "missing.so"})
    assert gone.modules == {}


@pytest.mark.parametrize("operation", ["create", "write", "sync", "rename", "sync_folder"])
def test_no_space_in_the_store(tmp_path: Path, operation: str) -> None:
    failures = []
    version = None
    while version is None:
        disk = Failing(operation, at=len(failures))
        store = VersionStore(tmp_path / "state", 2, disk=disk)
        try:
            version = taken(store, tmp_path, b"one", m=b"m")
        except Refusal as refusal:
            failures.append(refusal.reason)
        assert not list(store.directory.glob(".taking-*"))
    assert failures == ["no_space"] * max(1, len(failures))
    assert store.verify(version.id) == version


def test_from_a_process_whose_file_was_replaced(store: VersionStore, tmp_path: Path) -> None:
    binary = tmp_path / "bin" / "sleep"
    binary.parent.mkdir()
    shutil.copy("/bin/sleep", binary)
    content = binary.read_bytes()
    with subprocess.Popen([binary, "600"]) as process:
        while os.readlink(f"/proc/{process.pid}/exe") != str(binary):
            os.sched_yield()
        put(tmp_path / "new", b"new").rename(binary)
        version = store.take_from_process(process.pid, modules={"/m.so": tmp_path / "none"})
        process.kill()
    assert version.sha256 == sha(content)
    assert version.source == str(binary)
    assert version.origin == Origin.PROCESS.value
    with pytest.raises(Refusal) as caught:
        store.take_from_process(process.pid, modules={})
    assert caught.value.reason == "binary_missing"


def test_a_replaced_file_is_found_in_the_mappings(tmp_path: Path) -> None:
    binary = tmp_path / "cat"
    shutil.copy("/bin/cat", binary)
    assert mapped_file(os.getpid(), binary) == binary
    pipe = subprocess.PIPE
    with subprocess.Popen([binary], stdin=pipe, stdout=pipe, bufsize=0) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"x")
        assert process.stdout.read(1) == b"x"  # it runs: all that it needs is mapped
        assert mapped_file(process.pid, binary) == binary
        put(tmp_path / "new", b"new").rename(binary)
        assert mapped_file(process.pid, binary).is_relative_to(f"/proc/{process.pid}/map_files")
        process.kill()
    assert mapped_file(process.pid, binary) == binary


def test_finding(store: VersionStore, tmp_path: Path) -> None:
    one = store.set_version(taken(store, tmp_path, b"one").id, "1.18.0")
    two = store.set_version(taken(store, tmp_path, b"two").id, "1.22.1")
    assert store.find("1.22.1") == two
    assert store.find(one.id) == one
    assert store.find(one.id[:6]) == one
    for unknown in ("1.99.0", "x", "../../etc", ""):
        with pytest.raises(Refusal, match=two.id) as caught:
            store.find(unknown)
        assert caught.value.reason == "version_unknown"
    store.set_version(one.id, "1.22.1")
    with pytest.raises(Refusal, match=one.id) as caught:
        store.find("1.22.1")
    assert caught.value.reason == "version_ambiguous"


def test_good_and_bad(store: VersionStore, tmp_path: Path) -> None:
    assert store.last_good() is None
    one, two, three = (taken(store, tmp_path, text) for text in (b"1", b"2", b"3"))
    store.mark_good(two.id)
    store.mark_good(one.id)
    store.mark_bad(three.id)
    last = store.last_good()
    assert last is not None
    assert last.id == one.id
    previous = store.previous_good(exclude=one.id)
    assert previous is not None
    assert previous.id == two.id
    store.mark_bad(one.id)
    last = store.last_good()
    assert last is not None
    assert last.id == two.id


@pytest.mark.parametrize("years", [-50, 50])
def test_the_order_is_that_of_events_whatever_the_clock_says(tmp_path: Path, years: int) -> None:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    store = VersionStore(tmp_path / "state", 1, now=lambda: now)
    names = []
    for text in (b"1", b"2", b"3"):
        version = store.mark_good(taken(store, tmp_path, text).id)
        names.append(version.id)
        now += timedelta(days=365 * years if text == b"1" else 0)
        last = store.last_good()
        assert last is not None
        assert last.id == version.id
    assert [one.id for one in store.versions()] == names
    assert set(store.prune([])) == set(names[:2])


def test_times_that_are_none_are_no_obstacle(tmp_path: Path) -> None:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    store = VersionStore(tmp_path / "state", 2, now=lambda: now)
    version = taken(store, tmp_path, b"1")
    meta = version.folder / "meta.json"
    meta.write_text(meta.read_text().replace(version.stored_at, "yesterday"))
    assert store.mark_good(version.id).judged_at == now.isoformat(timespec="microseconds")


def test_installing_keeps_owner_mode_and_attributes(store: VersionStore, tmp_path: Path) -> None:
    version = taken(store, tmp_path, b"new")
    destination = put(tmp_path / "sbin" / "nginx", b"old", mode=0o4711)
    attributes = {"user.label": b"kept"}
    try:
        os.setxattr(destination, "user.label", b"kept")
    except OSError:
        attributes = {}  # an older tmpfs has none, and then there is nothing to keep
    if os.getuid() == 0:
        os.chown(destination, 12345, 12346)
        destination.chmod(0o4711)
    before = destination.stat()
    store.install(version.id, destination)
    after = destination.stat()
    assert destination.read_bytes() == b"new"
    assert (after.st_uid, after.st_gid, after.st_mode) == (
        before.st_uid,
        before.st_gid,
        before.st_mode,
    )
    for name, value in attributes.items():
        assert os.getxattr(destination, name) == value
    assert [path.name for path in destination.parent.iterdir()] == ["nginx"]


def test_a_missing_destination_gets_the_usual_mode(store: VersionStore, tmp_path: Path) -> None:
    version = taken(store, tmp_path, b"new")
    store.install(version.id, tmp_path / "sbin" / "nginx")
    assert (tmp_path / "sbin" / "nginx").stat().st_mode & 0o7777 == 0o755


def test_a_staged_copy_can_be_run_before_it_is_there(store: VersionStore, tmp_path: Path) -> None:
    destination = put(tmp_path / "sbin" / "nginx", b"old")
    version = store.take(Path("/bin/true").resolve(), modules={})
    (destination.parent / ".nginx.0123456789abcdef.staged").write_bytes(b"leftover")
    staged = store.stage(version.id, destination)
    assert staged.placement is Placement.RENAME
    assert staged.path.parent == destination.parent
    assert subprocess.run([staged.path], check=False).returncode == 0
    assert destination.read_bytes() == b"old"
    store.discard(staged)
    store.discard(staged)
    assert [path.name for path in destination.parent.iterdir()] == ["nginx"]
    staged = store.stage(version.id, destination)
    store.commit(staged)
    store.discard(staged)
    assert destination.read_bytes() == version.binary.read_bytes()
    there = store.stage(version.id, destination)
    assert (there.path, there.placement) == (destination, Placement.ALREADY_THERE)
    inode = destination.stat().st_ino
    store.commit(there)
    store.discard(there)
    assert destination.stat().st_ino == inode


def test_a_symlink_is_flipped_and_never_written_through(
    store: VersionStore, tmp_path: Path
) -> None:
    package = put(tmp_path / "opt" / "nginx-1", b"one", mode=0o711)
    link = tmp_path / "sbin" / "nginx"
    link.parent.mkdir()
    link.symlink_to("../opt/nginx-1")
    one = store.take(link, modules={}, origin=Origin.DISK)
    assert one.source == str(package)
    two, three = taken(store, tmp_path, b"two"), taken(store, tmp_path, b"three")
    store.install(two.id, link)
    placed = package.with_name(f"nginx-1.{two.id}")
    assert link.readlink() == placed
    assert placed.read_bytes() == b"two"
    assert placed.stat().st_mode & 0o7777 == 0o711
    assert package.read_bytes() == b"one"
    store.install(three.id, link)
    assert link.readlink() == package.with_name(f"nginx-1.{three.id}")
    assert store.stage(two.id, link).path == placed  # it is still there and unchanged
    store.install(one.id, link)
    assert link.readlink() == package
    assert sorted(path.name for path in link.parent.iterdir()) == ["nginx"]
    staged = store.stage(one.id, link)
    assert staged.placement is Placement.ALREADY_THERE
    store.mark_good(one.id)
    store.mark_bad(two.id)
    store.mark_bad(three.id)
    taken(store, tmp_path, b"four")
    assert store.prune(set(), destination=link) == (two.id,)
    assert sorted(path.name for path in package.parent.iterdir()) == [
        "nginx-1",
        f"nginx-1.{three.id}",
    ]


def test_a_destination_that_is_no_file(store: VersionStore, tmp_path: Path) -> None:
    version = taken(store, tmp_path, b"new")
    with pytest.raises(Refusal) as caught:
        store.install(version.id, tmp_path)
    assert caught.value.reason == "binary_not_regular"


@pytest.mark.parametrize(
    ("operation", "code", "reason"),
    [
        ("create", errno.EROFS, "binary_directory_read_only"),
        ("create", errno.EACCES, "binary_directory_read_only"),
        ("write", errno.ENOSPC, "no_space"),
        ("sync", errno.EDQUOT, "no_space"),
        ("rename", errno.EROFS, "binary_directory_read_only"),
        ("rename", errno.EIO, "disk_error"),
    ],
)
def test_a_failed_installation_leaves_the_old_binary(
    tmp_path: Path, operation: str, code: int, reason: str
) -> None:
    version = taken(VersionStore(tmp_path / "state", 2), tmp_path, b"new")
    destination = put(tmp_path / "sbin" / "nginx", b"old")
    store = VersionStore(tmp_path / "state", 2, disk=Failing(operation, at=0, code=code))
    with pytest.raises((Refusal, OperationFailed)) as caught:
        store.install(version.id, destination)
    assert caught.value.reason == reason
    assert destination.read_bytes() == b"old"
    assert [path.name for path in destination.parent.iterdir()] == ["nginx"]


def test_restoring_brings_back_binary_and_modules(store: VersionStore, tmp_path: Path) -> None:
    destination = put(tmp_path / "sbin" / "nginx", b"old")
    module = put(tmp_path / "modules" / "m.so", b"old module", mode=0o644)
    same = put(tmp_path / "modules" / "same.so", b"same", mode=0o644)
    modules = {str(path): path for path in (module, same)}
    old = store.take(destination, modules=modules)
    put(tmp_path / "n", b"new").rename(destination)
    put(tmp_path / "m", b"new module").rename(module)
    assert store.restore(old.id, destination) == (module, destination)
    assert destination.read_bytes() == b"old"
    assert module.read_bytes() == b"old module"
    assert store.restore(old.id, destination) == ()
    shutil.rmtree(module.parent)
    assert store.restore(old.id, destination) == (module, same)
    assert same.read_bytes() == b"same"


def test_a_restore_that_cannot_be_complete_begins_nothing(tmp_path: Path) -> None:
    store = VersionStore(tmp_path / "state", 2)
    destination = put(tmp_path / "sbin" / "nginx", b"old")
    module = put(tmp_path / "modules" / "m.so", b"old module")
    old = store.take(destination, modules={str(module): module})
    put(tmp_path / "n", b"new").rename(destination)
    put(tmp_path / "m", b"new module").rename(module)
    old.binary.write_bytes(b"damaged")
    with pytest.raises(Refusal):
        store.restore(old.id, destination)
    assert module.read_bytes() == b"new module"
    assert [path.name for path in module.parent.iterdir()] == ["m.so"]


def test_pruning_keeps_good_used_protected_and_recent_ones(
    store: VersionStore, tmp_path: Path
) -> None:
    versions = [taken(store, tmp_path, f"{number}".encode()) for number in range(9)]
    ids = [version.id for version in versions]
    for version_id in ids[:5]:
        store.mark_good(version_id)
    (store.directory / ".taking-x").mkdir()
    removed = store.prune({versions[0].sha256}, protect=[ids[5]])
    # 0 is mapped, 3 and 4 are the last good ones, 5 is protected, 7 and 8 are the newest others
    assert set(removed) == {ids[1], ids[2], ids[6]}
    assert [version.id for version in store.versions()] == [ids[n] for n in (0, 3, 4, 5, 7, 8)]
    assert not (store.directory / ".taking-x").exists()


def test_pruning_removes_what_was_refused_before_anybody_knew_it(
    store: VersionStore, tmp_path: Path
) -> None:
    script = store.take(put(tmp_path / "script", b"#!/bin/sh"), modules={})
    named = taken(store, tmp_path, b"nginx")
    assert script.id not in store.prune({script.sha256})
    assert script.id not in store.prune(set(), protect=[script.id])
    assert store.prune(set()) == (script.id,)
    assert [each.id for each in store.versions()] == [named.id]


def test_a_mapped_module_keeps_its_version(store: VersionStore, tmp_path: Path) -> None:
    first = taken(store, tmp_path, b"0", m=b"module")
    for number in range(1, 5):
        taken(store, tmp_path, f"{number}".encode())
    assert first.id not in store.prune({sha(b"module")})
    assert first.id in store.prune(set())


@pytest.mark.parametrize(
    "change",
    [
        lambda meta: {**meta, "v": 2},
        lambda meta: {**meta, "id": "0" * 16},
        lambda meta: {**meta, "surprise": 1},
        lambda _: [],
        lambda _: {},
    ],
)
def test_an_unreadable_description_is_no_version(
    store: VersionStore, tmp_path: Path, change: Callable[[object], object]
) -> None:
    assert store.versions() == ()
    version = taken(store, tmp_path, b"one")
    meta = version.folder / "meta.json"
    meta.write_text(json.dumps(change(json.loads(meta.read_text()))))
    assert store.versions() == ()
    with pytest.raises(Refusal) as caught:
        store.get(version.id)
    assert caught.value.reason == "version_unknown"
    assert taken(store, tmp_path, b"one").id == version.id
    assert len(store.versions()) == 1


def test_leftovers_beside_a_plain_file_are_not_ours_to_remove(tmp_path: Path) -> None:
    destination = put(tmp_path / "nginx", b"x")
    other = put(tmp_path / "nginx.0123456789abcdef", b"y")
    placing.remove_unused(RealDisk(), destination, keep=frozenset())
    assert other.exists()
