"""A function that writes more than the disk holds, in many ways."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perinvoke import file_lock, isolated, scratch, shared_file

if TYPE_CHECKING:
    from collections.abc import Callable

MEBIBYTE = 1024 * 1024
_CHUNK = 64 * 1024


def write(path: Path, megabytes: float, text: bytes = b"x") -> None:
    """Write in pieces, as most programs do."""
    chunk = (text * _CHUNK)[:_CHUNK]
    with path.open("wb") as file:
        for _ in range(int(megabytes * MEBIBYTE / _CHUNK)):
            file.write(chunk)


def _open(megabytes: float, event: dict[str, Any]) -> None:
    write(scratch() / "file", megabytes)


def _text(megabytes: float, event: dict[str, Any]) -> None:
    (scratch() / "text").write_text("x" * int(megabytes * MEBIBYTE))


def _tempfile(megabytes: float, event: dict[str, Any]) -> None:
    with tempfile.NamedTemporaryFile() as file, tempfile.TemporaryFile() as nameless:
        file.write(b"x" * int(megabytes * MEBIBYTE / 2))
        file.flush()
        nameless.write(b"x" * int(megabytes * MEBIBYTE / 2))
        nameless.flush()
        time.sleep(event.get("pause_seconds", 0))


def _small_files(megabytes: float, event: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for number in range(int(megabytes * 16)):
            (Path(folder) / str(number)).write_bytes(b"x" * (MEBIBYTE // 16))


def _copyfile(megabytes: float, event: dict[str, Any]) -> None:
    for number in range(int(megabytes)):
        shutil.copyfile(event["source"], scratch() / f"copy-{number}")


def _copy(megabytes: float, event: dict[str, Any]) -> None:
    for number in range(int(megabytes)):
        shutil.copy2(event["source"], tempfile.mkdtemp() + f"/{number}")


def _copy_for_a_moment(megabytes: float, event: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:  # gone when the error gets out
        for number in range(int(megabytes)):
            shutil.copyfile(event["source"], f"{folder}/{number}")


def _every_last_file(megabytes: float, event: dict[str, Any]) -> None:
    for number in range(1_000_000):
        (scratch() / str(number)).touch()


def _sqlite(megabytes: float, event: dict[str, Any]) -> None:
    connection = sqlite3.connect(scratch() / "rows.db")
    try:
        connection.execute("CREATE TABLE rows (row BLOB)")
        for _ in range(int(megabytes)):
            connection.execute("INSERT INTO rows VALUES (?)", (os.urandom(MEBIBYTE),))
            connection.commit()
    finally:
        connection.close()


def _lock(megabytes: float, event: dict[str, Any]) -> None:
    with file_lock(f"lock-{event['number']}"):
        _open(megabytes, event)


def _share(megabytes: float, event: dict[str, Any]) -> None:
    key = f"{megabytes:g}-{event['number'] % event.get('keys', 1)}"
    path = shared_file(key, lambda path: write(path, megabytes, path.name.encode()))
    time.sleep(event.get("pause_seconds", 0))
    expected = (key.encode() * _CHUNK)[:_CHUNK]
    size, whole = path.stat().st_size, int(megabytes * MEBIBYTE / _CHUNK) * _CHUNK
    with path.open("rb") as file:
        foreign = any(chunk != expected for chunk in iter(lambda: file.read(_CHUNK), b""))
    if size != whole or foreign:
        raise AssertionError(f"shared file {path} has {size} bytes of {whole}, foreign ones: {foreign}")


HOW: dict[str, Callable[[float, dict[str, Any]], None]] = {
    "open": _open,
    "text": _text,
    "tempfile": _tempfile,
    "small files": _small_files,
    "copyfile": _copyfile,
    "copy": _copy,
    "copy for a moment": _copy_for_a_moment,
    "every last file": _every_last_file,
    "sqlite": _sqlite,
    "lock": _lock,
    "share": _share,
}


@isolated
def handler(event: dict[str, Any], context: Any) -> int:
    """Write so many megabytes in the way told, and hold them for a moment."""
    HOW[event["how"]](event["megabytes"], event)
    time.sleep(event.get("pause_seconds", 0))
    return os.getpid()
