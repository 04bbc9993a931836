"""Which packages go into a layer: the lists in ``locks/``, one for each part, with the hash of every wheel that may be taken.

``relock.py`` writes them.
"""

from __future__ import annotations

import re
from importlib.resources import files
from typing import NamedTuple

# Parts that are packages. "core" is what perinvoke itself needs.
PACKAGE_PARTS = ("core", "boto3", "sql")

_LINE = re.compile(r"(?P<name>[a-z0-9][a-z0-9-]*)==(?P<version>\S+)(?P<hashes>( --hash=sha256:[0-9a-f]{64})+)")


class Locked(NamedTuple):
    """One package at one version; a wheel whose SHA-256 isn't among the hashes is refused."""

    name: str
    version: str
    hashes: tuple[str, ...]

    def __str__(self) -> str:
        """As pip's requirements files have it."""
        return f"{self.name}=={self.version} " + " ".join(f"--hash=sha256:{digest}" for digest in sorted(self.hashes))


def parse_lock(text: str) -> list[Locked]:
    """The packages of one list. Pure.

    Raises:
        ValueError: a line is something else.
    """
    packages = []
    for line in text.replace("\\\n", " ").splitlines():
        words = " ".join(line.split())
        if not words or words.startswith("#"):
            continue
        match = _LINE.fullmatch(words)
        if match is None:
            raise ValueError(f"not a locked package: {line!r}")
        packages.append(Locked(match["name"], match["version"], tuple(re.findall(r"[0-9a-f]{64}", match["hashes"]))))
    return packages


def format_lock(packages: list[Locked]) -> str:
    """The reverse of ``parse_lock``, a hash on each line. Pure."""
    return "".join(str(package).replace(" ", " \\\n    ") + "\n" for package in sorted(packages))


def own_list(part: str, python: str) -> str:
    """The list of one version of Python alone, where it can't have what the others have. Pure."""
    return f"{part}-python{python}"


def read_lock(part: str, python: str) -> list[Locked]:
    """The packages of one part for one version of Python."""
    directory = files("perinvoke.layer.build") / "locks"
    own = directory / f"{own_list(part, python)}.txt"
    return parse_lock((own if own.is_file() else directory / f"{part}.txt").read_text(encoding="utf-8"))


def read_locks(parts: list[str], python: str) -> list[Locked]:
    """The packages of several parts, each once."""
    return sorted({package for part in parts if part in PACKAGE_PARTS for package in read_lock(part, python)})
