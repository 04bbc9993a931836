"""Removing used directories after the answer: renamed away at once, removed by a thread that lives only while there is work.

Rules:
* ``take`` costs the invocation one rename (and one thread start where none is running), whatever the size of the tree.
* What may pile up is bounded: from ``MAX_BACKLOG`` directories on, whoever brings another removes one himself.
* No thread waits idle: a worker whose handler forks would get Python's warning about forking with threads each time. It still
  may while something is being removed.
* The tree may hold anything, and a thread of the ended invocation may still be writing to it. So removal never walks into a
  directory by its path: it renames each subdirectory to the top of the trash first. A mount point refuses that rename, a
  symlink is moved as a symlink, and no depth is too deep; nothing outside the tree can be reached.
* The thread also does what else must not delay an answer (``do_later``).
* What can't be removed is kept, reported once, and tried again with the next batch. When the worker dies, what it left is found
  by the next worker.
"""

from __future__ import annotations

import collections
import contextvars
import errno
import functools
import itertools
import logging
import math
import os
import stat
import threading
import time

from perinvoke.errors import PerinvokeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# Directories. Arbitrary: what one worker leaves in a burst, little enough for a /tmp of 512 MB shared by 16 workers.
MAX_BACKLOG = 16
# The answer goes first: the thread that ends the invocation needs the interpreter's lock for about a millisecond more.
_HEAD_START_SECONDS = 0.002
# How long emptying waits for what the remover is at; arbitrary: a full disk is removed in less.
_LAST_REMOVAL_SECONDS = 2.0
# How often a directory that a thread keeps writing to is emptied before it is left for later.
_ATTEMPTS = 3

logger = logging.getLogger("perinvoke")


class Trash:
    """Directories waiting to be removed; lives as long as the worker. Thread-safe; a forked child forgets it.

    Args:
        directory: makes sure that the trash directory exists, and returns it.
    """

    def __init__(self, directory: Callable[[], str]) -> None:
        self._directory = directory
        self._names = itertools.count()
        self._chores: list[Callable[[], object]] = []
        # Guards the collections: invocations that end in several threads, and the remover. A lock of C: no Condition,
        # whose own lock a signal handler that raises in the middle of it leaves held.
        self._lock = threading.Lock()
        self._pending: collections.deque[str] = collections.deque()
        self._stuck: list[str] = []
        self._reported: set[str] = set()
        self._remover: threading.Thread | None = None

    @property
    def removing(self) -> bool:
        """Whether the remover's thread is running."""
        return self._remover is not None and self._remover.is_alive()

    def is_only_company(self) -> bool:
        """Whether no thread but this one, and perhaps the remover, runs in the process."""
        threads = threading.active_count()
        return threads == 1 or threads - self.removing <= 1

    def take(self, path: str) -> None:
        """Make ``path`` disappear from its place at once, and have it removed. Raises nothing."""
        try:
            path = self._moved_up(path)
        except FileNotFoundError:
            return
        except (OSError, PerinvokeError):
            pass  # a mount point, a full disk, no root any more: the remover tries again and reports it
        self._put(path, bounded=True)

    def adopt(self, path: str) -> bool:
        """``take`` what isn't this worker's own: however much that is, it is no backlog, and nobody waits for it. Raises nothing.

        False when it could not be moved: then it is left alone. Who holds a lock on it gives that up now, and later it may be in
        use again.
        """
        try:
            path = self._moved_up(path)
        except (OSError, PerinvokeError):
            return False
        self._put(path, bounded=False)
        return True

    def do_later(self, chore: Callable[[], object]) -> None:
        """Call ``chore`` in the remover's thread. Doesn't block; costs one thread start where none is running.

        A chore must raise nothing. One that waits already, because a signal handler interrupted this, is dropped for this one.
        """
        with self._lock:
            self._chores = [chore]
            start = not self.removing
        if start:
            self._start_removing()

    def empty(self, max_seconds: float = math.inf) -> None:
        """Remove everything pending, in this thread: for when the disk is full. Blocks for as long as that takes, or so long."""
        until = time.monotonic() + max_seconds
        while time.monotonic() < until and (path := self._next()) is not None:
            self._remove(path)
        remover = self._remover
        if remover is not None and remover.is_alive() and remover is not threading.current_thread():
            remover.join(max(0.0, min(until - time.monotonic(), _LAST_REMOVAL_SECONDS)))  # it is removing its last one

    def remove_with(self, home: str) -> None:
        """Remove everything, and ``home``, in which the trash directory lies. Mount points stay, and then ``home`` does."""
        try:
            directory = self._directory()
            self.empty()
            for name in os.listdir(home):
                if os.path.join(home, name) != directory:
                    self._remove(os.path.join(home, name))
            os.rmdir(directory)
            os.rmdir(home)
        except (OSError, PerinvokeError):
            pass  # what resists is found by the next worker

    def wait_empty(self, timeout: float) -> bool:
        """Wait until nothing is pending or being removed; False when ``timeout`` seconds were not enough. Polls: for tests."""
        until = time.monotonic() + timeout
        while self.removing or self._pending:
            if time.monotonic() > until:
                return False
            time.sleep(0.001)
        return True

    def _put(self, path: str, *, bounded: bool) -> None:
        with self._lock:
            self._pending.append(path)
            overfull = bounded and len(self._pending) > MAX_BACKLOG
            start = not self.removing
        if start:
            self._start_removing()
        if overfull and (oldest := self._next()) is not None:
            self._remove(oldest)

    def _start_removing(self) -> None:
        """Start the remover. Two threads may both do so, or an interruption none: the next take starts one again."""
        remover = self._remover = threading.Thread(target=self._remove_pending, name="perinvoke-trash", daemon=True)
        try:
            # An empty context: the thread belongs to no invocation, and on Python 3.14 it would inherit the ending one.
            contextvars.Context().run(remover.start)
        except RuntimeError:  # no thread can be had: at interpreter exit, or at the limit of the environment
            self._remove_pending()

    def _remove_pending(self) -> None:
        time.sleep(_HEAD_START_SECONDS)
        with self._lock:
            stuck, self._stuck = self._stuck, []
            self._pending.extend(stuck)
        while True:
            # The decision to end and its announcement are one step: a take() that comes after sees it and starts a new thread.
            with self._lock:
                if not self._pending and not self._chores:
                    if self._remover is threading.current_thread():
                        self._remover = None
                    return
                chore = self._chores.pop() if self._chores else functools.partial(self._remove, self._pending.popleft())
            chore()

    def _next(self) -> str | None:
        with self._lock:
            return self._pending.popleft() if self._pending else None

    def _remove(self, path: str) -> None:
        """Remove one tree; what resists is kept for the next batch and reported the first time."""
        trees = [path]
        while trees:
            tree = trees.pop()
            try:
                # A directory that can't be moved may be a mount point, and what is in it somebody's data: it isn't entered.
                if os.path.dirname(tree) != self._directory():
                    tree = self._moved_up(tree)  # from here on it has this name
                self._strip(tree, subdirectories=trees)
            except FileNotFoundError:
                pass
            except (OSError, PerinvokeError) as error:
                self._keep(tree, error)

    def _strip(self, tree: str, subdirectories: list[str]) -> None:
        """Remove ``tree`` but for its subdirectories: those are moved up, and their new paths appended to the list."""
        if not stat.S_ISDIR(os.lstat(tree).st_mode):
            os.unlink(tree)
            return
        _make_removable(tree)
        for attempt in range(_ATTEMPTS):
            self._empty_directory(tree, subdirectories)
            try:
                os.rmdir(tree)
            except OSError as error:
                if error.errno != errno.ENOTEMPTY or attempt == _ATTEMPTS - 1:
                    raise
                time.sleep(0.01)  # a thread of the ended invocation still writes here; it meets ENOENT once we get through
            else:
                return

    def _empty_directory(self, tree: str, subdirectories: list[str]) -> None:
        resisting: OSError | None = None
        with os.scandir(tree) as entries:
            for entry in entries:
                try:
                    if entry.is_dir(follow_symlinks=False):
                        subdirectories.append(self._moved_up(entry.path))
                    else:
                        os.unlink(entry.path)
                except FileNotFoundError:
                    pass
                except OSError as error:  # a mount point: it stays, and so does the directory that holds it
                    resisting = error
        if resisting is not None:
            raise resisting

    def _moved_up(self, path: str) -> str:
        target = self._new_name()
        try:
            os.rename(path, target)
        except PermissionError:  # a directory without the write bit can't change its parent
            _make_removable(path)
            os.rename(path, target)
        return target

    def _keep(self, path: str, error: OSError | PerinvokeError) -> None:
        with self._lock:
            self._stuck.append(path)
        if path not in self._reported:
            self._reported.add(path)
            logger.warning("perinvoke could not remove %s: %s; it will be tried again", path, error)

    def _new_name(self) -> str:
        return os.path.join(self._directory(), f"{next(self._names)}")


def _make_removable(path: str) -> None:
    """Give the owner back the bits that removal needs; a handler may have left a directory unreadable."""
    mode = os.lstat(path).st_mode
    if stat.S_ISDIR(mode) and mode & stat.S_IRWXU != stat.S_IRWXU:
        os.chmod(path, 0o700)
