"""What dead workers left below the root is found by the living.

A directory is reclaimed only on proof of death: its ``flock`` can be taken. It is renamed into the finder's trash while the lock
is held, so of two finders one wins, and a worker that is just making the directory notices (see ``worker_directory``).
"""

from __future__ import annotations

import os

from perinvoke.environment.worker_directory import PREFIX, is_at, open_directory, try_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def reclaim(root: str, take: Callable[[str], None]) -> int:
    """Hand every dead worker's directory below ``root`` to ``take``, which moves it away. Returns how many.

    Costs four system calls a directory; doesn't block; raises nothing: what can't be looked at is taken for alive.
    """
    try:
        with os.scandir(root) as entries:
            candidates = [entry.path for entry in entries if entry.name.startswith(PREFIX)]
    except OSError:
        return 0
    return sum(_reclaimed(path, take) for path in candidates)


def _reclaimed(path: str, take: Callable[[str], None]) -> bool:
    try:
        fd = open_directory(path)
    except OSError:
        return False  # gone meanwhile, not a directory, not ours
    try:
        # Our own directory is locked through another open file description, so it counts as alive here too.
        if os.fstat(fd).st_uid != os.geteuid() or not try_lock(fd) or not is_at(fd, path):
            return False  # not at its place: another finder was quicker
        take(path)
        return True
    finally:
        os.close(fd)
