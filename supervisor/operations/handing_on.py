"""The processes and the running upgrade, handed on when the supervisor is replaced.

Every process goes along by its pidfd: so one that ends while nobody looks is still told by its
exit status, whether it is a child (waitid(2)) or not (PIDFD_GET_INFO). nginx's output goes along
with how far it was read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from supervisor.core import config_read
from supervisor.core.config_read import ConfigRead
from supervisor.core.errors import OperationFailed, SupervisorError
from supervisor.edges.capture import Capture
from supervisor.edges.generation import Generation, Program, Role
from supervisor.edges.handover import Parcel
from supervisor.edges.linux import ExitStatus
from supervisor.edges.process import Process
from supervisor.operations.guard import left_behind
from supervisor.operations.unrecorded import forget_once_gone
from supervisor.operations.world import UpgradeRun, World

PARCEL = "nginx"


def give(world: World) -> Parcel:
    """All that is known of nginx, with the descriptors that it is known by."""
    fds: list[int] = []
    outputs: dict[int, Capture] = {}
    generations = []
    for one in world.generations:
        outputs |= {part.fd: part for part in _parts(one.output)}
        processes = [one.master, *one.workers.values()]
        fds += [process.pidfd for process in processes if process.pidfd >= 0]
        generations.append(_generation_to_data(one))
    data = {
        "generations": generations,
        "outputs": [[fd, output.read_up_to] for fd, output in outputs.items()],
        "next_id": world.generations.next_id,
        "run": None if world.run is None else run_to_data(world.run),
        "pid_path": world.pid_path,
        "sessions": sorted(world.sessions),
        "reapers": sorted(world.reapers),
        "last_program": _program_to_data(world.last_program, with_read=False),
        "last_identity": world.last_identity,
        "unwritten": world.unwritten,
        "committed_id": world.committed_id,
    }
    return Parcel(fds=(*fds, *outputs), data=data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Handed:
    """What `read` has understood; nothing of the world is touched before `take_over`."""

    generations: tuple[Generation, ...]
    next_id: int
    run: UpgradeRun | None
    pid_path: str
    sessions: frozenset[int]
    reapers: frozenset[int]
    last_program: Program | None
    last_identity: tuple[int, int] | None
    unwritten: tuple[dict[str, object], ...]
    committed_id: str | None


def read(world: World, data: Mapping[str, Any]) -> Handed:
    """What `give` gave. Raises KeyError, TypeError or ValueError where it is no such thing.

    Raises SupervisorError where the candidate's version is not in the store any more.
    """
    read_to = {int(fd): int(count) for fd, count in data["outputs"]}
    pairs = {tuple(one["output"]) for one in data["generations"]}
    outputs = {pair: _capture(pair[0], pair[1], read_to) for pair in pairs}
    identity = data["last_identity"]
    return Handed(
        generations=tuple(_generation_from_data(one, outputs) for one in data["generations"]),
        next_id=int(data["next_id"]),
        run=None if data["run"] is None else _run_from_data(world, data["run"]),
        pid_path=str(data["pid_path"]),
        sessions=frozenset(data["sessions"]),
        reapers=frozenset(data["reapers"]),
        last_program=None if data["last_program"] is None else _program(data["last_program"]),
        last_identity=None if identity is None else (int(identity[0]), int(identity[1])),
        unwritten=tuple(data["unwritten"]),
        committed_id=data.get("committed_id"),
    )


def take_over(world: World, handed: Handed) -> None:
    """The world is as the predecessor knew it; its generations are watched from now on.

    Raises Refusal where another supervisor holds the lock on this nginx.
    """
    for path in dict.fromkeys([handed.pid_path, *(g.program.pid_path for g in handed.generations)]):
        if path:
            world.lock(path)
    world.pid_path = handed.pid_path
    world.sessions |= handed.sessions
    world.reapers |= handed.reapers
    world.last_program = handed.last_program
    world.last_identity = handed.last_identity
    world.unwritten.extend(handed.unwritten)
    world.committed_id = handed.committed_id
    world.run = handed.run
    world.guard = left_behind(world.configs)  # it waited for a moment at which nginx serves
    for generation in handed.generations:
        world.rejoin(generation)
        if generation.bystander:
            forget_once_gone(world, generation)
    while world.generations.next_id < handed.next_id:
        world.generations.reserve()


# --- one generation ---------------------------------------------------------------------------


def _generation_to_data(one: Generation) -> dict[str, object]:
    return {
        "id": one.id,
        "role": one.role.value,
        "master": _process_to_data(one.master),
        "program": _program_to_data(one.program),
        "output": _numbers(one.output),
        "workers": [_process_to_data(process) for process in one.workers.values()],
        "exit": None if one.exit is None else [one.exit.code, one.exit.signal],
        "told_to_stop": one.told_to_stop,
        "quitting": one.quitting,
        "bystander": one.bystander,
        "ready": one.ready,
        "session": one.session,
        "executable": one.executable,
        "accepted": sorted(one.accepted),
    }


def _parts(output: Capture | None) -> list[Capture]:
    """The open ones of standard error and standard output."""
    both = [] if output is None else [output, output.stdout]
    return [part for part in both if part is not None and part.fd >= 0]


def _numbers(output: Capture | None) -> list[int | None]:
    """The descriptors of standard error and standard output; None: that part is not there."""
    if output is None:
        return [None, None]
    return [output.fd, None if output.stdout is None else output.stdout.fd]


def _capture(output: int | None, stdout: int | None, read_to: Mapping[int, int]) -> Capture | None:
    """To be shared by all generations that shared it; -1 stays for a part that was closed."""
    if output is None:
        return None
    apart = None if stdout is None else Capture(stdout, read_to.get(stdout, 0))
    return Capture(output, read_to.get(output, 0), stdout=apart)


def _generation_from_data(
    data: Mapping[str, Any], outputs: Mapping[tuple[Any, ...], Capture | None]
) -> Generation:
    exited, executable = data["exit"], data["executable"]
    return Generation(
        id=int(data["id"]),
        role=Role(data["role"]),
        master=_process(data["master"]),
        program=_program(data["program"]),
        output=outputs[tuple(data["output"])],
        workers={int(one[0]): _process(one) for one in data["workers"]},
        exit=None if exited is None else ExitStatus(code=exited[0], signal=exited[1]),
        told_to_stop=data["told_to_stop"],
        quitting=data["quitting"],
        bystander=data["bystander"],
        ready=data["ready"],
        session=int(data["session"]),
        executable=None if executable is None else (int(executable[0]), int(executable[1])),
        accepted=frozenset(map(int, data["accepted"])),
    )


def _process_to_data(process: Process) -> list[int]:
    return [process.pid, process.pidfd, process.start]


def _process(data: Any) -> Process:
    pid, pidfd, start = map(int, data)
    return Process(pid, pidfd, start)


def _program_to_data(program: Program | None, *, with_read: bool = True) -> Any:
    if program is None:
        return None
    read = program.read if with_read else None
    plain = asdict(replace(program, read=None))
    return {**plain, "read": None if read is None else config_read.to_data(read)}


def _read_from(data: Any) -> ConfigRead | None:
    """Of another version of this program perhaps: nobody needs it to go on."""
    try:
        return None if data is None else config_read.from_data(data)
    except (LookupError, TypeError, ValueError, AttributeError):
        return None


def _program(data: Mapping[str, Any]) -> Program:
    return Program(
        **{
            **data,
            "environment": tuple(data["environment"]),
            "config_files": tuple(data["config_files"]),
            "config_signature": tuple(tuple(one) for one in data["config_signature"]),
            "read": _read_from(data.get("read")),
            "error_logs": tuple(data["error_logs"]),
        }
    )


# --- the running upgrade ----------------------------------------------------------------------

_PLAIN = (
    "id", "operation", "candidate_id", "previous", "from_version", "to_version", "installed",
    "usr2_sent", "quit_sent", "include_text", "include_written", "port", "tls_port", "judged",
    "hasten", "placing", "kept",
)  # fmt: skip


def run_to_data(run: UpgradeRun) -> dict[str, object]:
    """The upgrade as it stands; the plan is carried out by now, and only its version is needed."""
    problem = run.not_settled
    return {
        **{name: getattr(run, name) for name in _PLAIN},
        "warnings": run.warnings,
        "changed": run.changed,
        "stored": None if run.stored is None else run.stored.id,
        "program": _program_to_data(run.program),
        "not_settled": None if problem is None else [problem.reason, problem.detail],
        "usr2_children": sorted(run.usr2_children),
        "winch_workers": None if run.winch_workers is None else sorted(run.winch_workers),
        "installed_file": run.installed_file,
    }


def _run_from_data(world: World, data: Mapping[str, Any]) -> UpgradeRun:
    winch, problem = data["winch_workers"], data["not_settled"]
    installed = data["installed_file"]
    run = UpgradeRun(
        **{name: data[name] for name in _PLAIN if name in data},
        warnings=[dict(one) for one in data.get("warnings", ())],
        changed=[dict(one) for one in data.get("changed", ())],
        stored=None if data["stored"] is None else world.store.get(data["stored"]),
        program=None if data["program"] is None else _program(data["program"]),
        not_settled=None if problem is None else _problem(*problem),
        usr2_children=frozenset(data["usr2_children"]),
        winch_workers=None if winch is None else frozenset(winch),
        installed_file=None if installed is None else (int(installed[0]), int(installed[1])),
    )
    run.settled.set()  # it was waited for
    return run


def _problem(reason: str, detail: str) -> SupervisorError:
    return OperationFailed(reason, detail)
