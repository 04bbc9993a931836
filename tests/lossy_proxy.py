"""A network that breaks just when a COMMIT is answered: the server has committed, and the client never hears of it."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from typing import Self

_COMMIT = re.compile(rb"(?<![A-Z])COMMIT")  # not what sets AUTOCOMMIT


class LossyProxy:
    """Passes on what both sides send; ``with LossyProxy(server_port) as proxy:``, and clients connect to ``proxy.port``.

    Attributes:
        losses: how many answers to a COMMIT are still to be lost, each with its connection.
    """

    def __init__(self, server_port: int) -> None:
        self.losses = 0
        self._losing: set[socket.socket] = set()
        self._server_port = server_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in self._sockets:
            _shut(one)
        for thread in self._threads:
            thread.join(10)
        for one in self._sockets:
            one.close()

    def _start(self, *call: object) -> None:
        thread = threading.Thread(target=call[0], args=call[1:])  # type: ignore[arg-type]  # a method
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                server = socket.create_connection(("127.0.0.1", self._server_port))
                self._sockets += [client, server]
                self._start(self._pass_on, client, server, client)
                self._start(self._pass_on, server, client, client)

    def _pass_on(self, source: socket.socket, target: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if source is client and self.losses and _COMMIT.search(data):
                    self.losses -= 1
                    self._losing.add(client)
                elif source is not client and client in self._losing:
                    break  # the answer: it was carried out, and nobody hears of it
                target.sendall(data)
        _shut(source)
        _shut(target)


def _shut(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
