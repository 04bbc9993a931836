"""The Lambda runtime API, 2018-06-01, as the runtime's workers see it."""

from __future__ import annotations

import json
import select
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

from perinvoke.local.invocation import Answer, Invocation, Worker
from perinvoke.local.outcome import MAX_RESPONSE_BYTES, error_fields
from perinvoke.local.reading import Oversized, read_body
from perinvoke.local.stages import Verdict, WorkerStage

if TYPE_CHECKING:
    from collections.abc import Callable

    from perinvoke.local.dispatcher import Dispatcher

PREFIX = "/2018-06-01/runtime/"
_INVOCATION = "invocation/"


@dataclass(frozen=True, slots=True)
class InitError:
    """What the runtime reported instead of becoming ready."""

    error_type: str
    message: str
    stack_trace: tuple[str, ...] = ()


# What each verdict looks like on the wire: status, error type, message; as Lambda's runtime API words them.
_REPLIES: dict[Verdict, tuple[int, str, str]] = {
    Verdict.TOO_LARGE: (
        413,
        "RequestEntityTooLarge",
        f"Exceeded maximum allowed payload size ({MAX_RESPONSE_BYTES} bytes).",
    ),
    Verdict.TOO_LATE: (410, "InvokeTimeout", "Invoke timeout"),
    Verdict.UNKNOWN: (400, "InvalidRequestID", "Invalid request ID"),
}


class RuntimeApi:
    """Lives as long as its execution environment.

    ``identify`` finds the process behind a connection's port. ``supervised``: the runtime's parent holds the connections too, and
    may hand that of a dead worker to another one.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        *,
        identify: Callable[[int], int | None],
        on_init_error: Callable[[InitError], None],
        supervised: bool = False,
    ) -> None:
        self._dispatcher = dispatcher
        self._identify = identify
        self._on_init_error = on_init_error
        self._supervised = supervised
        self._workers: dict[object, Worker] = {}
        self._between: dict[int, Worker] = {}  # by pid: have answered, and not yet polled over a new connection
        self._init_error_seen = False

    async def handle(self, request: web.BaseRequest) -> web.Response:
        """Answer a request below ``PREFIX``."""
        what = request.path[len(PREFIX) :]
        if what == "invocation/next" and request.method == "GET":
            return await self._next(request)
        if request.method == "POST" and what == "init/error":
            return await self._init_error(request)
        if request.method == "POST" and what.startswith(_INVOCATION):
            request_id, _, kind = what[len(_INVOCATION) :].partition("/")
            if kind in ("response", "error"):
                return await self._answer(request, request_id, failed=kind == "error")
        return _error(404, "NotFound", f"no {request.method} {request.path} here")

    def connection_lost(self, connection: object) -> None:
        """A connection has ended; mostly the worker at its other end has too.

        But libcurl also drops a connection after an answer with an error status, and the worker polls over a new one. As long as
        nobody says that its process has ended, it counts as free meanwhile.
        """
        worker = self._workers.pop(connection, None)
        if worker is None:
            return
        if worker.stage is WorkerStage.RETURNING and worker.pid is not None:
            self._between[worker.pid] = worker
        else:
            self._dispatcher.remove(worker)

    def process_ended(self, pid: int) -> None:
        """A worker's process has ended, whoever may still hold copies of its connections."""
        self._between.pop(pid, None)
        connected = frozenset(self._workers.values())
        for worker in self._dispatcher.workers:
            if worker.pid != pid:
                continue
            if self._supervised and worker in connected:
                self._dispatcher.disown(worker)
                self.find_owner(worker)  # its heir may have been heard of first
            else:
                self._dispatcher.remove(worker)

    def process_started(self) -> None:
        """There is another worker process. Supervised, it may have taken over a connection."""
        if self._supervised:
            for worker in self._workers.values():
                if worker.pid is None:
                    self.find_owner(worker)

    def find_owner(self, worker: Worker) -> None:
        """Find out which process holds the worker's connection now, if any does that is known."""
        pid = self._identify(worker.port) if worker.port is not None else None
        if pid is not None:
            self._dispatcher.adopt(worker, pid)

    async def _next(self, request: web.BaseRequest) -> web.Response:
        worker = self._workers.get(request.protocol)
        if worker is None:
            worker = self._workers[request.protocol] = self._meet(request)
        elif worker.stage is WorkerStage.GONE and not self._supervised:
            # Sent before its process ended, and read afterwards; a child that it forked keeps the connection open.
            return _error(410, "InvalidStateTransition", "the process that asked has ended")
        invocation = await self._dispatcher.next(worker)
        return web.Response(body=invocation.request.event, headers=_next_headers(invocation))

    def _meet(self, request: web.BaseRequest) -> Worker:
        assert request.transport is not None
        host_and_port = request.transport.get_extra_info("peername")
        port = host_and_port[1] if host_and_port else None
        pid = self._identify(port) if port is not None else None
        worker = self._between.pop(pid, None) if pid is not None else None
        if worker is None:
            worker = Worker(pid=pid)
        worker.port = port
        worker.is_connected = _probe(request.transport)
        return worker

    async def _answer(self, request: web.BaseRequest, request_id: str, *, failed: bool) -> web.Response:
        body = await read_body(request, MAX_RESPONSE_BYTES)
        size, payload = (body.size_bytes, b"") if isinstance(body, Oversized) else (len(body), body)
        headers = request.headers
        answer = Answer(
            payload=payload,
            size_bytes=size,
            failed=failed,
            error_type=headers.get("Lambda-Runtime-Function-Error-Type"),
            content_type=headers.get("Content-Type") or "application/json",
        )
        invocation_id = headers.get("Lambda-Runtime-Invocation-Id")
        verdict = self._dispatcher.answer(request_id, answer, invocation_id=invocation_id)
        if verdict is Verdict.ACCEPTED:
            return _accepted()
        return _error(*_REPLIES[verdict])

    async def _init_error(self, request: web.BaseRequest) -> web.Response:
        body = await read_body(request, MAX_RESPONSE_BYTES)
        if self._init_error_seen:
            return _error(403, "InvalidStateTransition", "an init error has been reported before")
        self._init_error_seen = True
        self._on_init_error(parse_init_error(b"" if isinstance(body, Oversized) else body))
        return _accepted()


def parse_init_error(payload: bytes) -> InitError:
    """What the runtime posted, as far as it can be understood."""
    error_type, message = error_fields(payload)
    try:
        stack = json.loads(payload).get("stackTrace") or ()
        lines = tuple(str(line).rstrip("\n") for line in stack)
    except (ValueError, AttributeError, TypeError):
        lines = ()
    return InitError(error_type or "Runtime.Unknown", message or payload.decode(errors="replace"), lines)


def _next_headers(invocation: Invocation) -> dict[str, str]:
    request = invocation.request
    headers = {
        "Content-Type": "application/json",  # without it the runtime hands the event over as bytes
        "Lambda-Runtime-Aws-Request-Id": request.request_id,
        "Lambda-Runtime-Invocation-Id": invocation.id,
        "Lambda-Runtime-Deadline-Ms": str(invocation.deadline_epoch_ms),
        "Lambda-Runtime-Invoked-Function-Arn": request.invoked_function_arn or "",
        "Lambda-Runtime-Trace-Id": request.trace_id or "",
    }
    optional = {
        "Lambda-Runtime-Client-Context": request.client_context,
        "Lambda-Runtime-Cognito-Identity": request.cognito_identity,
        "Lambda-Runtime-Aws-Tenant-Id": request.tenant_id,
    }
    headers.update({name: value for name, value in optional.items() if value is not None})
    return headers


def _probe(transport: object) -> Callable[[], bool]:
    """A check whether the other end still holds the connection, also before the loop has read its end."""
    get_extra_info = transport.get_extra_info  # type: ignore[attr-defined]
    poll = select.poll()
    poll.register(get_extra_info("socket").fileno(), select.POLLRDHUP)
    return lambda: not transport.is_closing() and not poll.poll(0)  # type: ignore[attr-defined]


def _accepted() -> web.Response:
    return web.Response(status=202, body=b'{"status":"OK"}\n', content_type="application/json")


def _error(status: int, error_type: str, message: str) -> web.Response:
    body = json.dumps({"errorMessage": message, "errorType": error_type}).encode()
    return web.Response(status=status, body=body, content_type="application/json")
