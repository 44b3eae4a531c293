"""The Varlink interface language: a parser, and validators compiled from what it read.

The language is small: an interface has a name, types, methods and errors; a type is one of five
words (bool, int, float, string, object), a name, a struct, an enum, an array `[]T`, a map
`[string]T` or a nullable `?T`. Parsing and compiling happen once, at start-up; a check of a
message is then a walk over closures and reads no text.

A value that does not fit is not an exception: the check returns a `Mismatch` that names the
place, because the caller (a server) answers with that name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from supervisor.core.errors import SupervisorError

INT_MIN, INT_MAX = -(2**63), 2**63 - 1


class InterfaceError(SupervisorError):
    """A text is no Varlink interface; `detail` names the line."""

    def __init__(self, detail: str) -> None:
        super().__init__("bad_interface", detail)


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The first place where a value does not fit its type, such as `entries[2].phase`."""

    path: str
    expected: str


@dataclass(frozen=True, slots=True)
class Basic:
    """One of the words bool, int, float, string, object."""

    word: str


@dataclass(frozen=True, slots=True)
class Named:
    """A type of the same interface, by its name."""

    name: str


@dataclass(frozen=True, slots=True)
class Array:
    """`[]T`."""

    of: Type


@dataclass(frozen=True, slots=True)
class Map:
    """`[string]T`."""

    of: Type


@dataclass(frozen=True, slots=True)
class Nullable:
    """`?T`: null, or left out of a struct."""

    of: Type


@dataclass(frozen=True, slots=True)
class Enum:
    """One of some words."""

    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Struct:
    """Named fields, in the order of the text."""

    fields: Mapping[str, Type]


Type = Basic | Named | Array | Map | Nullable | Enum | Struct
Check = Callable[[object, str], Mismatch | None]


@dataclass(frozen=True, slots=True)
class Method:
    """One method; the checks take the parameters of a call and of a reply."""

    name: str
    input: Struct
    output: Struct
    check_call: Check
    check_reply: Check


@dataclass(frozen=True, slots=True)
class Interface:
    """A parsed interface with its text, which is what introspection hands out."""

    name: str
    description: str
    types: Mapping[str, Type]
    methods: Mapping[str, Method]
    errors: Mapping[str, Check]


def parse_interface(text: str) -> Interface:
    """The interface that `text` describes, with its checks compiled.

    Raises:
        InterfaceError: the text breaks the grammar, names a type twice or one that is missing.
    """
    return _Parser(text).interface()


_TOKEN = re.compile(
    r"""(?P<blank>(?:[ \t\r\n]|\#[^\n]*)+)
      | (?P<word>[A-Za-z][A-Za-z0-9_.-]*(?<![-.]))
      | (?P<sign>->|\[string\]|\[\]|[(),:?])""",
    re.VERBOSE,
)
_INTERFACE_NAME = re.compile(r"[A-Za-z](?:-*[A-Za-z0-9])*(?:\.[A-Za-z0-9](?:-*[A-Za-z0-9])*)+")
_MEMBER_NAME = re.compile(r"[A-Z][A-Za-z0-9]*")
_FIELD_NAME = re.compile(r"[A-Za-z](?:_?[A-Za-z0-9])*")
_BASIC = frozenset({"bool", "int", "float", "string", "object"})


@dataclass(slots=True)
class _Members:
    types: dict[str, Type] = field(default_factory=dict)
    methods: dict[str, tuple[Struct, Struct]] = field(default_factory=dict)
    errors: dict[str, Struct] = field(default_factory=dict)

    def names(self) -> set[str]:
        return {*self.types, *self.methods, *self.errors}


class _Parser:
    """Recursive descent over the tokens; one method for one rule of the grammar."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[tuple[str, int]] = []
        self._next = 0
        position = 0
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise self._error(position, f"unexpected {text[position]!r}")
            if match.lastgroup != "blank":
                self._tokens.append((match[0], position))
            position = match.end()

    def interface(self) -> Interface:
        self._expect("interface")
        name = self._name(_INTERFACE_NAME, "an interface name such as org.example.Thing")
        members = _Members()
        while self._next < len(self._tokens):
            self._member(members)
        return _compile_interface(name, self._text, members)

    def _member(self, members: _Members) -> None:
        keyword = self._take()
        if keyword not in {"type", "method", "error"}:
            raise self._unexpected("type, method or error")
        name = self._name(_MEMBER_NAME, "a name that begins with a capital letter")
        if name in members.names():
            raise self._unexpected("a name that is not used twice")
        if keyword == "type":
            members.types[name] = self._struct_or_enum()
        elif keyword == "error":
            members.errors[name] = self._struct()
        else:
            given = self._struct()
            self._expect("->")
            members.methods[name] = (given, self._struct())

    def _struct(self) -> Struct:
        found = self._struct_or_enum()
        if not isinstance(found, Struct):
            raise self._unexpected("a struct")
        return found

    def _struct_or_enum(self) -> Struct | Enum:
        self._expect("(")
        fields: dict[str, Type] = {}
        words: list[str] = []
        while self._peek() != ")":
            name = self._name(_FIELD_NAME, "a field name")
            if name in fields or name in words:
                raise self._unexpected("a field that is not named twice")
            if self._peek() == ":" and not words:
                self._take()
                fields[name] = self._type()
            elif not fields:
                words.append(name)
            else:
                raise self._unexpected("':'")
            if self._peek() != ")":
                self._expect(",")
        self._take()
        return Enum(tuple(words)) if words else Struct(fields)

    def _type(self) -> Type:
        match self._peek():
            case "?":
                self._take()
                if self._peek() == "?":
                    raise self._unexpected("one '?'")
                return Nullable(self._type())
            case "[]":
                self._take()
                return Array(self._type())
            case "[string]":
                self._take()
                return Map(self._type())
            case "(":
                return self._struct_or_enum()
            case word if word in _BASIC:
                return Basic(self._take())
        return Named(self._name(_MEMBER_NAME, "a type"))

    def _peek(self) -> str:
        return self._tokens[self._next][0] if self._next < len(self._tokens) else ""

    def _take(self) -> str:
        token = self._peek()
        self._next += 1
        return token

    def _expect(self, token: str) -> None:
        if self._take() != token:
            raise self._unexpected(repr(token))

    def _name(self, form: re.Pattern[str], expected: str) -> str:
        token = self._take()
        if not form.fullmatch(token):
            raise self._unexpected(expected)
        return token

    def _unexpected(self, expected: str) -> InterfaceError:
        taken = self._next - 1
        if taken >= len(self._tokens):
            return self._error(len(self._text), f"the text ends where {expected} should be")
        token, position = self._tokens[taken]
        return self._error(position, f"{token!r} where {expected} should be")

    def _error(self, position: int, cause: str) -> InterfaceError:
        line = self._text.count("\n", 0, position) + 1
        return InterfaceError(f"cannot read the Varlink interface: line {line}: {cause}")


def _compile_interface(name: str, text: str, members: _Members) -> Interface:
    compiled: dict[str, Check] = {}
    compiler = _Compiler(members.types, compiled)
    for type_name, described in members.types.items():
        compiled[type_name] = compiler.check(described)
    methods = {
        method: Method(method, given, got, compiler.check(given), compiler.check(got))
        for method, (given, got) in members.methods.items()
    }
    errors = {error: compiler.check(described) for error, described in members.errors.items()}
    return Interface(name, text, members.types, methods, errors)


class _Compiler:
    """Turns types into closures; a named type is looked up when used, so it may come later."""

    def __init__(self, types: Mapping[str, Type], compiled: Mapping[str, Check]) -> None:
        self._types = types
        self._compiled = compiled

    def check(self, described: Type) -> Check:
        match described:
            case Basic(word):
                return _BASIC_CHECKS[word]
            case Named(name):
                if name not in self._types:
                    raise InterfaceError(
                        f"cannot read the Varlink interface: no type is named {name}"
                    )
                return lambda value, path: self._compiled[name](value, path)
            case Array(of):
                return _array_check(self.check(of))
            case Map(of):
                return _map_check(self.check(of))
            case Nullable(of):
                inner = self.check(of)
                return lambda value, path: None if value is None else inner(value, path)
            case Enum(words):
                return _enum_check(words)
            case Struct(fields):
                required = [n for n, kind in fields.items() if not isinstance(kind, Nullable)]
                return _struct_check({n: self.check(t) for n, t in fields.items()}, required)


def _basic(expected: str, fits: Callable[[object], bool]) -> Check:
    return lambda value, path: None if fits(value) else Mismatch(path, expected)


# bool is a subclass of int in Python, and is no number in Varlink.
_BASIC_CHECKS: Mapping[str, Check] = {
    "bool": _basic("a bool", lambda v: isinstance(v, bool)),
    "int": _basic("an int of 64 bits", lambda v: type(v) is int and INT_MIN <= v <= INT_MAX),
    "float": _basic("a number", lambda v: type(v) is float or type(v) is int),
    "string": _basic("a string", lambda v: isinstance(v, str)),
    "object": _basic("an object", lambda v: isinstance(v, dict)),
}


def _enum_check(words: tuple[str, ...]) -> Check:
    known = frozenset(words)
    expected = "one of " + ", ".join(words)
    return _basic(expected, lambda v: isinstance(v, str) and v in known)


def _array_check(inner: Check) -> Check:
    def check(value: object, path: str) -> Mismatch | None:
        if not isinstance(value, list | tuple):
            return Mismatch(path, "an array")
        for index, element in enumerate(value):
            if mismatch := inner(element, f"{path}[{index}]"):
                return mismatch
        return None

    return check


def _map_check(inner: Check) -> Check:
    def check(value: object, path: str) -> Mismatch | None:
        if not isinstance(value, dict):
            return Mismatch(path, "a map")
        for key, element in value.items():
            if not isinstance(key, str):
                return Mismatch(path, "a map with strings as keys")
            if mismatch := inner(element, f"{path}[{key}]"):
                return mismatch
        return None

    return check


def _struct_check(checks: Mapping[str, Check], required: list[str]) -> Check:
    def check(value: object, path: str) -> Mismatch | None:
        if not isinstance(value, dict):
            return Mismatch(path, "a struct")
        prefix = f"{path}." if path else ""
        for name in required:
            if name not in value:
                return Mismatch(prefix + name, "to be given")
        for name, element in value.items():
            inner = checks.get(name)
            if inner is None:
                return Mismatch(prefix + str(name), "to be a known field")
            if mismatch := inner(element, prefix + name):
                return mismatch
        return None

    return check
