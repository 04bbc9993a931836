"""Child processes of tests: started, found by a mark in their environment, waited for."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable

MARK = "PERINVOKE_TEST_MARK"


class Process:
    """A child process that runs a few lines; told to go on, and killed if need be."""

    def __init__(self, code: str) -> None:
        prelude = "import os, sys, time\nfrom pathlib import Path\nfrom perinvoke import *\nimport filelock\n"
        self.popen = subprocess.Popen(
            [sys.executable, "-c", prelude + code], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
        )

    def line(self) -> str:
        assert self.popen.stdout is not None
        return self.popen.stdout.readline().strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.popen.kill()
        self.popen.communicate()


def marked(mark: str) -> list[int]:
    """The living processes that were started with ``MARK=mark``."""
    wanted = f"{MARK}={mark}".encode()
    return [pid for pid in _all_pids() if wanted in _read(pid, "environ").split(b"\0") and alive(pid)]


def alive(pid: int) -> bool:
    """Whether the process is there and not a zombie."""
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    return bool(fields) and fields[0] != b"Z"


def descriptors_below(folder: Path) -> list[str]:
    """What this process has open below a folder: unlike all that it has open, nothing that earlier tests have left."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except OSError:  # closed meanwhile
            continue
        if Path(target).is_relative_to(folder):
            found.append(target)
    return found


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
