"""Addresses at which clients hang: one that takes connections and never answers, one that doesn't even take them.

The kernel alone plays both; there is no thread that could be left.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Self

_FILLERS = 8  # more than the shortest backlog holds


class SilentServer:
    """Takes every connection, up to some thousands, and whatever is sent; never answers. Lives as long as its ``with`` block."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._listener = socket.create_server((host, 0), backlog=4096)
        self._listener.setblocking(False)
        self._taken: list[socket.socket] = []
        self.port: int = self._listener.getsockname()[1]

    def connections(self) -> int:
        """How many connections there have been; those that are open are kept open."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._taken.append(self._listener.accept()[0])
        return len(self._taken)

    def hang_up(self) -> None:
        """End the connections that there are; later ones are taken as before."""
        self.connections()
        for connection in self._taken:
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()
        self._listener.close()


class UnreachablePort:
    """A port at which connecting hangs, as behind a firewall: its backlog is full, so that the kernel drops what comes."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._listener = socket.create_server((host, 0), backlog=0)
        self.port: int = self._listener.getsockname()[1]
        self._fillers = [socket.socket() for _ in range(_FILLERS)]
        for filler in self._fillers:
            filler.setblocking(False)
            filler.connect_ex((host, self.port))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for filler in self._fillers:
            filler.close()
        self._listener.close()
