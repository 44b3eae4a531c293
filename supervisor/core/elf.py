"""Is a file a whole executable for this machine? Answered from its ELF header (elf(5)) alone.

A truncated copy often still starts with a perfect header, and execve(2) then fails with a word
that helps nobody, or the process dies of SIGBUS on its first missing page. The header tells how
long the file must be at least: every segment and the table of sections, which linkers write last,
lie inside it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum

MAGIC = b"\x7fELF"
HEAD_BYTES = 16384
"""How much of a file `check_executable` wants to see: header and program headers of any linker."""
_IDENT = 16
_EXECUTABLE_TYPES = (2, 3)  # ET_EXEC, ET_DYN: position independent executables are the latter


class ElfProblem(Enum):
    """Why a file cannot be executed here."""

    NOT_ELF = "not_elf"
    WRONG_ARCHITECTURE = "wrong_architecture"
    TRUNCATED = "truncated"


@dataclass(frozen=True, slots=True)
class Architecture:
    """What an executable is for: ELF's machine number, word size and byte order."""

    machine: int
    bits: int
    little_endian: bool


@dataclass(frozen=True, slots=True)
class _Layout:
    header: str
    segment_offset_and_size: str  # p_offset and p_filesz with what is before and between them


_LAYOUTS = {
    32: _Layout("HHIIIIIHHHHHH", "IIIII"),
    64: _Layout("HHIQQQIHHHHHH", "IIQQQQ"),
}
_SEGMENT_FIELDS = {32: (1, 4), 64: (2, 5)}


def architecture_of(head: bytes) -> Architecture | None:
    """What the executable that begins with `head` is for; None where it is no ELF file."""
    if len(head) < _IDENT + 4 or not head.startswith(MAGIC):
        return None
    bits = {1: 32, 2: 64}.get(head[4])
    if bits is None or head[5] not in (1, 2):
        return None
    little = head[5] == 1
    (machine,) = struct.unpack_from("<H" if little else ">H", head, _IDENT + 2)
    return Architecture(machine, bits, little)


def check_executable(head: bytes, size: int, wanted: Architecture) -> ElfProblem | None:
    """What keeps a file of `size` bytes that begins with `head` from running here, if anything."""
    found = architecture_of(head)
    if found is None:
        is_start_of_elf = bool(head) and MAGIC.startswith(head[:4]) and size < _IDENT + 4
        return ElfProblem.TRUNCATED if is_start_of_elf else ElfProblem.NOT_ELF
    if found != wanted:
        return ElfProblem.WRONG_ARCHITECTURE
    order = "<" if found.little_endian else ">"
    layout = _LAYOUTS[found.bits]
    header = struct.Struct(order + layout.header)
    if len(head) < _IDENT + header.size:
        return ElfProblem.TRUNCATED
    fields = header.unpack_from(head, _IDENT)
    if fields[0] not in _EXECUTABLE_TYPES:
        return ElfProblem.NOT_ELF
    segments_at, sections_at = fields[4], fields[5]
    segment_size, segments, section_size, sections = fields[8:12]
    tables = ((segments_at, segments, segment_size), (sections_at, sections, section_size))
    if any(count and at + count * each > size for at, count, each in tables):
        return ElfProblem.TRUNCATED
    segment = struct.Struct(order + layout.segment_offset_and_size)
    offset_field, size_field = _SEGMENT_FIELDS[found.bits]
    for index in range(segments):
        at = segments_at + index * segment_size
        if at + segment.size > len(head):
            break
        values = segment.unpack_from(head, at)
        if values[offset_field] + values[size_field] > size:
            return ElfProblem.TRUNCATED
    return None
