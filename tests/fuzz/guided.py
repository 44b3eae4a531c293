"""The coverage-guided fuzzer (atheris, which is libFuzzer for Python) over `tests.fuzz.targets`.

    python -m tests.fuzz.guided --seconds 60 --seed 1      all targets, one after the other
    python -m tests.fuzz.guided --runs 2000 wire           a number of executions instead
    python -m tests.fuzz.guided --keep                     add what was new to the corpus here
    python -m tests.fuzz.guided --repeat FILE wire         one input again

Needs the extra `fuzz` (`make fuzz` installs it). Each target is a process of its own. Exits 1 where
one has found a bug: it names a file with the input, which `--repeat` runs again.
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

NAMES = ("wire", "methods", "settings", "records", "texts", "error_log", "answers")
CORPUS = Path(__file__).with_name("corpus")
FOUND = Path("fuzz-found")
LONGEST_INPUT = 4000

_TOKENS = (
    '"method":', '"parameters":', '"more":true', '"oneway":true', '"error":', '"continues":true',
    "org.nginxsupervisor.Control.", "org.varlink.service.", "Status", "Upgrade", "Events",
    "[nginx]", "[control]", "[[probe]]", "binary = ", "config = ", '"/a"', "true", "null", "{}",
    '"v":1', '"n":0', '"record":', '"crc":', "NaN", "listen ", "server {", "location / {",
    "include /*;", "worker_processes ", "nginx version: nginx/", "configure arguments:",
    "2026/11/24 13:11:55 [alert] 7#7: ", "2026/11/24 13:11:55 [crit] 7#7: *1 ", "%0a",
    "failed (2: ", "<186>Nov 24 13:32:44 host nginx: ", ", client: ", '" was not found in "', "%22",
)  # fmt: skip


def corpus(name: str) -> list[bytes]:
    """The inputs that are kept: each had reached something new, or had found a bug."""
    path = CORPUS / f"{name}.txt"
    lines = path.read_text("ascii").split() if path.exists() else []
    return [base64.b64decode(line) for line in lines]


def keep(name: str, inputs: Sequence[bytes]) -> None:
    """Have `inputs` be the corpus, the shortest first."""
    lines = [base64.b64encode(one).decode() for one in sorted(set(inputs), key=_by_size)]
    (CORPUS / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))


def _by_size(data: bytes) -> tuple[int, bytes]:
    return len(data), data


def run(name: str, arguments: Sequence[str], folder: Path) -> tuple[int, str]:
    """One libFuzzer process on the corpus in `folder`; its exit status, and what it said."""
    artifacts = folder.with_name("artifacts")
    artifacts.mkdir()
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "tests.fuzz.guided", "--inside", name),
            *(*arguments, f"-artifact_prefix={artifacts}/", str(folder)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        # Measured as well, each execution would take several times as long.
        env={key: value for key, value in os.environ.items() if "COV" not in key},
    )
    said = ended.stdout
    for one in artifacts.iterdir():
        FOUND.mkdir(exist_ok=True)
        shutil.copy(one, FOUND / f"{name}-{one.name}")
        said += f"python -m tests.fuzz.guided --repeat {FOUND}/{name}-{one.name} {name}\n"
    return ended.returncode, said


def fuzz(name: str, *, limit: str, seed: int, keeping: bool) -> str | None:
    """Fuzz one target; prints a line, and returns what was said where it found something."""
    with tempfile.TemporaryDirectory() as folder:
        growing, tokens = Path(folder) / "corpus", Path(folder) / "tokens"
        growing.mkdir()
        tokens.write_text("".join('"' + one.replace('"', '\\"') + '"\n' for one in _TOKENS))
        for number, one in enumerate(corpus(name)):
            (growing / f"{number}").write_bytes(one)
        options = [limit, f"-seed={seed}", f"-max_len={LONGEST_INPUT}", f"-dict={tokens}"]
        status, said = run(name, [*options, "-print_final_stats=1", "-timeout=20"], growing)
        executed = re.search(r"number_of_executed_units: (\d+)", said)
        speed = re.search(r"average_exec_per_sec: +(\d+)", said)
        reached = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", said)
        print(
            f"{name}: {executed[1] if executed else '?'} executions, "
            f"{speed[1] if speed else '?'} a second, (edges, features, inputs) "
            f"{reached[-1] if reached else '?'}, {'nothing found' if status == 0 else 'A BUG'}",
            flush=True,
        )
        if status == 0 and keeping:  # it holds only what reached something new
            keep(name, [one.read_bytes() for one in growing.iterdir()])
    return None if status == 0 else said


def _inside(name: str, arguments: Sequence[str]) -> None:
    """In the process of libFuzzer: the supervisor's own modules report what they reach."""
    import atheris
    import structlog

    structlog.configure(processors=[], logger_factory=structlog.ReturnLoggerFactory())
    with atheris.instrument_imports(include=["supervisor"]):
        from tests.fuzz.targets import TARGETS

    atheris.Setup([sys.argv[0], *arguments], TARGETS[name])
    atheris.Fuzz()


def main() -> int:
    """See the module."""
    if sys.argv[1:2] == ["--inside"]:
        _inside(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.guided")
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], metavar="TARGET")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--runs", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--repeat", type=Path)
    given = parser.parse_args()
    if given.repeat:
        from tests.fuzz.targets import TARGETS

        TARGETS[given.names[0]](given.repeat.read_bytes())
        return 0
    limit = f"-runs={given.runs}" if given.runs else f"-max_total_time={given.seconds}"
    failed = 0
    for name in given.names or NAMES:
        said = fuzz(name, limit=limit, seed=given.seed, keeping=given.keep)
        if said is not None:
            failed = 1
            print(said[-6000:])
    return failed


if __name__ == "__main__":
    sys.exit(main())
