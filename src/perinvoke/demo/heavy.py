"""A handler whose module imports what many functions import: the experiment weighs the workers that have loaded it."""

# ruff: noqa: ARG001  # Lambda hands every handler an event and a context, used or not

from __future__ import annotations

import time
from typing import Any

try:
    import boto3
except ImportError:  # what the demo itself needs is there in any case, and large
    import aiohttp
    import rich.console

    clients: tuple[Any, ...] = (aiohttp, rich.console)
else:
    clients = (boto3.client("s3"), boto3.client("dynamodb"))  # neither connects before its first request


def handler(event: Any, context: Any) -> int:
    """Keep the worker busy, so that each of them gets one."""
    time.sleep(event["seconds"])
    return len(clients)
