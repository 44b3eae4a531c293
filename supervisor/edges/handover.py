"""What a supervisor hands to the program that takes its place in the same process (execve(2)).

A process keeps its pid, its parent, its children and its role as subreaper over an execve
(prctl(2), PR_SET_CHILD_SUBREAPER), and every descriptor that is not close-on-exec. The rest, what
the supervisor knows, goes along in a document in a memfd whose number is in the environment. The
document is a list of parcels: each has a name, descriptors, and data for JSON.

Any module can add one:

    hand_over.register("held_listeners", lambda: Parcel(fds=(7, 8), data={"addresses": [...]}))

and in the program that comes after:

    parcel = hand_over.take("held_listeners")  # None: the predecessor had none, or there was none

`register` is asked at the last moment, in the supervisor's own thread, and must not block or wait.
Descriptors are close-on-exec again when they are taken; those of parcels that nobody takes are
closed. What is given is still the old program's as long as execve has not succeeded.

A document of another format is not read, but where names and descriptors stand in it never changes.
So `take` then gives parcels with their descriptors and without data, `same_format` is false, and
whoever needs the data does without: the upgrade that runs is then settled as after the death of a
supervisor.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from supervisor.core.errors import OperationFailed

FORMAT = 1
VARIABLE = "NGINX_SUPERVISOR_HANDOVER"
_NAME = "nginx-supervisor-handover"
_SIGNALS = "signals"
_LARGEST = 2**26

HANDLED = (
    signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2,
    signal.SIGCHLD, signal.SIGRTMIN,
)  # fmt: skip
"""The signals that the supervisor handles; blocked from before the execve until it does again."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """What one module hands on: descriptors, and what they and other things mean."""

    fds: tuple[int, ...] = ()
    data: object = None

    @property
    def fields(self) -> dict[str, object]:
        """The data where it is an object, else an empty one."""
        return dict(self.data) if isinstance(self.data, dict) else {}


class HandOver:
    """Both ends of it: what came from a predecessor, and what goes to a successor."""

    def __init__(
        self, received: Mapping[str, Parcel] | None = None, *, problem: str = "", age: float = 0.0
    ) -> None:
        self._received = dict(received or {})
        self._gives: dict[str, Callable[[], Parcel]] = {}
        self.unheard: Callable[[], Iterable[int]] = tuple
        """The signals that have come and that nobody has acted on."""
        self.problem = problem
        """Why the predecessor's state cannot be taken; empty where it can, or there was none."""
        self.age = age
        """Seconds since the predecessor wrote it down."""

    @property
    def same_format(self) -> bool:
        """Whether a predecessor's state is there and can be taken."""
        return bool(self._received) and not self.problem

    @property
    def names(self) -> frozenset[str]:
        """The parcels that nobody has taken yet."""
        return frozenset(self._received)

    def register(self, name: str, give: Callable[[], Parcel]) -> None:
        """Hand on what `give` returns; a second registration replaces the first."""
        self._gives[name] = give

    def take(self, name: str) -> Parcel | None:
        """The predecessor's parcel, once: its descriptors belong to the caller from now on."""
        return self._received.pop(name, None)

    def give(self) -> dict[str, Parcel]:
        """What would be handed on at this moment."""
        return {name: give() for name, give in self._gives.items()}

    def close_rest(self) -> tuple[str, ...]:
        """Close the descriptors that nobody took; the names of their parcels."""
        names = tuple(sorted(self._received))
        for parcel in self._received.values():
            close_all(parcel.fds)
        self._received.clear()
        return names

    def replace_program(self, argv: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
        """Become the program `argv` (absolute argv[0]) and hand everything to it.

        There is no checkpoint in it. Returns never; raises OperationFailed `exec_failed`, and then
        nothing has changed, or whatever a registered `give` raises.
        """
        parcels = self.give()
        with _Signals() as signals:
            document = -1
            try:
                for number in self.unheard():
                    os.kill(os.getpid(), number)  # it stays pending, for whoever is there then
                parcels[_SIGNALS] = Parcel(fds=(signals.missed,))
                fds = [fd for parcel in parcels.values() for fd in parcel.fds]
                document = _write(parcels)
                for fd in (document, *fds):
                    os.set_inheritable(fd, True)
                told = {**environment, VARIABLE: str(document)}
                os.execve(argv[0], list(argv), told)  # noqa: S606 - our own program, without a shell
            except (OSError, ValueError, TypeError) as exc:
                raise OperationFailed(
                    "exec_failed",
                    f"cannot replace the supervisor: {exc}; the one that runs goes on as before",
                ) from exc
            finally:
                for parcel in parcels.values():
                    for fd in parcel.fds:
                        with contextlib.suppress(OSError):
                            os.set_inheritable(fd, False)
                close_all([document] if document >= 0 else [])


class _Signals:
    """No signal is lost over an execve while this lasts; in the main thread.

    They are blocked in this thread, so that they are pending for the new program. Another thread
    may take one all the same, and none of them lives on to do anything about it. But Python's own
    handler then writes its number into a pipe at once (signal.set_wakeup_fd), and that goes along.
    """

    def __init__(self) -> None:
        self.missed, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._wakeup_before = -1
        self._mask_before: set[int] = set()

    def __enter__(self) -> _Signals:
        self._wakeup_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        # When this returns, the handlers of all signals that came before have run.
        self._mask_before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup_before)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask_before)
        close_all((self.missed, self._write))


def let_signals_come(hand_over: HandOver) -> None:
    """Unblock what `replace_program` has blocked; call it once the handlers are set.

    Before any thread is started, since children are made in threads and inherit their mask.
    """
    missed = hand_over.take(_SIGNALS)
    if missed is not None:
        for fd in missed.fds:
            with contextlib.suppress(OSError):
                for number in os.read(fd, 4096):
                    if number in HANDLED:
                        os.kill(os.getpid(), number)
        close_all(missed.fds)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)


def receive(environment: MutableMapping[str, str] = os.environ) -> HandOver:
    """What a predecessor in this process has left; an empty one where there was none. Never raises.

    The variable is removed, so that no child finds it.
    """
    text = environment.pop(VARIABLE, None)
    if text is None:
        return HandOver()
    try:
        content = _read(int(text))
        parcels, missing = _parcels(content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as exc:
        return HandOver(problem=f"the document of the hand-over cannot be read: {exc!r}")
    problem = ""
    if content["v"] != FORMAT:
        problem = f"the hand-over has format {content['v']}, and this supervisor knows {FORMAT}"
    elif missing:
        problem = f"descriptors of the hand-over are missing: {', '.join(missing)}"
    stamp = content.get("monotonic")
    age = time.monotonic() - stamp if isinstance(stamp, float) else 0.0
    if problem:
        parcels = {name: Parcel(fds=parcel.fds) for name, parcel in parcels.items()}
    return HandOver(parcels, problem=problem, age=age)


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors; one that is closed already is no error."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def _write(parcels: Mapping[str, Parcel]) -> int:
    content = {
        "v": FORMAT,
        "pid": os.getpid(),
        "monotonic": time.monotonic(),
        "fds": {name: list(parcel.fds) for name, parcel in parcels.items()},
        "data": {name: parcel.data for name, parcel in parcels.items()},
    }
    text = json.dumps(content, allow_nan=False).encode("ascii")
    fd = os.memfd_create(_NAME, os.MFD_CLOEXEC)
    rest = memoryview(text)
    while rest:
        rest = rest[os.write(fd, rest) :]
    return fd


def _read(fd: int) -> dict[str, object]:
    """The document behind `fd`, which is closed. Raises OSError, ValueError."""
    if not os.readlink(f"/proc/self/fd/{fd}").startswith(f"/memfd:{_NAME}"):
        raise ValueError(f"descriptor {fd} is something else")
    try:
        content = json.loads(os.pread(fd, _LARGEST, 0))
    finally:
        os.close(fd)
    if not isinstance(content, dict) or content.get("pid") != os.getpid():
        raise ValueError("it is of another process")
    return content


def _parcels(content: Mapping[str, object]) -> tuple[dict[str, Parcel], list[str]]:
    """The parcels, their descriptors closed on exec again, and the names of incomplete ones."""
    named, data = content["fds"], content.get("data")
    if not isinstance(named, dict):
        raise TypeError("no descriptors are named")
    parcels: dict[str, Parcel] = {}
    missing: list[str] = []
    for name, fds in named.items():
        present = []
        for fd in fds:
            try:
                os.set_inheritable(int(fd), False)
                present.append(int(fd))
            except OSError:
                missing.append(str(name))
        given = data.get(name) if isinstance(data, dict) else None
        parcels[str(name)] = Parcel(fds=tuple(present), data=given)
    return parcels, missing
