"""Room on the root's file system: watched with one system call, and made from what nobody uses.

What goes, in this order, and no further than needed: what workers have thrown away and not removed yet, what dead workers left,
superseded shared files, then the least recently used. Nothing in use ever goes.
"""

from __future__ import annotations

import math
import os
import time

from perinvoke.environment.disk_usage import Free, free_space, scratch_full
from perinvoke.environment.orphans import reclaim, waste
from perinvoke.environment.shared_budget import evictions, remove_superseded, shrink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from perinvoke.errors import ScratchFull

# How often the dead are looked for.
LOOK_SECONDS = 1.0
# Files that can still be made. Arbitrary: as many as a handler makes before it looks at the disk again.
_MIN_FREE_FILES = 64
# How long an invocation may be held up, when it first asks for its directory and when the disk is full. Arbitrary: a few hundred
# files, and a few ten thousand.
_MAX_WATCH_SECONDS = 0.1
_MAX_ROOM_SECONDS = 2.0
# How long nothing is tried when it would not help.
_BACK_OFF_SECONDS = 1.0


class Space:
    """Watches the space below one root; lives as long as the worker. May be used from any thread.

    Args:
        root: where it looks; it need not exist yet.
        min_free_bytes: with less than that free, it makes room; 0: only when the disk is full.
        shared_max_bytes: what all shared files may take together; None for no limit.
        take: moves a directory away, for removal.
        remove_taken: removes in this thread what was moved away, for so many seconds at most.
    """

    def __init__(
        self,
        root: str,
        *,
        min_free_bytes: int,
        shared_max_bytes: int | None,
        take: Callable[[str], bool],
        remove_taken: Callable[[float], None],
    ) -> None:
        self._root = root
        self._min_free_bytes = min_free_bytes
        self._shared_max_bytes = shared_max_bytes
        self._take = take
        self._remove_taken = remove_taken
        self._no_watch_until = 0.0  # on the monotonic clock

    def watch(self) -> None:
        """Make room if less than the minimum is free. Doesn't block if enough is: then it costs one system call."""
        now = time.monotonic()
        if now < self._no_watch_until or not self.is_short():
            return
        self._remove_waste(_MAX_WATCH_SECONDS)
        for _ in evictions(self._root, self._take) if self.is_short() else ():
            self._remove_taken(_MAX_WATCH_SECONDS)
            if not self.is_short() or time.monotonic() > now + _MAX_WATCH_SECONDS:
                break
        if self.is_short():  # it is others who use it
            self._no_watch_until = time.monotonic() + _BACK_OFF_SECONDS

    def make_room(self) -> bool:
        """Remove all that nobody uses, because the disk is full; blocks for a few seconds at most. Whether anything was freed."""
        before = self._free()
        for _ in evictions(self._root, self._take):
            pass
        self._remove_waste(_MAX_ROOM_SECONDS)
        now = self._free()
        return now.bytes > before.bytes or now.files > before.files

    def look_after(self, *, at_once: bool = False) -> None:
        """What is due now and then: reclaim what the dead left, and keep shared files within their budget. Raises nothing.

        One worker does it for all: unless it is to be at once, nothing, when another did so in the last second.
        """
        if not self._is_due() and not at_once:
            return
        reclaim(self._root, self._take)
        self.keep_budget()

    def keep_budget(self, *, max_wait_seconds: float = 0.0) -> None:
        """Remove superseded shared files, and the least recently used of more than the budget. Raises nothing.

        Where another worker is at it, waits at most so long for it to end.
        """
        remove_superseded(self._root, self._take)
        if self._shared_max_bytes is not None:
            shrink(self._root, self._take, self._shared_max_bytes, max_wait_seconds=max_wait_seconds)

    def is_short(self) -> bool:
        """Whether less than the minimum is free. Costs one system call."""
        if self._min_free_bytes == 0:
            return False
        free = self._free()
        return free.bytes < self._min_free_bytes or free.files < _MIN_FREE_FILES

    def full(self, what: str) -> ScratchFull:
        """The error for ``what``, with the figures."""
        return scratch_full(self._root, what)

    def _is_due(self) -> bool:
        """The root's own access time tells when somebody last looked: a look lists it. Others who do put the next one off."""
        try:
            found, now = os.stat(self._root), time.time()
            if abs(now - found.st_atime) < LOOK_SECONDS:
                return False
            os.utime(self._root, (now, found.st_mtime))
        except OSError:
            pass  # each looks for himself
        return True

    def _remove_waste(self, max_seconds: float) -> None:
        for thrown_away in waste(self._root):
            self._take(thrown_away)
        reclaim(self._root, self._take)
        self._remove_taken(max_seconds)

    def _free(self) -> Free:
        try:
            return free_space(self._root)
        except OSError:
            return Free(math.inf, math.inf)  # not there yet
