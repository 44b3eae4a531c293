"""The supervisor's TOML for a site: quick phases, and whatever a test changes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.e2e.harness.site import HEALTHY, Site

Settings = dict[str, Any]


def usual(site: Site, changes: Mapping[str, Any]) -> Settings:
    """The usual settings, with `changes` merged table by table; None removes a key or table."""
    settings: Settings = {
        "nginx": {
            "binary": str(site.binary),
            "config": str(site.config),
            "prefix": str(site.folder),
        },
        "control": {"socket": str(site.folder / "control.sock")},
        "state": {"directory": str(site.folder / "state")},
        "probe_listener": {"include_file": str(site.include), "ports": site.probe_ports},
        "upgrade": {
            "start_timeout": "8s",
            "canary": "300ms",
            "soak": "300ms",
            "drain_timeout": "30s",
            "rollback_quit_timeout": "10s",
        },
        "stop": {"quit_timeout": "8s", "term_timeout": "2s"},
        "log": {"format": "json", "level": "debug"},
        "probe": [probe(site)],
    }
    for name, change in changes.items():
        if isinstance(change, Mapping):
            table = {**settings.get(name, {}), **change}
            settings[name] = {key: value for key, value in table.items() if value is not None}
        elif change is None:
            settings.pop(name, None)
        else:
            settings[name] = change
    return settings


def probe(site: Site, **changes: object) -> Settings:
    """A quick http probe of the site, patient enough for a machine that stalls for a second."""
    return {
        "name": "health",
        "type": "http",
        "url": f"{site.url}/healthz",
        "interval": "50ms",
        "timeout": "2s",
        "rise": 2,
        "fall": 3,
        "expect_status": [200],
        "expect_body": HEALTHY.strip(),
        **changes,
    }


def write(path: Path, settings: Settings) -> None:
    """Write TOML; JSON's strings, numbers and lists are TOML's too."""
    lines: list[str] = []
    for name, value in settings.items():
        tables = value if isinstance(value, list) else [value]
        heading = f"[[{name}]]" if isinstance(value, list) else f"[{name}]"
        for table in tables:
            lines.append(heading)
            lines += [f"{key} = {_value(one)}" for key, one in table.items()]
            lines.append("")
    path.write_text("\n".join(lines), encoding="utf-8")
    path.chmod(0o644)


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_value(one)}" for key, one in value.items()) + " }"
    return "inf" if value == math.inf else json.dumps(value)
