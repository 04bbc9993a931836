"""What becomes of shared files that nobody asks for: superseded ones go, and so does the least recently used when space is short.

Generations in use are never removed (see ``generation``), so the budget may be exceeded while more than it allows is in use.
"""

from __future__ import annotations

import os
import time

from perinvoke.environment.generation import generations, last_used_seconds, remove_unused
from perinvoke.environment.kernel_lock import Look
from perinvoke.environment.names import BUILDING, SHARED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from perinvoke.environment.generation import Generation

_AGAIN_SECONDS = 0.001


def entries(root: str) -> list[str]:
    """The directories of all shared files below ``root``, built or being built."""
    try:
        with os.scandir(os.path.join(root, SHARED)) as found:
            return [entry.path for entry in found if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def dead_builds(entry: str) -> list[str]:
    """Directories of builds that never finished. Only who holds the entry's lock may ask: then no build is alive."""
    try:
        return [f"{entry}/{name}" for name in os.listdir(entry) if name.startswith(BUILDING)]
    except FileNotFoundError:
        return []


def remove_superseded(root: str, take: Callable[[str], bool]) -> None:
    """Remove every generation but the current ones. Doesn't block; may be called by several workers at once."""
    for generation in _superseded(root):
        remove_unused(generation, take)


def shrink(root: str, take: Callable[[str], bool], max_bytes: int, *, max_wait_seconds: float = 0.0) -> None:
    """Remove the least recently used until all together have at most ``max_bytes``, as far as they are not in use.

    One at a time, because two would each remove what is enough for both: where another worker is at it, waits at most so long for
    its end, and then leaves it to that one.
    """
    until = time.monotonic() + max_wait_seconds
    try:
        with Look(os.path.join(root, SHARED)) as look:
            while not look.has_lock():
                if time.monotonic() > until:
                    return
                time.sleep(_AGAIN_SECONDS)
            _shrink([*_superseded(root), *_current(root)], take, max_bytes)
    except OSError:
        return  # nothing is shared yet


def _shrink(candidates: list[Generation], take: Callable[[str], bool], max_bytes: int) -> None:
    total = sum(generation.size for generation in candidates)
    for generation in candidates:
        if total <= max_bytes:
            return
        if remove_unused(generation, take):
            total -= generation.size


def evictions(root: str, take: Callable[[str], bool]) -> Iterator[Generation]:
    """Remove what nobody uses, superseded ones first and then the least recently used; one with each step."""
    return (generation for generation in [*_superseded(root), *_current(root)] if remove_unused(generation, take))


def _superseded(root: str) -> list[Generation]:
    return [generation for entry in entries(root) for generation in generations(entry)[:-1]]


def _current(root: str) -> list[Generation]:
    """Every shared file's current generation, the least recently used first."""
    current = [found[-1] for entry in entries(root) if (found := generations(entry))]
    return sorted(current, key=last_used_seconds)
