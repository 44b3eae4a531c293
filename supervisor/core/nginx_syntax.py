"""nginx's configuration syntax: text in, a tree of directives out; it never raises on odd text.

The rules are those of `ngx_conf_read_token` (src/core/ngx_conf_file.c): quotes and `#` mean
something only at the start of a word, a backslash keeps the next character in the word, and `${` in
a word opens no block. Bodies of `*_by_lua_block { }` are Lua, not nginx syntax, and stepped over
by matching braces outside Lua's strings and comments, as the Lua module does with its own lexer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_TOKEN = re.compile(
    r"""
      [ \t\r\n]+
    | \#[^\n]*
    | (?P<punctuation>[;{}])
    | "(?P<double>(?:\\.|[^"\\])*)"
    | '(?P<single>(?:\\.|[^'\\])*)'
    | (?P<bare>(?:\$\{*|\\.|[^ \t\r\n;{$\\])+)
    """,
    re.VERBOSE | re.DOTALL,
)
_LUA = re.compile(
    r"""
      --\[(=*)\[.*?\]\1\]
    | --[^\n]*
    | \[(=*)\[.*?\]\2\]
    | "(?:\\.|[^"\\\n])*"
    | '(?:\\.|[^'\\\n])*'
    | (?P<brace>[{}])
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\([\"'\\trn])")
_CONTROL = {"t": "\t", "r": "\r", "n": "\n"}
_LUA_BLOCK = "_by_lua_block"


@dataclass(frozen=True, slots=True)
class Directive:
    """One directive; `block` is None where it ended with a semicolon."""

    name: str
    arguments: tuple[str, ...]
    line: int
    block: tuple[Directive, ...] | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """A word (quotes and escapes resolved) or one of `;`, `{`, `}`; `end` is where it ends."""

    text: str
    is_word: bool
    line: int
    end: int
    broken: bool = False  # an opening quote without its closing one, or a lone backslash


@dataclass(slots=True)
class _OpenBlock:
    words: list[str]
    line: int
    children: list[Directive]

    def closed(self) -> Directive:
        return Directive(self.words[0], tuple(self.words[1:]), self.line, tuple(self.children))


def unescaped(word: str) -> str:
    r"""A word as nginx stores it: `\"`, `\'`, `\\`, `\t`, `\r`, `\n` resolved, others kept."""
    return _ESCAPE.sub(lambda match: _CONTROL.get(match[1], match[1]), word)


def parse(text: str) -> tuple[tuple[Directive, ...], tuple[str, ...]]:
    """All directives of `text` and what was wrong with it, as `line N: problem` texts."""
    parser = _Parser(text)
    return parser.run(), tuple(parser.problems)


class _Parser:
    """One pass over one file's text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.problems: list[str] = []
        self._root: list[Directive] = []
        self._open: list[_OpenBlock] = []
        self._words: list[str] = []
        self._line = 1  # of the directive's first word
        self._resume = 0

    def run(self) -> tuple[Directive, ...]:
        for token in self._tokens():
            if token.is_word:
                if not self._words:
                    self._line = token.line
                self._words.append(token.text)
                if token.broken:
                    self._complain(token.line, "a string or an escape does not end")
            elif token.text == ";":
                self._end_simple(token)
            elif token.text == "{":
                self._begin_block(token)
            else:
                self._end_block(token)
        self._finish()
        return tuple(self._root)

    def _tokens(self) -> Iterator[Token]:
        """Tokens up to the end of the text; `_resume` lets a Lua body be stepped over."""
        line, counted = 1, 0
        while self._resume < len(self.text):
            start = self._resume
            line += self.text.count("\n", counted, start)
            counted = start
            match = _TOKEN.match(self.text, start)
            if match is None:  # a lone backslash at the very end
                self._resume = len(self.text)
                yield Token("\\", is_word=True, line=line, end=self._resume, broken=True)
                return
            self._resume = match.end()
            kind = match.lastgroup
            if kind is None:
                continue
            word = match[kind]
            if kind == "punctuation":
                yield Token(word, is_word=False, line=line, end=match.end())
            else:
                broken = kind == "bare" and word[0] in "\"'"
                yield Token(unescaped(word), True, line, match.end(), broken)

    def _complain(self, line: int, problem: str) -> None:
        self.problems.append(f"line {line}: {problem}")

    def _children(self) -> list[Directive]:
        return self._open[-1].children if self._open else self._root

    def _end_simple(self, token: Token) -> None:
        if not self._words:
            self._complain(token.line, 'unexpected ";"')
            return
        self._children().append(Directive(self._words[0], tuple(self._words[1:]), self._line))
        self._words = []

    def _begin_block(self, token: Token) -> None:
        if not self._words:
            self._complain(token.line, 'unexpected "{"')
            self._words, self._line = [""], token.line
        block = _OpenBlock(self._words, self._line, [])
        self._words = []
        if block.words[0].endswith(_LUA_BLOCK):
            self._resume = self._after_lua(token)
            self._children().append(block.closed())
        else:
            self._open.append(block)

    def _after_lua(self, token: Token) -> int:
        depth = 1
        for match in _LUA.finditer(self.text, token.end):
            depth += {"{": 1, "}": -1}.get(match["brace"] or "", 0)
            if depth == 0:
                return match.end()
        self._complain(token.line, "a Lua block does not end")
        return len(self.text)

    def _end_block(self, token: Token) -> None:
        if self._words:
            self._complain(token.line, f'"{self._words[0]}" is not ended by ";"')
            self._end_simple(token)
        if not self._open:
            self._complain(token.line, 'unexpected "}"')
            return
        block = self._open.pop()
        self._children().append(block.closed())

    def _finish(self) -> None:
        if self._words:
            self._complain(self._line, f'"{self._words[0]}" is not ended by ";"')
            self._end_simple(Token(";", is_word=False, line=self._line, end=len(self.text)))
        while self._open:
            block = self._open.pop()
            self._complain(block.line, f'"{block.words[0]}" is not closed by "}}"')
            self._children().append(block.closed())
