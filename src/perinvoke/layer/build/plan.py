"""Which zips there are to be: targets whose files are the same share one. Decides; writes nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from perinvoke.layer.build.archive import Planned
from perinvoke.layer.build.entries import Entry, contents_sha256
from perinvoke.layer.errors import LayerError
from perinvoke.layer.limits import MIB, UNPACKED_BYTES
from perinvoke.layer.zips import DEFAULT_LAYER, LAYER_JSON

if TYPE_CHECKING:
    from perinvoke.layer.build.targets import Target

_LARGEST = 5


@dataclass(frozen=True, kw_only=True)
class Content:
    """What one target gets.

    Attributes:
        entries: all but layer.json.
        packages: names and versions.
        own_python: whether other versions of Python need other files.
        own_architecture: whether other architectures do.
        compiled_by: the exact version of Python whose .pyc files are in it, else None.
    """

    entries: list[Entry]
    packages: dict[str, str]
    own_python: bool
    own_architecture: bool
    compiled_by: str | None = None


def plan(contents: dict[Target, Content], parts: list[str], version: str) -> list[Planned]:
    """The zips.

    Raises:
        LayerError: two packages bring different files of the same name, or a zip would be larger than Lambda takes.
    """
    groups: dict[str, list[Target]] = {}
    for target, content in contents.items():
        groups.setdefault(contents_sha256(content.entries), []).append(target)
    names = {digest: _suffix(targets, contents[targets[0]], parts, tell_python=False) for digest, targets in groups.items()}
    planned = []
    for digest, targets in groups.items():
        content = contents[targets[0]]
        suffix = names[digest]
        if list(names.values()).count(suffix) > 1:  # the same tags, but chosen for different versions of glibc
            suffix = _suffix(targets, content, parts, tell_python=True)
        told = {
            "name": "-".join([DEFAULT_LAYER, *suffix]).replace(".", "_"),
            "perinvoke": version,
            "pythons": list(dict.fromkeys(target.python for target in targets)),
            "architectures": list(dict.fromkeys(target.architecture for target in targets)),
            "parts": parts,
            "packages": content.packages,
            "contents_sha256": digest,
        }
        if content.compiled_by is not None:
            told["compiled_by"] = content.compiled_by
        text = json.dumps(told, indent=2, sort_keys=True) + "\n"
        entry = Entry(LAYER_JSON, text.encode(), executable=False, package=f"perinvoke {version}")
        zip_file = Planned("-".join(["perinvoke", version, *suffix]) + ".zip", [*content.entries, entry])
        _check(zip_file)
        planned.append(zip_file)
    return planned


def _suffix(targets: list[Target], content: Content, parts: list[str], *, tell_python: bool) -> list[str]:
    words = [part for part in parts if part != "core"]
    if content.own_python or tell_python:
        words.append("python" + "-".join(dict.fromkeys(target.python for target in targets)))
    if content.own_architecture:
        words += dict.fromkeys(target.architecture for target in targets)
    return words


def _check(planned: Planned) -> None:
    packages: dict[str, Entry] = {}
    for entry in planned.entries:
        other = packages.setdefault(entry.name, entry)
        if other is not entry:
            raise LayerError(f"{other.package} and {entry.package} both bring {entry.name!r}, and a layer has room for one")
    unpacked = sum(len(entry.content) for entry in planned.entries)
    if unpacked > UNPACKED_BYTES:
        largest = ", ".join(f"{name} {size / MIB:.1f} MB" for name, size in largest_packages(planned.entries)[:_LARGEST])
        raise LayerError(
            f"{planned.file_name} would be {unpacked / MIB:.1f} MB unpacked, and Lambda takes {UNPACKED_BYTES // MIB} MB for a "
            f"function and all its layers. The largest parts: {largest}. Leave some out"
        )


def largest_packages(entries: list[Entry]) -> list[tuple[str, int]]:
    """Packages and their unpacked bytes, largest first. Pure."""
    sizes: dict[str, int] = {}
    for entry in entries:
        sizes[entry.package] = sizes.get(entry.package, 0) + len(entry.content)
    return sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
