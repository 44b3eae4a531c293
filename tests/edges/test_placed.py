"""The record of what the supervisor itself has put on disk."""

from __future__ import annotations

from pathlib import Path

from supervisor.edges.placed import PlacedFiles
from supervisor.edges.store import Origin, VersionStore


def test_a_file_is_ours_until_somebody_replaces_it(tmp_path: Path) -> None:
    path, placed = tmp_path / "nginx", PlacedFiles(tmp_path)
    assert not placed.is_ours(path)
    path.write_text("ours")
    assert not placed.is_ours(path)
    placed.note(path)
    assert placed.is_ours(path)
    assert PlacedFiles(tmp_path).is_ours(path)
    other = tmp_path / "nginx.dpkg-new"
    other.write_text("ours")
    other.rename(path)
    assert not placed.is_ours(path)


def test_a_record_that_is_lost_or_damaged_leaves_it_open(tmp_path: Path) -> None:
    path, placed = tmp_path / "nginx", PlacedFiles(tmp_path)
    path.write_text("ours")
    placed.note(path)
    for text in ("", "[]", "{", '{"x": 1}'):
        (tmp_path / "placed.json").write_text(text)
        assert not placed.is_ours(path)
        placed.note(path)
        assert placed.is_ours(path)
    PlacedFiles(tmp_path / "missing").note(path)
    placed.note(tmp_path / "gone")


def test_the_store_notes_what_it_installs_and_not_what_was_there(tmp_path: Path) -> None:
    binary, store = tmp_path / "nginx", VersionStore(tmp_path / "state", 3)
    binary.write_text("of a package")
    old = store.take(binary, modules={}, origin=Origin.DISK)
    store.install(old.id, binary)
    assert not store.has_placed(binary)
    offered = tmp_path / "offered"
    offered.write_text("another")
    store.install(store.take(offered, modules={}).id, binary)
    assert store.has_placed(binary)
    store.restore(old.id, binary)
    assert store.has_placed(binary)
