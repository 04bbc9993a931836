"""What the exec wrapper goes by: one frozen, checked ``Config``, read from the environment once."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from perinvoke.settings import is_shared_process, not_allowed, whole_number

if TYPE_CHECKING:
    from collections.abc import Mapping

# What Lambda leaves a runtime between SIGTERM and SIGKILL, where an internal extension is registered.
_DEFAULT_STOP_MS = 500
MAX_WORKERS = 1_024  # each takes three of the 4,096 file descriptors that a Managed Instances environment may have


class Config(NamedTuple):
    """Lives as long as the runtime's parent. No dataclass, whose import would cost a cold start 8 ms; nor are others beside it.

    Attributes:
        workers: how many the platform asks for; None on ordinary Lambda, which runs one and doesn't say so.
        preload: the modules to import before the fork; ``handler`` stands for the module of the function's own handler.
        stop_seconds: what there is between SIGTERM and SIGKILL.
        api_address: of the runtime API, ``host:port``; None outside Lambda.
        handler: what the platform calls; None where it doesn't say.
        own_handler: what ``PERINVOKE_HANDLER`` names, the function's own where the platform calls perinvoke's.
        logs_as_json: the function's log format is JSON.
        log_level: the function's log level.
        shared_process: several invocations run at once in one worker.
    """

    workers: int | None
    preload: tuple[str, ...]
    stop_seconds: float
    api_address: str | None
    handler: str | None
    own_handler: str | None
    logs_as_json: bool
    log_level: str
    shared_process: bool


def read_config(environ: Mapping[str, str] | None = None) -> Config:
    """Read it.

    Raises:
        SettingError: a value isn't allowed; the error names the variable, the value and what is allowed.
    """
    environ = os.environ if environ is None else environ
    return Config(
        workers=_workers(environ),
        preload=_preload(environ),
        stop_seconds=whole_number(environ, "PERINVOKE_STOP_MS", "milliseconds", _DEFAULT_STOP_MS) / 1000,
        api_address=environ.get("AWS_LAMBDA_RUNTIME_API"),
        handler=environ.get("_HANDLER"),
        own_handler=environ.get("PERINVOKE_HANDLER"),
        logs_as_json=environ.get("AWS_LAMBDA_LOG_FORMAT", "").upper() == "JSON",
        log_level=environ.get("AWS_LAMBDA_LOG_LEVEL", ""),
        shared_process=is_shared_process(environ),
    )


def _workers(environ: Mapping[str, str]) -> int | None:
    name = "AWS_LAMBDA_MAX_CONCURRENCY"
    if name not in environ:
        return None
    workers = whole_number(environ, name, "workers", 0, least=1)
    if workers > MAX_WORKERS:
        raise not_allowed(name, environ[name], f"a whole number of workers from 1 to {MAX_WORKERS}")
    return workers


def _preload(environ: Mapping[str, str]) -> tuple[str, ...]:
    value = environ.get("PERINVOKE_PRELOAD", "")
    names = tuple(name.strip() for name in value.split(",")) if value.strip() else ()
    if not all(all(part.isidentifier() for part in name.split(".")) for name in names):
        raise not_allowed(
            "PERINVOKE_PRELOAD", value, "handler, or names of modules with commas between them, such as boto3,app.models"
        )
    return names
