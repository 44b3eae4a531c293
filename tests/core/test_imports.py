"""The arrow between the packages: core <- edges <- operations <- engine <- daemon; cli <- wire."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import supervisor

ROOT = Path(supervisor.__file__).parent
MOST_LINES = 600
OUTSIDE_WORLD = {"os", "time", "signal", "socket", "subprocess"}
"""What a pure module has no business with, although it is in the standard library."""


def name_of(path: Path) -> str:
    parts = ("supervisor", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports(path: Path) -> Iterator[str]:
    """Every module that `path` imports at run time, wherever the import stands."""
    yield from _imports(ast.parse(path.read_text(encoding="utf-8")))


def _imports(node: ast.AST) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute here"
            assert child.module is not None
            yield child.module
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            yield from (one for part in child.orelse for one in _imports(part))
        else:
            yield from _imports(child)


def ours(path: Path) -> set[str]:
    """The modules of this project that `path` imports."""
    return {one for one in imports(path) if one in MODULES and one != "supervisor"}


def inside(package: str) -> list[str]:
    found = [one for one in MODULES if one == package or one.startswith(f"{package}.")]
    assert found, f"{package} is gone: this test looks at nothing"
    return found


def below(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("name", inside("supervisor.core"))
def test_the_core_is_pure(name: str) -> None:
    for imported in imports(MODULES[name]):
        top = imported.split(".")[0]
        if top == "supervisor":
            assert below(imported, "supervisor.core"), f"{name} imports {imported}"
        else:
            assert top in sys.stdlib_module_names, f"{name} imports {imported}"
            assert top not in OUTSIDE_WORLD, f"{name} imports {imported}"


@pytest.mark.parametrize("name", inside("supervisor.edges"))
def test_edges_know_only_the_core_and_each_other(name: str) -> None:
    allowed = ("supervisor.core", "supervisor.edges", "supervisor.wire", "supervisor.varlink")
    for imported in ours(MODULES[name]):
        assert below(imported, *allowed), f"{name} imports {imported}"


@pytest.mark.parametrize("name", inside("supervisor.operations"))
def test_operations_do_not_know_who_calls_them(name: str) -> None:
    for imported in ours(MODULES[name]):
        assert below(imported, "supervisor.core", "supervisor.edges", "supervisor.operations"), (
            f"{name} imports {imported}"
        )


@pytest.mark.parametrize("name", ["engine", "ports", "waiters"])
def test_the_engine_knows_the_core_and_its_own_parts(name: str) -> None:
    for imported in ours(MODULES[f"supervisor.{name}"]):
        assert below(imported, "supervisor.core", "supervisor.ports", "supervisor.waiters")


def test_only_the_wiring_imports_the_daemon() -> None:
    importers = [name for name, path in MODULES.items() if "supervisor.daemon" in ours(path)]
    assert importers in ([], ["supervisor.__main__"])


@pytest.mark.parametrize("name", inside("supervisor.cli"))
def test_the_client_knows_the_wire_alone(name: str) -> None:
    for imported in ours(MODULES[name]):
        assert below(imported, "supervisor.cli", "supervisor.wire", "supervisor.varlink"), (
            f"{name} imports {imported}"
        )


CLIENT_FREE_OF = ("trio", "structlog", "psutil", "h11", "supervisor.core", "supervisor.edges")


def loaded_by(statement: str) -> set[str]:
    """All modules that a fresh interpreter has loaded after `statement`."""
    program = f"{statement}\nimport sys, json\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT.parent,
    )
    return set(json.loads(done.stdout))


def test_the_client_loads_nothing_heavy() -> None:
    """Not even by way of others: the imports are most of the time that a command takes."""
    everything = "\n".join(f"import {name}" for name in inside("supervisor.cli"))
    loaded = loaded_by(everything)
    assert "supervisor.wire" in loaded
    assert not {one for one in loaded if below(one, *CLIENT_FREE_OF)}


def test_the_package_itself_imports_nothing() -> None:
    assert list(imports(MODULES["supervisor"])) == []
    added = loaded_by("import supervisor") - loaded_by("pass")
    assert added <= {"supervisor"}


@pytest.mark.parametrize("name", MODULES)
def test_no_module_is_too_long(name: str) -> None:
    lines = len(MODULES[name].read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES, f"{name} has {lines} lines"


def test_the_imports_form_no_circle() -> None:
    """Packages aside: an __init__ may gather what is in it."""
    graph = {
        name: {one for one in ours(path) if not below(name, one)} for name, path in MODULES.items()
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())
