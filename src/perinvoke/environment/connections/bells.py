"""Bells between workers: named pipes. Who waits is woken at once, and not at its next look.

Who is killed rings nothing, so nobody relies on being rung. Each bell is opened for reading and writing by everybody, so that
none of it ever ends, blocks, or needs the other side.
"""

from __future__ import annotations

import os
import stat

_FLAGS = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
_READ_BYTES = 4_096


def open_bell(path: str) -> int:
    """Open the bell at ``path``, made if need be.

    Raises:
        OSError: it can't be made, or something else has that name.
    """
    try:
        os.mkfifo(path, 0o600)
    except FileExistsError:
        pass
    fd = os.open(path, _FLAGS)
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileExistsError(f"{path} is no named pipe")
    return fd


def ring(fd: int) -> None:
    """Wake whoever watches the bell. Doesn't block: a pipe that is full has been rung."""
    try:
        os.write(fd, b"!")
    except BlockingIOError:
        pass


def silence(fd: int) -> None:
    """Take back what has been rung."""
    try:
        os.read(fd, _READ_BYTES)
    except BlockingIOError:
        pass
