"""What is to be in a zip: a name below /opt, the bytes, whether it can be run, and the package it belongs to."""

from __future__ import annotations

import hashlib
from typing import NamedTuple


class Entry(NamedTuple):
    """One file.

    Attributes:
        name: below /opt, with slashes.
        content: its bytes.
        executable: mode 0755 instead of 0644.
        package: to whom the report counts it, such as ``"botocore 1.40.1"``.
    """

    name: str
    content: bytes
    executable: bool
    package: str


def contents_sha256(entries: list[Entry]) -> str:
    """A hash of names, modes and bytes, whatever they are compressed with. Pure."""
    digest = hashlib.sha256()
    for entry in sorted(entries):
        told = f"{entry.name}\0{int(entry.executable)}\0{len(entry.content)}\0"
        digest.update(told.encode() + entry.content)
    return digest.hexdigest()
