"""The manual pages, made from what says it first: the commands' own arguments, and the documents.

    python -m tools.manpages [FOLDER]      writes them there; without one, lists their names

`make install` and `make deb` make them.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from supervisor import daemon
from supervisor.cli.arguments import COMMANDS, PROGRAM, parser_of
from supervisor.installed import migrate
from tools.private_tree import REPOSITORY, own_version
from tools.roff import bold, escape, italic, render, title

SOCKET = "/run/nginx-supervisor/control.sock"
_SEE = ("nginx-supervisor(8)", "nginxctl(1)", "nginx-supervisor.toml(5)", "nginx(8)")
_DOCUMENTS = "/usr/share/doc/nginx-supervisor"

_CLIENT = f"""\
## DESCRIPTION

Tells a running **nginx-supervisor**(8) what to do with nginx, and shows what it sees. A command
that operates waits for its end, unless it has `--no-wait`; a client that is interrupted, or that
hangs up, cancels nothing.

## OPTIONS

| option | meaning |
|---|---|
| `--socket` *PATH* | the supervisor's socket (default: `$NGINXCTL_SOCKET`, else `{SOCKET}`) |
| `--json` | one JSON object on each line, for programs; also after the command |
| `--version` | the version of this program |
| `--help` | the commands; after a command, its options |
"""

_CLIENT_MORE = f"""\
## EXIT STATUS

| code | meaning |
|---|---|
| 0 | done, or committed; with `--no-wait`: accepted |
| 1 | failed: a person is needed, and `nginxctl status` says why |
| 2 | the arguments are wrong |
| 3 | refused: nothing was changed |
| 4 | rolled back: the old generation serves |
| 5 | the supervisor cannot be reached, or does not permit it |
| 6 | gave up waiting, or the connection was lost: the operation goes on |

With `--json` each command prints one JSON object a line; `status` is one object. The last line of a
command that operates has `verdict` and `reason`, which is one of the words in
`{_DOCUMENTS}/docs/reasons.md`.

## ENVIRONMENT

| variable | meaning |
|---|---|
| `NGINXCTL_SOCKET` | the control socket, where `--socket` does not name another |

## FILES

| file | meaning |
|---|---|
| `{SOCKET}` | the supervisor's control socket; it speaks Varlink |

## EXAMPLES

```
nginxctl status
nginxctl doctor
nginxctl upgrade                        # to what a package has put in place
nginxctl upgrade /root/nginx-1.26.3     # to another file
nginxctl upgrade --hold                 # waits for `promote` or `rollback`
nginxctl --json status | jq -r .state
```
"""

_FILES = f"""\
## FILES

| file | meaning |
|---|---|
| `/etc/nginx-supervisor/nginx-supervisor.toml` | the configuration; **nginx-supervisor.toml**(5) |
| `/etc/nginx-supervisor/INSTANCE.toml` | that of `nginx-supervisor@INSTANCE.service` |
| `{SOCKET}` | the control socket |
| `/var/lib/nginx-supervisor` | journal, history, and the versions to return to |
| `{_DOCUMENTS}` | documents: installing, control, faults, reasons, figures |
"""


def pages(date: str) -> dict[str, str]:
    """Every page by its file's name; `date` is for their titles."""
    made = {
        "nginxctl.1": _nginxctl(),
        "nginx-supervisor.8": _supervisor(),
        "nginx-supervisor-migrate.8": _migrate(),
        "nginx-supervisor.toml.5": _configuration(),
    }
    found = {}
    for file, body in made.items():
        name, _, section = file.rpartition(".")
        head = title(name, int(section), date=date, version=own_version())
        others = [one for one in _SEE if one != f"{name}({section})"]
        found[file] = head + body + '.SH "SEE ALSO"\n' + ",\n".join(map(_reference, others)) + "\n"
    return found


def _reference(page: str) -> str:
    name, _, section = page.partition("(")
    return f"{bold(name)}({section}"


def _name(name: str, summary: str) -> str:
    # One line, which whatis(1) reads.
    return f".SH NAME\n{escape(name, literal=True)} \\- {escape(summary)}\n"


def _synopsis(*lines: str) -> str:
    return ".SH SYNOPSIS\n" + ".br\n".join(map(render, lines))


def _nginxctl() -> str:
    parts = [
        _name(PROGRAM, "control a running nginx supervisor"),
        _synopsis("**nginxctl** [`--socket` *PATH*] [`--json`] *COMMAND* ..."),
        render(_CLIENT),
        ".SH COMMANDS\n",
    ]  # fmt: skip
    for name, command in COMMANDS.items():
        parser = parser_of(name)
        parts.append(f'.SS "{escape(_usage(parser), literal=True)}"\n')
        parts.append(_sentence(command.summary))
        parts.extend(_options(parser, leaving_out={"help", "json", "socket"}))
    return "".join([*parts, render(_CLIENT_MORE)])


def _supervisor() -> str:
    parser = daemon.parser()
    synopsis = [f"**nginx-supervisor** `{name}` `--config` *FILE*" for name in _subparsers(parser)]
    parts = [
        _name("nginx-supervisor", "own an nginx master, upgrade it, and roll back by itself"),
        _synopsis(*synopsis, "**nginx-supervisor** `--version`"),
        ".SH DESCRIPTION\n", render(daemon.DESCRIPTION), ".SH COMMANDS\n",
    ]  # fmt: skip
    for name, command in _subparsers(parser).items():
        parts.append(f'.SS "{name}"\n')
        parts.append(_sentence(command.description or ""))
        parts.extend(_options(command, leaving_out={"help"}))
    parts.append(_epilog(daemon.EPILOG))
    return "".join([*parts, render(_FILES)])


def _migrate() -> str:
    parser = migrate.parser()
    return "".join(
        [
            _name("nginx-supervisor-migrate", "move a running nginx between two units"),
            _synopsis("**nginx-supervisor-migrate** [`--back`] [`--dry-run`]"),
            ".SH DESCRIPTION\n",
            render(migrate.DESCRIPTION),
            ".SH OPTIONS\n",
            *_options(parser, leaving_out={"help"}),
            _epilog(migrate.EPILOG),
        ]
    )


def _configuration() -> str:
    text = (REPOSITORY / "docs" / "configuration.md").read_text()
    _, _, body = text.partition("\n")
    return "".join(
        [
            _name("nginx-supervisor.toml", "configuration of the nginx supervisor"),
            _synopsis("`/etc/nginx-supervisor/nginx-supervisor.toml`"),
            ".SH DESCRIPTION\n",
            render(body),
        ]
    )


def _usage(parser: argparse.ArgumentParser) -> str:
    """The command with its arguments, as argparse writes it, without what all commands have."""
    words = " ".join(parser.format_usage().split())
    for gone in ("usage: ", "[-h] ", " [-h]", " [--json]", " [--socket PATH]"):
        words = words.replace(gone, "")
    return words


def _options(parser: argparse.ArgumentParser, *, leaving_out: set[str]) -> Iterator[str]:
    for action in parser._actions:  # noqa: SLF001 - argparse tells them in no other way
        if action.dest in leaving_out or action.help in (None, argparse.SUPPRESS):
            continue
        names = [bold(one) for one in action.option_strings]
        value = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
        takes = action.nargs != 0
        shown = ", ".join(names) + (f" {italic(value)}" if takes and names else "")
        help_text = str(action.help)
        yield f".TP\n{shown or italic(value)}\n{_sentence(help_text)}"


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    end = "" if text.endswith((".", "?")) else "."
    first = text[0] if text.startswith("nginx") else text[0].upper()
    return render(first + text[1:] + end)


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:  # noqa: SLF001 - see `_options`
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            return dict(action.choices)
    return {}


def _epilog(text: str) -> str:
    """Lists of a word and its meaning, under headings that end with a colon."""
    found = []
    for block in text.split("\n\n"):
        head, *rows = block.split("\n")
        found.append(f'.SH "{escape(head.strip().rstrip(":")).upper()}"\n'.replace("`RUN`", "RUN"))
        # A row that is further to the right goes on with the one before.
        for row in re.split(r"\n {1,3}(?=\S)", "\n" + "\n".join(rows))[1:]:
            word, _, meaning = row.partition("  ")
            found.append(f".TP\n\\fB{escape(word.strip())}\\fR\n{_sentence(meaning)}")
    return "".join(found)


def source_date() -> int:
    """SOURCE_DATE_EPOCH: as it is set, else the commit's, else the change log's."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given:
        return int(given)
    git = ["git", "-C", str(REPOSITORY), "log", "-1", "--format=%ct"]
    try:
        done = subprocess.run(git, capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.strip():
            return int(done.stdout)
    except FileNotFoundError:
        pass
    return int((REPOSITORY / "CHANGELOG.md").stat().st_mtime)


def current_pages() -> dict[str, str]:
    """The pages of this state of the sources."""
    return pages(datetime.fromtimestamp(source_date(), UTC).strftime("%Y-%m-%d"))


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    for name, text in current_pages().items():
        if words:
            Path(words[0], name).write_text(text)
        else:
            print(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
