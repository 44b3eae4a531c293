"""How a master was started, by its title: the only place that still tells.

nginx overwrites its arguments and its environment with the title, which repeats the arguments with
single blanks between them (ngx_setproctitle.c). It ends where that room ends, so that the last word
may be cut; of a master that was started with a small environment it usually is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from supervisor.edges import procfs

_TITLE = ": master process "
_WITH_VALUE = ("-p", "-c", "-e", "-g")


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandLine:
    """The arguments of a master as far as its title shows them; None: not given."""

    program: str  # argv[0]: what USR2 executes, against the current folder where it is relative
    prefix: str | None = None
    config: str | None = None
    globals: str | None = None
    error_log: str | None = None
    cut: bool = False  # the end of it, and so of the last value, may be missing

    @property
    def config_is_cut(self) -> bool:
        """The value of `-c` may go on, or there may be one that does not show."""
        if self.config is None:
            return self.cut
        return self.cut and self.globals is None and self.error_log is None


def of_master(pid: int) -> CommandLine | None:
    """The command line of the master `pid`; None where it shows no title of one."""
    shown = procfs.title(pid)
    text = shown.decode(errors="surrogateescape")
    _, found, arguments = text.partition(_TITLE)
    if not found:
        return None
    room = procfs.title_room(pid)
    return parse(arguments, cut=room is None or len(shown) >= room - 2)


def arguments_of(pid: int) -> tuple[str, ...] | None:
    """What follows the program in the command line of the master `pid`; None where it is not known.

    A relative prefix is given as the master sees it. Raises OSError where that cannot be told.
    """
    given = of_master(pid)
    if given is None or given.cut:
        return None
    prefix = None if given.prefix is None else resolved(pid, given.prefix)
    options = (
        ("-p", prefix), ("-c", given.config), ("-e", given.error_log), ("-g", given.globals)
    )  # fmt: skip
    return tuple(part for flag, value in options if value is not None for part in (flag, value))


def parse(arguments: str, *, cut: bool) -> CommandLine:
    """The words of a title. A value goes on until the next option, as that of `-g` does."""
    program, _, rest = arguments.partition(" -")
    values = dict(_options(f"-{rest}" if rest else ""))
    return CommandLine(
        program=program, cut=cut, prefix=values.get("-p"), config=values.get("-c"),
        globals=values.get("-g"), error_log=values.get("-e"),
    )  # fmt: skip


def _options(text: str) -> Iterator[tuple[str, str]]:
    option, value = "", list[str]()
    for word in text.split(" "):
        if word[:2] in _WITH_VALUE:
            if option:
                yield option, " ".join(value)
            # `-c/etc/nginx.conf` is legal as well
            option, value = word[:2], [word[2:]] if word[2:] else []
        else:
            value.append(word)
    if option:
        yield option, " ".join(value)


def resolved(pid: int, path: str) -> str:
    """`path` as the process `pid` would open it: against its current folder where relative.

    Raises OSError where that folder cannot be seen.
    """
    return path if path.startswith("/") else os.path.join(os.readlink(f"/proc/{pid}/cwd"), path)
