"""Removing lock files that nobody uses, without ever splitting those who wait for a lock, or telling them it is taken.

* A lock file is unlinked only by who holds it exclusively. Who opened it before and is granted the lock after sees that the file
  has no name any more, and starts over (``file_lock``; ``filelock`` does so too).
* For the moment of the look a lock seems taken. Who waits for it is served a moment later. Who only tries it would be told that
  somebody holds it: so a try that failed is repeated while the sweep is shut out, by a lock on the directory that both take.
"""

from __future__ import annotations

import fcntl
import os
import time

from perinvoke.environment.kernel_lock import LOCK_FILE, Look

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

# A young one is likely to be used again soon. Arbitrary.
_MIN_AGE_SECONDS = 60.0
# Files. What is looked at in one go, about 30 µs each: as long as one may be shut out, and a try may have to wait.
_BATCH = 100
# How long one sweep may take: about 3,000 files. Arbitrary.
_MAX_SWEEP_SECONDS = 0.1
# How long a try waits for a sweep to end; a sweep takes 3 ms, and more where its process gets no time on a CPU.
_MAX_WAIT_SECONDS = 1.0
_SUFFIX = ".lock"


class NoSweep:
    """Shuts sweeps of a directory out, waiting for one that runs, for a moment; lives as long as a try. A context manager.

    Attributes:
        holds: they are shut out. False: there is no such directory, or the sweeping process stands still.
    """

    def __init__(self, directory: str) -> None:
        self._look: Look | None = None
        self.holds = False
        try:
            self._look = Look(directory)
        except OSError:
            return
        self.holds = _shared(self._look.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._look is not None:
            self._look.close()


def sweep(directory: str) -> int:
    """Remove lock files below ``directory`` that are neither young nor held, for a short time. Returns how many."""
    try:
        names = [name for name in os.listdir(directory) if name.endswith(_SUFFIX)]
    except OSError:
        return 0
    start = int.from_bytes(os.urandom(4), "big") % max(1, len(names))  # those that stay must not hide the rest
    names = names[start:] + names[:start]
    until, removed = time.monotonic() + _MAX_SWEEP_SECONDS, 0
    for first in range(0, len(names), _BATCH):
        try:
            with Look(directory) as look:  # for each batch anew: a try may be waiting to shut us out
                if not look.has_lock():
                    break  # another sweeps, or somebody tries a lock
                removed += sum(_removed(f"{directory}/{name}") for name in names[first : first + _BATCH])
        except OSError:
            break
        if time.monotonic() > until:
            break
    return removed


def _shared(fd: int) -> bool:
    until = time.monotonic() + _MAX_WAIT_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                return False  # the sweeping process is stopped: what it holds, it holds
            time.sleep(0.0005)
        else:
            return True


def _removed(path: str) -> bool:
    """Remove one lock file, if nobody holds it."""
    try:
        with Look(path, LOCK_FILE) as look:
            if time.time() - os.fstat(look.fd).st_mtime < _MIN_AGE_SECONDS or not look.has_lock():
                return False
            os.unlink(path)
            return True
    except OSError:
        return False  # gone meanwhile, or no lock file
