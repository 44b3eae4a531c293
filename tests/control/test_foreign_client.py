"""A client that we did not write: the `varlink` package, in an environment of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from tests.control.fake_backend import STATUS, FakeBackend, verdict
from tests.foreign import varlink_python

PATIENCE = 60.0

SCRIPT = """
import json, sys, varlink
with varlink.Client.new_with_address("unix:" + sys.argv[1]) as client:
    print(json.dumps(client.get_interfaces()))
    interface = client.get_interface("org.nginxsupervisor.Control")
    print(json.dumps(sorted(interface.members)))
    with client.open("org.nginxsupervisor.Control") as control:
        print(json.dumps(control.Status()))
        for reply in control.Upgrade("/usr/sbin/nginx", _more=True):
            print(json.dumps(reply["progress"]))
        print(json.dumps(control.Reload()["progress"]))
        try:
            control.Drain(now=False)
        except varlink.VarlinkError as error:
            print(json.dumps([error.error(), error.parameters()]))
"""


@pytest.fixture(scope="session")
def foreign_python() -> Path:
    return varlink_python()


async def test_the_varlink_package(
    control: str, backend: FakeBackend, foreign_python: Path
) -> None:
    with trio.fail_after(PATIENCE):
        ended = await trio.run_process(
            [str(foreign_python), "-W", "ignore", "-c", SCRIPT, control], capture_stdout=True
        )
    interfaces, members, status, *progress, reload, error = map(
        json.loads, ended.stdout.decode().splitlines()
    )
    assert interfaces == ["org.varlink.service", "org.nginxsupervisor.Control"]
    assert {"Status", "Upgrade", "Progress", "NotPermitted"} <= set(members)
    assert status["generations"][0]["version"] == STATUS["generations"][0]["version"]  # type: ignore[index]
    # To the package a field that is null is one that was left out.
    held = STATUS["held_listeners"]
    assert status["held_listeners"] == {k: v for k, v in held.items() if v is not None}  # type: ignore[attr-defined]  # a dict
    assert progress == [{k: v for k, v in one.items() if v is not None} for one in backend.events]
    assert reload == verdict("committed")
    assert error == ["org.varlink.service.InvalidParameter", {"parameter": "now"}]
