"""A function that is still at it when its deadline comes, in every way docs/deadlines.md names; each ends by itself at last."""

from __future__ import annotations

import asyncio
import ctypes
import queue
import socket
import sqlite3
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from perinvoke import current, isolated

LAST_SECONDS = 9.0  # what nothing can interrupt, ends then: 4 seconds after the platform's cut
POOL = ThreadPoolExecutor(4)
LIBRARY = ctypes.CDLL(None)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def stuck_in_c(seconds: float) -> None:
    """A call of C that no signal ends: waiting for a mutex that this thread itself has locked."""
    mutex = ctypes.create_string_buffer(64)
    LIBRARY.pthread_mutex_init(mutex, None)
    LIBRARY.pthread_mutex_lock(mutex)
    until = time.time() + seconds
    LIBRARY.pthread_mutex_timedlock(mutex, ctypes.byref(_Timespec(int(until), int(until % 1 * 1e9))))


def _loop() -> None:
    while True:
        pass


def _lock() -> None:
    lock = threading.Lock()
    lock.acquire()
    with lock:
        pass


def _socket() -> None:
    ours, _theirs = socket.socketpair()
    ours.recv(1)


def _with_pool() -> None:
    with ThreadPoolExecutor() as pool:
        pool.submit(time.sleep, LAST_SECONDS).result()


def _swallow(error: type[BaseException]) -> None:
    until = time.monotonic() + LAST_SECONDS
    while time.monotonic() < until:
        try:
            time.sleep(0.2)
            raise ValueError
        except error:
            pass


WAYS = {
    "`time.sleep`": lambda: time.sleep(60),
    "a loop in Python": _loop,
    "waiting for a `threading.Lock`": _lock,
    "waiting for a `queue.Queue`": lambda: queue.Queue[int]().get(),
    "waiting for a socket": _socket,
    "waiting for a child process (`subprocess.run`)": lambda: subprocess.run(["sleep", "60"], check=False),
    "waiting for a call in a thread pool that lives on": lambda: POOL.submit(time.sleep, LAST_SECONDS).result(),
    "`with ThreadPoolExecutor()`, which waits for its threads": _with_pool,
    "a handler that swallows `Exception`": lambda: _swallow(Exception),
    "a handler that swallows `BaseException`": lambda: _swallow(BaseException),
    "a call of C that returns before the platform's cut": lambda: stuck_in_c(3.0),
    "a call of C that returns later": lambda: stuck_in_c(LAST_SECONDS),
}


async def _block() -> None:
    time.sleep(60)  # noqa: ASYNC251  # that it blocks is the point


ASYNC_WAYS = {
    "`async`: `asyncio.sleep`": lambda: asyncio.sleep(60),
    "`async`: a call that blocks the event loop": _block,
}


@isolated
def handler(event: dict[str, Any], context: Any) -> str:
    """Do as told, or nothing."""
    current().defer(print, "cleaned up")
    if "way" in event:
        WAYS[event["way"]]()
    if "database" in event:
        with sqlite3.connect(event["database"]) as connection:
            connection.execute("insert into t values ('half done')")
            time.sleep(60)
    return "done"


@isolated
async def async_handler(event: dict[str, Any], context: Any) -> str:
    """The async kind."""
    current().defer(print, "cleaned up")
    if "way" in event:
        await ASYNC_WAYS[event["way"]]()
    return "done"
