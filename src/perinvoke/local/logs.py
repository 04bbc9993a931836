"""The log socket of the workers, and whose line is whose.

Each worker connects twice, first for its stdout, then for its stderr; the kernel tells its process id. A line belongs to the
invocation that its worker has at that moment; in a JSON line the request id decides where it is present, because in thread mode a
process has several invocations at once.

The sockets are read without asyncio's streams: when a worker answers, what it wrote before has to be read *now*, so that the tail
is complete, and a stream reads only when the loop gets round to it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING

from perinvoke.local.outcome import LOG_TAIL_BYTES, Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from perinvoke.local.dispatcher import Ending
    from perinvoke.local.invocation import Invocation

MAX_LINE_BYTES = 262_144  # CloudWatch's longest event; a longer line is cut into pieces
_READ_BYTES = 65_536
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: struct ucred
_BACKLOG = 256
_STARTUP_LINES = 50  # arbitrary: enough for a traceback


class Stream(Enum):
    """Where a line comes from."""

    STDOUT = "stdout"
    STDERR = "stderr"
    RUNTIME = "runtime"  # the runtime's parent process
    EXTENSION = "extension"
    PLATFORM = "platform"  # START, END and REPORT


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line, without its newline."""

    text: str
    stream: Stream
    request_id: str | None = None
    worker_pid: int | None = None


@dataclass(slots=True, eq=False)
class _Source:
    """A file descriptor that lines come from, as long as somebody holds its other end."""

    fd: int
    stream: Stream
    pid: int | None
    keep: socket.socket | None = None  # owns fd
    rest: bytes = b""


class Logs:
    """Lives as long as its execution environment. Also the dispatcher's recorder.

    ``on_worker`` hears the pid of each new worker process as soon as it connects, before it imports the handler.
    """

    def __init__(
        self,
        *,
        as_json: bool,
        on_line: Callable[[LogLine], None] | None = None,
        on_worker: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._as_json = as_json
        self._on_line = on_line
        self._on_worker = on_worker
        self._loop = asyncio.get_running_loop()
        self._listener: socket.socket | None = None
        self._sources: dict[int, _Source] = {}
        self._by_pid: dict[int, list[_Source]] = {}
        self._running: dict[str, Invocation] = {}
        self._running_by_pid: dict[int, Invocation] = {}
        self._startup: list[LogLine] = []  # the first lines before any invocation

    # --- sockets -----------------------------------------------------------------------------------------------------

    def listen(self, path: str) -> None:
        """Open the log socket at ``path``."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        listener.bind(path)
        listener.listen(_BACKLOG)
        self._listener = listener
        self._loop.add_reader(listener, self.accept)

    def read_output(self, stream: Stream) -> int:
        """A descriptor for the runtime's parent, or an extension, to write to; the caller closes it after the start."""
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        self._add(_Source(reading, stream, None))
        return writing

    def close(self) -> None:
        """Read what is there and close everything. Idempotent."""
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        for source in list(self._sources.values()):
            self._read(source)
            if source.fd in self._sources:  # reading hasn't found the end
                self._drop(source)

    def accept(self) -> None:
        """Meet the workers that have connected by now."""
        if self._listener is None:
            return
        with suppress(BlockingIOError):
            while True:
                connection, _ = self._listener.accept()
                connection.settimeout(0)
                raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
                self._add_worker(connection, _CREDENTIALS.unpack(raw)[0])

    def _add_worker(self, connection: socket.socket, pid: int) -> None:
        known = self._by_pid.setdefault(pid, [])
        source = _Source(connection.fileno(), Stream.STDERR if known else Stream.STDOUT, pid, connection)
        known.append(source)
        self._add(source)
        if len(known) == 1:
            self._on_worker(pid)

    def _add(self, source: _Source) -> None:
        self._sources[source.fd] = source
        self._loop.add_reader(source.fd, self._read, source)

    def _drop(self, source: _Source) -> None:
        self._loop.remove_reader(source.fd)
        del self._sources[source.fd]
        if source.pid is not None:
            self._by_pid[source.pid].remove(source)
        if source.keep is not None:
            source.keep.close()
        else:
            os.close(source.fd)

    # --- lines -------------------------------------------------------------------------------------------------------

    def _read(self, source: _Source) -> None:
        """Take what is there now."""
        while source.fd in self._sources:
            try:
                data = os.read(source.fd, _READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._finish_line(source)
                self._drop(source)
                return
            *lines, source.rest = (source.rest + data).split(b"\n")
            for line in lines:
                self._take(source, line)
            if len(source.rest) > MAX_LINE_BYTES:
                self._finish_line(source)
            if len(data) < _READ_BYTES:
                return

    def _finish_line(self, source: _Source) -> None:
        if source.rest:
            rest, source.rest = source.rest, b""
            self._take(source, rest)

    def _take(self, source: _Source, raw: bytes) -> None:
        text = raw.decode(errors="replace")
        invocation = self._owner(source.pid, raw)
        request_id = invocation.request_id if invocation else None
        line = LogLine(text, source.stream, request_id, source.pid)
        if invocation is None and self._lines_of(source.pid) < _STARTUP_LINES:
            self._startup.append(line)
        self._put(line, invocation)

    def _lines_of(self, pid: int | None) -> int:
        return sum(line.worker_pid == pid for line in self._startup)

    def startup(self, pid: int | None = None) -> tuple[str, ...]:
        """What explains a failed init: the first lines of the runtime's parent, of extensions and of one worker.

        All workers import the same module, and mostly say the same; so of ``pid``, or of the first one that said anything.
        """
        pids = {line.worker_pid: None for line in self._startup if line.worker_pid is not None}
        told = pid if pid in pids else next(iter(pids), None)
        return tuple(line.text for line in self._startup if line.worker_pid in (None, told))

    def _owner(self, pid: int | None, raw: bytes) -> Invocation | None:
        if raw.startswith(b"{") and b'"requestId"' in raw:
            with suppress(ValueError):
                named = self._running.get(str(json.loads(raw).get("requestId")))
                if named is not None:
                    return named
        return self._running_by_pid.get(pid) if pid is not None else None

    def _put(self, line: LogLine, invocation: Invocation | None) -> None:
        if invocation is not None:
            invocation.log_tail = (invocation.log_tail + line.text + "\n")[-LOG_TAIL_BYTES:]
        if self._on_line is not None:
            try:
                self._on_line(line)
            except Exception:
                # It runs in the middle of answering a caller, who must not suffer for it.
                self._on_line = None
                logging.getLogger(__name__).exception("on_log failed; it is not called again")

    # --- the dispatcher's recorder -----------------------------------------------------------------------------------

    def started(self, invocation: Invocation) -> None:
        """A worker has taken the invocation."""
        pid = invocation.worker_pid
        if pid is not None:
            self._running_by_pid[pid] = invocation
        self._running[invocation.request_id] = invocation
        self._platform(invocation, start_line(invocation, as_json=self._as_json))

    def ended(self, invocation: Invocation, ending: Ending, duration_seconds: float) -> None:
        """The invocation's caller is about to be answered; after a time-out its worker may write on."""
        pid = invocation.worker_pid
        for source in tuple(self._by_pid.get(pid, ())) if pid is not None else ():
            self._read(source)
            self._finish_line(source)
        for text in end_lines(invocation, ending, duration_seconds, as_json=self._as_json):
            self._platform(invocation, text)

    def moved(self, invocation: Invocation, pid: int | None) -> None:
        """Another process has it; what ``pid`` writes isn't the invocation's any more."""
        if invocation.request_id not in self._running:  # ``started`` follows
            return
        if pid is not None and self._running_by_pid.get(pid) is invocation:
            del self._running_by_pid[pid]
        if invocation.worker_pid is not None:
            self._running_by_pid[invocation.worker_pid] = invocation

    def released(self, invocation: Invocation) -> None:
        """Its worker is through with it."""
        self._running.pop(invocation.request_id, None)
        pid = invocation.worker_pid
        if pid is not None and self._running_by_pid.get(pid) is invocation:
            del self._running_by_pid[pid]

    def _platform(self, invocation: Invocation, text: str) -> None:
        self._put(LogLine(text, Stream.PLATFORM, invocation.request_id, invocation.worker_pid), invocation)


def start_line(invocation: Invocation, *, as_json: bool) -> str:
    """What the platform logs when an invocation begins."""
    if not as_json:
        return f"START RequestId: {invocation.request_id} Version: $LATEST"
    return _record("platform.start", f'{{"requestId":"{invocation.request_id}","version":"$LATEST"}}')


def end_lines(invocation: Invocation, ending: Ending, duration_seconds: float, *, as_json: bool) -> list[str]:
    """What the platform logs when it ends. No memory figures: several invocations share the environment's memory."""
    request_id, milliseconds = invocation.request_id, duration_seconds * 1000
    if not as_json:
        timed_out = [f"{_now()} {request_id} Task timed out after {duration_seconds:.2f} seconds"]
        return [
            *(timed_out if ending.status is Status.TIMED_OUT else ()),
            f"END RequestId: {request_id}",
            f"REPORT RequestId: {request_id}\tDuration: {milliseconds:.2f} ms",
        ]
    how = {Status.OK: "success", Status.TIMED_OUT: "timeout"}.get(ending.status, "error")
    error = f',"errorType":{json.dumps(ending.error_type)}' if ending.error_type else ""
    metrics = f'{{"durationMs":{milliseconds:.3f}}}'
    return [_record("platform.report", f'{{"requestId":"{request_id}","metrics":{metrics},"status":"{how}"{error}}}')]


def _record(kind: str, record: str) -> str:
    return f'{{"time":"{_now()}","type":"{kind}","record":{record}}}'


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")[:-6] + "Z"
