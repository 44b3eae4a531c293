"""Copies of a configuration: whole, private, bounded, and none that nobody needs."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from supervisor.core.errors import Refusal
from supervisor.edges import config_store
from supervisor.edges.config_store import ConfigStore, KeptFile, Running
from supervisor.operations.world import files_signature


@pytest.fixture
def site(tmp_path: Path) -> list[str]:
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "nginx.conf").write_text("events {}")
    (folder / "one.conf").write_text("# secret")
    (folder / "one.conf").chmod(0o640)
    return [str(folder / "nginx.conf"), str(folder / "one.conf")]


@pytest.fixture
def store(tmp_path: Path) -> ConfigStore:
    return ConfigStore(tmp_path)


def running(snapshot: str, pid: int = 7) -> Running:
    return Running(pid=pid, start_ticks=1, boot_id="b", snapshot=snapshot)


def test_what_is_kept_is_there_again(store: ConfigStore, site: list[str]) -> None:
    kept = store.keep(site, files_signature(tuple(site)), also=[site[0], "/nowhere"])
    assert [one.path for one in kept.files] == site
    assert kept.files[1].mode == 0o640
    again = ConfigStore(store.path.parent).load(kept.id)
    assert again == kept
    assert store.content(again.files[1]) == b"# secret"
    for path in store.path.rglob("*"):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


def test_a_file_that_was_changed_since_is_not_kept(store: ConfigStore, site: list[str]) -> None:
    signature = files_signature(tuple(site))
    Path(site[1]).write_text("# SECRET!")
    with pytest.raises(Refusal) as caught:
        store.keep(site, signature)
    assert caught.value.reason == "configuration_not_kept"
    assert f"{site[1]} was changed" in caught.value.detail


@pytest.mark.parametrize("what", ["gone", "folder", "fifo", "large", "many", "all"])
def test_what_cannot_be_kept(
    store: ConfigStore, site: list[str], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(site[1])
    path.unlink()
    if what == "folder":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    elif what != "gone":
        path.write_text("x" * 10)
    if what == "large":
        monkeypatch.setattr(config_store, "LARGEST_FILE", 9)
    elif what == "many":
        monkeypatch.setattr(config_store, "MOST_FILES", 1)
    elif what == "all":
        monkeypatch.setattr(config_store, "LARGEST_SNAPSHOT", 9)
    with pytest.raises(Refusal) as caught:
        store.keep(site)
    assert caught.value.reason == "configuration_not_kept"


@pytest.mark.parametrize("damage", ["snapshot", "json", "blob", "lost", "hash"])
def test_a_damaged_copy_is_not_used(store: ConfigStore, site: list[str], damage: str) -> None:
    kept = store.keep(site)
    (place,) = (store.path / "snapshots").iterdir()
    blob = store.blob(kept.files[0].sha256)
    if damage == "snapshot":
        place.write_text(place.read_text().replace("one.conf", "two.conf"))
    elif damage == "json":
        place.write_text('{"v": 1, "files": 7}')
    elif damage == "hash":
        place.write_text(place.read_text().replace(kept.files[0].sha256, "../../etc/passwd"))
    elif damage == "lost":
        blob.unlink()
    else:
        blob.write_text("other")
    with pytest.raises(Refusal) as caught:
        store.load(kept.id)
    assert caught.value.reason == "configuration_not_kept"


def test_copies_that_nobody_needs_are_removed(store: ConfigStore, site: list[str]) -> None:
    """The one before the last of a living master stays, and what a guarded reload is about."""
    kept = []
    for number in range(4):
        Path(site[0]).write_text(f"events {{}} # {number}")
        kept.append(store.keep(site).id)
        store.note_running([running(kept[-1])])
        store.note_running([running(kept[-1])])  # nothing new
    assert {one.stem for one in (store.path / "snapshots").iterdir()} == set(kept[2:])
    assert len(list((store.path / "blobs").iterdir())) == 3
    assert store.running() == (
        Running(pid=7, start_ticks=1, boot_id="b", snapshot=kept[3], before=kept[2]),
    )
    store.write_guard({"old": kept[2], "new": kept[3]})
    store.note_running([running(kept[3], pid=8)])
    store.load(kept[2])
    store.clear_guard()
    store.clear_guard()
    assert store.read_guard() is None
    store.note_running([])
    assert list((store.path / "blobs").iterdir()) == []


def test_records_that_are_no_records(store: ConfigStore, site: list[str]) -> None:
    store.keep(site)
    assert store.running() == ()
    for text in ("", "[]", '{"v": 2}', '{"v": 1, "running": [{"pid": 1}]}'):
        (store.path / "running.json").write_text(text)
        (store.path / "guard.json").write_text(text)
        assert store.running() == ()
        assert store.read_guard() in (None, {"v": 1, "running": [{"pid": 1}]})


def test_rejected_files_are_kept_for_people(
    store: ConfigStore, site: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_store, "KEPT_REJECTED", 2)
    kept = store.keep(site)
    for number in range(4):
        folder = store.keep_rejected(f"u{number}", kept.files)
        assert Path(f"{folder}{site[1]}").read_text() == "# secret"
    assert store.keep_rejected("u3", ()) == folder
    assert Path(f"{folder}{site[1]}").exists()
    assert {one.name for one in folder.parent.iterdir()} == {"u2", "u3"}
    lost = KeptFile(path="/x", sha256="0" * 64, mode=0, uid=0, gid=0)
    with pytest.raises(Refusal):
        store.content(lost)
