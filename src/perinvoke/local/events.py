"""Reads events files: one JSON event on each line."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from perinvoke.errors import EventsFileError
from perinvoke.local import strict_json
from perinvoke.local.outcome import MAX_REQUEST_BYTES

if TYPE_CHECKING:
    from pathlib import Path


def read_events(path: Path) -> list[bytes]:
    """The events of a file, in order; blank lines are skipped. ``-`` is stdin, read to its end.

    Raises:
        EventsFileError: with the line's number, when one isn't JSON, isn't UTF-8 or is larger than Lambda allows; with line 0,
            when the file can't be read or holds no event.
    """
    try:
        content = _read_stdin() if _is_stdin(path) else path.read_bytes()
    except OSError as error:
        raise _failure(path, 0, error.strerror or str(error)) from error
    content = content.removeprefix(b"\xef\xbb\xbf")  # the mark that some editors put before UTF-8
    events = [
        _check_event(path, number, line.strip()) for number, line in enumerate(content.split(b"\n"), start=1) if line.strip()
    ]
    if not events:
        raise _failure(path, 0, "holds no event; one JSON value on each line is expected")
    return events


def _check_event(path: Path, number: int, line: bytes) -> bytes:
    if len(line) > MAX_REQUEST_BYTES:
        raise _failure(path, number, f"has {len(line)} bytes; Lambda allows {MAX_REQUEST_BYTES}")
    try:
        strict_json.parse(line)
    except strict_json.NotJson as error:
        raise _failure(path, number, f"{error}; one whole event on each line is expected") from None
    return line


def _read_stdin() -> bytes:
    return b"" if getattr(sys, "stdin", None) is None else sys.stdin.buffer.read()  # None: it was closed


def _is_stdin(path: Path) -> bool:
    return str(path) == "-"


def _failure(path: Path, number: int, what: str) -> EventsFileError:
    where = ("stdin" if _is_stdin(path) else f"events file {path}") + (f", line {number}" if number else "")
    glue = ": " if not number and not what.startswith("holds") else " "
    return EventsFileError(f"{where}{glue}{what}", path=str(path), line=number)
