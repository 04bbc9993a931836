"""What the dead left below the root is found by the living: workers' directories, builds that never finished, idle lock files.

Proof of death is a kernel lock that can be taken, never a pid. A worker's directory is reclaimed only if moreover no process uses
it: a child process that a worker started may outlive it and still write there. It is renamed into the finder's trash while the
lock is held, so of two finders one wins, and a worker that is just making the directory notices (see ``worker_directory``).
"""

from __future__ import annotations

import os
import re

from perinvoke.environment.kernel_lock import LOCK_FILE, Look
from perinvoke.environment.lock_sweep import sweep
from perinvoke.environment.names import BUILDING, ENTRY_LOCK, LOCKS, TRASH, WORKER_PREFIX, made_at_ns
from perinvoke.environment.shared_budget import dead_builds, entries

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# proc(5): the 22nd field of /proc/PID/stat; the first two stand before the closing bracket.
_START_TIME = 19
_NEVER_NS = 1 << 63


def reclaim(root: str, take: Callable[[str], bool]) -> int:
    """Hand what dead workers left below ``root`` to ``take``, which moves it away. Returns how many directories.

    Costs four system calls a worker, three a shared file, and five a lock file, of which it looks at a bounded number. Only when
    a worker has died, all processes are looked through. Doesn't block; raises nothing: what can't be looked at is alive.
    """
    try:
        with os.scandir(root) as found:
            workers = [entry.path for entry in found if entry.name.startswith(WORKER_PREFIX)]
    except OSError:
        return 0
    reclaimed = _reclaimed_workers(root, workers, take)
    sweep(os.path.join(root, LOCKS))
    return reclaimed + sum(_reclaimed_builds(entry, take) for entry in entries(root))


def waste(root: str) -> list[str]:
    """What the workers below ``root``, the living too, have thrown away and not removed yet."""
    workers = [f"{root}/{name}" for name in _names(root) if name.startswith(WORKER_PREFIX)]
    return [f"{worker}/{TRASH}/{name}" for worker in workers for name in _names(f"{worker}/{TRASH}")]


def _reclaimed_workers(root: str, workers: list[str], take: Callable[[str], bool]) -> int:
    """Take the dead ones' directories. Processes are asked after the locks are had: a dead worker starts no more children."""
    dead = [(path, look) for path in workers if (look := _proof_of_death(path)) is not None]
    if not dead:
        return 0
    used = _Used(root)
    try:
        return sum(take(path) for path, _ in dead if not used.by_a_process(os.path.basename(path)))
    finally:
        for _, look in dead:
            look.close()


def _proof_of_death(path: str) -> Look | None:
    try:
        look = Look(path)
    except OSError:
        return None  # gone meanwhile, not a directory, not ours
    # Our own directory is locked through another open file description, so it counts as alive here too.
    if os.fstat(look.fd).st_uid == os.geteuid() and look.has_lock():
        return look
    look.close()
    return None


def _reclaimed_builds(entry: str, take: Callable[[str], bool]) -> int:
    """Take the builds of a shared file that nobody builds now; and remove the entry itself, when nothing else is in it."""
    names = _names(entry)
    if not any(name.startswith(BUILDING) for name in names) and names != [ENTRY_LOCK]:
        return 0
    try:
        with Look(f"{entry}/{ENTRY_LOCK}", LOCK_FILE) as look:
            if not look.has_lock():
                return 0  # being built
            reclaimed = sum(take(build) for build in dead_builds(entry))
            if _names(entry) == [ENTRY_LOCK]:
                os.unlink(f"{entry}/{ENTRY_LOCK}")
                os.rmdir(entry)
            return reclaimed
    except OSError:
        return 0  # it has no lock yet, or somebody makes the entry anew


class _Used:
    """Which workers' directories processes use at the time it is made; lives as long as one look."""

    def __init__(self, root: str) -> None:
        spellings = b"|".join(re.escape(os.fsencode(path)) for path in {root, os.path.realpath(root)})  # /proc tells real ones
        self._pattern = re.compile(rb"(?:" + spellings + rb")/(" + WORKER_PREFIX.encode() + rb"[0-9a-f-]+)")
        self._names: set[str] = set()
        self._hidden_ns: list[int] = [] if os.path.isdir("/proc/self") else [_NEVER_NS]  # when those started that hide from us
        for pid in _names("/proc"):
            if pid.isdigit():
                self._ask(pid)

    def by_a_process(self, worker: str) -> bool:
        """Whether any process works in the directory, has files open in it, or was given it as an argument or in a variable."""
        made_ns = made_at_ns(worker)
        return worker in self._names or any(started_ns >= made_ns for started_ns in self._hidden_ns)

    def _ask(self, pid: str) -> None:
        process = f"/proc/{pid}"
        try:
            told = [*_told_at_start(process), os.fsencode(os.readlink(f"{process}/cwd"))]
            if int(pid) != os.getpid():  # we have the directory open ourselves, to prove its worker's death
                told += _open_files(process)
        except PermissionError:
            if _is_our_users(process):  # one that hides from us may be a worker's child, if it is younger than the worker
                self._hidden_ns.append(_started_ns(process))
            return
        except OSError:
            return  # it has ended
        if not any(told[:2]) and _is_our_users(process):  # it is being executed: nobody sees yet what it was given
            self._hidden_ns.append(_started_ns(process))
        for text in told:
            self._names |= {name.decode() for name in self._pattern.findall(text)}


def _told_at_start(process: str) -> list[bytes]:
    """Its environment and its arguments; neither in the middle of ``execve``, and of the kernel's own threads."""
    os.readlink(f"{process}/exe")  # the kernel's threads have none, nor have those that have ended: for them this raises
    environ, arguments = _content(f"{process}/environ"), _content(f"{process}/cmdline")
    return [environ or _content(f"{process}/environ"), arguments]  # once more: it may have got there between the two


def _is_our_users(process: str) -> bool:
    try:
        fields = _content(f"{process}/status").partition(b"\nUid:")[2].split()
    except OSError:
        return False  # it has ended
    return str(os.geteuid()).encode() in fields[:4]


def _started_ns(process: str) -> int:
    """When it started, since boot, and a tick later at most; in doubt never, which is later than anything."""
    try:
        ticks = int(_content(f"{process}/stat").rpartition(b")")[2].split()[_START_TIME])
    except (OSError, ValueError, IndexError):
        return _NEVER_NS
    return (ticks + 1) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _open_files(process: str) -> list[bytes]:
    links = []
    for fd in os.listdir(f"{process}/fd"):
        try:
            links.append(os.fsencode(os.readlink(f"{process}/fd/{fd}")))
        except FileNotFoundError:
            continue  # closed meanwhile
    return links


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []
