"""Removing lock files that nobody uses, without ever splitting those who wait for a lock, or telling them it is taken.

* A lock file is unlinked only by who holds it exclusively. Who opened it before and is granted the lock after sees that the file
  has no name any more, and starts over (``file_lock``; ``filelock`` does so too).
* For the moment of the look a lock seems taken. Who waits for it is served a moment later. Who only tries it would be told that
  somebody holds it: so a try that failed is repeated while the sweep is shut out, by a lock on the directory that both take.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time

from perinvoke.environment.kernel_lock import give_up, is_at, open_directory, try_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# A young one is likely to be used again soon. Arbitrary.
_MIN_AGE_SECONDS = 60.0
# Files. What is looked at in one sweep, about 30 µs each: as long as one may be shut out, and a try may have to wait.
_BATCH = 100
# How long a try waits for a sweep to end; a sweep takes 3 ms, and more where its process gets no time on a CPU.
_MAX_WAIT_SECONDS = 1.0
_SUFFIX = ".lock"


@contextlib.contextmanager
def no_sweep(directory: str) -> Iterator[bool]:
    """Shut sweeps of ``directory`` out, waiting for one that runs, for a moment. False: none can be shut out."""
    try:
        fd = open_directory(directory)
    except OSError:
        yield False
        return
    try:
        yield _shared(fd)
    finally:
        give_up(fd)


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


def sweep(directory: str) -> int:
    """Remove lock files below ``directory`` that are neither young nor held; at most a batch. Returns how many. Doesn't block."""
    try:
        fd = open_directory(directory)
    except OSError:
        return 0
    try:
        if not try_lock(fd):
            return 0  # another sweeps, or somebody tries a lock
        return sum(_removed(path) for path in _candidates(directory))
    finally:
        give_up(fd)


def _candidates(directory: str) -> list[str]:
    names = [name for name in os.listdir(directory) if name.endswith(_SUFFIX)]
    start = int.from_bytes(os.urandom(4), "big") % max(1, len(names))  # those that stay must not hide the rest
    return [f"{directory}/{name}" for name in (names[start:] + names[:start])[:_BATCH]]


def _removed(path: str) -> bool:
    """Remove one lock file, if nobody holds it."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False  # gone meanwhile, or no lock file
    try:
        if time.time() - os.fstat(fd).st_mtime < _MIN_AGE_SECONDS or not try_lock(fd) or not is_at(fd, path):
            return False
        os.unlink(path)
        return True
    finally:
        give_up(fd)
