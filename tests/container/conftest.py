from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.container.image import REPOSITORY, Image, build

NGINX = """\
user www-data;
worker_processes 2;
pid /run/nginx.pid;
error_log /var/log/nginx/error.log notice;
events {}
http {
    access_log /var/log/nginx/access.log;
    client_body_temp_path /tmp/t1; proxy_temp_path /tmp/t2; fastcgi_temp_path /tmp/t3;
    server {
        listen 80;
        include /run/nginx-supervisor/probe*.conf;
        location / { return 200 "ok\\n"; }
    }
}
"""
SUPERVISOR = """
[upgrade]
canary = "0.5s"
soak = "0.5s"
[probe_listener]
include_file = "/run/nginx-supervisor/probe.conf"
[[probe]]
name = "home"
type = "http"
url = "http://127.0.0.1/"
interval = "100ms"
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/container/" in item.nodeid and os.environ.get("SYSTEMD_TESTS") == "skip":
            item.add_marker(pytest.mark.skip(reason="SYSTEMD_TESTS=skip"))


@pytest.fixture(scope="session")
def image() -> Image:
    """What deploy/container/Containerfile builds."""
    return build(REPOSITORY / "deploy/container/Containerfile")


@pytest.fixture(scope="session")
def site(image: Image) -> Iterator[Image]:
    """The image with a configuration of nginx, and a supervisor that judges fast."""
    with tempfile.TemporaryDirectory(prefix="layer-") as name:
        layer = Path(name)
        for folder in ("etc/nginx", "etc/nginx-supervisor"):
            (layer / folder).mkdir(parents=True, mode=0o755)
        layer.chmod(0o755)
        (layer / "etc/nginx/nginx.conf").write_text(NGINX)
        toml = (REPOSITORY / "deploy/container/nginx-supervisor.toml").read_text()
        (layer / "etc/nginx-supervisor/nginx-supervisor.toml").write_text(toml + SUPERVISOR)
        yield replace(image, layers=(layer, *image.layers))
