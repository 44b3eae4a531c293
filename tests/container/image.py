"""Builds what a Containerfile says without an engine: each instruction in a Debian root of our own.

`FROM debian:trixie-slim` is a minimal root made by mmdebstrap, which that image is too. `RUN` is a
`sh -c` in a chroot, `COPY` a copy. As with an engine each step is a layer, kept in the user's cache
under a key of all that it depends on.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.booted.roots import LIMIT_SECONDS, BoxError, _mmdebstrap, only_one
from tools.debian_sources import machine_mirrors
from tools.nginx_cache import cache_folder

REPOSITORY = Path(__file__).resolve().parents[2]
BASES = {"debian:trixie-slim": "trixie"}
_KNOWN = {
    "FROM", "RUN", "COPY", "ENV", "USER", "WORKDIR", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK",
    "ENTRYPOINT", "CMD",
}  # fmt: skip
_NOT_COPIED = shutil.ignore_patterns("__pycache__", "*.pyc")
_KEPT_SECONDS = 2 * 24 * 3600
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# In a mount and a pid namespace: $1 the lower layers, $2 a folder, $3 where the layer is to go.
_RUN = """
set -eu
mount -t tmpfs step "$2"
mkdir "$2/upper" "$2/work" "$2/root"
mount -t overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" step "$2/root"
r="$2/root" upper="$2/upper" layer="$3"
shift 3
mount -t proc proc "$r/proc"
mount --rbind /dev "$r/dev"
mkdir -p "$r/run/build"
mount -t tmpfs build "$r/run/build"
cp /etc/resolv.conf "$r/run/build/resolv.conf"
cp /etc/ssl/certs/ca-certificates.crt "$r/run/build/ca.crt"
: >>"$r/etc/resolv.conf"
mount --bind "$r/run/build/resolv.conf" "$r/etc/resolv.conf"
chroot "$r" env -i "$@"
umount -l "$r/etc/resolv.conf" "$r/run/build" "$r/dev" "$r/proc"
rmdir "$r/run/build"
cp -a "$upper" "$layer"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """Layers, the uppermost first, and what a runtime has to know."""

    layers: tuple[Path, ...]
    key: str
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": _PATH})
    user: str = "0:0"
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    healthcheck: tuple[str, ...] = ()
    stop_signal: str = "SIGTERM"
    exposed: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all files in all layers."""
        return sum(
            path.lstat().st_size
            for layer in self.layers
            for path in layer.rglob("*")
            if path.is_file() and not path.is_symlink()
        )


def instructions(text: str) -> list[tuple[str, str]]:
    """Each instruction with its arguments, as Dockerfile(5) joins lines and drops comments."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    found = []
    for line in filter(str.strip, joined.splitlines()):
        name, _, rest = line.strip().partition(" ")
        if name.upper() not in _KNOWN:
            raise BoxError(f"{name}: no instruction that this builder knows")
        found.append((name.upper(), rest.strip()))
    return found


def build(containerfile: Path) -> Image:
    """The last stage's image; all that can be run has been. Raises BoxError."""
    folder = cache_folder() / "container-layers"
    stages: dict[str, Image] = {}
    image: Image | None = None
    with only_one(folder):
        for name, rest in instructions(containerfile.read_text()):
            if name == "FROM":
                base, *alias = rest.split()
                image = stages.get(base) or _base(folder, base)
                named = alias[1] if alias else ""
                stages = {**stages, named: image}
                continue
            assert image is not None
            image = _step(folder, image, stages, name, rest)
            stages[named] = image
        _prune(folder, {layer for one in stages.values() for layer in one.layers})
    assert image is not None
    return image


def _prune(folder: Path, used: set[Path]) -> None:
    """Layers that nobody has used for two days are removed, and what a killed build has left."""
    for layer in used:
        os.utime(layer)
    for one in folder.iterdir():
        if one.is_dir() and time.time() - one.stat().st_mtime > _KEPT_SECONDS:
            shutil.rmtree(one)


def _step(folder: Path, image: Image, stages: dict[str, Image], name: str, rest: str) -> Image:
    match name:
        case "RUN":
            return _run(folder, image, rest)
        case "COPY":
            return _copy(folder, image, stages, rest)
        case "ENV":
            key, _, value = rest.partition("=")
            return replace(image, environment={**image.environment, key: value.strip('"')})
        case "USER":
            return replace(image, user=rest)
        case "STOPSIGNAL":
            return replace(image, stop_signal=rest)
        case "EXPOSE":
            return replace(image, exposed=(*image.exposed, *rest.split()))
        case "HEALTHCHECK":
            return replace(image, healthcheck=tuple(json.loads(rest[rest.index("CMD") + 3 :])))
        case "ENTRYPOINT":
            return replace(image, entrypoint=tuple(json.loads(rest)))
        case "CMD":
            return replace(image, command=tuple(json.loads(rest)))
    raise BoxError(f"{name} is not built here")


def _base(folder: Path, name: str) -> Image:
    mirror = machine_mirrors().archive[0].uri
    key = _digest("base", name, mirror)
    layer = folder / key
    if not layer.is_dir():
        with tempfile.TemporaryDirectory(prefix="making-", dir=folder) as made:
            command = [
                "unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc",
                _mmdebstrap(Path(made)), "--quiet", "--variant=minbase", BASES[name],
                f"{made}/root", f"deb {mirror} {BASES[name]} main",
            ]  # fmt: skip
            _call(command, env={**os.environ, "LC_ALL": "C.UTF-8", "TMPDIR": made})
            Path(made, "root").rename(layer)
    return Image(layers=(layer,), key=key)


def _run(folder: Path, image: Image, script: str) -> Image:
    key = _digest(image.key, "RUN", script, repr(image.environment))
    layer = folder / key
    if not layer.is_dir():
        # What an engine passes by --build-arg or from its own configuration.
        proxies = {
            name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")
        }
        environment = {
            **image.environment, **proxies, "DEBIAN_FRONTEND": "noninteractive",
            "PIP_CERT": "/run/build/ca.crt", "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }  # fmt: skip
        with tempfile.TemporaryDirectory(prefix="making-", dir=folder) as made:
            Path(made, "step").mkdir()
            _call(
                [
                    "unshare", "--mount", "--propagation", "private", "--pid", "--fork",
                    "--kill-child=KILL", "sh", "-c", _RUN, "sh",
                    ":".join(map(str, image.layers)), f"{made}/step", f"{made}/layer",
                    *(f"{name}={value}" for name, value in environment.items()),
                    "/bin/sh", "-c", script,
                ]
            )  # fmt: skip
            Path(made, "layer").rename(layer)
    return replace(image, layers=(layer, *image.layers), key=key)


def _copy(folder: Path, image: Image, stages: dict[str, Image], rest: str) -> Image:
    words = shlex.split(rest)
    source = ""
    if words[0].startswith("--from="):
        source = words.pop(0).removeprefix("--from=")
    *names, target = words
    if source:
        key = _digest(image.key, "COPY", rest, stages[source].key)
    else:
        key = _digest(image.key, "COPY", rest, *(_content(REPOSITORY / name) for name in names))
    layer = folder / key
    if not layer.is_dir():
        with tempfile.TemporaryDirectory(prefix="making-", dir=folder) as made:
            for name in names:
                found = (
                    _in_layers(stages[source], name, Path(made)) if source else REPOSITORY / name
                )
                to = Path(made, "layer", target.lstrip("/"))
                if target.endswith("/"):
                    to /= Path(name).name
                to.parent.mkdir(parents=True, exist_ok=True)
                if found.is_dir():
                    shutil.copytree(
                        found, to, symlinks=True, ignore=None if source else _NOT_COPIED
                    )
                else:
                    shutil.copy(found, to)
            Path(made, "layer").rename(layer)
            for path in [layer, *layer.rglob("*")]:
                if path.is_dir() and not path.is_symlink():
                    path.chmod(0o755)
    return replace(image, layers=(layer, *image.layers), key=key)


def _in_layers(image: Image, name: str, folder: Path) -> Path:
    """A folder of an earlier stage, put together of its layers."""
    found = [layer / name.lstrip("/") for layer in image.layers]
    there = [path for path in found if path.exists()]
    if len(there) == 1:
        return there[0]
    merged = folder / "merged"
    for path in reversed(there):
        shutil.copytree(path, merged, symlinks=True, dirs_exist_ok=True)
    return merged


def _content(path: Path) -> str:
    files = (
        [path]
        if path.is_file()
        else sorted(one for one in path.rglob("*") if one.is_file() and one.suffix != ".pyc")
    )
    return _digest(*(f"{one.relative_to(REPOSITORY)} {_sha(one)}" for one in files))


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _call(command: list[str], env: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env=env, timeout=LIMIT_SECONDS,
    )  # fmt: skip
    if done.returncode != 0:
        raise BoxError(f"{' '.join(command[-3:])} failed:\n{done.stdout[-4000:]}")
