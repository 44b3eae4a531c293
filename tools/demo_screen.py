"""What the demo prints: lines with a time, and a strip that shows which version served when."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence

from tools.load import KindReport, Report

COLOURS = {"good": "32", "bad": "31", "dim": "2", "bold": "1", "plain": "0"}
STRIP_COLUMNS = 72


class Screen:
    """Plain lines; colours only where a terminal shows them."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self._colours = sys.stdout.isatty()
        marks = "█░" if "utf" in (sys.stdout.encoding or "").lower() else "#."
        self._marks = marks[0], marks[1]

    def paint(self, text: str, look: str) -> str:
        """The text in one of COLOURS."""
        return f"\x1b[{COLOURS[look]}m{text}\x1b[0m" if self._colours else text

    def line(self, text: str = "", *, look: str = "plain") -> None:
        """One line."""
        sys.stdout.write((self.paint(text, look) if look != "plain" else text) + "\n")
        sys.stdout.flush()

    def moment(self, serving: str, text: str, *, look: str = "plain") -> None:
        """A line of the timeline: when, who served, what happened."""
        at = time.monotonic() - self.began
        self.line(f"{at:6.1f} s  {serving:22} {self.paint(text, look)}")

    def strip(self, report: Report, end: float) -> None:
        """One row for each version: where it answered, and where it answered alone."""
        total = end - self.began
        columns = STRIP_COLUMNS
        shares: dict[str, list[float]] = {version: [0.0] * columns for version in report.versions}
        for at, seen in report.timeline:
            column = int((at - self.began) / total * columns)
            if 0 <= column < columns:
                for version, number in seen.items():
                    shares[version][column] += number
        alone, some = self._marks
        self.line()
        for version, counts in sorted(shares.items()):
            marks = ""
            for column, count in enumerate(counts):
                everybody = sum(each[column] for each in shares.values())
                marks += " " if not count else alone if count == everybody else some
            self.line(f"  {version:>8} {marks}")
        scale = "".join(f"{total * part / 4:<18.0f}" for part in range(4))
        self.line(f"   seconds {scale}{total:.0f}", look="dim")
        self.line(f"           {alone} served alone   {some} served beside another", look="dim")

    def table(self, rows: Sequence[tuple[str, Mapping[str, KindReport]]]) -> None:
        """Requests by act and kind of client."""
        self.line()
        self.line(
            f"  {'':29}{'client':11}{'requests':>9}{'failed':>8}{'idle closed':>13}{'slowest':>10}",
            look="dim",
        )
        for act, kinds in rows:
            for number, (kind, seen) in enumerate(sorted(kinds.items())):
                causes = ", ".join(f"{count} {cause}" for cause, count in seen.failed.items())
                slowest = f"{seen.max_latency:.1f} s" if kind == "slow" else (
                    f"{seen.max_latency * 1000:.0f} ms"
                )  # fmt: skip
                self.line(
                    f"  {act if not number else '':29}{kind:11}{seen.requests:9}"
                    f"{seen.failures:8}{seen.reused_idle_closed:13}{slowest:>10}"
                    + (f"   {causes}" if causes else "")
                )
