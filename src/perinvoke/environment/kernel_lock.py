"""``flock``, the kernel's own proof: that a directory's owner lives, that somebody uses it, that nobody holds a lock file.

The kernel gives a lock up when the last process that shares the open file is gone, however it went. A fork shares it; so who is
done with a lock gives it up and doesn't only close the file: a child forked by another thread at that moment would keep it.
"""

from __future__ import annotations

import fcntl
import os


def open_directory(path: str) -> int:
    """Open a directory for ``flock``, never through a symlink, closed in executed children."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


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


def give_up(fd: int) -> None:
    """Unlock and close."""
    try:
        fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)
