"""Generations of a shared file: each build that finished, in a directory of its own, whose name says all there is to know.

* A name is never used again: who keeps something by its path (a loaded model, say) can't mistake one content for another.
* Who uses a generation holds ``flock`` shared on its directory; who removes one must get it exclusively first, without waiting.
  So nothing in use is ever removed, and of a dead user nothing is left.
* The directory's modification time is when it was last taken into use.
"""

from __future__ import annotations

import fcntl
import os
import time

from perinvoke.environment import lock_table
from perinvoke.environment.kernel_lock import DIRECTORY, Look, is_at
from perinvoke.environment.lock_table import Claim
from perinvoke.environment.names import boot_ns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from typing import Protocol

    class User(Protocol):
        """On whose behalf a generation is used."""

        @property
        def key(self) -> Hashable:
            """Who uses it: all of an invocation."""

        def has_ended(self) -> bool:
            """Whether its end has come: what it takes now, nobody would give back."""

        def at_end(self, give_back: Callable[[Hashable], list[str]]) -> None:
            """Have ``give_back(key)`` called when the user ends; once, however often it is asked."""


# How exact "last used" is. A finer one would write to the disk at every use.
_USED_SECONDS = 1.0
_FIELDS = 6


class Moment:
    """A time on two clocks: the wall's, which jumps, and the one since boot, which ends with it. Immutable."""

    __slots__ = ("boot_ns", "wall_ns")

    def __init__(self, wall_ns: int, boot_ns: int) -> None:
        self.wall_ns, self.boot_ns = wall_ns, boot_ns

    @classmethod
    def now(cls) -> Moment:
        """This moment; the same in all processes of a machine."""
        return cls(time.time_ns(), boot_ns())

    def seconds_since(self, earlier: Moment) -> float:
        """The longer of what both clocks say. A jump of the wall clock may age a file, and never make it younger."""
        return max(self.wall_ns - earlier.wall_ns, self.boot_ns - earlier.boot_ns) / 1e9


class Generation:
    """One finished build. Immutable; the directory behind it lives until nobody uses it and it is superseded or evicted.

    Attributes:
        path: its directory.
        sequence: counts the builds of one shared file; the highest is the current one.
        built: when it was published.
        size: the bytes of its files.
        tag: what it was built from, in hexadecimal digits ("0": nothing to tell).
    """

    __slots__ = ("built", "path", "sequence", "size", "tag")

    def __init__(self, path: str, sequence: int, built: Moment, size: int, tag: str) -> None:
        self.path, self.sequence, self.built, self.size, self.tag = path, sequence, built, size, tag


def new_name(sequence: int, built: Moment, size: int, tag: str) -> str:
    """The name of a generation's directory. ``parse`` reads it."""
    return f"{sequence}-{built.wall_ns:x}-{built.boot_ns:x}-{size}-{tag}-{os.urandom(4).hex()}"


def parse(entry: str, name: str) -> Generation | None:
    """The generation of that name in the directory ``entry``; None for anything else that lies there."""
    fields = name.split("-")
    if len(fields) != _FIELDS or not name.isascii():
        return None
    sequence, wall, boot, size, tag, unique = fields
    try:
        int(unique, 16)
        return Generation(f"{entry}/{name}", int(sequence), Moment(int(wall, 16), int(boot, 16)), int(size), tag)
    except ValueError:
        return None


def generations(entry: str) -> list[Generation]:
    """All generations of one shared file, the current one last. Empty where there is none."""
    try:
        names = os.listdir(entry)
    except OSError:
        return []
    found = [generation for name in names if (generation := parse(entry, name)) is not None]
    return sorted(found, key=lambda generation: generation.sequence)


def use(directory: str, user: User, *, known_as: str | None = None) -> bool:
    """Keep a generation from being removed until its user ends. Doesn't block. False: it is gone, or is just being removed.

    Args:
        directory: where it lies now.
        user: who uses it. A forked child doesn't: it forgets.
        known_as: where it will lie in a moment; a lock goes with a directory that is renamed.
    """
    path, table = known_as or directory, lock_table.table
    if (path, user.key) in table.holds:
        return True
    claim = Claim(user.key)
    try:
        user.at_end(lock_table.give_back_all)
        table.open(claim, directory, DIRECTORY)
        fcntl.flock(claim.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if not is_at(claim.fd, directory):
            table.drop(claim)
            return False
        _mark_used(claim.fd)
        table.hold(claim, path, shared=True, ended=user.has_ended)
    except (FileNotFoundError, BlockingIOError):
        table.withdraw(claim, path)
        return False
    except BaseException:
        table.withdraw(claim, path)
        raise
    return True


def unuse(path: str, user: User) -> None:
    """Take back what ``use`` entered under this path."""
    table = lock_table.table
    with table.lock:
        hold = table.holds.pop((path, user.key), None)
        if hold is not None:
            claim = Claim(user.key)
            claim.fd = hold.fd
            table.drop(claim)


def remove_unused(generation: Generation, take: Callable[[str], bool]) -> bool:
    """Hand the generation to ``take``, which moves it away; False when somebody uses it or it can't be moved. Doesn't block."""
    try:
        with Look(generation.path) as look:
            return look.has_lock() and take(generation.path)
    except OSError:
        return False  # another was quicker


def last_used_seconds(generation: Generation) -> float:
    """When it was last taken into use, for comparisons among generations; 0 when it is gone."""
    try:
        return os.stat(generation.path).st_mtime
    except OSError:
        return 0.0


def _mark_used(fd: int) -> None:
    if abs(time.time() - os.fstat(fd).st_mtime) > _USED_SECONDS:
        try:
            os.utime(fd)
        except OSError:
            pass  # a read-only file system, from which nothing is evicted either
