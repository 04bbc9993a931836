"""The external extensions of an environment: their processes, which of them is where in its life, and how they end."""

from __future__ import annotations

import asyncio
import functools
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from perinvoke.exit_code import describe_exit
from perinvoke.local.extension_command import extension_command, extension_name
from perinvoke.local.extensions_api import Extension, ExtensionsApi, Function
from perinvoke.local.logs import Stream
from perinvoke.local.peers import owner_of
from perinvoke.local.process import RuntimeProcess
from perinvoke.local.runtime_api import InitError
from perinvoke.local.stages import ExtensionStage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from perinvoke.local.config import LocalConfig
    from perinvoke.local.logs import Logs

# What Managed Instances give for all of the end; here what the runtime's end takes doesn't count.
SHUTDOWN_SECONDS = 2.0
_LAST_WORDS_SECONDS = 0.1  # what it wrote just before its end is still on its way
# What the platform tells the runtime and not extensions.
_NOT_TOLD = frozenset({
    "AWS_EXECUTION_ENV", "AWS_LAMBDA_LOG_GROUP_NAME", "AWS_LAMBDA_LOG_STREAM_NAME", "AWS_LAMBDA_MAX_CONCURRENCY",
    "LAMBDA_RUNTIME_DIR", "LAMBDA_TASK_ROOT", "_HANDLER", "_LAMBDA_TELEMETRY_LOG_FD_PROVIDER_SOCKET",
})  # fmt: skip


class _External:
    """An extension with its process."""

    def __init__(self, wanted: str) -> None:
        self.extension = Extension(extension_name(wanted), external=True)
        self.process: RuntimeProcess | None = None
        self.ended = asyncio.Event()

    @property
    def pid(self) -> int | None:
        if self.process is None or not self.process.pid.done() or self.process.pid.cancelled():
            return None
        return self.process.pid.result()


class Extensions:
    """Lives as long as its execution environment.

    Args:
        config: of the environment.
        logs: where what they write goes.
        on_failure: one has reported an error, or has ended though nobody told it to; its name, and what is known.
    """

    def __init__(self, config: LocalConfig, logs: Logs, on_failure: Callable[[str, InitError], None]) -> None:
        self._config = config
        self._logs = logs
        self._on_failure = on_failure
        self._externals = [_External(wanted) for wanted in config.extensions]
        self._changed = asyncio.Event()
        self._failed: tuple[str, InitError] | None = None
        self._stopping = False
        self._port: int | None = None
        self.api = ExtensionsApi(
            Function(config.function_name, config.handler), find=self._find, on_change=self._changed.set, on_error=self._fail
        )

    # --- start -------------------------------------------------------------------------------------------------------

    def start(self, env: Mapping[str, str], folder: Path, port: int) -> None:
        """Start them; ``folder`` is where they may have one each, ``port`` that of the API."""
        self._port = port
        told = {name: value for name, value in env.items() if name not in _NOT_TOLD}
        for number, (external, wanted) in enumerate(zip(self._externals, self._config.extensions, strict=True)):
            own = folder / f"extension-{number}"
            own.mkdir()
            output = self._logs.read_output(Stream.EXTENSION)
            try:
                external.process = RuntimeProcess.start(
                    extension_command(wanted, self._config.python),
                    directory=self._config.directory,
                    env=told,
                    folder=own,
                    output=output,
                    on_exit=functools.partial(self._exited, external),
                )
            finally:
                os.close(output)

    async def wait_registered(self) -> tuple[str, InitError] | None:
        """Wait until all have registered; who failed instead, and how. Without a bound."""
        return await self._wait_until_past(ExtensionStage.STARTED)

    async def wait_ready(self) -> tuple[str, InitError] | None:
        """Wait until all have asked for an event; who failed instead, and how. Without a bound."""
        return await self._wait_until_past(ExtensionStage.STARTED, ExtensionStage.REGISTERED)

    def waiting_for(self) -> list[str]:
        """The names of those whose init isn't over."""
        early = (ExtensionStage.STARTED, ExtensionStage.REGISTERED)
        return [external.extension.name for external in self._externals if external.extension.stage in early]

    async def _wait_until_past(self, *stages: ExtensionStage) -> tuple[str, InitError] | None:
        while self._failed is None and any(external.extension.stage in stages for external in self._externals):
            self._changed.clear()
            await self._changed.wait()
        return self._failed

    # --- end ---------------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """End them at once; ``stop`` still has to be called."""
        self._stopping = True
        for external in self._externals:
            if external.process is not None:
                external.process.kill()

    async def stop(self) -> None:
        """Tell them of the end, give them time, end what is left; returns when no process is. Idempotent."""
        self._stopping = True
        started = [(external, external.process) for external in self._externals if external.process is not None]
        try:
            self.api.shut_down(SHUTDOWN_SECONDS, "spindown" if self._failed is None else "failure")
            until = time.monotonic() + SHUTDOWN_SECONDS
            for external, process in started:
                if not external.extension.wants_shutdown:
                    process.kill()
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, until - time.monotonic())):
                        await external.ended.wait()
        except asyncio.CancelledError:
            for _, process in started:
                process.kill_and_wait()
            raise
        finally:
            for _, process in started:
                process.kill()
                await process.stop()

    # --- what happens ------------------------------------------------------------------------------------------------

    def _find(self, name: str, port: int | None) -> Extension | None:
        """Whoever registers before the runtime runs is one of them: by its process, by its name, or the next that is missing."""
        missing = [external for external in self._externals if external.extension.stage is ExtensionStage.STARTED]
        by_pid = {external.pid: external for external in self._externals if external.pid is not None}
        if port is not None and self._port is not None:
            owner = owner_of(port, self._port, likely=by_pid, possible=by_pid)
            if owner is not None:
                return by_pid[owner].extension
        named = [external for external in self._externals if external.extension.name == name]
        found = next(iter([*(external for external in named if external in missing), *named, *missing]), None)
        return None if found is None else found.extension

    def _fail(self, extension: Extension, error: InitError) -> None:
        if self._failed is None and extension.external:
            self._failed = (extension.name, error)
            self._changed.set()
            self._on_failure(extension.name, error)

    def _exited(self, external: _External, code: int | None) -> None:
        extension = external.extension
        was = extension.stage
        extension.move(ExtensionStage.ENDED)
        external.ended.set()
        if self._stopping or was is ExtensionStage.FAILED:
            return
        how = "was killed with its keeper" if code is None else describe_exit(code)
        early = was in (ExtensionStage.STARTED, ExtensionStage.REGISTERED)
        message = f"it {how}" + (", before it had asked for an event" if early else "")
        # Its last words first.
        asyncio.get_running_loop().call_later(_LAST_WORDS_SECONDS, self._fail, extension, InitError("Extension.Crash", message))
