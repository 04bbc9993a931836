"""moto behind a server that keeps connections open; moto's own closes each of them after one answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.test import EnvironBuilder, run_wsgi_app

from aws_server import AwsServer

if TYPE_CHECKING:
    from collections.abc import Iterable


class MotoServer(AwsServer):
    """All of moto's services; lives as long as its ``with`` block."""

    def __init__(self) -> None:
        super().__init__()
        self._app = DomainDispatcherApplication(create_backend_app)

    def reply_to(self, line: str, headers: dict[str, str], body: bytes) -> bytes | Iterable[bytes] | None:
        method, path, _ = line.split()
        environ = EnvironBuilder(path=path, method=method, headers=headers.items(), data=body, base_url=self.url).get_environ()
        parts, status, told = run_wsgi_app(self._app, environ)
        content = b"".join(parts)
        kept = "".join(f"{name}: {value}\r\n" for name, value in told if name.lower() not in {"connection", "content-length"})
        return f"HTTP/1.1 {status}\r\n{kept}Content-Length: {len(content)}\r\n\r\n".encode() + content
