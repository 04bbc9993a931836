"""Rewrites the lists in ``locks/`` with today's newest versions: ``python3.11 -m perinvoke.layer.build.relock``.

For maintainers, in a checkout. pip resolves, once for each target, with the very options that a build uses; so the hashes are of
those wheels that a build may take, and of no others. It looks at conditions like ``python_version < "3.13"`` with the eyes of the
Python that runs it: take the oldest, for which there is most to bring.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from perinvoke.layer.build.locks import PACKAGE_PARTS, Locked, format_lock, own_list
from perinvoke.layer.build.targets import Target, all_targets
from perinvoke.layer.limits import PYTHONS

_EXTRAS = {"core": (), "boto3": ("aws",), "sql": ("postgresql", "mysql", "sql")}


def ranges(part: str) -> list[str]:
    """What perinvoke itself asks for, for one part."""
    wanted = [Requirement(text) for text in requires("perinvoke") or ()]
    environments = [{"extra": extra} for extra in _EXTRAS[part]]
    found = set()
    for requirement in wanted:
        if requirement.marker is None:
            chosen = part == "core"
        else:
            chosen = any(requirement.marker.evaluate(environment) for environment in environments)
        if chosen and requirement.name != "perinvoke":
            requirement.marker = None
            found.add(str(requirement))
    return sorted(found)


def resolve(part: str, target: Target, pins: list[str]) -> dict[str, tuple[str, str]]:
    """Versions and hashes of what pip would install for one target."""
    options = ["--quiet", "--dry-run", "--ignore-installed", "--target", "unused", "--report", "-"]
    command = [sys.executable, "-m", "pip", "install", *options, *target.pip_options, *ranges(part), *pins]
    told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)  # noqa: S603 - pip
    return {
        canonicalize_name(item["metadata"]["name"]): (
            item["metadata"]["version"],
            item["download_info"]["archive_info"]["hashes"]["sha256"],
        )
        for item in told["install"]
    }


def packages_of(part: str, python: str) -> list[Locked]:
    """The newest versions that are there for all architectures of one version of Python."""
    pins: list[str] = []
    while True:
        versions: dict[str, set[str]] = {}
        hashes: dict[str, set[str]] = {}
        for target in all_targets():
            if target.python == python:
                for name, (version, digest) in resolve(part, target, pins).items():
                    versions.setdefault(name, set()).add(version)
                    hashes.setdefault(name, set()).add(digest)
        torn = {name: min(found, key=Version) for name, found in versions.items() if len(found) > 1}
        if not torn:
            return sorted(Locked(name, next(iter(found)), tuple(sorted(hashes[name]))) for name, found in versions.items())
        pins = [*pins, *(f"{name}=={version}" for name, version in torn.items())]


def lists_of(part: str) -> dict[str, list[Locked]]:
    """The lists of one part, by the names of their files."""
    return _merged(part, {python: packages_of(part, python) for python in PYTHONS})


def _merged(part: str, by_python: dict[str, list[Locked]]) -> dict[str, list[Locked]]:
    """One list for all that have the newest Python's versions, and one for each that can't have them."""
    newest = {package.name: package.version for package in by_python[PYTHONS[-1]]}
    common: dict[str, set[str]] = {name: set() for name in newest}
    lists = {}
    for python, packages in by_python.items():
        if any(newest.get(package.name) != package.version for package in packages):
            lists[own_list(part, python)] = packages
        else:
            for package in packages:
                common[package.name].update(package.hashes)
    lists[part] = [Locked(name, version, tuple(sorted(common[name]))) for name, version in newest.items()]
    return lists


def main() -> None:
    """Rewrite all lists."""
    directory = Path(__file__).parent / "locks"
    lists = {name: packages for part in PACKAGE_PARTS for name, packages in lists_of(part).items()}
    for path in directory.glob("*.txt"):
        path.unlink()
    for name, packages in lists.items():
        (directory / f"{name}.txt").write_text(format_lock(packages), encoding="utf-8")


if __name__ == "__main__":
    main()
