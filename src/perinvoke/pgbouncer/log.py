"""The extension's log: its own records, and PgBouncer's lines as such. No password is in it, whoever wrote it.

On stdout, which the platform puts into the function's log. PgBouncer's routine isn't told; the same again and again is told now
and then, with how often it was left out. A log that nobody reads is lost: watching over PgBouncer must not wait for it.
"""

from __future__ import annotations

import json
import os
import re
import select
import time

_LOGGER = "perinvoke.pgbouncer"
_LEVELS = {"TRACE": 0, "DEBUG": 10, "INFO": 20, "WARN": 30, "WARNING": 30, "ERROR": 40, "FATAL": 50, "CRITICAL": 50}
_PATIENCE_MS = 100  # arbitrary: then the record is lost, and more of them at once
_REPEAT_SECONDS = 10.0  # the same isn't told more often
_MAX_LINE_BYTES = 16_384
_MAX_REMEMBERED = 100  # different messages; arbitrary
_SHOWN_LINES = 5  # of the last ones, when it couldn't be started

# 2026-11-25 07:50:38.441 UTC [10760] WARNING C-0x55ae3faa1230: default/app@unix(10759):6432 pooler error: …
_LINE = re.compile(r"(?:\S+ \S+ \S+ \[\d+\] )?(LOG|DEBUG|NOISE|WARNING|ERROR|FATAL) (.*)", re.DOTALL)
_WHO = re.compile(r"([CS])-(?:0x)?[0-9a-f]+: \S+ (.*)", re.DOTALL)
_NUMBER = re.compile(r"\d+", re.ASCII)
_TO_LEVEL = {"LOG": "INFO", "DEBUG": "DEBUG", "NOISE": "DEBUG", "WARNING": "WARN", "ERROR": "ERROR", "FATAL": "ERROR"}
# What the server's connections end by in the ordinary course.
_ROUTINE_ENDS = ("server idle timeout", "server lifetime over", "close_needed", "obsolete connection", "pause mode", "shutdown")
_CLOSING = "closing because: "
_LOGIN_FAILED = "login failed: FATAL"  # "server login failed: FATAL …", "S: login failed: FATAL: …"


class Log:
    """Lives as long as the extension. Never raises.

    Args:
        as_json: the function's log format is JSON.
        level: the function's log level; what isn't known counts as INFO.
        fd: where to.
    """

    def __init__(self, *, as_json: bool, level: str, fd: int = 1) -> None:
        self._as_json = as_json
        self._least = _LEVELS.get(level.upper(), _LEVELS["INFO"])
        self._fd = fd
        self._patience_ms = _PATIENCE_MS
        self._secrets: list[str] = []
        self._told: dict[str, tuple[float, int]] = {}  # when a message was last told, and how often it wasn't since
        self._last: list[str] = []

    def hide(self, secret: str) -> None:
        """Never write this. An empty or very short one is left: hiding it would make the log unreadable, and protect nothing."""
        if len(secret) > 2 and secret not in self._secrets:  # noqa: PLR2004
            self._secrets.append(secret)

    def write(self, level: str, message: str, **fields: object) -> None:
        """One record."""
        if _LEVELS[level] < self._least:
            return
        message = self.hidden(message)
        line = _record(level, message, fields) if self._as_json else f"[{level}]\t{_now()}\t{_LOGGER}\t{message}"
        writable = select.poll()
        writable.register(self._fd, select.POLLOUT)
        try:
            is_read = bool(writable.poll(self._patience_ms))
            if is_read:
                os.write(self._fd, f"{line}\n".encode(errors="replace"))  # in one write, so that lines of others come whole
            self._patience_ms = _PATIENCE_MS if is_read else 0  # not again and again for one who doesn't read
        except (OSError, ValueError):
            pass

    def hidden(self, text: str) -> str:
        """The text without what must not be told."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def take(self, line: str) -> bool:
        """Take a line of PgBouncer's; whether it tells that the server refuses the login."""
        level, message = parse_line(line)
        self._last = [*self._last[1 - _SHOWN_LINES :], message]
        if not is_routine(level, message):
            self._write_seldom(level, message)
        return _LOGIN_FAILED in message

    def last_lines(self) -> str:
        """What PgBouncer said last, for an error's message."""
        return self.hidden("; ".join(self._last)) or "it has said nothing"

    def _write_seldom(self, level: str, message: str) -> None:
        now = time.monotonic()
        kind = _NUMBER.sub("#", message)  # ages and ports don't make another message of it
        told_at, left_out = self._told.get(kind, (now - _REPEAT_SECONDS, 0))
        if now - told_at < _REPEAT_SECONDS:
            self._told[kind] = (told_at, left_out + 1)
            return
        if len(self._told) >= _MAX_REMEMBERED:
            self._told.clear()
        self._told[kind] = (now, 0)
        self.write(level, f"{message} ({left_out} times more since it was last told)" if left_out else message)


class Lines:
    """What is read from PgBouncer's log, as lines; lives as long as its process."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._rest = b""
        self.ended = False

    def read(self) -> list[str]:
        """The lines that are complete by now; at the end, what is left. Doesn't block."""
        try:
            data = os.read(self.fd, 65_536)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.ended = not data
        if (self.ended or len(self._rest) > _MAX_LINE_BYTES) and self._rest:
            lines.append(self._rest)
            self._rest = b""
        return [line.decode(errors="replace") for line in lines if line.strip()]


def parse_line(line: str) -> tuple[str, str]:
    """The level and the message of a line of PgBouncer's. Addresses in its memory are left out: they tell nobody anything."""
    found = _LINE.fullmatch(line)
    if found is None:
        return "INFO", line
    level, message = _TO_LEVEL[found[1]], found[2]
    who = _WHO.fullmatch(message)
    return level, message if who is None else f"{'client' if who[1] == 'C' else 'server'}: {who[2]}"


def is_routine(level: str, message: str) -> bool:
    """Whether it tells nothing that anybody has to know."""
    if _LEVELS[level] > _LEVELS["INFO"]:
        return False
    if message.startswith(f"server: {_CLOSING}"):
        return any(end in message for end in _ROUTINE_ENDS)
    return True  # how it starts and stops, which the extension tells itself; and the clients' ends


def _record(level: str, message: str, fields: dict[str, object]) -> str:
    record: dict[str, object] = {"timestamp": _now(), "level": level, "message": message, "logger": _LOGGER}
    return json.dumps({**record, "perinvoke": fields} if fields else record, default=str)


def _now() -> str:
    seconds, milliseconds = divmod(time.time_ns() // 1_000_000, 1_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{milliseconds:03}Z"
