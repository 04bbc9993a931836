"""moto's DynamoDB as a server in a process of its own, which counts its requests: no client shares its interpreter.

``python benchmarks/moto_process.py`` prints its port, and ends when its stdin is closed: also when whoever started it has died.
"""

from __future__ import annotations

import socketserver
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast
from urllib.request import ProxyHandler, build_opener

if TYPE_CHECKING:
    from collections.abc import Mapping

_SERVED = "/served-since-the-last-look"
REGION = "eu-west-1"


class MotoProcess:
    """The server, as those see it who use it; lives as long as its ``with`` block."""

    def __enter__(self) -> Self:
        command = [sys.executable, str(Path(__file__))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # closes its stdin

    def served(self) -> int:
        """How many requests of DynamoDB's it was sent since the last look."""
        with build_opener(ProxyHandler({})).open(self.url + _SERVED, timeout=30) as response:
            return int(response.read())

    def account(self) -> dict[str, str]:
        """What boto3 needs to come here."""
        return account_at(self.url)


def account_at(url: str) -> dict[str, str]:
    """What boto3 needs to come to the server with that URL."""
    return {
        "endpoint_url": url,
        "region_name": REGION,
        "aws_access_key_id": "test",
        "aws_secret_access_key": "test",
    }


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

        super().__init__(("127.0.0.1", 0), _Connection)
        self._app = DomainDispatcherApplication(create_backend_app)
        self._one_at_a_time = threading.Lock()  # moto reads and then writes without a lock; DynamoDB's conditions hold for one
        self._served = 0

    def served(self) -> bytes:
        with self._one_at_a_time:
            served, self._served = self._served, 0
        return str(served).encode()

    def answer(self, path: str, headers: Mapping[str, str], body: bytes) -> tuple[str, list[tuple[str, str]], bytes]:
        from werkzeug.test import EnvironBuilder, run_wsgi_app

        base = f"http://127.0.0.1:{self.server_address[1]}"
        environ = EnvironBuilder(path=path, method="POST", headers=headers.items(), data=body, base_url=base).get_environ()
        with self._one_at_a_time:
            self._served += 1
            parts, status, told = run_wsgi_app(self._app, environ)
            return status, [(name, value) for name, value in told if name.lower().startswith("x-amz")], b"".join(parts)


class _Connection(socketserver.StreamRequestHandler):
    """One client's, which it keeps open; http.server would read its headers ten times as slowly."""

    disable_nagle_algorithm = True

    def handle(self) -> None:
        server = cast("_Server", self.server)
        while line := self.rfile.readline().decode().strip():
            path, headers = line.split()[1], self._headers()
            body = self.rfile.read(int(headers.get("content-length", "0")))
            if path == _SERVED:
                self._send("200 OK", [], server.served())
            else:
                self._send(*server.answer(path, headers, body))

    def _headers(self) -> dict[str, str]:
        headers = {}
        while line := self.rfile.readline().decode().strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return headers

    def _send(self, status: str, headers: list[tuple[str, str]], body: bytes) -> None:
        told = "".join(f"{name}: {value}\r\n" for name, value in headers)
        self.wfile.write(f"HTTP/1.1 {status}\r\n{told}Content-Length: {len(body)}\r\n\r\n".encode() + body)


def main() -> None:
    """Serve until stdin is closed."""
    with _Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(server.server_address[1], flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
