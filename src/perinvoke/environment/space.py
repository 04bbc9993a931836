"""Room on the root's file system: watched with one system call, and made from what nobody uses.

What goes, in this order, and no further than needed: what this worker has thrown away and not removed yet, what dead workers
left, superseded shared files, then the least recently used. Nothing in use ever goes.
"""

from __future__ import annotations

from perinvoke.environment.disk_usage import free_bytes, scratch_full
from perinvoke.environment.orphans import reclaim
from perinvoke.environment.shared_budget import evictions, remove_superseded, shrink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from perinvoke.errors import ScratchFull


class Space:
    """Watches the space below one root; lives as long as the worker. May be used from any thread.

    Args:
        root: where it looks; it need not exist yet.
        min_free_bytes: with less than that free, it makes room.
        shared_max_bytes: what all shared files may take together; None for no limit.
        take: moves a directory away, for removal.
        remove_taken: removes in this thread what was moved away.
    """

    def __init__(
        self,
        root: str,
        *,
        min_free_bytes: int,
        shared_max_bytes: int | None,
        take: Callable[[str], None],
        remove_taken: Callable[[], None],
    ) -> None:
        self._root = root
        self._min_free_bytes = min_free_bytes
        self._shared_max_bytes = shared_max_bytes
        self._take = take
        self._remove_taken = remove_taken

    def watch(self) -> None:
        """Make room if less than the minimum is free. Doesn't block if enough is: then it costs one system call."""
        if not self._is_short():
            return
        self._remove_waste()
        if self._is_short():
            for _ in evictions(self._root, self._take):
                self._remove_taken()
                if not self._is_short():
                    return

    def make_room(self) -> bool:
        """Remove all that nobody uses, because the disk is full. Blocks for as long as that takes. Whether anything was freed."""
        before = self._free()
        self._remove_waste()
        for _ in evictions(self._root, self._take):
            self._remove_taken()
        return self._free() > before

    def look_after(self) -> None:
        """What is due now and then: reclaim what the dead left, and keep shared files within their budget. Raises nothing."""
        reclaim(self._root, self._take)
        self.keep_budget()

    def keep_budget(self) -> None:
        """Remove superseded shared files, and the least recently used of more than the budget. Raises nothing."""
        remove_superseded(self._root, self._take)
        if self._shared_max_bytes is not None:
            shrink(self._root, self._take, self._shared_max_bytes)

    def full(self, what: str) -> ScratchFull:
        """The error for ``what``, with the figures."""
        return scratch_full(self._root, what)

    def _remove_waste(self) -> None:
        reclaim(self._root, self._take)
        self._remove_taken()

    def _is_short(self) -> bool:
        return self._free() < self._min_free_bytes

    def _free(self) -> int | float:
        try:
            return free_bytes(self._root)
        except OSError:
            return float("inf")  # not there yet
