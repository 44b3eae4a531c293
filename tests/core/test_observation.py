"""What a probe saw, bounded for logs and terminals."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.observation import DETAIL_BYTES, bounded_detail


def test_details_are_short_and_printable() -> None:
    assert bounded_detail("a\n b\t c") == "a b c"
    assert bounded_detail("\x1b[31mred") == "\N{REPLACEMENT CHARACTER}[31mred"
    assert bounded_detail("x" * 512) == "x" * 512
    long = bounded_detail("\N{SNOWMAN}" * 512)
    assert long.endswith("...")
    assert len(long.encode()) <= DETAIL_BYTES


@given(st.text())
def test_details_always_fit(text: str) -> None:
    assert len(bounded_detail(text).encode()) <= DETAIL_BYTES
