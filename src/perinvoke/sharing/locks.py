"""``file_lock``: a lock between workers, by name."""

from __future__ import annotations

import os

from perinvoke.environment.file_lock import FileLock
from perinvoke.environment.names import LOCKS, encoded_length, is_text
from perinvoke.errors import LockError
from perinvoke.sharing.asker import asker, settings
from perinvoke.sharing.root import Root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from perinvoke.sharing.asker import Asker

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
        ScratchFull: when used: the disk is full, and the lock has no file yet.
        RootError: the root can't be used or trusted.
    """
    if isinstance(name, os.PathLike):
        return FileLock(_beside(name), shared=shared, timeout=timeout, owner=asker)
    home = Root(settings())
    return FileLock(_below(home.root, name), shared=shared, timeout=timeout, owner=asker, home=home)


def lock_of(name: str, owner: Asker) -> FileLock:
    """``file_lock(name)`` of one owner, in whatever thread it is used."""
    home = Root(settings())
    return FileLock(_below(home.root, name), shared=False, timeout=None, owner=lambda: owner, home=home)


def _below(root: str, name: str) -> str:
    if not is_text(name) or name in {".", ".."} or "/" in name or "\0" in name:
        raise LockError(f"a lock's name is {name!r}; allowed is a plain name without '/', or a pathlib.Path of what it protects")
    _check_length(name)
    return os.path.join(root, LOCKS, name + _SUFFIX)


def _beside(path: os.PathLike[str]) -> str:
    text = os.path.abspath(os.fspath(path))  # now: the working directory may be another one when it is used
    if "\0" in text or text == "/":
        raise LockError(f"{text!r} can't be locked: it has no name to put {_SUFFIX} behind", path=text)
    _check_length(os.path.basename(text))
    return text + _SUFFIX


def _check_length(name: str) -> None:
    length = encoded_length(name) + len(_SUFFIX)
    if length > _MAX_NAME_BYTES:
        raise LockError(f"the lock file of {name[:40]!r}… would have a name of {length} bytes; {_MAX_NAME_BYTES} are allowed")
