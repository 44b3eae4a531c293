"""Executables, told from everything that merely looks like one."""

from __future__ import annotations

import struct

import pytest

from supervisor.core.elf import (
    HEAD_BYTES,
    Architecture,
    ElfProblem,
    architecture_of,
    check_executable,
)

X86_64 = Architecture(machine=62, bits=64, little_endian=True)
S390 = Architecture(machine=22, bits=32, little_endian=False)


def executable(
    wanted: Architecture = X86_64,
    *,
    kind: int = 3,
    file_size: int = 4096,
    sections: int = 2,
    segments_at: int | None = None,
) -> bytes:
    """A file with one segment that covers it and its section table at the end."""
    order = "<" if wanted.little_endian else ">"
    wide = wanted.bits == 64
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1 if wanted.little_endian else 2, 1]) + bytes(9)
    header_size, segment_size, section_size = (64, 56, 64) if wide else (52, 32, 40)
    header = struct.pack(
        order + ("HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"),
        kind,
        wanted.machine,
        1,
        0,
        header_size if segments_at is None else segments_at,
        file_size - sections * section_size,
        0,
        header_size,
        segment_size,
        1,
        section_size,
        sections,
        1,
    )
    segment = (
        struct.pack(order + "IIQQQQQQ", 1, 5, 0, 0, 0, file_size, file_size, 4096)
        if wide
        else struct.pack(order + "IIIIIIII", 1, 0, 0, 0, file_size, file_size, 5, 4096)
    )
    return (ident + header + segment).ljust(file_size, b"\0")


@pytest.mark.parametrize("wanted", [X86_64, S390])
@pytest.mark.parametrize("kind", [2, 3])
def test_a_whole_executable(wanted: Architecture, kind: int) -> None:
    file = executable(wanted, kind=kind)
    assert check_executable(file[:HEAD_BYTES], len(file), wanted) is None
    assert architecture_of(file) == wanted


def test_every_shorter_copy_of_it_is_noticed() -> None:
    file = executable(file_size=600)
    for size in range(1, len(file)):
        assert check_executable(file[:size], size, X86_64) is ElfProblem.TRUNCATED, size


def test_a_segment_beyond_the_end_is_noticed_without_sections() -> None:
    file = executable(sections=0)
    assert check_executable(file[:200], 4000, X86_64) is ElfProblem.TRUNCATED


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"#!/bin/sh\nexec nginx\n",
        b"x" * 100,
        b"\x7fELF\x07\x01" + bytes(99),
        b"\x7fELF\x02\x09" + bytes(99),
    ],
)
def test_not_an_executable(content: bytes) -> None:
    assert check_executable(content, len(content), X86_64) is ElfProblem.NOT_ELF


def test_an_object_file_is_none() -> None:
    file = executable(kind=1)
    assert check_executable(file, len(file), X86_64) is ElfProblem.NOT_ELF


@pytest.mark.parametrize(
    "other",
    [
        Architecture(183, 64, little_endian=True),
        Architecture(62, 32, little_endian=True),
        Architecture(62, 64, little_endian=False),
    ],
)
def test_another_architecture(other: Architecture) -> None:
    file = executable(other)
    assert check_executable(file, len(file), X86_64) is ElfProblem.WRONG_ARCHITECTURE


def test_program_headers_beyond_the_bytes_that_were_read_are_taken_on_trust() -> None:
    file = executable(segments_at=3000)
    assert check_executable(file[:1000], len(file), X86_64) is None
