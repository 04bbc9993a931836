"""The environment variables of the runtime, as on Managed Instances."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from perinvoke.local.config import PRELOAD_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from perinvoke.local.config import LocalConfig

ISOLATING_HANDLER = "perinvoke.handler.handler"
DEFAULT_REGION = "us-east-1"

# Any of these says where credentials come from; then no dummy may get in the way.
_CREDENTIAL_SOURCES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
_CREDENTIAL_FILES = (
    ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
    ("AWS_CONFIG_FILE", "~/.aws/config"),
)


def runtime_handler(config: LocalConfig) -> str:
    """The handler that the runtime is told to run."""
    return ISOLATING_HANDLER if config.isolate else config.handler


def runtime_variables(config: LocalConfig, *, inherited: Mapping[str, str], api_address: str, log_socket: str) -> dict[str, str]:
    """Everything the runtime finds in its environment.

    Layers, the later one wins: what the caller has set, what Lambda sets, what the function's configuration sets, what the runner
    needs to reach its workers.
    """
    caller = {name: value for name, value in inherited.items() if name != "PYTHONSAFEPATH"}  # it would hide the code
    region = inherited.get("AWS_REGION") or inherited.get("AWS_DEFAULT_REGION") or DEFAULT_REGION
    return {
        **caller,
        **_platform_variables(config, region),
        **({} if _has_credentials({**caller, **config.env}) else _dummy_credentials()),
        **({"PERINVOKE_HANDLER": config.handler} if config.isolate else {}),
        **({PRELOAD_VARIABLE: config.preload} if config.preload else {}),
        **config.env,
        "AWS_LAMBDA_RUNTIME_API": api_address,
        "AWS_LAMBDA_MAX_CONCURRENCY": str(config.workers),
        "_HANDLER": runtime_handler(config),
        "_LAMBDA_TELEMETRY_LOG_FD_PROVIDER_SOCKET": log_socket,
    }


def _platform_variables(config: LocalConfig, region: str) -> dict[str, str]:
    today = datetime.now(UTC)
    return {
        # Whatever Python really runs: only from 3.12 on does the runtime poll in a thread of its own, which leaves the main
        # thread free to take signals, and Managed Instances begin with 3.13.
        "AWS_EXECUTION_ENV": "AWS_Lambda_python3.13",
        "AWS_LAMBDA_INITIALIZATION_TYPE": "lambda-managed-instances",
        "AWS_LAMBDA_FUNCTION_NAME": config.function_name,
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(config.memory_mb),
        "AWS_LAMBDA_LOG_FORMAT": "JSON",
        "AWS_LAMBDA_LOG_LEVEL": "INFO",
        "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{config.function_name}",
        "AWS_LAMBDA_LOG_STREAM_NAME": f"{today:%Y/%m/%d}/[$LATEST]{uuid4().hex}",
        "AWS_REGION": region,
        "AWS_DEFAULT_REGION": region,
        "LAMBDA_TASK_ROOT": str(config.directory),
        "TZ": ":UTC",
    }


def _has_credentials(variables: Mapping[str, str]) -> bool:
    if any(variables.get(name) for name in _CREDENTIAL_SOURCES):
        return True
    return any(_is_file(variables.get(name) or default) for name, default in _CREDENTIAL_FILES)


def _is_file(path: str) -> bool:
    try:
        return Path(path).expanduser().is_file()
    except (OSError, RuntimeError):  # no home directory: then nothing is in it
        return False


def _dummy_credentials() -> dict[str, str]:
    """Lets SDK clients be built and requests to local stand-ins be signed; no AWS service accepts them."""
    return {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local", "AWS_SESSION_TOKEN": "local"}


def inherited_variables() -> dict[str, str]:
    """The variables of this process, which the runtime starts from."""
    return dict(os.environ)
