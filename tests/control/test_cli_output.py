"""nginxctl where its output is closed, full, or read by nobody."""

from __future__ import annotations

import os

import pytest
import trio
import trio.testing

from tests.control.fake_backend import FakeBackend, log_event, progress, verdict
from tests.control.nginxctl import NGINXCTL, PATIENCE, Result


async def test_following_ends_with_the_reader(control: str, backend: FakeBackend) -> None:
    """`events --follow | head -1` would else follow for ever, unseen."""
    backend.log = [log_event("one"), log_event("two")]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        with trio.fail_after(PATIENCE):
            ended = await trio.run_process(
                [*NGINXCTL, "--socket", control, "events", "--follow"],
                check=False,
                stdout=writer,
                capture_stderr=True,
            )
    finally:
        os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, b"")


async def test_a_reader_that_went_away_does_not_change_the_end(
    control: str, backend: FakeBackend
) -> None:
    backend.events = [*progress("canary"), verdict("rolled_back", "probe_failed")]
    for words, code in ((["upgrade"], 4), (["--json", "status"], 0)):
        reader, writer = os.pipe()
        os.close(reader)
        try:
            ended = await trio.run_process(
                [*NGINXCTL, "--socket", control, *words],
                check=False,
                stdout=writer,
                capture_stderr=True,
            )
        finally:
            os.close(writer)
        assert ended.returncode == code
        assert b"BrokenPipe" not in ended.stderr


async def under_a_shell(control: str, words: str) -> Result:
    """nginxctl with the redirections in `words`."""
    script = f'exec "$@" {words}'
    with trio.fail_after(PATIENCE):
        return Result(
            await trio.run_process(
                ["sh", "-c", script, "sh", *NGINXCTL, "--socket", control],
                check=False,
                capture_stdout=True,
                capture_stderr=True,
            )
        )


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (
            "upgrade >/dev/full",
            6,
            "No space left on device; the upgrade goes on: `nginxctl status`",
        ),
        ("--json upgrade >/dev/full", 6, "the upgrade goes on"),
        ("upgrade --no-wait >/dev/full", 6, "the upgrade goes on"),
        ("status >/dev/full", 1, "cannot write to standard output: No space left on device"),
        ("--json status >/dev/full", 1, "cannot write to standard output: No space left"),
        ("history >/dev/full", 1, "cannot write to standard output"),
        ("events >/dev/full", 1, "cannot write to standard output"),
        ("--help >/dev/full", 1, "cannot write to standard output"),
        ("status >&-", 2, "cannot write to standard output: it is closed"),
        ("--json status >&-", 2, "cannot write to standard output: it is closed"),
        ("upgrade >&-", 2, "cannot write to standard output: it is closed"),
        ("status 1</dev/null", 1, "cannot write to standard output: Bad file descriptor"),
    ],
)
async def test_an_output_that_takes_nothing(
    control: str, backend: FakeBackend, words: str, code: int, told: str
) -> None:
    result = await under_a_shell(control, words)
    assert (result.code, result.out) == (code, "")
    assert told in result.err
    assert len(result.err.splitlines()) == 1, "no traceback, and nothing from the interpreter's end"
    assert len(backend.submitted) == (code == 6)


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
async def test_an_error_output_that_takes_nothing(
    control: str, backend: FakeBackend, redirection: str
) -> None:
    backend.events = [verdict("rolled_back", "probe_failed")]
    result = await under_a_shell(control, f"--json upgrade {redirection}")
    assert (result.code, result.err) == (4, "")
    assert result.lines == backend.events, "messages for people do not go where JSON is"
    missing = await under_a_shell(control, f"--json frobnicate {redirection}")
    assert (missing.code, missing.out, missing.err) == (2, "", "")


async def test_a_verdict_that_cannot_be_written_is_still_the_exit_code(
    control: str, backend: FakeBackend
) -> None:
    backend.events = [verdict("rolled_back", "probe_failed")]
    result = await under_a_shell(control, "--json upgrade >/dev/full")
    assert result.code == 4
    assert "cannot write to standard output" in result.err
    assert "upgrade rolled_back: probe_failed" in result.err
