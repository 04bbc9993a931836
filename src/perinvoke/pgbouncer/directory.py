"""The directory in which one PgBouncer works: its socket, its configuration, its password.

Below the root, mode 0700, files 0600. Everything in it is reached through its open descriptor and never through a symlink; a file
is written under another name and renamed, so that no reader finds half of one. The lock beside it is held by the extension and by
PgBouncer: what has it lives, and nobody else serves that name.

PgBouncer refuses to run as root. Where the extension does, the directory and its files belong to ``nobody``, as whom PgBouncer
runs; it gets there by the open directory, because the root's folders are closed to it.
"""

from __future__ import annotations

import os
import stat
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from perinvoke.environment.connections.pgbouncer import DIRECTORY, LOCK_SUFFIX, socket_directory
from perinvoke.environment.kernel_lock import LOCK_FILE, try_lock
from perinvoke.environment.worker_directory import check_root, not_made
from perinvoke.errors import PgBouncerError, RootError

if TYPE_CHECKING:
    from perinvoke.pgbouncer.identity import Identity

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = ".new"  # what a file is called until it is complete
# How long a predecessor that was killed may take to be gone: its PgBouncer is killed by the kernel.
_PREDECESSOR_SECONDS = 1.0
_LOOK_SECONDS = 0.02


class Directory:
    """Lives as long as the extension; a context manager, whose end removes what was written.

    Raises:
        RootError: the root, or what lies below it, can't be used or trusted.
        ScratchFull: the disk is full.
        PgBouncerError: another extension serves this name, or the path is too long.
    """

    def __init__(self, root: str, name: str, identity: Identity) -> None:
        self.path = socket_directory(root, name)
        self._identity = identity
        self._fds: list[int] = []
        check_root(root)
        try:
            self.lock_fd = self._take_lock(root, name)
            self.fd = self._open(root, DIRECTORY, name)
            os.fchmod(self.fd, 0o700)
            os.fchown(self.fd, identity.uid, identity.gid)
            self._remove_files()
        except OSError as error:
            self._close()
            raise not_made(root, error) from error
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the files and give up the lock. Idempotent."""
        if not self._fds:
            return
        with suppress(OSError):
            self._remove_files()
            os.rmdir(self.path)  # noqa: PTH106 - a text, as everywhere here
        self._close()

    def write(self, name: str, text: str) -> None:
        """Write a file that only PgBouncer's user, and root, may read.

        Raises:
            RootError: it can't be written.
            ScratchFull: the disk is full.
        """
        new = name + _NEW
        try:
            self._remove(new)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(new, flags, 0o600, dir_fd=self.fd)
            try:
                os.fchown(fd, self._identity.uid, self._identity.gid)
                os.fchmod(fd, 0o600)
                _write_all(fd, text.encode(errors="surrogateescape"))
            finally:
                os.close(fd)
            os.rename(new, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except OSError as error:
            raise not_made(self.path, error) from error

    def _take_lock(self, root: str, name: str) -> int:
        parent = self._open(root, DIRECTORY)
        fd = os.open(name + LOCK_SUFFIX, LOCK_FILE | os.O_CREAT, 0o600, dir_fd=parent)
        self._fds.append(fd)
        until = time.monotonic() + _PREDECESSOR_SECONDS
        while not try_lock(fd):
            if time.monotonic() > until:
                raise PgBouncerError(
                    f"a PgBouncer named {name!r} runs below {root} already. Name this one differently with "
                    "PERINVOKE_PGBOUNCER_NAME, or give it another PERINVOKE_ROOT.",
                    name=name,
                )
            time.sleep(_LOOK_SECONDS)
        return fd

    def _open(self, root: str, *names: str) -> int:
        """Open a directory below the root, part by part; parts that are missing are made."""
        fd = os.open(root, _OPEN_DIRECTORY)
        self._fds.append(fd)
        path = root
        for name in names:
            path = f"{path}/{name}"
            with suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=fd)
            fd = _open_own(name, fd, path, self._identity)
            self._fds.append(fd)
        return fd

    def _remove_files(self) -> None:
        """Remove what is there: a predecessor's, or at the end one's own."""
        for name in os.listdir(self.fd):  # noqa: PTH208 - names are enough
            self._remove(name)

    def _remove(self, name: str) -> None:
        with suppress(FileNotFoundError, IsADirectoryError):
            os.unlink(name, dir_fd=self.fd)

    def _close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())


def _open_own(name: str, parent: int, path: str, identity: Identity) -> int:
    """Open a directory that is ours, or PgBouncer's; no symlink."""
    try:
        fd = os.open(name, _OPEN_DIRECTORY, dir_fd=parent)
    except NotADirectoryError:  # a symlink gives that, too
        raise RootError(f"{path} is not a directory, or a symbolic link. Remove it.", path=path) from None
    found = os.fstat(fd)
    if found.st_uid not in (os.geteuid(), identity.uid) or stat.S_IMODE(found.st_mode) & 0o022:
        os.close(fd)
        raise RootError(
            f"{path} belongs to user {found.st_uid}, or others may write to it (mode {stat.S_IMODE(found.st_mode):04o}). "
            "Remove it.",
            path=path,
        )
    return fd


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]
