"""The parent's side of the Lambda runtime API, 2018-06-01: answers for workers that can't any more.

By hand over a socket: ``http.client`` takes 15 ms to load. And by the time that it is needed, the function's folder comes first
on the module search path: one that has an ``email.py`` or ``http.py`` would take the place of what it needs.
"""

from __future__ import annotations

import json
import socket
import time

from perinvoke.runtime.mailbox import INVOCATION_ID, REQUEST_ID, connected, headers_of

_PREFIX = "/2018-06-01/runtime"
_ANSWER_SECONDS = 2.0  # for each thing it is waited for; a platform that takes longer is in trouble itself
_QUICK_SECONDS = 0.1  # ten times what it takes on a busy machine
_DRAIN_SECONDS = 0.1  # what the platform may take to notice that nobody asks any more, on the same machine
_MAX_HEAD_BYTES = 128 * 1024


class RuntimeApi:
    """Speaks with the runtime API at ``address`` (host:port); keeps no connection between two calls.

    Attributes:
        is_quick: it took no longer for the last answer than a platform on the same machine should.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self.is_quick = True

    def fail_invocation(self, request_id: str, invocation_id: str, error_type: str, message: str) -> bool:
        """Answer an invocation with an error; whether the platform took it. Blocks for two seconds or so.

        An invocation that has its answer already keeps that one: the platform takes the first.
        """
        headers = {INVOCATION_ID: invocation_id} if invocation_id else {}
        body = {**_error(error_type, message), "requestId": request_id}
        return self._post(f"/invocation/{request_id}/error", error_type, body, headers)

    def fail_init(self, error_type: str, message: str) -> bool:
        """Tell the platform that this environment can't be initialised; whether it heard. Blocks as long."""
        return self._post("/init/error", error_type, _error(error_type, message), {})

    def _post(self, path: str, error_type: str, body: dict[str, object], headers: dict[str, str]) -> bool:
        content = json.dumps(body).encode()
        lines = {
            "Host": self._address,
            "Content-Type": "application/json",
            "Content-Length": len(content),
            "Lambda-Runtime-Function-Error-Type": error_type,
            **headers,
        }
        head = "\r\n".join([f"POST {_PREFIX}{path} HTTP/1.1", *(f"{name}: {value}" for name, value in lines.items()), "", ""])
        began = time.monotonic()
        try:
            with connected(self._address, _ANSWER_SECONDS) as connection:
                connection.sendall(head.encode() + content)
                return _is_accepted(connection)
        except OSError:
            return False
        finally:
            self.is_quick = time.monotonic() - began < _QUICK_SECONDS


def _is_accepted(connection: socket.socket) -> bool:
    """Whether the answer's first line, all that says anything, is ``HTTP/1.1 202 …``."""
    received = b""
    while b"\r\n" not in received and len(received) < _MAX_HEAD_BYTES:
        more = connection.recv(65_536)
        if not more:
            return False
        received += more
    return received.split(maxsplit=2)[1:2] == [b"202"]


def _error(error_type: str, message: str) -> dict[str, object]:
    return {"errorMessage": message, "errorType": error_type, "stackTrace": []}


def drained(connections: list[socket.socket]) -> list[tuple[str, str]]:
    """Give up connections that nobody will ask on any more; the ids of what was handed out over them in the last moment.

    Closes only our sending halves and reads to the end, so that nothing that the platform has sent gets lost. Blocks for a tenth
    of a second at most, however many they are.
    """
    until = time.monotonic() + _DRAIN_SECONDS
    for connection in connections:
        _half_close(connection)
    found = [_ids_received(connection, until) for connection in connections]
    return [ids for ids in found if ids[0]]


def _half_close(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_WR)
    except OSError:  # the platform has closed it; what it sent before can still be read
        pass


def _ids_received(connection: socket.socket, until: float) -> tuple[str, str]:
    received = b""
    try:
        while b"\r\n\r\n" not in received and len(received) < _MAX_HEAD_BYTES:
            connection.settimeout(max(0.001, until - time.monotonic()))
            more = connection.recv(65_536)
            if not more:
                break
            received += more
    except OSError:  # time is up
        pass
    finally:
        connection.close()
    head, complete, _ = received.partition(b"\r\n\r\n")
    headers = headers_of(head) if complete else {}
    return headers.get(REQUEST_ID) or "", headers.get(INVOCATION_ID) or ""
