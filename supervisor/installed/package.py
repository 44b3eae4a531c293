"""For the scripts of a package: what becomes of supervisors that run when files change.

After an update each one replaces itself; before a removal each one leaves, and nginx serves on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from supervisor import wire
from supervisor.installed import migration
from supervisor.installed.units import (
    OUR_UNIT,
    Running,
    StepError,
    names,
    running,
    show,
    systemctl,
    unknown,
    words_of,
)

PATIENCE = "60s"
"""How long an update waits for a supervisor that is busy; it goes on by itself afterwards."""


def main(argv: Sequence[str] | None = None) -> int:
    """`replace` or `release`; 1 where something is left for a person."""
    words = list(sys.argv[1:] if argv is None else argv)
    deeds = {"replace": replace_all, "release": release_all}
    if len(words) != 1 or words[0] not in deeds:
        print(f"usage: {' | '.join(deeds)}", file=sys.stderr)
        return 2
    try:
        with migration.uninterrupted():
            return 0 if deeds[words[0]]() else 1
    except StepError as exc:
        _complain(str(exc))
        return 1


def replace_all() -> bool:
    """Have every supervisor become what is on disk; whether all did, or will by themselves."""
    done = [_replace(one) for one in running()]  # each of them, whatever became of the others
    return all(done)


def _replace(one: Running) -> bool:
    code, said = one.nginxctl("self-upgrade", "--timeout", PATIENCE)
    if code == wire.ExitCode.REFUSED and '"upgrade_held"' in said:
        # Nobody knows how long a person takes; it stays held in the new program as well.
        code, said = one.nginxctl("self-upgrade", "--now", "--timeout", PATIENCE)
    if code == wire.ExitCode.DONE:
        print(f"nginx-supervisor: {one.unit} runs the new version; nginx was not touched")
        return True
    if code == wire.ExitCode.GAVE_UP:
        _complain(f"{one.unit} has not said yet that it is done: {words_of(said)}")
        return True
    _complain(
        f"{one.unit} goes on with the version before, and nginx with it: {words_of(said)}; "
        f"then: nginxctl --socket {one.socket} self-upgrade"
    )
    return False


def release_all() -> bool:
    """Have every supervisor leave, so that nginx serves on without one; whether all did.

    nginx goes back to nginx.service where that had it before. Raises StepError.
    """
    _refuse_unknown()
    done = [_release(one) for one in running()]
    if not all(done):
        return False
    migration.take_front_down()  # it calls what is about to be removed, whoever has nginx now
    # What is left has no nginx: it watches files, or would be started again and again.
    _refuse_unknown()
    for unit in names("nginx-supervisor*", "path", "timer", "service"):
        if show(unit, "ActiveState")["ActiveState"] not in ("inactive", "failed"):
            systemctl("stop", unit)
        migration.forget_failure(unit)
    return True


def _refuse_unknown() -> None:
    if found := unknown():
        raise StepError(
            f"cannot tell what {', '.join(found)} is: its command is not `nginx-supervisor run "
            "--config FILE`, so a stop might end nginx. `nginxctl --socket PATH detach` leaves "
            "nginx serving; then remove again"
        )


def _release(one: Running) -> bool:
    try:
        if one.unit == OUR_UNIT and _can_go_back(one):
            migration.back(one, print)
            return True
        pid = migration.detach(one)
    except StepError as exc:
        _complain(f"{one.unit} cannot leave nginx alone: {exc}; remove it once that is over")
        return False
    which = f" (master {pid})" if pid else ""
    print(
        f"nginx-supervisor: nginx{which} serves on without {one.unit}; nobody starts it again "
        "after a crash or a reboot"
    )
    return True


def _can_go_back(one: Running) -> bool:
    try:
        return not migration.objections_to_going_back(one)
    except StepError:
        return False  # it does not answer: it is ended, and nginx is not


def _complain(text: str) -> None:
    print(f"nginx-supervisor: {text}", file=sys.stderr)
