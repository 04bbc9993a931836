"""Writes a zip whose bytes depend on nothing but what is in it.

Names are sorted; times and modes are fixed; there are neither directories nor comments. What is left is the compressor: zlib of
one kind gives the same bytes wherever it runs, but zlib-ng, which some builds of Python have in its place, gives others for the
same files. So a layer says in layer.json what its files hash to before they are compressed, and the report says so with zlib-ng.
"""

from __future__ import annotations

import contextlib
import errno
import os
import zipfile
import zlib
from typing import TYPE_CHECKING, NamedTuple

from perinvoke.layer.errors import LayerError, LayerUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from perinvoke.layer.build.entries import Entry

_TIME = (1980, 1, 1, 0, 0, 0)  # the first a zip can tell; a date of its own would be one more thing that two builds must share
_LEVEL = 6  # 9 takes four times as long for half a percent less
_UNIX = 3
# What may be otherwise the next time.
_SHORT = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
_FILE, _PROGRAM = 0o100644, 0o100755


class Planned(NamedTuple):
    """A zip that is to be: its file name, and what goes into it."""

    file_name: str
    entries: list[Entry]


def has_usual_zlib() -> bool:
    """Whether this Python compresses as most do."""
    return "ng" not in zlib.ZLIB_RUNTIME_VERSION


def check_directory(directory: Path) -> None:
    """Make the directory, or see early that it can't be made or written to.

    Raises:
        LayerError: it can't; says why.
        LayerUnavailable: the disk is full.
    """
    with _told(directory):
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / f".perinvoke.{os.getpid()}.{os.urandom(4).hex()}"
        probe.touch()
        probe.unlink()


@contextlib.contextmanager
def written(directory: Path, zips: list[Planned], done: Callable[[], None] = lambda: None) -> Iterator[dict[str, Path]]:
    """Write zips under temporary names where they belong; when the block ends well they take their places, else they go.

    Whatever fails, what was there before is whole and as it was; only a crash between two renames leaves some new and some old.

    Raises:
        LayerError: the directory can't be made or written to.
        LayerUnavailable: the disk is full.
    """
    made: dict[str, Path] = {}
    try:
        with _told(directory):
            for planned in zips:
                made[planned.file_name] = temporary = directory / f".{planned.file_name}.{os.getpid()}.{os.urandom(4).hex()}"
                _write(temporary, planned.entries)
                done()
        yield dict(made)
        with _told(directory):
            for file_name in list(made):
                made[file_name].replace(directory / file_name)
                del made[file_name]
    finally:
        for temporary in made.values():
            with contextlib.suppress(OSError):
                temporary.unlink()


def _write(path: Path, entries: list[Entry]) -> None:
    with path.open("xb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for entry in sorted(entries):
                info = zipfile.ZipInfo(entry.name, _TIME)
                info.create_system = _UNIX
                info.external_attr = (_PROGRAM if entry.executable else _FILE) << 16
                archive.writestr(info, entry.content, zipfile.ZIP_DEFLATED, _LEVEL)
        os.fsync(file.fileno())  # else a crash after the rename may leave an empty file under the right name


@contextlib.contextmanager
def _told(directory: Path) -> Iterator[None]:
    try:
        yield
    except (FileExistsError, NotADirectoryError) as error:
        raise LayerError(f"--out {directory}: {error.filename or directory} is not a directory; name another") from error
    except OSError as error:
        what = error.strerror or str(error)
        if error.errno not in _SHORT:
            raise LayerError(f"--out {directory} can't be written ({what}); name another") from error
        text = f"--out {directory}: the zip can't be written ({what}); what was there before is as it was"
        raise LayerUnavailable(f"{text}. Make room, or name another directory with --out") from error
