"""What `systemctl cat` and `systemctl show` print, read as far as units are to be compared.

`cat` has each file of a unit in the order in which systemd reads them, under a line with its path:
what people have written, and where. `show` has what systemd makes of it, defaults included.
Sources: systemd.syntax(7), systemctl(1).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

_FILE = re.compile(r"# (/\S+\.(?:service|conf))")
_SECTION = re.compile(r"\[(\w+)\]")
_PROPERTY = {"CPUQuota": "CPUQuotaPerSecUSec"}
"""What `systemctl show` calls a key, where that is another word."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """One line `key=value` of a unit's files."""

    section: str
    key: str
    value: str
    file: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSeen:
    """A unit that systemd has loaded."""

    name: str
    properties: Mapping[str, str]  # by `systemctl show`
    text: str = ""  # by `systemctl cat`

    def value(self, key: str) -> str:
        """As a unit file would say it: a limit whose two parts differ as `soft:hard`."""
        name = _PROPERTY.get(key, key)
        value = self.properties.get(name, "")
        soft = self.properties.get(f"{name}Soft", value) if key.startswith("Limit") else value
        return value if soft == value else f"{soft}:{value}"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitsSeen:
    """The distribution's unit and the one that the supervisor runs in."""

    theirs: UnitSeen | None = None
    ours: UnitSeen | None = None
    running: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Limits of the master that runs, by the kernel, as `UnitSeen.value` has them."""
    without: str = ""  # why there is nothing to compare


def read_cat(text: str) -> tuple[Assignment, ...]:
    """The assignments that count, in their order: an empty one takes back those before it."""
    found: list[Assignment] = []
    for one in _assignments(text):
        if one.value:
            found.append(one)
        else:
            found = [kept for kept in found if (kept.section, kept.key) != (one.section, one.key)]
    return tuple(found)


def _assignments(text: str) -> Iterator[Assignment]:
    file = section = ""
    begun = ""
    for line in text.splitlines():
        if (named := _FILE.fullmatch(line)) is not None:
            file, section, begun = named[1], "", ""
            continue
        if line.lstrip().startswith(("#", ";")):
            continue  # also between the parts of a line that goes on
        if line.endswith("\\"):
            begun += line[:-1] + " "
            continue
        line, begun = (begun + line).strip(), ""
        if (entered := _SECTION.fullmatch(line)) is not None:
            section = entered[1]
        elif section and "=" in line:
            key, _, value = line.partition("=")
            yield Assignment(section, key.strip(), value.strip(), file)


def read_show(text: str) -> Mapping[str, str]:
    """The properties; those that are empty are not printed."""
    lines = (line.partition("=") for line in text.splitlines())
    return MappingProxyType({key: value for key, is_one, value in lines if is_one})


def words_of(value: str) -> tuple[str, ...]:
    """The words of a value with systemd's quotes, which are a shell's; all of it where they end
    nowhere."""
    try:
        return tuple(shlex.split(value))
    except ValueError:
        return (value,)


def variables_of(value: str) -> Mapping[str, str]:
    """What `Environment=` sets."""
    pairs = (word.partition("=") for word in words_of(value))
    return MappingProxyType({name: text for name, is_one, text in pairs if is_one})
