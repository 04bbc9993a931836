"""The Lambda extensions API, 2020-01-01, as an extension speaks it.

By hand over a socket, in HTTP/1.0: the module ``http.client`` loads TLS, and with it six MiB that would stay beside the workers.
"""

from __future__ import annotations

import json
import socket
from typing import Any

from perinvoke.errors import TryAgain

_PREFIX = "/2020-01-01/extension"
_ANSWER_SECONDS = 5.0  # from a platform on the same machine; to the first event it is waited without a bound
_MAX_BYTES = 1_048_576
_OK = (200, 202)
_IDENTIFIER = "lambda-extension-identifier"


class ExtensionApiError(TryAgain):
    """The platform refuses, or doesn't answer."""


class ExtensionApi:
    """Lives as long as the extension.

    Args:
        address: of the API, ``host:port``.
        name: the extension's, which has to be that of its file.
    """

    def __init__(self, address: str, name: str) -> None:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise ExtensionApiError(f"AWS_LAMBDA_RUNTIME_API is {address!r}, and should be host:port")
        self._address = (host, int(port))
        self._name = name
        self._identifier: str | None = None
        self._waiting: socket.socket | None = None
        self._asked = False

    @property
    def is_ready(self) -> bool:
        """Whether it has asked for an event: then its init is over."""
        return self._asked

    def register(self) -> None:
        """Register for the end of the environment: nothing else can be asked for on Managed Instances. Idempotent."""
        if self._identifier is None:
            _, headers, _ = self._call("POST", "/register", {"events": ["SHUTDOWN"]}, {"Lambda-Extension-Name": self._name})
            self._identifier = headers.get(_IDENTIFIER, "")

    def ask(self) -> int:
        """Ask for the next event; a descriptor that becomes readable when it comes. Doesn't wait for it."""
        self._waiting = self._send("GET", "/event/next", None, {})
        self._asked = True
        return self._waiting.fileno()

    def event(self) -> dict[str, Any]:
        """The event that was asked for."""
        assert self._waiting is not None
        connection, self._waiting = self._waiting, None
        _, _, body = _received(connection)
        event = json.loads(body) if body else {}
        return event if isinstance(event, dict) else {}

    def fail_init(self, error_type: str, message: str) -> None:
        """Tell that this extension can't be initialised."""
        self.register()
        self._fail("/init/error", error_type, message)

    def fail(self, error_type: str, message: str) -> None:
        """Tell that this extension ends though it shouldn't."""
        self._fail("/exit/error", error_type, message)

    def close(self) -> None:
        """Ask no more. Idempotent."""
        if self._waiting is not None:
            self._waiting.close()
            self._waiting = None

    def _fail(self, path: str, error_type: str, message: str) -> None:
        error = {"errorMessage": message, "errorType": error_type, "stackTrace": []}
        self._call("POST", path, error, {"Lambda-Extension-Function-Error-Type": error_type})

    def _call(
        self, method: str, path: str, body: dict[str, Any] | None, headers: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        return _received(self._send(method, path, body, headers))

    def _send(self, method: str, path: str, body: dict[str, Any] | None, headers: dict[str, str]) -> socket.socket:
        data = b"" if body is None else json.dumps(body).encode()
        if self._identifier:
            headers = {"Lambda-Extension-Identifier": self._identifier, **headers}
        if body is not None:
            headers = {**headers, "Content-Type": "application/json"}
        headers = {"Host": ":".join(map(str, self._address)), "Content-Length": str(len(data)), **headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        try:
            connection = socket.create_connection(self._address, _ANSWER_SECONDS)
        except OSError as error:
            raise ExtensionApiError(
                f"the extensions API at {':'.join(map(str, self._address))} can't be reached: {error}"
            ) from error
        try:
            connection.sendall(f"{method} {_PREFIX}{path} HTTP/1.0\r\n{head}\r\n".encode() + data)
        except OSError as error:
            connection.close()
            raise ExtensionApiError(f"the extensions API has hung up: {error}") from error
        return connection


def _received(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Read an answer to its end, which in HTTP/1.0 is the connection's."""
    received = b""
    try:
        with connection:
            while len(received) < _MAX_BYTES and (data := connection.recv(65_536)):
                received += data
    except OSError as error:
        raise ExtensionApiError(f"the extensions API has not answered: {error}") from error
    answer = parse_answer(received)
    if answer is None:
        raise ExtensionApiError("the extensions API has hung up without an answer")
    status, _, body = answer
    if status not in _OK:
        raise ExtensionApiError(f"the extensions API answers {status}: {body[:1000].decode(errors='replace').strip()}")
    return answer


def parse_answer(received: bytes) -> tuple[int, dict[str, str], bytes] | None:
    """Status, headers (their names in small letters) and body; None where that isn't a complete answer. Pure."""
    head, blank, body = received.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    words = status_line.split(" ", 2)
    if not blank or not words[0].startswith("HTTP/") or len(words) < 2 or not words[1].isdigit():  # noqa: PLR2004
        return None
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return int(words[1]), headers, body
