"""The example manifest: right by Kubernetes' own schemas, and what it asks for works.

No kubelet runs here. The pod's parts are put together as it would: the configuration as a read-only
volume, empty folders of the pod's group, the init container before the other one, both without root
and capabilities, on a root that is read-only.
"""

from __future__ import annotations

import os
import shutil
import signal
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from supervisor.core.settings import parse_settings
from tests.container.image import REPOSITORY, Image
from tests.container.runtime import Container, How

MANIFEST = REPOSITORY / "deploy/kubernetes/nginx-supervisor.yaml"


@pytest.fixture(scope="module")
def objects() -> dict[str, dict[str, Any]]:
    return {one["kind"]: one for one in yaml.safe_load_all(MANIFEST.read_text())}


@pytest.mark.parametrize("version", ["1.28", "1.37"])
def test_the_schema(objects: dict[str, dict[str, Any]], version: str) -> None:
    assert objects.keys() == {"ConfigMap", "Deployment", "Service"}
    for one in objects.values():
        kubernetes_validate.validate(one, version, strict=True)


def _volumes(pod: dict[str, Any], config: dict[str, str], folder: Path) -> dict[str, Path]:
    made = {}
    for one in pod["volumes"]:
        made[one["name"]] = path = folder / one["name"]
        path.mkdir(mode=0o2775)
        if "configMap" in one:
            for name, text in config.items():
                (path / name).write_text(text)
            path.chmod(0o755)
        else:
            os.chown(path, 0, pod["securityContext"]["fsGroup"])
            path.chmod(0o2777)  # as an emptyDir is
    return made


def _how(pod: dict[str, Any], container: dict[str, Any], volumes: dict[str, Path]) -> How:
    context = container["securityContext"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["allowPrivilegeEscalation"] is False
    return How(
        user=pod["securityContext"]["runAsUser"],
        capabilities=(),
        no_new_privileges=True,
        read_only=context["readOnlyRootFilesystem"],
        volumes={volumes[one["name"]]: one["mountPath"] for one in container["volumeMounts"]},
        entrypoint=tuple(container["command"][:1]) if "command" in container else None,
        command=tuple(container["command"][1:] if "command" in container else container["args"]),
    )


def test_the_pod(image: Image, objects: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    config = objects["ConfigMap"]["data"]
    tmp_path.chmod(0o755)
    volumes = _volumes(pod, config, tmp_path)
    (first,), (second,) = pod["initContainers"], pod["containers"]
    with Container(image, _how(pod, first, volumes)) as init:
        assert init.wait() == 0, init.stderr.lines
    probes = {name: second[name]["exec"]["command"] for name in second if name.endswith("Probe")}
    assert probes.keys() == {"startupProbe", "readinessProbe", "livenessProbe"}
    # Another file, whose modules are the same, in a volume that only root can write.
    upgrades = tmp_path / "upgrades"
    upgrades.mkdir(mode=0o755)
    binary = upgrades / "nginx"
    shutil.copy(volumes["binary"] / "bin/nginx", binary)
    with binary.open("ab") as file:
        file.write(b"\0")
    how = _how(pod, second, volumes)
    how = replace(how, volumes={**how.volumes, upgrades: "/upgrades"})
    with Container(image, how) as one:
        for name, command in probes.items():
            one.until(name, lambda command=command: one.exec(*command).returncode == 0)
        assert one.exec("touch", "/usr/sbin/any").returncode != 0
        assert one.exec("id", "-u").stdout == "101\n"
        status = one.status()
        # The same user: ptrace access, so that pidfd_getfd is the seccomp profile's to decide.
        assert status["held_listeners"]["available"] is False
        argv = ("nginxctl", "upgrade", "/upgrades/nginx", "--canary", "1s", "--soak", "1s")
        done = one.exec(*argv)
        assert done.returncode == 0, done
        assert one.exec(*probes["readinessProbe"]).returncode == 0
        assert one.status()["generations"][0]["id"] == "g2"
        one.exec(*second["lifecycle"]["preStop"]["exec"]["command"], check=True)
        one.send(signal.SIGTERM)
        assert one.wait() == 0
        assert any('"GET / HTTP/1.1" 200' in line for line in one.stdout.lines)


def test_the_times_fit(objects: dict[str, dict[str, Any]]) -> None:
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    stop = parse_settings(tomllib.loads(objects["ConfigMap"]["data"]["nginx-supervisor.toml"])).stop
    (_, seconds) = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    needed = stop.quit_timeout + stop.term_timeout + stop.kill_timeout + float(seconds)
    assert needed < pod["terminationGracePeriodSeconds"]
