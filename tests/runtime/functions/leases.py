"""A function that takes a lease, and then does with it what its event says."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

from perinvoke import current, isolated
from perinvoke.fleet.dynamodb import LeaseLock, LeaseTimeout, TableUnavailable


def _lock(event: dict[str, Any], **options: Any) -> LeaseLock:
    return LeaseLock(os.environ["TABLE"], event["key"], **options)


def hold(event: dict[str, Any]) -> dict[str, Any]:
    """Hold it for a moment, and tell when that was; all workers have one monotonic clock."""
    with _lock(event) as lock:
        entered = time.monotonic()
        time.sleep(event.get("seconds", 0.005))
        return {"entered": entered, "left": time.monotonic(), "token": lock.token, "lost": lock.lost, "pid": os.getpid()}


def die(event: dict[str, Any]) -> None:
    _lock(event).acquire()
    os.kill(os.getpid(), signal.SIGKILL)


def hang(event: dict[str, Any]) -> None:
    with _lock(event, heartbeat=event.get("heartbeat", False), lease_seconds=event.get("lease_seconds")):
        while True:
            time.sleep(0.01)


def hang_while_waiting(event: dict[str, Any]) -> None:
    """Until the deadline interrupts it: what it waits with has more patience than it should."""
    while True:
        try:
            _lock(event).acquire()
        except (LeaseTimeout, TableUnavailable):
            continue


def forget(event: dict[str, Any]) -> str:
    _lock(event).acquire()
    return current().request_id


def forget_in_thread(event: dict[str, Any]) -> str:
    thread = threading.Thread(target=lambda: _lock(event, heartbeat=True).acquire())
    thread.start()
    thread.join()
    return current().request_id


@isolated
def handler(event: dict[str, Any], context: object) -> Any:
    return {use.__name__: use for use in (hold, die, hang, hang_while_waiting, forget, forget_in_thread)}[event["use"]](event)
