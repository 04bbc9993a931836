"""What a process owns that doesn't survive a fork: threads, sockets, event loops, open files, children, timers.

``look`` before and after an import, and ``left_between`` names what the import left. Rules:

* A Python thread never survives. A native one is let pass if its library ends it by itself before a fork and starts it again
  later, as OpenBLAS does (numpy): a trial fork shows it.
* A descriptor's file offset, socket stream or event queue would be shared by all workers, and a SQLite connection corrupts its
  database. Only what is harmless passes: devices without state, directories, files opened for appending, such as logs.

Memory maps, locks and objects that only remember their process id can't be seen from here.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import threading
from pathlib import Path
from typing import NamedTuple

from perinvoke.runtime.process_tree import children

_TIMERS = {
    signal.ITIMER_REAL: "a running timer (setitimer ITIMER_REAL, alarm)",
    signal.ITIMER_VIRTUAL: "a running timer (setitimer ITIMER_VIRTUAL)",
    signal.ITIMER_PROF: "a running timer (setitimer ITIMER_PROF)",
}


class Belongings(NamedTuple):
    """What the process owned at one moment.

    Attributes:
        descriptors: each with what it is, in words.
        threads: of Python, by ident, each with its name; without the main thread.
        native_threads: how many the kernel knows, less those of Python.
        children: the process ids of child processes, each with its name.
        timers: those that run, in words.
    """

    descriptors: dict[int, str]
    threads: dict[int, str]
    native_threads: int
    children: dict[int, str]
    timers: tuple[str, ...]


def look() -> Belongings:
    """What this process owns now. For the main thread. Forks a child if there are native threads, to see whether they end."""
    threads = {thread.ident or 0: thread.name for thread in threading.enumerate() if thread is not threading.main_thread()}
    native = _native_threads(len(threads))
    if native:
        _fork_for_trial()
        native = _native_threads(len(threads))
    return Belongings(
        descriptors={fd: told for fd in _descriptors() if (told := _told(fd)) is not None},
        threads=threads,
        native_threads=native,
        children={pid: _name(pid) for pid in children()},
        timers=tuple(told for which, told in _TIMERS.items() if any(signal.getitimer(which))),
    )


def left_between(before: Belongings, after: Belongings) -> list[str]:
    """What is there now and wasn't before, in words. Pure."""
    native = after.native_threads - before.native_threads
    return [
        *(f"thread {name!r}" for ident, name in after.threads.items() if ident not in before.threads),
        *([f"{native} native thread{'s' if native > 1 else ''} that a fork doesn't end"] if native > 0 else []),
        *(f"{told} (descriptor {fd})" for fd, told in after.descriptors.items() if before.descriptors.get(fd) != told),
        *(f"child process {pid} ({name})" for pid, name in after.children.items() if pid not in before.children),
        *(told for told in after.timers if told not in before.timers),
    ]


def _native_threads(of_python: int) -> int:
    return max(0, len(os.listdir("/proc/self/task")) - 1 - of_python)  # noqa: PTH208  # names are enough


def _fork_for_trial() -> None:
    """Let libraries do what they do before and after a fork. The child does nothing."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _descriptors() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208  # the same


def _told(fd: int) -> str | None:
    """What a descriptor is, if it doesn't survive a fork; None if it does, or is closed."""
    try:
        found = os.fstat(fd)
        target = os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115  # not a path
        appends = bool(_flags(fd) & os.O_APPEND)
    except OSError:
        return None
    if stat.S_ISSOCK(found.st_mode):
        return _told_socket(fd)
    if stat.S_ISDIR(found.st_mode) or stat.S_ISCHR(found.st_mode) or (stat.S_ISREG(found.st_mode) and appends):
        return None
    if stat.S_ISREG(found.st_mode):
        return f"open file {target}"
    if "eventpoll" in target:
        return "an event loop or selector"
    return f"open {target}"


def _flags(fd: int) -> int:
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
        if line.startswith("flags:"):
            return int(line.split()[1], 8)
    return 0


def _told_socket(fd: int) -> str:
    copy = socket.socket(fileno=os.dup(fd))
    with copy:
        try:
            return f"socket to {_told_address(copy.getpeername())}"
        except OSError:  # not connected
            pass
        try:
            return f"socket at {_told_address(copy.getsockname())}"
        except OSError:
            return "socket"


def _told_address(address: object) -> str:
    if isinstance(address, tuple):
        return f"{address[0]}:{address[1]}"
    return str(address) or "another in this process"


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "ended"
