"""The root that all workers share, and the one directory below it that belongs to this worker.

The root is checked before anything is put in it: it may stand in a world-writable /tmp, where others could have made it first.
A worker's directory proves by itself whether its worker lives: the worker holds ``flock`` on it, which the kernel gives up when
the last process holding it is gone, however it went. A pid proves nothing: it is given to the next process.

A process that the worker forks inherits the open directory and with it the proof, as it should: it may still use the files. One
that the worker executes does not (``O_CLOEXEC``).
"""

from __future__ import annotations

import errno
import os
import stat
import threading

from perinvoke.environment.disk_usage import FULL, scratch_full
from perinvoke.environment.kernel_lock import is_at, open_directory, try_lock
from perinvoke.environment.names import worker_name
from perinvoke.errors import RootError, ScratchUnavailable

_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOLCK})


class WorkerDirectory:
    """This worker's directory below the root, made when first asked for; lives as long as the worker.

    Thread-safe. A forked child forgets it.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self._path: str | None = None
        self._fd = -1
        self._opened: os.stat_result | None = None
        self._lock = threading.Lock()  # two invocations that end in two threads may both find the directory gone

    def ensure(self) -> str:
        """Make sure the directory exists, mode 0700 and locked, and return it. Doesn't block.

        Raises:
            RootError: the root can't be used or trusted.
            ScratchFull: the disk is full.
            ScratchUnavailable: no file can be opened for now.
        """
        with self._lock:
            if self._path is None or not os.path.isdir(self._path):
                self._path = self._made()
            return self._path

    def _made(self) -> str:
        self._close()
        check_root(self.root)
        try:
            path, self._fd = _made_and_locked(self.root)
        except OSError as error:
            raise not_made(self.root, error) from error
        self._opened = os.fstat(self._fd)
        return path

    def _close(self) -> None:
        """Close the lock, unless a handler closed all descriptors it found and the number is somebody else's by now."""
        fd, self._fd = self._fd, -1
        try:
            if fd >= 0 and self._opened is not None and os.path.samestat(os.fstat(fd), self._opened):
                os.close(fd)
        except OSError:
            pass


def check_root(root: str) -> None:
    """Make the root if it is missing, and see that it is ours alone to write to.

    Raises:
        RootError: it is a symlink, no directory, somebody else's, writable by others, or can't be made.
        ScratchFull: the disk is full.
    """
    try:
        os.mkdir(root, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise not_made(root, error) from error
    found = os.lstat(root)
    if stat.S_ISLNK(found.st_mode):
        raise _refused(root, "it is a symbolic link", "Name the directory itself")
    if not stat.S_ISDIR(found.st_mode):
        raise _refused(root, "it is not a directory", "Remove it, or name another")
    if found.st_uid != os.geteuid():
        raise _refused(root, f"it belongs to user {found.st_uid}, not to user {os.geteuid()}", "Name a directory of your own")
    if found.st_mode & 0o022:
        mine = "Name a folder of your own below it" if found.st_mode & stat.S_ISVTX else f"Run: chmod go-w {root}"
        raise _refused(root, f"others may write to it (mode {stat.S_IMODE(found.st_mode):04o})", mine)
    if not os.access(root, os.R_OK | os.W_OK | os.X_OK):
        raise _refused(root, "it is not writable", "Name a writable directory below /tmp")


def _made_and_locked(root: str) -> tuple[str, int]:
    """A new directory, locked before anybody could take it for a dead worker's.

    Between ``mkdir`` and ``flock`` a worker that reclaims may lock it and rename it away. Then our lock fails, or it lies on a
    directory that has another name by now: both are seen, and the next name is tried.
    """
    while True:
        path = os.path.join(root, worker_name())
        os.mkdir(path, 0o700)
        fd = -1
        try:
            fd = open_directory(path)
            if try_lock(fd) and is_at(fd, path):
                os.fchmod(fd, 0o700)  # the umask may have taken bits away
                return path, fd
            os.close(fd)
        except FileNotFoundError:
            continue
        except BaseException:  # no descriptor, no kernel memory for a lock: nothing may stay of the try
            if fd >= 0:
                os.close(fd)
            os.rmdir(path)
            raise


def not_made(root: str, error: OSError) -> RootError | ScratchUnavailable:
    """The error for something of perinvoke's own below ``root`` that could not be made."""
    if error.errno in FULL:
        return scratch_full(root, "perinvoke can't make its directory")
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in _SHORTAGES:
        return ScratchUnavailable(f"perinvoke can't make its directory below {root}: {reason}. Try again in a moment.", path=root)
    return _refused(root, reason, "Its parent must exist and be writable")


def _refused(root: str, reason: str, next_step: str) -> RootError:
    return RootError(
        f"perinvoke can't keep its files below {root}: {reason}. {next_step}; PERINVOKE_ROOT says where.",
        path=root,
    )
