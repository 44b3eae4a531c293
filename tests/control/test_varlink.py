"""The interface language: what is read, what is refused, and what fits what."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import supervisor
from supervisor import varlink
from supervisor.varlink import Array, Basic, Enum, InterfaceError, Map, Named, Nullable, Struct

FOLDER = Path(supervisor.__file__).parent

EXAMPLE = """
# A comment.
interface org.example.Thing-2
type Colour (red, green)
type Point (x: int, y: ?int) # trailing
type Shape (name: string, points: []Point, colour: Colour, tags: [string]?float, any: ?object,
            size: (wide: bool, mode: (a, b)))
method Draw(shape: Shape, times: ?int) -> (area: float)
method Nothing() -> ()
error Broken (why: string)
error Empty ()
"""

SHAPE = {
    "name": "s",
    "points": [{"x": 1}, {"x": 2, "y": None}],
    "colour": "red",
    "tags": {"a": 1, "b": None},
    "any": {"x": [1]},
    "size": {"wide": True, "mode": "b"},
}


def test_reads_every_construct() -> None:
    thing = varlink.parse_interface(EXAMPLE)
    assert thing.name == "org.example.Thing-2"
    assert thing.description == EXAMPLE
    assert list(thing.methods) == ["Draw", "Nothing"]
    assert list(thing.errors) == ["Broken", "Empty"]
    assert thing.types["Colour"] == Enum(("red", "green"))
    assert thing.types["Point"] == Struct({"x": Basic("int"), "y": Nullable(Basic("int"))})
    shape = thing.types["Shape"]
    assert isinstance(shape, Struct)
    assert shape.fields["points"] == Array(Named("Point"))
    assert shape.fields["tags"] == Map(Nullable(Basic("float")))
    assert shape.fields["size"] == Struct({"wide": Basic("bool"), "mode": Enum(("a", "b"))})
    assert thing.methods["Nothing"].output == Struct({})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the text ends where 'interface' should be"),
        ("interface thing", "an interface name"),
        ("interface org.example.X type", "the text ends where a name"),
        ("interface org.example.X\n\ntype small (a: int)", "line 3: 'small'"),
        ("interface org.example.X type A (a: int", "the text ends where ','"),
        ("interface org.example.X type A (a: int b: int)", "','"),
        ("interface org.example.X type A (a: int, b)", "':'"),
        ("interface org.example.X type A (a, b: int)", "','"),
        ("interface org.example.X type A (a: int, a: int)", "named twice"),
        ("interface org.example.X type A (a: ??int)", "one '?'"),
        ("interface org.example.X type A (a: integer)", "a type"),
        ("interface org.example.X type A (a__b: int)", "a field name"),
        ("interface org.example.X type A (a: B)", "no type is named B"),
        ("interface org.example.X type A (a, b) type A (a, b)", "used twice"),
        ("interface org.example.X method M(a, b) -> ()", "a struct"),
        ("interface org.example.X method M() => ()", "unexpected '='"),
        ("interface org.example.X method M() ()", "'->'"),
        ("interface org.example.X thing A ()", "type, method or error"),
    ],
)
def test_refuses_broken_text_and_names_the_line(text: str, message: str) -> None:
    with pytest.raises(InterfaceError, match="cannot read the Varlink interface") as caught:
        varlink.parse_interface(text)
    assert message in caught.value.detail
    assert caught.value.reason == "bad_interface"


def test_a_fitting_value_has_no_mismatch() -> None:
    draw = varlink.parse_interface(EXAMPLE).methods["Draw"]
    assert draw.check_call({"shape": SHAPE, "times": 3}, "") is None
    assert draw.check_call({"shape": SHAPE}, "") is None
    assert draw.check_reply({"area": 1}, "") is None
    assert draw.check_reply({"area": 1.5}, "") is None


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"name": 1}, "shape.name"),
        ({"name": None}, "shape.name"),
        ({"points": {"x": 1}}, "shape.points"),
        ({"points": [{"x": 1}, {"x": True}]}, "shape.points[1].x"),
        ({"points": [{"x": 2**63}]}, "shape.points[0].x"),
        ({"points": [{"x": 1.0}]}, "shape.points[0].x"),
        ({"points": [{"y": 1}]}, "shape.points[0].x"),
        ({"points": [3]}, "shape.points[0]"),
        ({"colour": "blue"}, "shape.colour"),
        ({"colour": ["red"]}, "shape.colour"),
        ({"tags": ["a"]}, "shape.tags"),
        ({"tags": {"a": "b"}}, "shape.tags[a]"),
        ({"tags": {"a": False}}, "shape.tags[a]"),
        ({"tags": {1: 1.0}}, "shape.tags"),
        ({"any": []}, "shape.any"),
        ({"size": {"wide": 1, "mode": "a"}}, "shape.size.wide"),
        ({"more": 1}, "shape.more"),
    ],
)
def test_a_mismatch_names_the_place(change: dict[str, object], path: str) -> None:
    draw = varlink.parse_interface(EXAMPLE).methods["Draw"]
    mismatch = draw.check_call({"shape": {**SHAPE, **change}}, "")
    assert mismatch is not None
    assert mismatch.path == path


def test_the_parameters_themselves_are_checked() -> None:
    thing = varlink.parse_interface(EXAMPLE)
    missing = thing.methods["Draw"].check_call({}, "")
    unknown = thing.methods["Nothing"].check_call({"x": None}, "")
    assert missing is not None
    assert missing.path == "shape"
    assert unknown is not None
    assert unknown.path == "x"
    assert thing.errors["Broken"]({"why": "so"}, "") is None


def test_a_type_may_contain_itself() -> None:
    tree = varlink.parse_interface(
        "interface org.example.Tree type Node (next: ?Node) method M(node: Node) -> ()"
    )
    check = tree.methods["M"].check_call
    assert check({"node": {"next": {"next": {}}}}, "") is None
    mismatch = check({"node": {"next": {"next": 1}}}, "")
    assert mismatch is not None
    assert mismatch.path == "node.next.next"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.varlink")), ids=lambda p: p.stem)
def test_our_interfaces_are_named_as_their_files(path: Path) -> None:
    assert varlink.parse_interface(path.read_text()).name == path.stem


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(value=JSON)
def test_any_json_gets_an_answer(value: object) -> None:
    draw = varlink.parse_interface(EXAMPLE).methods["Draw"]
    mismatch = draw.check_call({"shape": value}, "")
    assert mismatch is not None
    assert mismatch.path.startswith("shape")


@given(text=st.text(alphabet="interface org.example.X type A(a:?[]int,bc)->#\n\"'"))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(InterfaceError):
        varlink.parse_interface("interface org.example.X " + text)
