"""A function that ends in every way an invocation can end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from typing import Any

from perinvoke import current, isolated, scratch


@isolated
def handler(event: dict[str, Any], context: Any) -> Any:
    """Write a file, then do as told."""
    (scratch() / "left").write_text("x" * 1000)
    current().defer(print, "cleaned up")
    match event.get("how"):
        case "raise":
            raise ValueError("as told")
        case "exit":
            sys.exit(3)
        case "interrupt":
            raise KeyboardInterrupt
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "not json":
            return {1, 2}
        case "too large":
            return "x" * 7_000_000
        case "leave thread":
            threading.Thread(target=time.sleep, args=(0.5,), name="left-running", daemon=True).start()
        case "ten thousand files":
            for number in range(10_000):
                (scratch() / str(number)).touch()
    return os.getpid()


@isolated
async def async_handler(event: dict[str, Any], context: Any) -> Any:
    """The async kind, with a task left pending."""
    asyncio.create_task(asyncio.sleep(60), name="left-pending")  # noqa: RUF006  # that it is left is the point
    await asyncio.sleep(0)
    (scratch() / "left").write_text("x")
    return os.getpid()


not_callable = 3
