"""Markdown, as our documents are written, to the man(7) macros of a manual page.

Parsed by markdown-it-py; a key table becomes a list of definitions, as manual pages have it.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence

from markdown_it import MarkdownIt
from markdown_it.token import Token

WIDTH = 78
_WORDS = {"strong_open": r"\fB", "strong_close": r"\fR", "em_open": r"\fI", "em_close": r"\fR"}


def escape(text: str, *, literal: bool = False) -> str:
    """Text that means nothing to roff; `literal` has hyphens that can be copied into a shell."""
    text = text.replace("\\", r"\e")
    if literal:
        text = text.replace("-", r"\-").replace("'", r"\(aq").replace("^", r"\(ha")
        text = text.replace("~", r"\(ti").replace("`", r"\(ga")
    return "".join(one if one.isascii() else f"\\[u{ord(one):04X}]" for one in text)


def bold(text: str) -> str:
    """What is to be typed as it stands."""
    return f"\\fB{escape(text, literal=True)}\\fR"


def italic(text: str) -> str:
    """What stands for something else."""
    return f"\\fI{escape(text, literal=True)}\\fR"


def line(text: str) -> str:
    """A line of text that is no request, although it may begin as one."""
    return f"\\&{text}" if text.startswith((".", "'")) else text


def title(name: str, section: int, *, date: str, version: str) -> str:
    """The line that every page begins with."""
    return (
        f'.TH {name.upper()} {section} "{date}" "nginx\\-supervisor {version}" '
        '"nginx\\-supervisor manual"\n'
    )


def render(markdown: str) -> str:
    """The body of a page; headings of the first level are left out, the others move up by one."""
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    return "\n".join(_blocks(iter(tokens))) + "\n"


def _blocks(tokens: Iterator[Token]) -> Iterator[str]:
    fresh = True  # no paragraph break is needed: one has just been made
    for token in tokens:
        match token.type:
            case "heading_open":
                text = inline(next(tokens))
                if token.tag != "h1":
                    # The macros set the whole heading in bold; quotes are theirs.
                    plain = re.sub(r"\\f[BIR]", "", text).replace('"', r"\(dq")
                    yield f'.S{"H" if token.tag == "h2" else "S"} "{plain}"'
                    fresh = True
            case "paragraph_open":
                if not token.hidden and not fresh:
                    yield ".PP"
                yield from _lines(inline(next(tokens)))
                fresh = False
            case "fence" | "code_block":
                if not fresh:
                    yield ".PP"
                yield from _code(token.content)
                fresh = False
            case "bullet_list_open" | "ordered_list_open":
                yield from _list(tokens, token.type.replace("_open", "_close"))
                fresh = False
            case "table_open":
                yield from _table(tokens)
                fresh = False


def _code(content: str) -> Iterator[str]:
    yield from (".in +4n", ".nf")
    for text in content.rstrip("\n").split("\n"):
        yield line(escape(text, literal=True))
    yield from (".fi", ".in")


def _list(tokens: Iterator[Token], end: str) -> Iterator[str]:
    for token in tokens:
        if token.type == end:
            return
        if token.type == "inline":
            yield ".IP \\(bu 3"
            yield from _lines(inline(token))


def _table(tokens: Iterator[Token]) -> Iterator[str]:
    rows: list[list[str]] = []
    for token in tokens:
        if token.type == "table_close":
            break
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline":
            rows[-1].append(inline(token))
    head, *body = rows
    for cells in body:
        yield ".TP"
        yield from _row(head, cells)


def _row(head: Sequence[str], cells: Sequence[str]) -> Iterator[str]:
    if len(cells) == 3 and head[1] == "default":
        key, default, meaning = cells
        needed = default in ("required", "")
        yield line(f"{key} (required)" if needed else f"{key} (default: {default})")
        yield from _lines(meaning)
        return
    yield line(cells[0] or "\\&")
    rest = [
        f"{name}: {cell}" if name and len(cells) > 2 else cell
        for name, cell in zip(head[1:], cells[1:], strict=True)
        if cell
    ]
    for number, text in enumerate(rest):
        if number:
            yield ".br"
        yield from _lines(text)


def _lines(text: str) -> Iterator[str]:
    """Sentences begin on a line of their own: so is the space before them made right."""
    for sentence in re.sub(r"([.:;?!)]) +(?=[A-Z(])", "\\1\n", text).split("\n"):
        for one in textwrap.wrap(
            sentence, WIDTH, break_long_words=False, break_on_hyphens=False, drop_whitespace=True
        ):
            yield line(one)


def inline(token: Token) -> str:
    """The text of a paragraph, a heading or a cell; a link is its words, and its address if told
    nowhere else."""
    found: list[str] = []
    for child in token.children or ():
        if child.type == "text":
            # In **bold** it is the name of a command, as in other pages of the manual.
            found.append(escape(child.content, literal=bool(found) and found[-1] == r"\fB"))
        elif child.type == "code_inline":
            found.append(bold(child.content))
        elif child.type in ("softbreak", "hardbreak"):
            found.append("\n")
        else:
            found.append(_WORDS.get(child.type, ""))
    return "".join(found)
