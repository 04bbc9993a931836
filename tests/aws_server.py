"""A small HTTP server that answers as a test says, keeps its connections open and counts them."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING, BinaryIO, Self

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable


def answer(body: bytes = b"{}", status: str = "200 OK", **headers: str) -> bytes:
    told = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{told}\r\n".encode() + body


def drip(text: bytes, *, every_seconds: float = 0.05) -> Iterable[bytes]:
    """A byte now and then."""
    for at in range(len(text)):
        time.sleep(every_seconds)
        yield text[at : at + 1]


class AwsServer:
    """Asks ``answers`` what to send for each request, by its first line; None: nothing. Lives as long as its ``with`` block.

    Attributes:
        connections: how many were accepted.
        requests: the first lines of all requests that came whole.
    """

    def __init__(
        self,
        answers: Callable[[str], bytes | Iterable[bytes] | None] = lambda _: answer(),
        *,
        tls: ssl.SSLContext | None = None,
        reads_bodies: bool = True,
    ) -> None:
        self._answers, self._tls, self._reads_bodies = answers, tls, reads_bodies
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._open: set[socket.socket] = set()
        self._ended = threading.Event()
        self.connections = 0
        self.requests: list[str] = []
        self.url = f"{'https' if tls else 'http'}://localhost:{self._listener.getsockname()[1]}"

    def open_now(self) -> int:
        return len(self._open)

    def __enter__(self) -> Self:
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(5)
        self._listener.close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def reply_to(self, line: str, headers: dict[str, str], body: bytes) -> bytes | Iterable[bytes] | None:
        """What to send for a request; a subclass may look at all of it."""
        return self._answers(line)

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, self._tls.wrap_socket(connection, server_side=True) if self._tls else connection as ours:
                ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with ours.makefile("rb") as reader:
                    while line := reader.readline().decode().strip():
                        headers, body = self._rest(reader, ours)
                        self.requests.append(line)
                        self._send(ours, self.reply_to(line, headers, body))
        except (OSError, ValueError):
            pass  # the client has gone, or the test is over
        finally:
            self._open.discard(connection)

    def _rest(self, reader: BinaryIO, ours: socket.socket) -> tuple[dict[str, str], bytes]:
        headers: dict[str, str] = {}
        while text := reader.readline().decode().strip():
            name, _, value = text.partition(":")
            headers[name.lower()] = value.strip()
        if not self._reads_bodies:
            self._ended.wait(60)
        if headers.get("expect") == "100-continue":
            ours.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        length = int(headers.get("content-length", "0"))
        body = reader.read(length)
        if len(body) < length:
            raise ConnectionResetError  # its sender was killed in the middle
        return headers, body

    def _send(self, ours: socket.socket, reply: bytes | Iterable[bytes] | None) -> None:
        if reply is None:
            self._ended.wait(60)
            return
        for part in [reply] if isinstance(reply, bytes) else reply:
            ours.sendall(part)
