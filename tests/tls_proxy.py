"""Lets a PostgreSQL server that was built without TLS speak it: takes a client's TLS, and passes on what is in it."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path

_TLS_REQUEST = b"\0\0\0\x08\x04\xd2\x16\x2f"


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for ``localhost``, and its key, made by openssl."""
    certificate, key = folder / "server.crt", folder / "server.key"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    made = ["-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", "req", "-x509", *subject, *made], check=True, capture_output=True)
    return certificate, key


class TlsProxy:
    """Listens on 127.0.0.1; lives from ``with`` to its end. ``encrypted`` counts the connections that came with TLS."""

    def __init__(self, certificate_and_key: tuple[Path, Path], server_port: int) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(*certificate_and_key)
        self._server_port = server_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.encrypted = 0

    def __enter__(self) -> Self:
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _listen(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), client, socket.create_connection(("127.0.0.1", self._server_port)) as server:
            if client.recv(len(_TLS_REQUEST)) != _TLS_REQUEST:
                return
            client.sendall(b"S")
            with self._context.wrap_socket(client, server_side=True) as encrypted:
                self.encrypted += 1
                back = threading.Thread(target=_copy, args=(server, encrypted), daemon=True)
                back.start()
                _copy(encrypted, server)
                back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
