"""A wheel's files as a layer has them: installed by hand, without what an installer notes about the machine.

Left out are scripts and headers, which nobody finds in /opt/python; and of the metadata whatever speaks of an installation:
RECORD would be wrong, INSTALLER and direct_url.json say where it was built. METADATA, licences and bills of materials stay.
Source: the Python packaging user guide, "Binary distribution format".
"""

from __future__ import annotations

import configparser
import re
import stat
import zipfile
import zlib
from typing import TYPE_CHECKING

from packaging.utils import parse_wheel_filename

from perinvoke.layer.build.entries import Entry
from perinvoke.layer.errors import LayerError

if TYPE_CHECKING:
    from pathlib import Path

_DIST_INFO = re.compile(r"[^/]+\.dist-info/(?P<rest>.+)", re.ASCII)
_DATA = re.compile(r"[^/]+\.data/(?P<where>[^/]+)/(?P<rest>.+)", re.ASCII)
_KEPT_METADATA = re.compile(r"METADATA|(licen[cs]es?|sboms)/.+|(licen[cs]e|copying|copyright|notice|authors)[^/]*", re.IGNORECASE)
_SCRIPTS = {"console_scripts", "gui_scripts"}


def is_for_one_python(wheel: Path) -> bool:
    """Whether the wheel's name says that another version of Python has another one. Pure."""
    return any(re.fullmatch(r"cp\d+t?", tag.abi) for tag in parse_wheel_filename(wheel.name)[3])


def is_for_one_architecture(wheel: Path) -> bool:
    """Whether the wheel's name says that another architecture has another one. Pure."""
    return any(tag.platform != "any" for tag in parse_wheel_filename(wheel.name)[3])


def entries_of(wheel: Path) -> list[Entry]:
    """The files of one wheel below ``python/``.

    Raises:
        LayerError: it can't be read, or one of its files wouldn't lie below ``python/``.
    """
    name, version, _, _ = parse_wheel_filename(wheel.name)
    package = f"{name} {version}"
    entries: dict[str, Entry] = {}
    try:
        with zipfile.ZipFile(wheel) as archive:
            for info in archive.infolist():
                mode = info.external_attr >> 16
                if not _is_inside(info.filename) or stat.S_ISLNK(mode):
                    raise LayerError(f"{wheel.name}: {info.filename!r} would not lie in the layer; the wheel is refused")
                target = None if info.is_dir() else installed_name(info.filename)
                if target is None:
                    continue
                content = archive.read(info)
                if target.endswith(".dist-info/entry_points.txt") and not _others_need(content):
                    continue
                if target in entries:
                    raise LayerError(f"{wheel.name}: there is {target!r} twice in it; the wheel is refused")
                entries[target] = Entry(f"python/{target}", content, bool(mode & 0o111), package)
    # Of zipfile: NotImplementedError for a compression that it doesn't know, RuntimeError for one with a password.
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise LayerError(f"{wheel.name} can't be read: {error}") from error
    return list(entries.values())


def installed_name(name: str) -> str | None:
    """Where a wheel's file goes below ``python/``; None when it stays away. Pure."""
    if match := _DATA.fullmatch(name):
        return installed_name(match["rest"]) if match["where"] in {"purelib", "platlib"} else None
    if match := _DIST_INFO.fullmatch(name):
        return name if match["rest"] == "entry_points.txt" or _KEPT_METADATA.fullmatch(match["rest"]) else None
    if name.endswith(".pyc") or "__pycache__" in name.split("/"):
        return None
    return name


def _is_inside(name: str) -> bool:
    parts = name.rstrip("/").split("/")
    return not any(part in {"", ".", ".."} for part in parts) and not re.search(r"[\\:\x00-\x1f]", name)


def _others_need(entry_points: bytes) -> bool:
    """Whether there is more than scripts: plug-ins that other packages look for. Pure."""
    parser = configparser.RawConfigParser(delimiters=("=",), strict=False)
    try:
        parser.read_string(entry_points.decode())
    except (configparser.Error, UnicodeDecodeError):
        return True
    return bool(set(parser.sections()) - _SCRIPTS)
