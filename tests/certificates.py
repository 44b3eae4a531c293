"""Certificates for tests: good ones, and ones that nobody should trust."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import trustme

NAME = "site.test"


@cache
def authority(name: str) -> trustme.CA:
    """A certificate authority of this test run."""
    return trustme.CA(organization_name=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Paths as nginx and the probes want them."""

    certificate: Path  # with its chain and its key
    authority: Path


def write(
    folder: Path,
    *,
    names: tuple[str, ...] = (NAME,),
    by: str = "ours",
    expired: bool = False,
    file: str = "server.pem",
) -> Pair:
    """A certificate for `names`, put in its place by a rename; and our authority's."""
    now = datetime.now(UTC)
    made = authority(by).issue_cert(
        *names,
        not_before=now - timedelta(9) if expired else None,
        not_after=now - timedelta(1) if expired else None,
    )
    beside, path = folder / f"{file}.new", folder / file
    beside.write_bytes(made.private_key_and_cert_chain_pem.bytes())
    beside.rename(path)
    ca = folder / "authority.pem"
    authority("ours").cert_pem.write_to_path(str(ca))
    return Pair(certificate=path, authority=ca)
