"""The parent's own log records: lines on stderr, which the platform reads as the function's log, in its JSON form or as text."""

from __future__ import annotations

import json
import os
import select
import sys
from datetime import UTC, datetime
from enum import Enum

_LOGGER = "perinvoke"
_PATIENCE_MS = 100  # then the record is lost; arbitrary


class Level(Enum):
    """As the platform names and orders them."""

    INFO = 20
    WARN = 30
    ERROR = 40


_LEVELS = {"TRACE": 0, "DEBUG": 10, "INFO": 20, "WARN": 30, "WARNING": 30, "ERROR": 40, "FATAL": 50, "CRITICAL": 50}


class Records:
    """Writes records; lives as long as the parent. Never raises: a log that can't be written must not end the environment.

    Args:
        as_json: the function's log format is JSON, as it always is on Managed Instances.
        level: the function's log level, ``AWS_LAMBDA_LOG_LEVEL``; what it doesn't know counts as INFO.
    """

    def __init__(self, *, as_json: bool, level: str) -> None:
        self._as_json = as_json
        self._least = _LEVELS.get(level.upper(), Level.INFO.value)

    def write(self, level: Level, message: str, **fields: object) -> None:
        """One record. ``requestId`` among the fields is the invocation's it is about; all stand in ``perinvoke`` as well."""
        if level.value < self._least:
            return
        line = _as_json(level, message, fields) if self._as_json else _as_text(level, message)
        if sys.__stderr__ is None:  # it was closed when this process began, and its number may be another's
            return
        try:
            stderr = sys.__stderr__.fileno()
            if _takes_more(stderr):
                os.write(stderr, f"{line}\n".encode())  # in one write, so that lines of others come whole
        except (OSError, ValueError):  # among them, that it was closed since
            pass


def _takes_more(fd: int) -> bool:
    """Whether somebody reads it: supervision must not stand still because nobody does."""
    writable = select.poll()
    writable.register(fd, select.POLLOUT)
    return bool(writable.poll(_PATIENCE_MS))


def _as_json(level: Level, message: str, fields: dict[str, object]) -> str:
    record = {"timestamp": _now(), "level": level.name, "message": message, "logger": _LOGGER}
    request_id = fields.get("requestId")
    if request_id:
        record["requestId"] = str(request_id)
    return json.dumps({**record, "perinvoke": fields} if fields else record, default=str)


def _as_text(level: Level, message: str) -> str:
    return f"[{level.name}]\t{_now()}\t{_LOGGER}\t{message}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
