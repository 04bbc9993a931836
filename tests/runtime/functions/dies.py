"""A handler that ends in every way a worker can, and tells who it is otherwise."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from perinvoke import current, isolated

state = {"invocations": 0}


def handler(event: Any, context: Any) -> Any:
    state["invocations"] += 1
    how = event.get("how")
    if how in HOW:
        HOW[how](event)
    return {"pid": os.getpid(), "parent": os.getppid(), "random": random.random(), "echo": event.get("echo"), **state}


@isolated
def isolated_handler(event: Any, context: Any) -> Any:
    if event.get("cleanup"):
        current().defer(Path(event["cleanup"]).write_text, "done")
    return handler(event, context)


def exhaust_memory(event: Any) -> None:
    kept = []
    while True:
        kept.append(bytearray(1 << 20))


def detach_a_child(event: Any) -> None:
    child = subprocess.Popen(["sleep", "300"], start_new_session=True)
    Path(event["told"]).write_text(str(child.pid))
    os.kill(os.getpid(), signal.SIGKILL)


def block_signals(event: Any) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {signal.SIGKILL})
    Path(event["told"]).write_text("blocked")
    time.sleep(300)


def sleep(event: Any) -> None:
    if "told" in event:
        Path(event["told"]).write_text("begun")
    time.sleep(event["seconds"])


def close_all(event: Any) -> None:
    os.closerange(3, 4096)
    sleep(event)


def fork_and_come_back(event: Any) -> None:
    if os.fork() == 0:
        raise ValueError("as the child")
    time.sleep(0.3)


def hold_on(event: Any) -> None:
    """A thread that isn't a daemon keeps the interpreter from ending."""
    threading.Thread(target=time.sleep, args=(300,)).start()


HOW = {
    "SIGKILL": lambda event: os.kill(os.getpid(), signal.SIGKILL),
    "SIGSEGV": lambda event: ctypes.string_at(0),
    "os._exit": lambda event: os._exit(0),
    "sys.exit": lambda event: sys.exit(),
    "sys.exit(3)": lambda event: sys.exit(3),
    "memory": exhaust_memory,
    "child": detach_a_child,
    "block": block_signals,
    "sleep": sleep,
    "hold on": hold_on,
    "fork and come back": fork_and_come_back,
    "close all": close_all,
    "exec": lambda event: os.execv("/bin/sh", ["sh", "-c", "sleep 0.3; exit 5"]),
}
