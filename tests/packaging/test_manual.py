"""The manual has every command, every option and every setting: it is made from those."""

import argparse
import re
from collections.abc import Iterator

import pytest

from supervisor import daemon
from supervisor.cli.arguments import COMMANDS, parser_of
from supervisor.installed import migrate
from supervisor.wire import ExitCode
from tools.manpages import current_pages, pages
from tools.private_tree import REPOSITORY
from tools.roff import render

PAGES = pages("2026-01-01")


def plain(page: str) -> str:
    """What a reader sees, more or less."""
    text = re.sub(r"\\f[BIR]", "", page)
    for code, meant in ((r"\-", "-"), (r"\(aq", "'"), (r"\(dq", '"'), (r"\e", "\\"), (r"\&", "")):
        text = text.replace(code, meant)
    return text


def options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from (one for one in action.option_strings if one.startswith("--"))
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                yield from options(one)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_with_its_options(name: str) -> None:
    page = plain(PAGES["nginxctl.1"])
    section = page[page.index(f'.SS "nginxctl {name}') :]
    section = section[: section.index("\n.S", 1)]
    for option in set(options(parser_of(name))) - {"--help", "--json", "--socket"}:
        assert f"\n{option}" in section, option
    assert COMMANDS[name].summary[1:].replace("`", "")[:40] in " ".join(section.split())


def test_what_all_commands_have_in_common() -> None:
    page = plain(PAGES["nginxctl.1"])
    for option in ("--json", "--socket", "--version", "--help", "NGINXCTL_SOCKET"):
        assert f"\n{option}" in page
    codes = page[page.index("EXIT STATUS") : page.index("ENVIRONMENT")]
    assert re.findall(r"^\.TP\n(\d+)$", codes, re.MULTILINE) == [
        str(int(code)) for code in sorted(vars_of(ExitCode))
    ]


def vars_of(kind: type) -> list[int]:
    return [value for name, value in vars(kind).items() if name.isupper()]


def test_the_other_programs_with_their_options_and_exit_codes() -> None:
    page = plain(PAGES["nginx-supervisor.8"])
    for option in set(options(daemon.parser())) - {"--help"}:
        assert option in page
    for word in re.findall(r"^  (SIG\w+)", daemon.EPILOG, re.MULTILINE):
        assert f".TP\n{word}" in page
    page = plain(PAGES["nginx-supervisor-migrate.8"])
    for option in set(options(migrate.parser())) - {"--help"}:
        assert f".TP\n{option}" in page
    assert re.findall(r"^\.TP\n(\d)$", page, re.MULTILINE) == ["0", "1", "2", "3"]


def test_every_setting_with_its_default() -> None:
    page = " ".join(plain(PAGES["nginx-supervisor.toml.5"]).split())
    text = (REPOSITORY / "docs/configuration.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| [^|]+ \|$", text, re.MULTILINE)
    assert len(rows) > 80
    for key, default in rows:
        told = "(required)" if default == "required" else f"(default: {default.replace('`', '')})"
        assert f".TP {key} {told}" in page, key
    # A table's own heading.
    for table in re.findall(r"^## `(\[+\w+\]+)`$", text, re.MULTILINE):
        assert f'.SH "{table}"' in page, table


def test_the_pages_have_the_version_and_name_each_other() -> None:
    for name, page in current_pages().items():
        head = page.splitlines()[0]
        stem, _, section = name.rpartition(".")
        assert head.startswith(f".TH {stem.upper()} {section} ")
        assert re.search(r'"\d{4}-\d\d-\d\d"', head)
        assert page.splitlines()[1:3][0] == ".SH NAME"
        assert ".SH SYNOPSIS" in page
        others = {one.rpartition(".")[0] for one in PAGES} - {stem, "nginx-supervisor-migrate"}
        text = plain(page)
        assert others - {one for one in others if one in text[text.index("SEE ALSO") :]} == set()


@pytest.mark.parametrize(
    ("markdown", "roff"),
    [
        (".config is read", "\\&.config is read\n"),
        ("'quoted'", "\\&'quoted'\n"),
        (r"`a\b --c`", "\\fBa\\eb \\-\\-c\\fR\n"),
        ("caf\u00e9", "caf\\[u00E9]\n"),
        ("One. Two", "One.\nTwo\n"),
        ("## A `b`\n\n```\n.x -y\n```", '.SH "A b"\n.in +4n\n.nf\n\\&.x \\-y\n.fi\n.in\n'),
        ("text\n\n```\nx\n```", "text\n.PP\n.in +4n\n.nf\nx\n.fi\n.in\n"),
        ("- one\n- two", ".IP \\(bu 3\none\n.IP \\(bu 3\ntwo\n"),
        (
            "| key | default | meaning |\n|-|-|-|\n| `k` | `1` | m |",
            ".TP\n\\fBk\\fR (default: \\fB1\\fR)\nm\n",
        ),
        ("| | a | b |\n|-|-|-|\n| x | 1 | 2 |", ".TP\nx\na: 1\n.br\nb: 2\n"),
    ],
)  # fmt: skip
def test_what_markdown_becomes(markdown: str, roff: str) -> None:
    assert render(markdown) == roff
