"""Our end of a connection: watched for what comes, closed so that the server has finished, cut, and looked for after a death.

A slot may be used again when the server has let go of the connection that was in it, not when a worker has: the server counts
its own end. Two facts help:

* PostgreSQL and MySQL close a session's socket as the last thing they do to it. So who has closed a connection in order reads
  until the end of the file, and then knows that the session is gone.
* A TCP connection whose process was killed stays in the kernel's table until the server has closed its end, too.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Self

# Of include/net/tcp_states.h: the server has not closed its end yet.
_OPEN_AT_SERVER = frozenset({"01", "04", "05"})  # ESTABLISHED, FIN_WAIT1, FIN_WAIT2
_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
_ENDPOINTS = slice(1, 3)
_HUNG_UP = getattr(select, "POLLRDHUP", select.POLLHUP)  # macOS has no such thing
_READ_BYTES = 65_536
# Seconds. A server that takes longer to end a session has a slot that looks as if its worker had been killed.
CLOSE_SECONDS = 1.0


class NetworkEnd:
    """A connection's socket, known by its descriptor and by its inode; lives as long as the connection.

    The descriptor is the driver's. Whether it still is the same socket is asked before anything is done to it: a driver that has
    closed it may have given the number to another file.
    """

    __slots__ = ("_fd", "_identity", "endpoints")

    @classmethod
    def of(cls, fd: int | None) -> Self | None:
        """The end at that descriptor; None where there is none, or it is no socket."""
        try:
            return cls(fd) if fd is not None and stat.S_ISSOCK(os.fstat(fd).st_mode) else None
        except OSError:
            return None

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._identity = _identity(fd)
        self.endpoints = _endpoints(fd)

    def is_there(self) -> bool:
        """Whether the descriptor still is this socket."""
        try:
            return _identity(self._fd) == self._identity
        except OSError:
            return False

    def has_news(self) -> bool:
        """Whether the server has said something unasked, or hung up. An idle connection that has is not to be trusted."""
        return not self.is_there() or is_readable(self._fd, 0.0)

    def close_with(self, close: Callable[[], object], seconds: float) -> None:
        """Call ``close``, the driver's, and wait until the server has closed its end; so long at most."""
        if not self.is_there():
            close()
            return
        kept = os.dup(self._fd)
        try:
            close()
            _wait_for_end(kept, seconds)
        finally:
            os.close(kept)

    def cut(self) -> None:
        """End the connection under whoever waits in it: its call fails at once. Doesn't block."""
        if self.is_there():
            with socket.socket(fileno=os.dup(self._fd)) as ours:
                try:
                    ours.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # the server was faster

    def sever(self) -> None:
        """In a forked child: leave the descriptor, but let it lead nowhere. What the driver's finalizers say reaches nobody."""
        if self.is_there():
            nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            os.dup2(nowhere, self._fd, inheritable=False)
            os.close(nowhere)


def closed_in_order(fd: int | None, close: Callable[[], object], seconds: float = CLOSE_SECONDS) -> None:
    """Call ``close``, the driver's, and wait until the server has closed the connection at that descriptor, if there is one."""
    end = NetworkEnd.of(fd)
    if end is None:
        close()
    else:
        end.close_with(close, seconds)


def open_at_server(endpoints: str) -> bool | None:
    """Whether the server still has its end of a connection whose process is dead; None where the kernel doesn't tell."""
    if not endpoints:
        return None
    known = False
    for line in _tcp_lines():
        fields = line.split()
        if " ".join(fields[_ENDPOINTS]) == endpoints:
            known = True
            if fields[3] in _OPEN_AT_SERVER:
                return True
    return False if known else None


def _tcp_lines() -> Iterable[str]:
    for table in _TABLES:
        try:
            with open(table, encoding="ascii") as lines:
                yield from lines
        except OSError:
            continue


def _wait_for_end(fd: int, seconds: float) -> None:
    until = time.monotonic() + seconds
    with socket.socket(fileno=os.dup(fd)) as ours:
        ours.settimeout(0)
        try:
            ours.shutdown(socket.SHUT_WR)  # a driver that says no goodbye has only this to say it with
            while (left := until - time.monotonic()) > 0:
                if is_readable(ours.fileno(), left) and not ours.recv(_READ_BYTES):
                    return
        except OSError:
            return  # reset: nothing comes any more


def is_readable(fd: int, seconds: float) -> bool:
    """Whether there is something to read, or an end; waits for it so long."""
    poll = select.poll()
    poll.register(fd, select.POLLIN | _HUNG_UP)
    return bool(poll.poll(seconds * 1000))


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _endpoints(fd: int) -> str:
    """Both ends as /proc/net/tcp writes them; empty for what isn't TCP."""
    with socket.socket(fileno=os.dup(fd)) as ours:
        if ours.family not in (socket.AF_INET, socket.AF_INET6):
            return ""
        try:
            return f"{_as_proc(ours.family, ours.getsockname())} {_as_proc(ours.family, ours.getpeername())}"
        except OSError:
            return ""


def _as_proc(family: int, address: tuple[object, ...]) -> str:
    """An address in the kernel's words: 32-bit words in the machine's own order, in hexadecimal."""
    packed = socket.inet_pton(family, str(address[0]).partition("%")[0])
    words = [packed[at : at + 4] for at in range(0, len(packed), 4)]
    host = "".join(f"{int.from_bytes(word, 'little'):08X}" for word in words)
    return f"{host}:{int(str(address[1])):04X}"
