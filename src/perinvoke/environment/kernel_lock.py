"""``flock``, the kernel's own proof: that a directory's owner lives, that somebody uses it, that nobody holds a lock file.

The kernel gives a lock up when the last process that shares the open file is gone, however it went. A fork shares it; so who is
done with a lock gives it up and doesn't only close the file: a child forked by another thread at that moment would keep it.
"""

from __future__ import annotations

import fcntl
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: a fifo, or a file with a lease on it, would block the open beyond any bound.
LOCK_FILE = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def open_into(opened: list[int], path: str, flags: int) -> None:
    """Append the new descriptor to ``opened``, in C: a signal handler that raises can't come between ``open`` and the list."""
    opened.extend(map(os.open, (path,), (flags,), (0o600,)))


def open_directory(path: str) -> int:
    """Open a directory for ``flock``, never through a symlink, closed in executed children."""
    return os.open(path, DIRECTORY)


def try_lock(fd: int) -> bool:
    """Take the exclusive ``flock``; False when another holds it, exclusively or shared. Doesn't block."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_at(fd: int, path: str) -> bool:
    """Whether the open file or directory still has this name: another process may have renamed or removed it."""
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


class Look:
    """An open file or directory, for a look at whether its lock can be had; lives for a moment, and so does what it locks.

    However it is left: a signal handler may raise between any two bytecodes, and a lock that stayed would look like a holder's.

    Raises:
        OSError: there is no such thing, or it can't be opened.
    """

    __slots__ = ("_opened", "_path", "_pid")

    def __init__(self, path: str, flags: int = DIRECTORY) -> None:
        self._opened: list[int] = []
        self._path = path
        self._pid = os.getpid()
        open_into(self._opened, path, flags)

    @property
    def fd(self) -> int:
        """The descriptor."""
        return self._opened[0]

    def has_lock(self) -> bool:
        """Whether the exclusive lock could be taken, of the very thing that still has this name."""
        return try_lock(self.fd) and is_at(self.fd, self._path)

    def close(self) -> None:
        """Give up the lock and the descriptor; idempotent. In a forked child, where the lock is the parent's, only the latter."""
        while self._opened:
            if os.getpid() == self._pid:
                fcntl.flock(self.fd, fcntl.LOCK_UN)
            os.close(self._opened.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
