"""What lies below the root: the names that more than one module must know, and what a name may be."""

from __future__ import annotations

import os
import time

WORKER_PREFIX = "worker-"
TRASH = "trash"  # in a worker's directory
LOCKS = "locks"
SHARED = "shared"
CONNECTIONS = "connections"
BUILDING = "building-"
ENTRY_LOCK = "lock"
# macOS has none; its monotonic clock doesn't stop either.
_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boot_ns() -> int:
    """Nanoseconds since boot: the same in all processes of a machine, and never set."""
    return time.clock_gettime_ns(_BOOT_CLOCK)


def worker_name() -> str:
    """A new name for this worker's directory: its pid for people to read, when it is made, and something unique."""
    return f"{WORKER_PREFIX}{os.getpid()}-{boot_ns():x}-{os.urandom(4).hex()}"


def made_at_ns(worker: str) -> int:
    """When the worker's directory of that name was made, since boot; 0 when the name doesn't tell."""
    try:
        return int(worker.split("-")[2], 16)
    except (IndexError, ValueError):
        return 0


def is_text(name: object) -> bool:
    """Whether it is text with something in it, whatever a caller passed."""
    return isinstance(name, str) and bool(name)


def encoded_length(name: str) -> int:
    """Bytes of the name on the disk; more than any name may have, where it can't be encoded."""
    try:
        return len(os.fsencode(name))
    except UnicodeEncodeError:  # half of a surrogate pair
        return 1 << 16
