"""One of the environment's places for a worker: what the parent knows of the worker that sits there."""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from enum import Enum, auto
from typing import TYPE_CHECKING

from perinvoke.runtime.mailbox import CONNECTED, POLLS
from perinvoke.runtime.worker_record import Stage, WorkerRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MESSAGE_BYTES = 16
_FDS = 1
# Of struct tcp_info, linux/tcp.h: tcpi_notsent_bytes (Linux 4.6); tcpi_bytes_sent and tcpi_bytes_retrans (4.19).
_UNSENT, _UNSENT_AT = struct.Struct("=I"), 144
_SENT, _SENT_AT = struct.Struct("=QQ"), 200
_STOP_SECONDS = 0.2  # only a process stuck in the kernel takes longer to stop


class Estate(Enum):
    """What becomes of the invocation that a dead worker had, or that is on its way to it."""

    NOTHING = auto()  # there is none
    IN_CONNECTION = auto()  # it is there, or will be: for the worker's replacement
    ANSWER = auto()  # the worker had begun it


def estate_of(stage: Stage, *, was_sent: bool) -> Estate:
    """What there is to settle for a worker that died in ``stage``. Pure.

    Args:
        stage: of its record.
        was_sent: the request that it was sending when it died has been taken by the connection.
    """
    if stage is Stage.SERVING:
        return Estate.ANSWER
    if stage is Stage.POLLING or (stage is Stage.ASKING and was_sent):
        return Estate.IN_CONNECTION
    return Estate.NOTHING


def taken_bytes(connection: socket.socket) -> int:
    """How many bytes a TCP connection has taken since it was made, sent or still to be sent."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SENT_AT + _SENT.size)
    sent, repeated = _SENT.unpack_from(info, _SENT_AT)
    unsent: int = _UNSENT.unpack_from(info, _UNSENT_AT)[0]
    return int(sent) - int(repeated) + unsent


def is_ended(connection: socket.socket) -> bool:
    """Whether the other side has closed the connection, and nothing that it sent before is left to read."""
    try:
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


class Seat:
    """Lives as long as the parent; workers come and go. For the parent's one thread; a forked worker calls ``forget``.

    Attributes:
        run: what each worker that sits here runs.
        pid: of the worker; 0 while nobody sits here.
        is_ready: the worker has asked for an invocation.
        connection: a duplicate of the one over which it asks.
        due_monotonic: when to replace the worker that has died; infinite while one sits here.
        timed_out_seconds: the worker was killed because its invocation, which had that long, didn't end; or None.
    """

    def __init__(self, run: Callable[[], object]) -> None:
        self.run = run
        self.record = WorkerRecord()
        self.pid = 0
        self.pidfd = -1
        self.control: socket.socket | None = None
        self.connection: socket.socket | None = None
        self.is_ready = False
        self.due_monotonic = float("inf")
        self.timed_out_seconds: float | None = None

    def __repr__(self) -> str:
        return f"<Seat pid={self.pid} {self.record.stage.name}{'' if self.is_ready else ' not ready'}>"

    def prepare(self) -> socket.socket:
        """For a new worker: a new record, and a control socket, whose other end is returned. Keeps the connection."""
        record = WorkerRecord()
        if self.connection is not None:
            record.ask(self.record.asked_bytes)
            record.stage = Stage.POLLING
        self.record.close()
        self.record = record
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.setblocking(False)  # noqa: FBT003  # the stdlib's signature
        self.is_ready = False
        self.timed_out_seconds = None
        return theirs

    def fill(self, pid: int) -> None:
        """A worker sits here now."""
        self.pid, self.due_monotonic = pid, float("inf")
        self.pidfd = os.pidfd_open(pid)

    def hear(self) -> Iterator[bytes]:
        """Take what the worker has told, an empty message last if it will tell nothing more."""
        while self.control is not None:
            try:
                message, fds, _, _ = socket.recv_fds(self.control, _MESSAGE_BYTES, _FDS)
            except OSError:  # nothing more for now
                return
            if message in (CONNECTED, POLLS):
                self.is_ready = True
            if message == CONNECTED and fds:
                self.hang_up()
                self.connection = socket.socket(fileno=fds[0])
            yield message
            if not message:
                return

    def reap(self) -> int:
        """The exit code of the worker, which has ended; nobody sits here then."""
        try:
            _, status = os.waitpid(self.pid, 0)
        except ChildProcessError:  # preloaded code reaps every child
            status = 0
        self.pid = 0
        os.close(self.pidfd)
        self.pidfd = -1
        for _ in self.hear():
            pass
        if self.control is not None:
            self.control.close()
            self.control = None
        return os.waitstatus_to_exitcode(status)

    def estate(self) -> Estate:
        """What there is to settle for the worker that has ended."""
        stage, connection = self.record.stage, self.connection
        if connection is None or (stage in (Stage.ASKING, Stage.POLLING) and is_ended(connection)):
            return Estate.ANSWER if stage is Stage.SERVING else Estate.NOTHING
        return estate_of(stage, was_sent=taken_bytes(connection) >= self.record.asked_bytes)

    def kill_if_overdue(self) -> None:
        """Kill the worker if its record says that it is time. Blocks for a fifth of a second at most.

        It is stopped first: else it could end its invocation, and begin another one, between the look and the kill.
        """
        if not self._is_overdue():
            return
        os.kill(self.pid, signal.SIGSTOP)
        self._wait_stopped()
        if self.record.stage is Stage.SERVING and self._is_overdue():
            self.timed_out_seconds = self.record.replacement[1]
            os.kill(self.pid, signal.SIGKILL)
        os.kill(self.pid, signal.SIGCONT)

    def _is_overdue(self) -> bool:
        return bool(self.pid) and self.timed_out_seconds is None and 0.0 < self.record.replacement[0] <= time.monotonic()

    def _wait_stopped(self) -> None:
        until = time.monotonic() + _STOP_SECONDS
        states = os.WSTOPPED | os.WEXITED | os.WNOWAIT | os.WNOHANG
        while os.waitid(os.P_PID, self.pid, states) is None and time.monotonic() < until:
            time.sleep(0.001)

    def give_up(self) -> None:
        """No worker could be started; one that was forked already can't be watched, and is ended."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0
        if self.control is not None:
            self.control.close()
            self.control = None

    def hang_up(self) -> None:
        """Give the connection up."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def forget(self, *, mine: bool) -> None:
        """In a forked worker: what the parent holds isn't this process's. The worker's own record and connection are."""
        if self.control is not None:
            self.control.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
        if not mine:
            self.hang_up()  # kept open, it would keep another worker's connection from ending
            self.record.close()
