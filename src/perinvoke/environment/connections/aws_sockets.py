"""The connections of a boto3 client: no wait on one of them is longer than its call may take, and no two processes use one.

botocore gives a client one time-out for connecting and one for each read. Neither fits a client that outlives the invocations
which use it, and neither is a bound: a host with eight addresses may take eight time-outs to connect to, a server that sends a
byte now and then is read from for ever. Here every wait is cut to what is left of its call: connecting, address by address;
sending; and each read, also that of a body which is read later, in another thread.

Not bounded is looking up a host's name: the system's resolver takes no time-out.

What the waits of a thread are cut to is noted before its request is sent (``aws_deadline.py``). Without a note everything is as
botocore has it.
"""

from __future__ import annotations

import io
import math
import os
import queue
import socket
import threading
from collections import deque

from botocore.awsrequest import AWSHTTPConnection, AWSHTTPConnectionPool, AWSHTTPSConnection, AWSHTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError
from urllib3.util.connection import allowed_gai_family

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Left = Callable[[], float]

# Bytes. A TLS socket's sendall takes its time-out anew for every record, so it gets one record at a time.
_TLS_RECORD_BYTES = 16_384
# Seconds: what a wait gets that has no time. 0 would mean not to wait at all, which is another kind of socket.
_LEAST_SECONDS = 0.001

# Connections of the process that this one was forked from. Kept: what finalizes them would act on what is the parent's.
_forgotten: list[object] = []


class _Call(threading.local):
    """The call whose request this thread is sending: how many seconds it has left, now and later; None: no limit."""

    left: Left | None = None


call = _Call()


class BoundedSocket:
    """A connected socket, plain or TLS, whose waits end when their call's time is up. Lives as long as its connection."""

    __slots__ = ("_socket",)

    def __init__(self, connected: Any) -> None:
        self._socket = connected

    def sendall(self, data: Any, flags: int = 0) -> None:
        """As the socket's own, which also raises TypeError for what isn't bytes.

        Raises:
            TimeoutError: the call's time is up.
        """
        left = call.left
        if left is None:
            self._socket.sendall(data, flags)
        elif type(self._socket) is socket.socket:
            _within(left, self._socket, self._socket.sendall, data)
        else:
            with memoryview(data) as view, view.cast("B") as octets:
                for at in range(0, len(octets), _TLS_RECORD_BYTES):
                    _within(left, self._socket, self._socket.sendall, octets[at : at + _TLS_RECORD_BYTES])

    def makefile(self, mode: str = "r", buffering: int | None = None, **options: Any) -> Any:
        """As the socket's own. What is read through it is bounded by the call for which it was made."""
        left = call.left
        if left is None or mode != "rb":
            return self._socket.makefile(mode, buffering, **options)
        raw = _Reader(self._socket.makefile("rb", 0), self._socket, left)
        return raw if buffering == 0 else io.BufferedReader(raw)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


class _Reader(io.RawIOBase):
    """What a response is read through; lives as long as the response."""

    def __init__(self, raw: Any, connected: Any, left: Left) -> None:
        self._raw = raw
        self._sock = connected  # botocore's StreamingBody.set_socket_timeout looks for it under this name
        self._left = left

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> Any:
        return _within(self._left, self._sock, self._raw.readinto, buffer)

    def fileno(self) -> int:
        number: int = self._raw.fileno()
        return number

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


def _within(left: Left, connected: Any, act: Callable[[Any], Any], argument: Any) -> Any:
    """Do something that waits for a socket, for as long as its own time-out allows, and no longer than is left."""
    own, seconds = connected.gettimeout(), left()
    if seconds == math.inf or (own is not None and own <= seconds):
        return act(argument)
    if seconds <= 0:
        raise TimeoutError("the invocation's time for this call is up")
    connected.settimeout(max(seconds, _LEAST_SECONDS))
    try:
        return act(argument)
    finally:
        connected.settimeout(own)


class _Bounded:
    """What plain and TLS connections have in common: they connect in time, and know whose they are."""

    timeout: Any
    port: int
    sock: Any
    _dns_host: str

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.pid = os.getpid()

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]  # of botocore's class, which follows
        if call.left is not None:
            self.sock.settimeout(_seconds(self.timeout))
        self.sock = BoundedSocket(self.sock)

    def _new_conn(self) -> Any:
        """A connected socket, whose time-out is what is left: a TLS handshake or a proxy's answer may follow."""
        left = call.left
        if left is None:
            return super()._new_conn()  # type: ignore[misc]  # the same
        connected = self._connect_to_one_of(_addresses(self._dns_host, self.port), left)
        connected.settimeout(_cut(self.timeout, left()))
        return connected

    def _connect_to_one_of(self, addresses: list[str], left: Left) -> Any:
        """Half of what is left for each address but the last, so that one which doesn't answer leaves time for the next."""
        host, own = self._dns_host, self.timeout
        try:
            for number, address in enumerate(addresses, 1):
                is_last = number == len(addresses)
                self._dns_host = address
                self.timeout = _cut(own, left() if is_last else left() / 2)
                try:
                    return super()._new_conn()  # type: ignore[misc]  # the same
                except (ConnectTimeoutError, NewConnectionError):
                    if is_last or left() <= 0:
                        raise
        finally:
            self._dns_host, self.timeout = host, own
        raise AssertionError("unreachable")


class BoundedHTTPConnection(_Bounded, AWSHTTPConnection):  # type: ignore[misc]  # botocore ships no types
    """A plain connection; lives as long as its socket, or through several of them."""


class BoundedHTTPSConnection(_Bounded, AWSHTTPSConnection):  # type: ignore[misc]  # the same
    """A TLS connection; lives as long as its socket, or through several of them."""


class _Idle:
    """The connections of a pool that no request uses: last in, first out. Lives as long as the pool.

    In the place of ``queue.LifoQueue``, which is Python code: an exception that a signal handler raises, such as the deadline's,
    may leave its lock taken, and then every later request of the client's would wait for ever. A deque's operations are atomic.
    Nobody waits for a connection: botocore opens another one.
    """

    def __init__(self, maxsize: int = 0) -> None:
        self._connections: deque[Any] = deque()
        self._maxsize = maxsize

    def put(self, connection: Any, block: bool = True, timeout: float | None = None) -> None:  # noqa: ARG002, FBT001, FBT002  # as the queue's
        """Keep one. Raises queue.Full."""
        if 0 < self._maxsize <= len(self._connections):
            raise queue.Full
        self._connections.append(connection)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:  # noqa: ARG002, FBT001, FBT002  # as the queue's
        """Take one. Raises queue.Empty."""
        try:
            return self._connections.pop()
        except IndexError:
            raise queue.Empty from None

    def qsize(self) -> int:
        """How many there are."""
        return len(self._connections)


class _OfOneProcess:
    """A pool that hands out no connection of another process: a forked child inherits the pool and what is in it.

    Two processes that use one connection get each other's answers.
    """

    QueueCls = _Idle

    def _get_conn(self, timeout: float | None = None) -> Any:
        pid = os.getpid()
        connection = super()._get_conn(timeout)  # type: ignore[misc]  # of botocore's class, which follows
        while connection.pid != pid:
            _forgotten.append(connection)
            connection = super()._get_conn(timeout)  # type: ignore[misc]  # the same
        return connection


class BoundedHTTPPool(_OfOneProcess, AWSHTTPConnectionPool):  # type: ignore[misc]  # the same
    """The connections to one host; lives as long as the client."""

    ConnectionCls = BoundedHTTPConnection


class BoundedHTTPSPool(_OfOneProcess, AWSHTTPSConnectionPool):  # type: ignore[misc]  # the same
    """The connections to one host; lives as long as the client."""

    ConnectionCls = BoundedHTTPSConnection


POOLS = {"http": BoundedHTTPPool, "https": BoundedHTTPSPool}


def _addresses(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, allowed_gai_family(), socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return [host]  # urllib3 asks again, and says in its own words what is wrong with it
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _cut(timeout: object, left: float) -> float | None:
    own = _seconds(timeout)
    if left == math.inf:
        return own
    return max(_LEAST_SECONDS, left if own is None else min(own, left))


def _seconds(timeout: object) -> float | None:
    """urllib3's older versions have an object that stands for "whatever is the default", which is no limit."""
    return timeout if isinstance(timeout, int | float) else None
