"""The HTTP server on 127.0.0.1: one port for the workers, the extensions and the callers."""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING

from aiohttp import web

from perinvoke.errors import LocalError, PortInUse
from perinvoke.local import extensions_api, runtime_api

if TYPE_CHECKING:
    from aiohttp.web_protocol import RequestHandler

    from perinvoke.local.extensions_api import ExtensionsApi
    from perinvoke.local.invoke_api import InvokeApi
    from perinvoke.local.runtime_api import RuntimeApi

HOST = "127.0.0.1"  # never anything wider: whoever can connect can run code here
# A worker's connection is silent while its handler runs, and a timed-out handler may run for ever: a day, so never in practice.
KEEPALIVE_SECONDS = 86_400.0
# Connections at the end are the workers', whose processes are gone already, and those of callers that were just answered.
SHUTDOWN_SECONDS = 2.0


class Server(web.Server):
    """Lives as long as its execution environment. aiohttp's low-level server: three prefixes need no router."""

    def __init__(self, runtime: RuntimeApi, extensions: ExtensionsApi, invoke: InvokeApi) -> None:
        super().__init__(
            self._route,
            handler_cancellation=True,  # an idle worker's end has to end its long poll
            access_log=None,
            keepalive_timeout=KEEPALIVE_SECONDS,
        )
        self._runtime = runtime
        self._extensions = extensions
        self._invoke = invoke
        self._listening: asyncio.Server | None = None

    async def listen(self, port: int) -> int:
        """Listen; the port, which is new when 0 was asked for."""
        loop = asyncio.get_running_loop()
        try:
            self._listening = await loop.create_server(self, HOST, port, backlog=1024)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                message = f"port {port} on {HOST} is in use; choose another with --port, or 0 for any free one"
                raise PortInUse(message, port=port) from error
            raise LocalError(f"can't listen on {HOST}:{port}: {error.strerror or error}") from error
        return int(self._listening.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening and end all connections."""
        if self._listening is not None:
            self._listening.close()
        self.pre_shutdown()  # ends the silent connections of callers that may call again; shutdown alone waits for them
        await self.shutdown(SHUTDOWN_SECONDS)

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        """Called by aiohttp when a connection has ended."""
        super().connection_lost(handler, exc)
        self._runtime.connection_lost(handler)

    async def _route(self, request: web.BaseRequest) -> web.Response:
        if request.path.startswith(runtime_api.PREFIX):
            return await self._runtime.handle(request)
        if request.path.startswith(extensions_api.PREFIX):
            return await self._extensions.handle(request)
        return await self._invoke.handle(request)
