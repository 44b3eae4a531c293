"""The checks of preflight, and their order.

The pid file comes before anything runs nginx: `-t` would make an empty one where it is missing. The
candidate's copy is tested where it will stand, with the arguments and the environment that USR2
hands on, and with its `-T` its own view of the configuration decides about modules and listeners.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from supervisor.core.config_read import read_of
from supervisor.core.errors import Refusal
from supervisor.core.guards import Comparison, bounded, findings, refusal, unix_listeners_dropped
from supervisor.core.nginx_config import NginxConfig, effective, parse_globals, under_prefix
from supervisor.edges import (
    command_line,
    holders,
    nginx_binary,
    packages,
    pidfile,
    procfs,
    sockets,
    tls_files,
    upgradable,
)
from supervisor.edges.outdated import outdated
from supervisor.edges.preflight_draft import Check, Draft, NoChange
from supervisor.edges.store import Origin, StoredVersion
from supervisor.edges.trust import trusted_path
from supervisor.edges.upgradable import TAKE_OVER

T = TypeVar("T")
_MASTER_TITLE = b": master process"


async def _in_thread(function: Callable[[], T]) -> T:
    return await trio.to_thread.run_sync(function)


async def pid_file_names_the_master(draft: Draft) -> None:
    """USR2 renames the pid file, and breaks the master where that fails."""
    pidfile.require(draft.active.pid_path, draft.active.master)
    folder = draft.active.pid_path.parent
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        raise Refusal(
            "pid_file_not_writable",
            f"cannot upgrade: {folder} takes no change, and nginx has to rename its pid file"
            f" {draft.active.pid_path} there; make it writable (systemd: ReadWritePaths=)",
        )


async def no_oldbin_master(draft: Draft) -> None:
    """A master from an earlier upgrade still lives: there may be two generations, never three."""
    path = pidfile.oldbin_path(draft.active.pid_path)
    pid = pidfile.read_claim(path).pid
    if pid is None or pid == draft.active.master.pid or pidfile.identity_of(pid) is None:
        return
    if _MASTER_TITLE in procfs.title(pid):
        raise Refusal(
            "oldbin_master_alive",
            f"cannot upgrade: the old master {pid} of an earlier upgrade still runs ({path});"
            f" end that upgrade first (kill -QUIT {pid} once its connections may close)",
        )


async def usr2_would_be_accepted(draft: Draft) -> None:
    """The master's handler is set, it runs, its recorded parent is gone, it executes our file."""
    pid = draft.active.master.pid
    if refusal := upgradable.objection(pid, draft.installation.destination):
        raise refusal
    if masters := procfs.brood_of(procfs.children(pid)).masters:
        raise Refusal(
            "foreign_upgrade",
            f"cannot upgrade: somebody else upgrades nginx by signals: process {min(masters)} is"
            f" the new master of {pid}; end one of the two first: kill -QUIT {pid} keeps the new"
            f" one, kill -QUIT {min(masters)} the old one; leave the pid file as it is",
        )


async def source_may_be_used(draft: Draft) -> None:
    """The offered file is one that nobody else can change, and a whole executable."""
    request = draft.request
    if request.version_id is not None:
        draft.stored = await _in_thread(partial(draft.store.verify, request.version_id))
        return
    source = draft.installation.destination
    if request.binary is not None:
        source = request.binary
        if not source.is_absolute():
            raise Refusal(
                "relative_path",
                f"cannot use the binary {source}: the path must begin with a slash",
            )
        if not request.trust:
            source = await _in_thread(partial(trusted_path, source, draft.installation.uid))
    await _in_thread(partial(nginx_binary.inspect_binary, source))
    draft.source = await _in_thread(source.resolve)


async def something_has_changed(draft: Draft) -> NoChange | None:
    """Which files of what runs are others by now; `--if-changed` ends here where there is none.

    So a package manager that was about something else costs no copy and no test.
    """
    if draft.request.version_id is not None:
        return None
    source, active = draft.source, draft.active
    assert source is not None
    runs = await _in_thread(partial(_running_version, draft))
    named = source if draft.request.binary is not None else draft.installation.destination
    pids = (active.master.pid, *active.workers)
    draft.changed = await _in_thread(partial(outdated, named, runs, pids))
    if not draft.request.if_changed or draft.request.binary is not None:
        return None
    if runs is not None and runs.version is not None and not draft.changed:
        return NoChange(version=runs.version, version_id=runs.id)
    paths = {str(named), *(one.path for one in draft.changed)}
    if runs is not None:
        paths |= set(runs.modules)
    unfinished = await packages.unfinished(sorted(paths))
    if unfinished:
        told = ", ".join(f"{one.name} {one.version} is {one.state}" for one in unfinished)
        raise Refusal(
            "package_not_configured",
            f"cannot upgrade: dpkg has not finished with a package of nginx's files ({told}), and"
            " they may not go together yet; finish it (dpkg --configure -a, or apt-get -f install),"
            " then nginxctl upgrade --if-changed, where nothing does that by itself",
        )
    return None


def _running_version(draft: Draft) -> StoredVersion | None:
    try:
        return draft.store.get(draft.active.version_id or "")
    except Refusal:
        return None


async def copy_is_staged(draft: Draft) -> None:
    """From here on only the copy counts: whoever changes the source now changes nothing."""
    if draft.source is not None:
        offered = draft.request.binary is not None
        draft.stored = await _in_thread(
            partial(
                draft.store.take,
                draft.source,
                modules={},
                origin=Origin.OFFERED if offered else Origin.DISK,
            )
        )
    staged = await _in_thread(
        partial(draft.store.stage, draft.ready_stored.id, draft.installation.destination)
    )
    draft.staged = staged
    draft.undo.append(partial(draft.store.discard, staged))


async def it_is_nginx(draft: Draft) -> None:
    """-V of the candidate; and of the active generation, to compare."""
    environment = _environment(draft)
    said = await nginx_binary.version_of(draft.ready_staged.path, environment)
    draft.build = said.at_prefix(draft.installation.prefix)
    draft.running = draft.active.build
    if draft.running is None:
        exe = Path(f"/proc/{draft.active.master.pid}/exe")
        try:
            draft.running = await nginx_binary.version_of(exe, environment)
        except Refusal:  # it may not be ours to run; only comparisons are lost
            draft.running = None


async def stored_modules_are_placed(draft: Draft) -> None:
    """A stored version brings its modules; the ones on disk are kept to be put back."""
    if draft.request.version_id is None or not draft.ready_stored.modules:
        return
    store, version = draft.store, draft.ready_stored
    destination = draft.installation.destination
    present = {path: Path(path) for path in version.modules}
    backup = await _in_thread(partial(store.take, destination, modules=present, origin=Origin.DISK))
    await _in_thread(draft.installation.announce)
    draft.undo.append(partial(store.restore_modules, backup.id))
    await _in_thread(partial(store.restore_modules, version.id))


async def configuration_is_accepted(draft: Draft) -> None:
    """-T tests as -t does, says what the candidate will do, and how long it reads at least."""
    began = trio.current_time()
    config, draft.dump = await nginx_binary.dump_config(
        draft.ready_staged.path,
        draft.installation.arguments,
        _environment(draft),
        candidate=draft.build,
        running=draft.running,
    )
    took, most = trio.current_time() - began, draft.installation.start_timeout
    if took >= most:
        raise Refusal(
            "start_timeout_too_short",
            f"cannot upgrade: nginx took {took:.1f} s to read its configuration, and a candidate"
            f" has {most:g} s to become ready: it would be rolled back whatever it is; raise"
            " start_timeout in [upgrade] to three times as much, or try again where the host was"
            " busy",
        )
    draft.config = effective(config, parse_globals(draft.installation.globals or ""))
    build = draft.ready_build
    pid_path = under_prefix(draft.config.pid or build.pid_path, build.prefix)
    draft.undo.append(partial(pidfile.remove_empty, Path(pid_path)))


async def inherited_arguments_do(draft: Draft) -> None:
    """USR2 hands on the arguments of the running master, which may be others than the settings'.

    A master that was adopted has those of whoever started it: without `-c`, say, a build with
    another compiled-in path would read another configuration than the one that was tested.
    """
    pid, ours = draft.active.master.pid, draft.installation.arguments
    try:
        inherited = command_line.arguments_of(pid)
    except OSError:
        return
    if inherited is None or inherited == ours:
        return
    words = " ".join(inherited) or "none"
    why = f"USR2 hands on the arguments of the running master {pid} ({words}); {TAKE_OVER}"
    try:
        config, _ = await nginx_binary.dump_config(
            draft.ready_staged.path, inherited, _environment(draft)
        )
    except Refusal as exc:
        raise Refusal(exc.reason, f"{exc.detail}; {why}") from exc
    read, tested = (_main_file(one) for one in (config, draft.ready_config))
    if read != tested:
        raise Refusal(
            "other_configuration",
            f"cannot upgrade: the new nginx would read {read}, not {tested}: {why}",
        )


def _main_file(config: NginxConfig) -> str:
    return os.path.realpath(config.files[0]) if config.files else ""


async def master_process_is_on(draft: Draft) -> None:
    """Without a master there is nothing to upgrade; some versions crash on the way there."""
    if not draft.ready_config.master_process:
        raise Refusal(
            "master_process_off",
            "cannot upgrade: the configuration says `master_process off`, and without a master"
            " nginx cannot be upgraded; remove that directive",
        )


async def version_is_complete(draft: Draft) -> None:
    """The stored version is the binary and the modules that this configuration loads."""
    version = draft.ready_build.version
    if draft.request.version_id is not None:
        draft.stored = await _in_thread(
            partial(draft.store.set_version, draft.ready_stored.id, version)
        )
        return
    prefix = draft.ready_build.prefix
    modules = {
        path: Path(path)
        for path in (under_prefix(each, prefix) for each in draft.ready_config.load_modules)
    }
    if not modules:
        draft.stored = await _in_thread(
            partial(draft.store.set_version, draft.ready_stored.id, version)
        )
        return
    draft.stored = await _in_thread(
        partial(draft.store.complete, draft.ready_stored.id, modules=modules, version=version)
    )


async def it_is_a_change(draft: Draft) -> NoChange | None:
    """The same binary again is an upgrade, unless `--if-changed` asks and no library is new."""
    stored = draft.ready_stored
    same = stored.id == draft.active.version_id and not draft.changed
    if draft.request.if_changed and same:
        return NoChange(version=draft.ready_build.version, version_id=stored.id)
    return None


async def sockets_are_known(draft: Draft) -> None:
    """What the active master would hand on; the kernel knows, its configuration may be older."""
    draft.held = await _in_thread(partial(sockets.held_by, draft.active.master.pid))


async def nothing_else_changes(draft: Draft) -> None:
    """The guards: what the candidate will read, against what the active generation runs."""
    draft.read = await _in_thread(partial(read_of, draft.dump, draft.ready_config))
    draft.read = await tls_files.look(draft.read, draft.active.read)
    compared = Comparison(
        candidate=draft.read,
        running=draft.active.read,
        build=draft.ready_build,
        running_build=draft.running,
        held=None if draft.held is None else draft.held.counts,
        workers=draft.ready_config.expected_workers(online_cpus=_online_cpus()),
        since=draft.active.since,
        now=time.time(),
        ours=str(draft.installation.probe_include or ""),
    )
    settings = draft.installation.guards
    if draft.request.version_id is not None:
        settings = settings.on_the_way_back()
    every = findings(compared, settings)
    for found in bounded(every):
        draft.warnings.append(found)
        draft.installation.tell(found)
    dropped = unix_listeners_dropped(compared)
    if dropped:
        shown = ", ".join(f"{path}{where}" for path, where in dropped.items())
        raise Refusal(
            "unix_listener_dropped",
            f"cannot upgrade: the configuration on disk no longer listens on {shown},"
            " and the new master would remove that socket under the running generation, where no"
            " rollback brings it back; reload first, or put the listener back",
        )
    objection = refusal(every, settings)
    if objection is not None:
        raise objection


async def new_addresses_are_free(draft: Draft) -> None:
    """nginx's own test does not notice a foreign listener; the start fails after 2.5 s of it."""
    if draft.held is None:
        return
    for listen in draft.ready_config.listens:
        if draft.held.covers(listen) or not await _in_thread(partial(sockets.is_busy, listen)):
            continue
        holder = await _in_thread(partial(holders.holder_of, listen))
        raise Refusal(
            "listen_address_busy",
            f"cannot upgrade: the configuration on disk listens on {listen}, which {holder} holds;"
            f" stop that, or change the listen in {listen.file}",
        )


async def memory_is_enough(draft: Draft) -> None:
    """For a while both generations are in memory."""
    pids = (draft.active.master.pid, *draft.active.workers)
    needed = await _in_thread(partial(sockets.proportional_memory, pids))
    available = await _in_thread(sockets.available_memory)
    if available < needed:
        raise Refusal(
            "not_enough_memory",
            f"cannot upgrade: a second generation needs about {_mib(needed)} MiB beside the"
            f" running one, and {_mib(available)} MiB are available; free memory, or raise the"
            " unit's MemoryMax=",
        )


def _mib(size: int) -> int:
    return size // 2**20


def _online_cpus() -> int:
    return os.sysconf("SC_NPROCESSORS_ONLN")


def _environment(draft: Draft) -> dict[str, str]:
    return nginx_binary.upgrade_environment(draft.active.env, draft.installation.environment)


CHECKS: tuple[Check, ...] = (
    # Before the pid file, which names the other master while somebody else upgrades by signals.
    Check("usr2", usr2_would_be_accepted),
    Check("pid_file", pid_file_names_the_master),
    Check("oldbin", no_oldbin_master),
    Check("source", source_may_be_used),
    Check("outdated", something_has_changed),
    Check("copy", copy_is_staged),
    Check("build", it_is_nginx),
    Check("modules", stored_modules_are_placed),
    Check("configuration", configuration_is_accepted),
    Check("arguments", inherited_arguments_do),
    Check("master_process", master_process_is_on),
    Check("version", version_is_complete),
    Check("change", it_is_a_change),
    Check("sockets", sockets_are_known),
    Check("guards", nothing_else_changes),
    Check("addresses", new_addresses_are_free),
    Check("memory", memory_is_enough),
)
