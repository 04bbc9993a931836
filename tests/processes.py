"""Finds processes by a mark in their environment, and waits for what has no event to wait for."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

MARK = "PERINVOKE_TEST_MARK"


def marked(mark: str) -> list[int]:
    """The living processes that were started with ``MARK=mark``."""
    wanted = f"{MARK}={mark}".encode()
    return [pid for pid in _all_pids() if wanted in _read(pid, "environ").split(b"\0") and alive(pid)]


def alive(pid: int) -> bool:
    """Whether the process is there and not a zombie."""
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    return bool(fields) and fields[0] != b"Z"


def wait_until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for what nothing announces, such as the end of somebody else's process."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not so after {seconds} seconds"
        time.sleep(0.005)


def _all_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
