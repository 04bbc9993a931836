"""Scratch directories: one for each invocation, and no cost for a handler that never touches it.

How a directory costs nothing: one is kept prepared. Its modification time is set to a mark that no clock gives, so one ``stat``
at the end proves that nothing was made, renamed or removed in it. A fresh ``mtime`` would not prove that: the kernel stamps with
a clock that stands still for up to 10 ms, and a file made in the tick of the ``mkdir`` leaves no trace.

What may be used again, decided in ``_verdict``:

=========================================  ===========================================================
found at the end                           what happens
=========================================  ===========================================================
untouched, no other thread, never told     kept as it is
untouched, or few small files left alone   emptied, **renamed** to a new name, kept
anything else                              handed to the trash; the next invocation gets a new one
=========================================  ===========================================================

"Told" is a path that ``scratch()`` or ``tempfile`` gave; that one is never valid in another invocation. A directory that a
leftover thread or child process could still reach is never used again under its name.
"""

from __future__ import annotations

import enum
import errno
import itertools
import os
import stat
import threading

from perinvoke.errors import NotInInvocation, ScratchUnavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from perinvoke.errors import ScratchFull
    from perinvoke.invocation.trash import Trash

    class Space(Protocol):
        """The room on the disk, which invocations share with everybody."""

        def watch(self) -> None:
            """Make room if little is left."""

        def make_room(self) -> bool:
            """Remove all that nobody uses; whether that freed anything."""

        def full(self, what: str) -> ScratchFull:
            """The error for ``what``, which found the disk full."""


# Emptying in place costs the answer one unlink a file, about 20 µs each on ext4; a rename and a new directory cost about 100 µs.
_FEW_FILES = 4
# Bytes. A directory's own size; ext4 gives it more than a block when it has held hundreds of names, which take long to list.
_FEW_NAMES = 4096
# Bytes. Unlinking is slow for large files: ext4 frees their blocks in the call.
_SMALL_TOTAL = 256 * 1024

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

_PRIVATE_DIRECTORY = stat.S_IFDIR | 0o700


class Verdict(enum.Enum):
    """What becomes of a directory when its invocation ends."""

    KEEP = "keep"
    EMPTY_AND_RENAME = "empty and rename"
    TRASH = "trash"


class Shelf:
    """Prepared scratch directories; lives as long as the worker. Thread-safe; a forked child forgets it.

    Args:
        home: makes sure that the worker's directory exists, and returns it.
        trash: takes what can't be used again.
        space: watches the disk.
    """

    def __init__(self, home: Callable[[], str], trash: Trash, space: Space) -> None:
        self._home = home
        self._trash = trash
        self.space = space
        self._ready: list[str] = []
        self._numbers = itertools.count(1)
        # Long before perinvoke, and a fraction of a second of our own: no clock and no archive gives this time.
        self._mark_ns = 86_400_000_000_000 + int.from_bytes(os.urandom(3), "big")

    def take(self) -> str:
        """A directory nobody else has: empty, mode 0700. Doesn't block beyond one ``mkdir``, mostly not even that.

        Raises:
            ScratchFull: the disk is full.
            ScratchUnavailable: it can't be made for now.
            RootError: the root can't be used or trusted.
        """
        try:
            return self._ready.pop()
        except IndexError:
            return self.make()

    def make(self) -> str:
        """``take``, always a new one."""
        try:
            return self._made()
        except ScratchUnavailable:
            pass
        self.space.make_room()  # what we hold back ourselves must not be what fills the disk
        return self._made()

    def give_back(self, path: str, *, handed_out: bool, left_nobody: bool) -> None:
        """Take back an invocation's directory. Costs the answer at most a few small unlinks and two renames.

        Args:
            path: the directory, from ``take``.
            handed_out: the handler asked for the path.
            left_nobody: the invocation left no thread, no pooled work and no child process running.
        """
        try:
            found = os.lstat(path)
        except OSError:
            return  # the handler removed it
        touched = found.st_mtime_ns != self._mark_ns
        sound = found.st_mode == _PRIVATE_DIRECTORY
        verdict = _verdict(sound=sound, left_nobody=left_nobody, known=touched or handed_out, alone=self._trash.is_only_company())
        if verdict is Verdict.KEEP:
            if path not in self._ready:  # given back twice, because the first time was interrupted
                self._ready.append(path)
        elif verdict is Verdict.TRASH or found.st_size > _FEW_NAMES or not self._kept_under_new_name(path, touched=touched):
            self._trash.take(path)

    def _made(self) -> str:
        path = self._new_name()
        try:
            while not _is_new(path):  # made by a forked child, which counts on from where its parent was
                path = self._new_name()
            if os.lstat(path).st_mode != _PRIVATE_DIRECTORY:
                os.chmod(path, 0o700)  # the umask took bits away
            self._mark(path)
        except OSError as error:
            if error.errno in _FULL:
                raise self.space.full(f"no scratch directory can be made at {path}") from error
            raise ScratchUnavailable(
                f"no scratch directory can be made at {path}: {error.strerror}. Try again in a moment.",
                path=os.path.dirname(path),
            ) from error
        return path

    def _kept_under_new_name(self, path: str, *, touched: bool) -> bool:
        """False when the directory holds more than is worth the caller's time, or anything resists."""
        fresh = self._new_name()
        try:
            if touched and not _emptied(path):
                return False
            os.rename(path, fresh)
            self._mark(fresh)
        except OSError:
            return False
        self._ready.append(fresh)
        return True

    def _new_name(self) -> str:
        return f"{self._home()}/{next(self._numbers)}"

    def _mark(self, path: str) -> None:
        os.utime(path, ns=(self._mark_ns, self._mark_ns))


def _is_new(path: str) -> bool:
    """Make the directory; False when there is something of that name."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return False
    return True


def _verdict(*, sound: bool, left_nobody: bool, known: bool, alone: bool) -> Verdict:
    if not sound or not left_nobody or (known and not alone):
        return Verdict.TRASH
    return Verdict.KEEP if alone and not known else Verdict.EMPTY_AND_RENAME


def _emptied(path: str) -> bool:
    """Remove a few small files; False, with nothing removed, when there is more than that."""
    files: list[str] = []
    total = 0
    with os.scandir(path) as entries:
        for entry in entries:
            if len(files) == _FEW_FILES or entry.is_dir(follow_symlinks=False):
                return False
            total += entry.stat(follow_symlinks=False).st_size
            files.append(entry.path)
    if total > _SMALL_TOTAL:
        return False
    for file in files:
        os.unlink(file)
    return True


class Scratch:
    """One invocation's scratch directory; lives as long as the invocation. Thread-safe.

    Where the process belongs to the invocation alone, the directory is prepared at entry and exported as TMPDIR. Where several
    invocations share the process, it is made when it is first asked for.
    """

    __slots__ = ("_closed", "_lock", "_shelf", "_watched", "directory", "handed_out")

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._lock = threading.Lock()  # two threads of one invocation that ask first get one directory
        self._closed = False
        self._watched = False
        self.directory: str | None = None
        self.handed_out = False

    def prepare(self) -> str:
        """Have the directory ready, and return what ``TMPDIR`` is to be.

        A full disk doesn't fail a handler that needs no file: then it is a path that doesn't exist, never another's directory.
        """
        try:
            self.directory = self._shelf.take()
        except ScratchUnavailable as error:
            return os.path.join(error.path, "unavailable")
        return self.directory

    def path_for_child(self) -> str:
        """``path`` for a child's ``TMPDIR``: on a full disk one that doesn't exist, as ``prepare``; the child may not care."""
        try:
            return self.path()
        except ScratchUnavailable as error:
            return os.path.join(error.path, "unavailable")

    def path(self) -> str:
        """The directory, which exists now. Doesn't block beyond one ``mkdir``.

        Raises what ``Shelf.take`` raises, and NotInInvocation after ``close``: what a thread that outlived its invocation asked
        for would be somebody else's, or nobody's to remove.
        """
        with self._lock:
            if self._closed:
                raise NotInInvocation("the invocation has ended, and with it its scratch directory")
            self.handed_out = True
            # The look costs 3 µs, only for those who ask: another process may have swept /tmp since the directory was prepared.
            if self.directory is None or not os.path.isdir(self.directory):
                self.directory = self._shelf.make()
            if not self._watched:  # once: 2 µs, only for those who ask
                self._watched = True
                self._shelf.space.watch()
            return self.directory

    def close(self, *, left_nobody: bool) -> None:
        """Give the directory back, if one was made; idempotent. Raises what making the worker's directory raises."""
        with self._lock:
            self._closed = True
        if self.directory is not None:
            self._shelf.give_back(self.directory, handed_out=self.handed_out, left_nobody=left_nobody)
            self.directory = None
