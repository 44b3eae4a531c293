"""Finds every `reason` that the code can give, by reading it.

A reason is what is given for something called `reason`: an argument, a default, a key, a variable,
or the part of a result that is unpacked into one. What is given is followed through names of the
same file, either side of a condition, tables, and the results of functions.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

CALLED = {"reason", "forbidden"}
"""`forbidden` is the reason that supervisor.edges.files.storing() gives where it may not write."""
WORD = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*")

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Code:
    """Some modules, read once."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._trees = [ast.parse(path.read_text("utf-8")) for path in paths]
        self._functions: dict[str, list[Function]] = defaultdict(list)
        # By the name of a function or class: at which place a reason stands among its arguments.
        self._places: dict[str, set[int]] = defaultdict(set)
        self._named: dict[ast.AST, dict[str, ast.expr]] = {}
        for tree in self._trees:
            self._named[tree] = {
                target.id: node.value
                for node in tree.body
                if isinstance(node, ast.Assign)
                for target in node.targets
                if isinstance(target, ast.Name)
            }
            for node in ast.walk(tree):
                if isinstance(node, Function):
                    self._functions[node.name].append(node)
                    self._learn_places(node.name, node)
        for tree in self._trees:
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    self._learn_places_of_class(node)

    def _learn_places(self, name: str, function: Function) -> None:
        names = [one.arg for one in (*function.args.posonlyargs, *function.args.args)]
        if names[:1] in (["self"], ["cls"]):
            del names[0]
        self._places[name] |= {place for place, one in enumerate(names) if one in CALLED}

    def _learn_places_of_class(self, node: ast.ClassDef) -> None:
        for one in node.body:
            if isinstance(one, ast.FunctionDef) and one.name == "__init__":
                self._learn_places(node.name, one)
                return
        fields = [one.target for one in node.body if isinstance(one, ast.AnnAssign)]
        self._places[node.name] |= {at for at, one in enumerate(fields) if _name(one) in CALLED}
        for base in node.bases:  # an exception inherits how it is made
            self._places[node.name] |= self._places.get(_name(base), set())

    def reasons(self) -> set[str]:
        """Every word that something called a reason can be."""
        found: set[str] = set()
        for tree in self._trees:
            for node in ast.walk(tree):
                for given, part in self._given_in(node):
                    found |= set(self._words(given, part, tree, frozenset()))
        return {one for one in found if WORD.fullmatch(one)}

    def _given_in(self, node: ast.AST) -> Iterator[tuple[ast.expr, int | None]]:
        """What is given for a reason right here, and which part of it where that is a tuple."""
        match node:
            case ast.Call(func=called, args=arguments, keywords=keywords):
                yield from ((one.value, None) for one in keywords if one.arg in CALLED)
                places = self._places.get(_name(called), set())
                yield from ((arguments[at], None) for at in places if at < len(arguments))
            case ast.FunctionDef(args=taken) | ast.AsyncFunctionDef(args=taken):
                last = taken.args[len(taken.args) - len(taken.defaults) :]
                yield from (
                    (value, None)
                    for one, value in zip(
                        (*last, *taken.kwonlyargs),
                        (*taken.defaults, *taken.kw_defaults),
                        strict=True,
                    )
                    if one.arg in CALLED and value is not None
                )
            case ast.Dict(keys=keys, values=values):
                for key, value in zip(keys, values, strict=True):
                    if isinstance(key, ast.Constant) and key.value in CALLED:
                        yield value, None
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if name in CALLED:
                yield value, None
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=value):
                for part, target in enumerate(targets):
                    if isinstance(target, ast.Name) and target.id in CALLED:
                        yield value, part

    def _words(
        self, given: ast.expr, part: int | None, tree: ast.AST, seen: frozenset[str]
    ) -> Iterator[str]:
        """The words that an expression can be."""
        match given:
            case ast.Constant(value=str(word)) if part is None:
                yield word
            case ast.Tuple(elts=elements) if part is not None and part < len(elements):
                yield from self._words(elements[part], None, tree, seen)
            case ast.IfExp(body=one, orelse=other):
                for each in (one, other):
                    yield from self._words(each, part, tree, seen)
            case ast.BoolOp(values=values):
                for each in values:
                    yield from self._words(each, part, tree, seen)
            case ast.Await(value=value) | ast.Subscript(value=value):
                yield from self._words(value, part, tree, seen)
            case ast.Dict(values=values):
                for each in values:
                    yield from self._words(each, part, tree, seen)
            case ast.Name(id=name) if name in self._named[tree] and name not in seen:
                yield from self._words(self._named[tree][name], part, tree, seen | {name})
            case ast.Call(func=called) if (name := _name(called)) and name not in seen:
                for function in self._functions.get(name, []):
                    for node in ast.walk(function):
                        if isinstance(node, ast.Return) and node.value is not None:
                            yield from self._words(node.value, part, tree, seen | {name})


def _name(node: ast.expr) -> str:
    return str(getattr(node, "id", getattr(node, "attr", "")))
