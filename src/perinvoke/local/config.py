"""What to run and how: one frozen, checked ``LocalConfig``."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from perinvoke.errors import HandlerError, LocalError
from perinvoke.local.extension_command import extension_command

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from perinvoke.local.logs import LogLine

MAX_WORKERS = 1_024  # arbitrary: 16 vCPUs with the 64 workers each that Lambda allows
MAX_TIMEOUT_SECONDS = 900.0  # Lambda's limit
MEMORY_MB = (128, 32_768)  # Lambda's limits for Managed Instances
INIT_SECONDS = 130.0  # what Managed Instances give init at least

PRELOAD_VARIABLE = "PERINVOKE_PRELOAD"

# Set by the runner itself; another value would cut the worker off from it.
RESERVED_VARIABLES = frozenset(
    {"AWS_LAMBDA_RUNTIME_API", "AWS_LAMBDA_MAX_CONCURRENCY", "_HANDLER", "_LAMBDA_TELEMETRY_LOG_FD_PROVIDER_SOCKET"}
)


@dataclass(frozen=True, kw_only=True)
class LocalConfig:
    """One local execution environment, fully described. Raises ``LocalError`` or ``HandlerError`` for what can't be run.

    Attributes:
        handler: module and function as Lambda writes them: ``app.handler``, ``folder/module.handler``.
        workers: invocations at once, one process each.
        timeout_seconds: the function's time-out, counted from the hand-over to a worker.
        directory: the function's code; the runtime's current directory.
        env: variables for the function; they win over everything except what the runner itself needs.
        isolate: run the handler through ``perinvoke.handler.handler``.
        supervise: run the runtime below ``python -m perinvoke.runtime``, which replaces workers that die.
        preload: what that imports before the fork, as in ``PERINVOKE_PRELOAD``; implies ``supervise``. That variable in
            ``env`` must not say otherwise.
        extensions: what runs beside the runtime and speaks Lambda's extensions API: ``pgbouncer``, which is perinvoke's own, or
            commands.
        queue: invocations that find all workers busy wait in line instead of being rejected.
        port: of the Invoke and runtime APIs on 127.0.0.1; 0 picks a free one.
        memory_mb: only told to the function; nothing enforces it.
        function_name: told to the function.
        on_log: called with every log line; mustn't block, mustn't raise.
        init_timeout_seconds: None gives what Lambda gives: 130 seconds, or the time-out where that is longer.
        python: the interpreter that runs the function; awslambdaric must be installed for it.
    """

    handler: str
    workers: int = 8
    timeout_seconds: float = 30.0
    directory: Path = field(default_factory=Path.cwd)
    env: Mapping[str, str] = field(default_factory=dict)
    isolate: bool = False
    supervise: bool = False
    preload: str = ""
    extensions: tuple[str, ...] = ()
    queue: bool = False
    port: int = 0
    memory_mb: int = 2_048
    function_name: str = "function"
    on_log: Callable[[LogLine], None] | None = None
    init_timeout_seconds: float | None = None
    python: str = sys.executable

    def __post_init__(self) -> None:
        if not sys.platform.startswith("linux"):
            raise LocalError(f"running a handler locally needs Linux; this is {sys.platform}. A container does")
        check_handler(self.handler)
        _check_number("workers", self.workers, 1, MAX_WORKERS)
        if not 0 < self.timeout_seconds <= MAX_TIMEOUT_SECONDS:  # also refuses nan
            raise LocalError(
                f"timeout is {self.timeout_seconds:g} seconds; Lambda allows more than 0, up to {MAX_TIMEOUT_SECONDS:g}"
            )
        _check_number("port", self.port, 0, 65_535)
        _check_number("memory", self.memory_mb, *MEMORY_MB)
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", self.function_name):
            raise LocalError(f"function name {self.function_name!r}: letters, digits, - and _, up to 64, are allowed")
        _check_variables(self.env)
        self._check_preload()
        for extension in self.extensions:
            extension_command(extension, self.python)
        directory = Path(self.directory).absolute()
        if not directory.is_dir():
            raise LocalError(f"directory {directory} {'is not a directory' if directory.exists() else 'does not exist'}")
        object.__setattr__(self, "directory", directory)

    def _check_preload(self) -> None:
        if not self.preload:
            return
        _check_variables({PRELOAD_VARIABLE: self.preload})
        other = self.env.get(PRELOAD_VARIABLE, self.preload)
        if other != self.preload:
            raise LocalError(f"preload is {self.preload!r}, and the variable {PRELOAD_VARIABLE} is {other!r}; give one of them")
        object.__setattr__(self, "supervise", True)

    @property
    def init_seconds(self) -> float:
        """How long init may take before the start is given up."""
        if self.init_timeout_seconds is not None:
            return self.init_timeout_seconds
        return max(INIT_SECONDS, self.timeout_seconds)


def check_handler(handler: str) -> None:
    """Refuse a name that can't be a handler's; whether the module exists is for the runtime to say."""
    module, _, function = handler.rpartition(".")
    parts = [*module.replace("/", ".").split("."), function]
    # No more than that: my-function/app-2.handler is no Python name and yet imported by the runtime.
    if not all(parts) or any(character.isspace() or character == "\0" for character in handler):
        raise HandlerError(
            f"handler {handler!r} is not of the form module.function, such as app.handler or folder/module.handler",
            handler=handler,
        )


def _check_number(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise LocalError(f"{name} is {value!r}; a whole number from {low} to {high} is allowed")


def _check_variables(env: Mapping[str, str]) -> None:
    for name, value in env.items():
        if not name or "=" in name or "\0" in name + value:
            raise LocalError(f"environment variable {name!r}: the name must not be empty or hold '=', neither part a NUL")
        if name in RESERVED_VARIABLES:
            raise LocalError(f"environment variable {name} is set by the runner and can't be overridden")
