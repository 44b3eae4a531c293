"""`nginx-supervisor-migrate`: moves a running nginx between nginx.service and the supervisor."""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence

from supervisor.core.errors import ConfigError
from supervisor.core.settings import NginxSettings
from supervisor.edges.config_file import load_settings
from supervisor.installed import migration
from supervisor.installed.migration import NGINX_UNIT, main_pid
from supervisor.installed.units import BOOTED, OUR_UNIT, StepError, config_of, running, unknown

CONFIG = "/etc/nginx-supervisor/nginx-supervisor.toml"
DESCRIPTION = f"""\
Moves an nginx that runs from {NGINX_UNIT} to {OUR_UNIT}, or with --back the other way. No
connection is refused or cut. What starts at boot is changed alike. Doing it again changes
nothing."""
EPILOG = """\
exit codes:
  0  done, or it was so before
  1  a step failed; the message says who has nginx now, which serves in any case
  2  the arguments, or the configuration of the supervisor, are wrong
  3  refused: nothing was changed"""
DONE, FAILED, USAGE, REFUSED = range(4)
_TEST_LIMIT = 60.0


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    given = parser().parse_args(argv)
    if os.geteuid() != 0:
        return _refuse("only root may do this")
    if not BOOTED.is_dir():
        return _refuse("systemd is not the init system here, so there are no units to move between")
    try:
        if given.dry_run:
            return _back(given) if given.back else _forth(given)
        with migration.uninterrupted():
            return _back(given) if given.back else _forth(given)
    except StepError as exc:
        print(f"nginx-supervisor-migrate: {exc}", file=sys.stderr)
        return FAILED
    except ConfigError as exc:
        print(f"nginx-supervisor-migrate: {exc.detail}", file=sys.stderr)
        return USAGE


def parser() -> argparse.ArgumentParser:
    """What the command understands."""
    made = argparse.ArgumentParser(
        prog="nginx-supervisor-migrate", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    made.add_argument(
        "--back", action="store_true", help=f"give nginx back to {NGINX_UNIT}, as it runs"
    )
    made.add_argument(
        "--dry-run", action="store_true", help="say what stands in the way, change nothing"
    )
    return made


def _forth(given: argparse.Namespace) -> int:
    ours = running(OUR_UNIT)
    if ours and not main_pid(NGINX_UNIT):
        if migration.is_settled(ours[0]):
            print(f"{OUR_UNIT} has nginx already")
        elif given.dry_run:
            print(f"{OUR_UNIT} has nginx; what starts at boot, and {NGINX_UNIT}, are left to do")
        else:
            migration.settle(ours[0], _say)
        return DONE
    if found := unknown(OUR_UNIT):
        return _refuse(f"{found[0]} is not `nginx-supervisor run --config FILE`")
    settings = load_settings(config_of(OUR_UNIT) or CONFIG)
    objections = [*migration.objections(), *_nginx_objects(settings.nginx)]
    if objections:
        return _refuse("; ".join(objections))
    if given.dry_run:
        print(f"nothing stands in the way: {OUR_UNIT} can take master {main_pid(NGINX_UNIT)}")
        return DONE
    migration.forth(_say)
    return DONE


def _nginx_objects(nginx: NginxSettings) -> list[str]:
    """The new master reads the configuration on disk: what it says now, and not later."""
    options = {"-c": nginx.config, "-p": nginx.prefix, "-g": nginx.globals}
    words = [part for option, value in options.items() if value for part in (option, value)]
    command = [nginx.binary, "-t", "-q", *words]
    try:
        done = subprocess.run(  # noqa: S603 - the binary that the configuration of root's names
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TEST_LIMIT
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        return [f"cannot test nginx's configuration: {exc}"]
    if done.returncode == 0:
        return []
    return [f"nginx's configuration on disk is broken: {done.stderr.strip()[-600:]}"]


def _back(given: argparse.Namespace) -> int:
    ours = running(OUR_UNIT)
    if not ours:
        if main_pid(NGINX_UNIT):
            print(f"{NGINX_UNIT} has nginx already")
            return DONE
        return _refuse(f"{OUR_UNIT} does not run, so it has no nginx to give back")
    objections = migration.objections_to_going_back(ours[0])
    if objections:
        return _refuse("; ".join(objections))
    if given.dry_run:
        print(f"nothing stands in the way: {NGINX_UNIT} can have nginx back")
        return DONE
    migration.back(ours[0], _say)
    return DONE


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone, which stops nothing
        print(text, flush=True)


def _refuse(why: str) -> int:
    print(f"nginx-supervisor-migrate: refused, nothing was changed: {why}", file=sys.stderr)
    return REFUSED


if __name__ == "__main__":
    sys.exit(main())
