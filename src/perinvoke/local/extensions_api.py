"""The Lambda extensions API, 2020-01-01, as extensions see it on Managed Instances: SHUTDOWN is the only event there.

What is refused, and with which error type, is as in AWS's own Runtime Interface Emulator for Managed Instances.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import uuid4

from aiohttp import web

from perinvoke.local.outcome import MAX_RESPONSE_BYTES
from perinvoke.local.reading import Oversized, read_body
from perinvoke.local.runtime_api import InitError, parse_init_error
from perinvoke.local.stages import EXTENSION_TRANSITIONS, ExtensionStage

if TYPE_CHECKING:
    from collections.abc import Callable

PREFIX = "/2020-01-01/extension/"
SHUTDOWN = "SHUTDOWN"
_NAME = "Lambda-Extension-Name"
_IDENTIFIER = "Lambda-Extension-Identifier"
_ERROR_TYPE = "Lambda-Extension-Function-Error-Type"


@dataclass(slots=True, eq=False)
class Extension:
    """One extension; lives as long as its environment. ``external``: a process of its own, not a part of the runtime."""

    name: str
    external: bool
    id: str = field(default_factory=lambda: str(uuid4()))
    stage: ExtensionStage = ExtensionStage.STARTED
    wants_shutdown: bool = False

    def move(self, stage: ExtensionStage) -> None:
        """Take the next stage; one that may not follow is a bug of ours."""
        assert stage in EXTENSION_TRANSITIONS[self.stage], f"{self.name}: {self.stage} -> {stage}"
        self.stage = stage

    def may_move(self, stage: ExtensionStage) -> bool:
        """Whether that stage may follow."""
        return stage in EXTENSION_TRANSITIONS[self.stage]


@dataclass(frozen=True, slots=True)
class Function:
    """What extensions are told of the function."""

    name: str
    handler: str


class ExtensionsApi:
    """Lives as long as its execution environment.

    Args:
        function: what extensions are told of.
        find: the external extension that registers under this name, over a connection from this port; None: it is a part of the
            runtime.
        on_change: an extension has taken another stage.
        on_error: an external extension reports that it can't go on.
    """

    def __init__(
        self,
        function: Function,
        *,
        find: Callable[[str, int | None], Extension | None],
        on_change: Callable[[], None],
        on_error: Callable[[Extension, InitError], None],
    ) -> None:
        self._function = function
        self._find = find
        self._on_change = on_change
        self._on_error = on_error
        self._known: dict[str, Extension] = {}
        self._shutdown: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def shut_down(self, seconds: float, reason: str) -> None:
        """Give all that wait for an event, or will, that of the end. Idempotent."""
        if not self._shutdown.done():
            deadline_ms = int((time.time() + seconds) * 1000)
            event = {"eventType": SHUTDOWN, "deadlineMs": deadline_ms, "shutdownReason": reason}
            self._shutdown.set_result(json.dumps(event).encode())

    async def handle(self, request: web.BaseRequest) -> web.Response:
        """Answer a request below ``PREFIX``."""
        what = (request.method, request.path[len(PREFIX) :])
        if what == ("POST", "register"):
            return await self._register(request)
        if what not in (("GET", "event/next"), ("POST", "init/error"), ("POST", "exit/error")):
            return _error(404, "NotFound", f"no {request.method} {request.path} here")
        if _IDENTIFIER not in request.headers:
            return _error(403, "Extension.MissingHeader", f"Missing {_IDENTIFIER} header")
        extension = self._known.get(request.headers[_IDENTIFIER])
        if extension is None:
            return _error(403, "Extension.UnknownExtensionIdentifier", f"Unknown extension {request.headers[_IDENTIFIER]}")
        if what[0] == "GET":
            return await self._next(extension)
        return await self._fail(extension, request)

    async def _register(self, request: web.BaseRequest) -> web.Response:
        name = request.headers.get(_NAME, "")
        if not name:
            return _error(403, "Extension.InvalidExtensionName", "Empty extension name")
        body = await read_body(request, MAX_RESPONSE_BYTES)
        events = None if isinstance(body, Oversized) else _events(body)
        if events is None:
            return _error(403, "InvalidRequestFormat", 'the body must be a JSON object such as {"events": ["SHUTDOWN"]}')
        peer = request.transport.get_extra_info("peername") if request.transport is not None else None
        extension = self._find(name, peer[1] if peer else None) or Extension(name, external=False)
        wrong = [event for event in events if event != SHUTDOWN or not extension.external]
        if wrong:
            why = "invalid event type: on Managed Instances there is only SHUTDOWN"
            if not extension.external:
                why = "No events allowed for internal extensions"
            return _error(403, "Extension.InvalidEventType", f"{wrong[0]}: {why}")
        if not extension.may_move(ExtensionStage.REGISTERED):
            return _invalid_state(extension, ExtensionStage.REGISTERED)
        extension.name, extension.wants_shutdown = name, SHUTDOWN in events
        extension.move(ExtensionStage.REGISTERED)
        self._known[extension.id] = extension
        self._on_change()
        told = {"functionName": self._function.name, "functionVersion": "$LATEST", "handler": self._function.handler}
        return web.json_response(told, headers={_IDENTIFIER: extension.id})

    async def _next(self, extension: Extension) -> web.Response:
        if extension.stage is ExtensionStage.REGISTERED:
            extension.move(ExtensionStage.READY)
            self._on_change()
        elif extension.stage is not ExtensionStage.READY:
            return _invalid_state(extension, ExtensionStage.READY)
        event = await asyncio.shield(self._shutdown)
        if extension.may_move(ExtensionStage.SHUTTING_DOWN):
            extension.move(ExtensionStage.SHUTTING_DOWN)
        return web.Response(body=event, content_type="application/json")

    async def _fail(self, extension: Extension, request: web.BaseRequest) -> web.Response:
        error_type = request.headers.get(_ERROR_TYPE)
        body = await read_body(request, MAX_RESPONSE_BYTES)
        if error_type is None:
            return _error(403, "Extension.MissingHeader", f"{_ERROR_TYPE} not found")
        in_init = request.path.endswith("init/error")
        if not extension.may_move(ExtensionStage.FAILED) or (in_init and extension.stage is not ExtensionStage.REGISTERED):
            return _invalid_state(extension, ExtensionStage.FAILED)
        extension.move(ExtensionStage.FAILED)
        told = parse_init_error(b"" if isinstance(body, Oversized) else body)
        self._on_error(extension, InitError(error_type, told.message, told.stack_trace))
        return web.json_response({"status": "OK"}, status=202)


def _events(body: bytes) -> list[str] | None:
    try:
        events = json.loads(body).get("events", [])
    except (ValueError, AttributeError):
        return None
    return events if isinstance(events, list) and all(isinstance(event, str) for event in events) else None


def _invalid_state(extension: Extension, wanted: ExtensionStage) -> web.Response:
    message = f"State transition from {extension.stage.name} to {wanted.name} failed for extension {extension.name}"
    return _error(403, "Extension.InvalidExtensionState", message)


def _error(status: int, error_type: str, message: str) -> web.Response:
    return web.json_response({"errorMessage": message, "errorType": error_type}, status=status)
