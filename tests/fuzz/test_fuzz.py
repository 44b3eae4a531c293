"""The fuzzer's short form: what it has found before, and some more, on every run.

`make fuzz` is the long form.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tests.fuzz import guided
from tests.fuzz.targets import TARGETS

EXAMPLES = 100
RUNS = 500


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with capture_logs():
        yield


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_found_before(name: str) -> None:
    inputs = guided.corpus(name)
    assert len(inputs) > 20
    for data in inputs:
        TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes(name: str) -> None:
    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
    @given(st.binary(max_size=200) | st.sampled_from(guided.corpus(name)))
    def hold(data: bytes) -> None:
        TARGETS[name](data)

    hold()


@pytest.mark.parametrize("name", TARGETS)
def test_what_grows_out_of_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guided by coverage where atheris is installed, which has no wheels for every interpreter."""
    if find_spec("atheris") is not None:
        monkeypatch.setattr(guided, "FOUND", tmp_path / "found")
        said = guided.fuzz(name, limit=f"-runs={RUNS}", seed=1, keeping=False)
        assert said is None, said
        return

    @settings(max_examples=RUNS, deadline=None, derandomize=True, database=None)
    @given(st.lists(st.sampled_from(guided.corpus(name)) | st.binary(max_size=9), min_size=2))
    def hold(parts: list[bytes]) -> None:
        """Parts of what had reached something, put together otherwise."""
        TARGETS[name](b"".join(part[len(part) // 3 :] for part in parts)[:900])

    hold()


def test_a_bug_is_found_and_can_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The targets do look: with a fault in the code under test they raise."""
    from supervisor import wire

    call = b"\0\0\0" + b'{"method":"org.varlink.service.GetInfo","more":true}\0'
    TARGETS["wire"](call)
    monkeypatch.setattr(wire, "_flag", lambda members, name: name in members and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        TARGETS["wire"](call)
