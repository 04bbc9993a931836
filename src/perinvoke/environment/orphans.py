"""What the dead left below the root is found by the living: workers' directories, builds that never finished, idle lock files.

Proof of death is a kernel lock that can be taken, never a pid. A worker's directory is reclaimed only if moreover no process uses
it: a child process that a worker started may outlive it and still write there. It is renamed into the finder's trash while the
lock is held, so of two finders one wins, and a worker that is just making the directory notices (see ``worker_directory``).
"""

from __future__ import annotations

import os
import re

from perinvoke.environment import shared_budget
from perinvoke.environment.kernel_lock import give_up, is_at, open_directory, try_lock
from perinvoke.environment.lock_sweep import sweep
from perinvoke.environment.names import BUILDING, ENTRY_LOCK, LOCKS, WORKER_PREFIX
from perinvoke.environment.shared_file import dead_builds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def reclaim(root: str, take: Callable[[str], None]) -> int:
    """Hand what dead workers left below ``root`` to ``take``, which moves it away. Returns how many directories.

    Costs four system calls a worker, three a shared file, and five a lock file, of which it looks at a bounded number. Only when
    a worker has died, all processes are looked through. Doesn't block; raises nothing: what can't be looked at is alive.
    """
    try:
        with os.scandir(root) as entries:
            workers = [entry.path for entry in entries if entry.name.startswith(WORKER_PREFIX)]
    except OSError:
        return 0
    used: set[str] | None = None
    reclaimed = 0
    for path in workers:
        fd = _proof_of_death(path)
        if fd is None:
            continue
        try:
            used = _used_by_processes(root) if used is None else used
            if os.path.basename(path) not in used:
                take(path)
                reclaimed += 1
        finally:
            give_up(fd)
    sweep(os.path.join(root, LOCKS))
    return reclaimed + sum(_reclaimed_builds(entry, take) for entry in shared_budget.entries(root))


def _proof_of_death(path: str) -> int | None:
    """The directory's lock, if it could be taken: its worker is dead."""
    try:
        fd = open_directory(path)
    except OSError:
        return None  # gone meanwhile, not a directory, not ours
    # Our own directory is locked through another open file description, so it counts as alive here too.
    if os.fstat(fd).st_uid == os.geteuid() and try_lock(fd) and is_at(fd, path):
        return fd
    give_up(fd)  # alive, or not at its place: another finder was quicker
    return None


def _reclaimed_builds(entry: str, take: Callable[[str], None]) -> int:
    """Take the builds of a shared file that nobody builds now; and remove the entry itself, when nothing else is in it."""
    names = _names(entry)
    if not any(name.startswith(BUILDING) for name in names) and names != [ENTRY_LOCK]:
        return 0
    try:
        fd = os.open(f"{entry}/{ENTRY_LOCK}", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return 0
    try:
        if not try_lock(fd) or not is_at(fd, f"{entry}/{ENTRY_LOCK}"):
            return 0  # being built
        builds = dead_builds(entry)
        for build in builds:
            take(build)
        if _names(entry) == [ENTRY_LOCK]:
            os.unlink(f"{entry}/{ENTRY_LOCK}")
            os.rmdir(entry)
        return len(builds)
    except OSError:
        return 0  # somebody makes the entry anew
    finally:
        give_up(fd)


def _used_by_processes(root: str) -> set[str]:
    """The names of the workers' directories that any process works in, has files open in, or was given as its ``TMPDIR``."""
    pattern = re.compile(re.escape(f"{root}/".encode()) + rb"(" + WORKER_PREFIX.encode() + rb"[0-9a-f-]+)")
    return {name.decode() for told in _told_by_processes() for name in pattern.findall(told)}


def _told_by_processes() -> Iterator[bytes]:
    for pid in _names("/proc"):
        if not pid.isdigit():
            continue
        process = f"/proc/{pid}"
        try:
            with open(f"{process}/environ", "rb") as environ:
                yield environ.read()
            yield os.fsencode(os.readlink(f"{process}/cwd"))
        except OSError:
            continue  # it has ended, or it is another user's and no child of ours
        if int(pid) != os.getpid():  # we have the directory open ourselves, to prove its worker's death
            yield from _open_files(process)


def _open_files(process: str) -> Iterator[bytes]:
    for fd in _names(f"{process}/fd"):
        try:
            yield os.fsencode(os.readlink(f"{process}/fd/{fd}"))
        except OSError:
            continue  # closed meanwhile


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []
