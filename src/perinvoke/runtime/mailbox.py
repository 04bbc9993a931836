"""The worker's side of asking for invocations: over a connection that its parent holds as well, so that nothing is lost with it.

The platform hands an invocation out by writing to a worker's connection. If the worker is killed before it has read that, nobody
else knows of the invocation, and its caller waits for the whole time-out. So the parent keeps a duplicate of the connection, and
the worker takes an invocation out of it in this order: look (``MSG_PEEK``), note in the record whose it is, read. Whenever the
worker dies, the invocation is in one of three places: in the connection, where the worker's replacement finds it; in the record,
by which the parent answers; or answered.

Only asking is done here. Answers go through the runtime's own client.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import time

from perinvoke.runtime.worker_record import Stage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from perinvoke.runtime.worker_record import WorkerRecord

REQUEST_ID = "Lambda-Runtime-Aws-Request-Id"
INVOCATION_ID = "Lambda-Runtime-Invocation-Id"
_DEADLINE = "Lambda-Runtime-Deadline-Ms"
_ARN = "Lambda-Runtime-Invoked-Function-Arn"
_HEADERS = (
    *(REQUEST_ID, INVOCATION_ID, _DEADLINE, _ARN, "Content-Type"),
    *("Lambda-Runtime-Trace-Id", "Lambda-Runtime-Client-Context", "Lambda-Runtime-Cognito-Identity"),
    "Lambda-Runtime-Aws-Tenant-Id",
)
_PATH = "/2018-06-01/runtime/invocation/next"
# What a worker tells its parent over the control socket.
CONNECTED = b"C"  # it asks for its invocations over the connection that comes with this
POLLS = b"P"  # it asks over its predecessor's
REPLACES = b"R"  # from now on its record may say when to replace it
_MAX_HEAD_BYTES = 128 * 1024  # Lambda's own limits add up to less than 10 kB
_OK = b"HTTP/1.1 200 "
_IS_OK = re.compile(rb"HTTP/1\.[01] 200\b")
_LENGTH = b"content-length:"
_HEAD_END = b"\r\n\r\n"
_REST_SECONDS = 0.001  # between looks at a head that hasn't come in whole: a rare thing, and arbitrary


class Mailbox:
    """Asks for invocations; lives as long as its worker. For one thread at a time.

    Args:
        address: of the runtime API, ``host:port``.
        record: shared with the parent.
        control: a socket to the parent.
        connection: the predecessor's, on which a request is waiting for its answer; or None.
        user_agent: as the runtime's own client names itself.
    """

    def __init__(
        self, address: str, record: WorkerRecord, control: socket.socket, connection: socket.socket | None, user_agent: str
    ) -> None:
        self._address = address
        self._record = record
        self._control = control
        self._connection = connection
        self._request = f"GET {_PATH} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: {user_agent}\r\n\r\n".encode()
        self._is_asked = self._is_inherited = connection is not None
        self._asked_bytes = record.asked_bytes
        self._left, self._leave = os.pipe()
        self._is_leaving = False
        self._pid = os.getpid()

    def leave(self) -> None:
        """Have ``next`` end the worker instead of waiting for another invocation. For signal handlers: never blocks."""
        if not self._is_leaving and self._pid == os.getpid():
            self._is_leaving = True
            os.write(self._leave, b".")

    def next(self) -> tuple[bytes, dict[str, Any]]:
        """The next invocation's event and headers; blocks until there is one.

        Raises:
            SystemExit: the worker is to end; what the connection holds or will hold is left to its replacement.
            RuntimeError: the runtime API answered with an error, or closed the connection. The same call may succeed later.
        """
        if self._is_leaving or self._pid != os.getpid():
            raise SystemExit(0)  # a process that a handler forked, and that came back from it, is no worker
        try:
            return self._next_over_old() or self._next()
        except OSError as error:
            self._hang_up()
            raise RuntimeError(f"Failed to get next: {error}") from error

    def _next_over_old(self) -> tuple[bytes, dict[str, Any]] | None:
        """Ask over the connection there is; None if the platform has closed it, as it may when it owes nothing."""
        if self._connection is None:
            return None
        try:
            return self._next()
        except ConnectionError:
            self._hang_up()
            return None

    def _next(self) -> tuple[bytes, dict[str, Any]]:
        connection = self._asked()
        head = self._wait_head(connection)
        headers = headers_of(head)
        if _IS_OK.match(head) and headers[REQUEST_ID]:
            self._record.serve(headers[REQUEST_ID], headers[INVOCATION_ID] or "")
        return self._read(connection, head), headers

    def answered(self) -> None:
        """The invocation has been answered: nobody has to do that for this worker any more."""
        if self._pid == os.getpid():
            self._record.stage = Stage.ANSWERED

    def forget(self) -> None:
        """In a process that a handler forks: the connection is its parent's, and would be kept open by a copy of it."""
        if self._connection is not None:
            self._connection.close()
        for fd in (self._left, self._leave):
            try:
                os.close(fd)
            except OSError:  # the handler has closed it
                continue

    def _asked(self) -> socket.socket:
        """A connection with one request waiting on it."""
        connection = self._connection
        if connection is None:
            connection = self._connection = self._connect()
        elif self._is_inherited:
            self._is_inherited = False
            self._control.send(POLLS)
        if not self._is_asked:
            self._record.ask(self._asked_bytes + len(self._request))
            connection.sendall(self._request)
            self._asked_bytes += len(self._request)
        self._is_asked = True
        self._record.stage = Stage.POLLING
        return connection

    def _connect(self) -> socket.socket:
        connection = connected(self._address)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._asked_bytes = 0
        socket.send_fds(self._control, [CONNECTED], [connection.fileno()])  # before anything can be handed out over it
        return connection

    def _wait_head(self, connection: socket.socket) -> bytes:
        """The head of the answer, left in the connection."""
        waiting = select.poll()
        waiting.register(connection, select.POLLIN | select.POLLRDHUP)
        waiting.register(self._left, select.POLLIN)
        while True:
            ready = dict(waiting.poll())
            if connection.fileno() in ready:
                head = connection.recv(_MAX_HEAD_BYTES, socket.MSG_PEEK)
                if _HEAD_END in head:
                    return head.partition(_HEAD_END)[0]
                if ready[connection.fileno()] & ~select.POLLIN:
                    raise ConnectionError("the runtime API closed the connection")
                if len(head) == _MAX_HEAD_BYTES:
                    raise OSError(f"the answer's head has more than {_MAX_HEAD_BYTES} bytes")
                time.sleep(_REST_SECONDS)
            elif self._left in ready:
                raise SystemExit(0)

    def _read(self, connection: socket.socket, head: bytes) -> bytes:
        """Take the answer out of the connection; its body."""
        length = _length_of(head)
        if length is None:
            return self._read_thoroughly(connection)
        before = len(head) + len(_HEAD_END)
        received = _received(connection, before + length)
        self._is_asked = False
        return bytes(memoryview(received)[before:])

    def _read_thoroughly(self, connection: socket.socket) -> bytes:
        """The same for every other answer that HTTP allows; http.client costs a worker 0.2 ms for each."""
        import http.client  # noqa: PLC0415  # cold start: 15 ms, and Lambda's own answers never come here

        with contextlib.closing(http.client.HTTPResponse(connection, method="GET")) as response:
            try:
                response.begin()
                body = response.read()
            except http.client.HTTPException as error:
                raise OSError(str(error)) from error
        self._is_asked = False
        if response.will_close:
            self._hang_up()
        self._owed_nothing()
        if response.status != http.HTTPStatus.OK:
            raise RuntimeError(f"Failed to get next: the runtime API answered {response.status}: {body[:200]!r}")
        return body

    def _hang_up(self) -> None:
        """Give the connection up; the parent does, too, when it hears of the next one or that the worker has ended."""
        connection, self._connection, self._is_asked = self._connection, None, False
        if connection is not None:
            self._owed_nothing()
            connection.close()

    def _owed_nothing(self) -> None:
        """No answer is waited for any more: a replacement must not wait for one either."""
        if self._record.stage is not Stage.SERVING:
            self._record.stage = Stage.ANSWERED


class RuntimeClient:
    """In the place of awslambdaric's ``runtime_client``: asks through the mailbox, answers through the original."""

    def __init__(self, original: Any, mailbox: Mailbox, on_ready: Callable[[], None]) -> None:
        self._original = original
        self._mailbox = mailbox
        self._on_ready: Callable[[], None] | None = on_ready

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    def next(self) -> tuple[bytes, dict[str, Any]]:
        """Ask for the next invocation; the first time, tell that the worker is through with its init."""
        on_ready, self._on_ready = self._on_ready, None
        if on_ready is not None:
            on_ready()
        return self._mailbox.next()

    def post_invocation_result(self, *args: Any) -> Any:
        """Post what the handler returned."""
        result = self._original.post_invocation_result(*args)
        self._mailbox.answered()
        return result

    def post_error(self, *args: Any) -> Any:
        """Post what the handler raised."""
        result = self._original.post_error(*args)
        self._mailbox.answered()
        return result


def _received(connection: socket.socket, count: int) -> bytearray:
    """So many bytes; blocks until they are there."""
    received = bytearray(count)
    rest = memoryview(received)
    while rest:
        more = connection.recv_into(rest)
        if not more:
            raise ConnectionError("the runtime API closed the connection in the middle of an invocation")
        rest = rest[more:]
    return received


def headers_of(head: bytes) -> dict[str, Any]:
    """The headers in the head of an answer, in the form that the runtime's own client gives them. Pure."""
    found = {}
    for line in head.decode("utf-8", "replace").split("\r\n")[1:]:
        name, _, value = line.partition(":")
        found[name.strip().lower()] = value.strip()
    headers: dict[str, Any] = {name: found.get(name.lower()) or None for name in _HEADERS}
    deadline_ms = found.get(_DEADLINE.lower(), "")
    headers[_DEADLINE] = int(deadline_ms) if deadline_ms.isascii() and deadline_ms.isdigit() else 0
    headers[_ARN] = headers[_ARN] or ""
    return headers


def _length_of(head: bytes) -> int | None:
    """How many bytes follow the head of an answer that is an invocation; None if that isn't told so simply. Pure."""
    words = head.lower().split(b"\r\n")
    lengths = [word[len(_LENGTH) :].strip() for word in words if word.startswith(_LENGTH)]
    if not head.startswith(_OK) or len(lengths) != 1 or not lengths[0].isdigit() or b"\r\nconnection:" in head.lower():
        return None
    return int(lengths[0])


def host_and_port(address: str) -> tuple[str, int]:
    """The parts of ``host:port`` or ``[host]:port``; without a port it is HTTP's. Pure."""
    host, colon, port = address.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()):
        host, port = address, "80"
    return host.strip("[]"), int(port)


def connected(address: str, timeout_seconds: float | None = None) -> socket.socket:
    """A connection to ``host:port``."""
    host, port = host_and_port(address)
    # In bytes: for a str, Python loads its codec for international names, which takes 2 ms.
    return socket.create_connection((host.encode(), port), timeout_seconds)  # type: ignore[arg-type]  # a str or bytes, socket(3)
