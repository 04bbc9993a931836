"""Free space where the root lies, and the error that tells who uses it when it is gone.

The look at who uses it is short: it stops after ``_MAX_ENTRIES`` files, because an invocation waits for it. Files that were
removed while somebody has them open take space and have no name: the figures need not add up.
"""

from __future__ import annotations

import errno
import itertools
import math
import os
import stat

from perinvoke.environment.names import SHARED, WORKER_PREFIX
from perinvoke.errors import ScratchFull

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# Names looked at, about 3 µs each. Arbitrary: what fills a disk is mostly few and large.
_MAX_ENTRIES = 5_000
# And for each user at least. Arbitrary: enough to tell a large directory from a small one.
_LEAST_ENTRIES = 20
# Users told of in a message. Arbitrary: more would hide the first ones.
_TOLD = 5
_BLOCK_BYTES = 512  # of st_blocks, stat(2)
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


class Free:
    """What an ordinary user may still write to a file system: bytes, and files whatever their size. Immutable."""

    __slots__ = ("bytes", "files")

    def __init__(self, size: float, files: float) -> None:
        self.bytes, self.files = size, files


def free_space(path: str) -> Free:
    """What is free on the file system of ``path``; costs one system call."""
    found = os.statvfs(path)
    return Free(found.f_bavail * found.f_frsize, found.f_favail if found.f_files else math.inf)  # btrfs counts no files


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk is full: the system's own, SQLite's, or one that stands for several."""
    if isinstance(error, BaseExceptionGroup):
        return any(is_full(one) for one in error.exceptions)
    if (
        type(error).__name__ == "Error" and type(error).__module__ == "shutil"
    ):  # copytree, which keeps only the text of what it met
        return any(os.strerror(number) in str(error) for number in FULL)
    return (isinstance(error, OSError) and error.errno in FULL) or getattr(error, "sqlite_errorname", None) == "SQLITE_FULL"


def may_be_full(error: BaseException) -> bool:
    """Whether an error is one of those that hide a full disk: it is one, if the disk is short of space as well."""
    if isinstance(error, OSError) and (error.errno is None or "No usable temporary directory" in str(error)):
        return True  # numpy tells what it could not write in words only; tempfile, that it could write nowhere
    return (getattr(error, "sqlite_errorname", None) or "").startswith(("SQLITE_CANTOPEN", "SQLITE_IOERR"))


def comes_of_full(error: BaseException | None) -> bool:
    """Whether an error was raised because a disk was full."""
    while error is not None:
        if is_full(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def scratch_full(root: str, what: str) -> ScratchFull:
    """The error for ``what``, which found the disk full: with the figures and the largest users, as they are now."""
    figures = _figures(root)
    free, total = figures.f_bavail * figures.f_frsize, figures.f_blocks * figures.f_frsize
    largest = largest_users(root)
    told = ", ".join(f"{name} {in_words(size)}" for name, size in largest[:_TOLD])
    no_files = "; it can take no more files, whatever their size" if figures.f_files and not figures.f_favail else ""
    return ScratchFull(
        f"{what}: no space left on device. The file system of {root} has {in_words(free)} of {in_words(total)} free "
        f"now{no_files}. Largest users: {told or 'none that can be seen'}. Write less at once, run fewer workers, give the "
        "function more ephemeral storage, or point PERINVOKE_ROOT to a larger file system.",
        path=root,
        free_bytes=free,
        total_bytes=total,
        largest=largest,
    )


def largest_users(root: str) -> list[tuple[str, int]]:
    """Who uses the file system of ``root``: workers, shared files, and what lies beside the root; bytes, largest first."""
    users = list(itertools.islice(_users(root), _MAX_ENTRIES))
    share = max(_LEAST_ENTRIES, _MAX_ENTRIES // max(1, len(users)))
    found = [(name, _usage(path, share)) for name, path in users]
    return sorted((user for user in found if user[1]), key=lambda user: -user[1])


def in_words(size: int) -> str:
    """A number of bytes for people."""
    amount, unit = float(size), 0
    while amount >= 1024 and unit < len(_UNITS) - 1:  # noqa: PLR2004  # binary units
        amount, unit = amount / 1024, unit + 1
    return f"{amount:.1f} {_UNITS[unit]}" if unit else f"{size} bytes"


def _figures(root: str) -> os.statvfs_result:
    try:
        return os.statvfs(root)
    except OSError:  # it was never made: its parent is as full
        return os.statvfs(os.path.dirname(root))


def _users(root: str) -> Iterator[tuple[str, str]]:
    for entry in _entries(root):
        if entry.name.startswith(WORKER_PREFIX):
            pid = entry.name.removeprefix(WORKER_PREFIX).partition("-")[0]
            yield f"worker {pid}{' (this one)' if pid == str(os.getpid()) else ''}", entry.path
        elif entry.name == SHARED:
            for shared in _entries(entry.path):
                yield f"shared file {shared.name}", shared.path
        else:
            yield entry.path, entry.path
    parent = os.path.dirname(root)
    for entry in _entries(parent) if _device(parent) == _device(root) else []:
        if entry.path != root:
            yield entry.path, entry.path


def _usage(path: str, left: int) -> int:
    """Bytes on the disk below ``path``, on the same file system only, as far as ``left`` entries go."""
    total, device, directories = 0, _device(path), [path]
    while directories and left > 0:
        directory = directories.pop()
        total += _blocks(directory)
        for entry in _entries(directory, left):
            left -= 1
            try:
                found = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if stat.S_ISDIR(found.st_mode):
                directories += [entry.path] if found.st_dev == device else []
            else:
                total += found.st_blocks * _BLOCK_BYTES
    return total


def _entries(directory: str, most: int = _MAX_ENTRIES) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return list(itertools.islice(entries, most))
    except OSError:
        return []  # no directory, not ours, or gone meanwhile


def _blocks(path: str) -> int:
    try:
        return os.lstat(path).st_blocks * _BLOCK_BYTES
    except OSError:
        return 0


def _device(path: str) -> int:
    try:
        return os.lstat(path).st_dev
    except OSError:
        return -1
