"""The addresses at which the tests' clients hang do make them hang."""

from __future__ import annotations

import socket

import pytest

from hostile_servers import SilentServer, UnreachablePort


def test_a_silent_server_takes_connections_and_never_answers():
    with SilentServer() as server, socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.recv(1)
        assert server.connections() == 1
        server.hang_up()
        assert client.recv(1) == b""


def test_a_connect_to_an_unreachable_port_hangs():
    with UnreachablePort() as unreachable, pytest.raises(TimeoutError):
        socket.create_connection(("127.0.0.1", unreachable.port), timeout=0.3)
