"""What an invocation shares with the other workers: bounded by its deadline, and given back when it ends.

Joins the two scopes: ``environment`` does the sharing and knows nothing of invocations, ``invocation`` knows who asks.
"""

from __future__ import annotations

import math
import os
import sys
import threading

from perinvoke.environment.file_lock import FileLock
from perinvoke.environment.worker_directory import check_root
from perinvoke.errors import LockError
from perinvoke.invocation.context import running
from perinvoke.settings import read_settings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from pathlib import Path

    from perinvoke.invocation.context import Invocation

_LOCKS = "locks"
_SUFFIX = ".lock"
_MAX_NAME_BYTES = 255  # of one part of a path, on every file system that Lambda has


def file_lock(name: str | Path, *, shared: bool = False, timeout: float | None = None) -> FileLock:
    """A lock between the workers of this execution environment.

    A context manager and a decorator, with ``acquire()``, ``try_acquire()`` and ``release()``. Excludes every process that locks
    the same file, ``filelock.FileLock`` included. Waits in the kernel's queue, at most ``timeout`` seconds and at most until the
    invocation's deadline less a margin; outside an invocation and without a timeout, for as long as it takes. The kernel frees it
    when its holder dies; the end of the invocation gives it back. The same invocation may take it again in the same thread and
    task. A forked child doesn't hold it.

    Args:
        name: a name, for a lock file below perinvoke's root; or a ``Path``, which is locked through ``NAME.lock`` beside it.
        shared: readers: with other shared holders, but with no exclusive one.
        timeout: seconds.

    Raises:
        LockError: the name can't be a file's, the timeout is negative or no number; when used, the file can't be opened.
        LockTimeout: when used: others held it for all that time.
        RootError: the root can't be used or trusted.
    """
    if isinstance(name, os.PathLike):
        return FileLock(_beside(name), shared=shared, timeout=timeout, owner=_owner)
    return FileLock(_below_root(name), shared=shared, timeout=timeout, owner=_owner, make_directory=_make_locks_directory)


def _below_root(name: str) -> str:
    if not name or name in {".", ".."} or "/" in name or "\0" in name:
        raise LockError(f"a lock's name is {name!r}; allowed is a plain name without '/', or a pathlib.Path of what it protects")
    _check_length(name)
    invocation = running()
    root = (read_settings() if invocation is None else invocation.settings).root
    return os.path.join(root, _LOCKS, name + _SUFFIX)


def _make_locks_directory(directory: str) -> None:
    """Not before the first lock is taken: a module that is imported must not touch the disk. And again when /tmp was swept."""
    check_root(os.path.dirname(directory))
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        pass


def _beside(path: os.PathLike[str]) -> str:
    text = os.path.abspath(os.fspath(path))  # now: the working directory may be another one when it is used
    if "\0" in text or text == "/":
        raise LockError(f"{text!r} can't be locked: it has no name to put {_SUFFIX} behind", path=text)
    _check_length(os.path.basename(text))
    return text + _SUFFIX


def _check_length(name: str) -> None:
    length = len(os.fsencode(name)) + len(_SUFFIX)
    if length > _MAX_NAME_BYTES:
        raise LockError(f"the lock file of {name[:40]!r}… would have a name of {length} bytes; {_MAX_NAME_BYTES} are allowed")


class _Owner:
    """The invocation, thread and task that asks; lives as long as one call."""

    __slots__ = ("_invocation", "key")

    def __init__(self, invocation: Invocation | None) -> None:
        self._invocation = invocation
        self.key: Hashable = (invocation, threading.get_ident(), _task())

    def wait_seconds(self) -> float:
        if self._invocation is None:
            return math.inf
        margin_seconds = self._invocation.settings.timeout_margin_seconds
        return max(0.0, self._invocation.deadline.remaining_seconds() - margin_seconds)

    def at_end(self, give_back: Callable[[Hashable], list[str]]) -> None:
        if self._invocation is not None:
            self._invocation.held.setdefault(self.key, give_back)


def _owner() -> _Owner:
    return _Owner(running())


def _task() -> object:
    asyncio = sys.modules.get("asyncio")
    try:
        return None if asyncio is None else asyncio.current_task()
    except RuntimeError:
        return None  # no loop runs in this thread
