"""Writes to stdout and stderr from threads of their own: whether anybody reads them or not, the event loop goes on.

A pipe that nobody reads takes 64 KB, then a write to it waits for ever. In the event loop that would stop every timer, answer and
signal. So lines wait in a queue with a bound; what comes while it is full is dropped, counted, and told when there is room again.
"""

from __future__ import annotations

import os
import select
import sys
import threading
from collections import deque
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_WAITING_CHARACTERS = 4_000_000  # arbitrary: some ten thousand lines, and little beside what the workers take
FLUSH_SECONDS = 1.0  # at the end; whoever reads at all has read by then
_WRITE_CHARACTERS = 65_536  # at a time: many lines are one system call


class Printer:
    """Lives as long as one run from the command line. ``put`` never blocks; its thread may, for ever.

    ``stream`` is asked for before each write, because a progress bar takes its place in ``sys`` for a while. ``on_error`` is
    called in the thread when a write fails; nothing is written after that.
    """

    def __init__(self, stream: Callable[[], TextIO], *, on_error: Callable[[OSError], None] = lambda _: None) -> None:
        self._stream = stream
        self._on_error = on_error
        self._lines: deque[str] = deque()
        self._waiting_characters = 0
        self._dropped = 0
        self._closed = False
        self._changed = threading.Condition()
        # A daemon: at the end of the process it may be stuck in a write.
        self._thread = threading.Thread(target=self._write_all, name="perinvoke-printer", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<Printer waiting={len(self._lines)} dropped={self._dropped}{' closed' if self._closed else ''}>"

    def put(self, line: str) -> None:
        """Have a line written; drop it when too many wait."""
        with self._changed:
            if self._closed:
                return
            if self._waiting_characters >= MAX_WAITING_CHARACTERS:
                self._dropped += 1
                return
            self._lines.append(line + "\n")
            self._waiting_characters += len(line) + 1
            self._changed.notify()

    def close(self, seconds: float = FLUSH_SECONDS) -> None:
        """Take no more lines; wait until those that wait are written, but no longer than ``seconds``. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(seconds)

    def _write_all(self) -> None:
        while text := self._take():
            try:
                write(self._stream(), text)
            except OSError as error:
                with self._changed:
                    self._closed = True
                    self._lines.clear()
                self._on_error(error)
                return

    def _take(self) -> str:
        """Wait for lines, and take some; empty at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._closed)
            text = ""
            while self._lines and len(text) < _WRITE_CHARACTERS:
                text += self._lines.popleft()
            self._waiting_characters -= len(text)
            if self._dropped and not self._lines:  # they came after all that had waited
                text += f"-------- {self._dropped} log line{'' if self._dropped == 1 else 's'} dropped\n"
                self._dropped = 0
            return text


def write(stream: TextIO, text: str) -> None:
    """Write to the stream's descriptor, waiting as long as that takes.

    Past Python's buffers: their lock would be held meanwhile, and Python aborts when it can't have it at the end of the process.
    """
    if hasattr(stream, "rich_proxied_file"):  # a progress bar draws on the terminal, and has to know what else is written
        stream.write(text)
        return
    try:
        descriptor = stream.fileno()
    except OSError:  # no file at all, as in a test
        stream.write(text)
        return
    rest = memoryview(text.encode(stream.encoding, "backslashreplace"))
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:  # somebody who shares it doesn't want to wait
            select.select([], [descriptor], [])


def stdout() -> TextIO:
    """What is stdout now."""
    return sys.stdout


def stderr() -> TextIO:
    """What is stderr now."""
    return sys.stderr
