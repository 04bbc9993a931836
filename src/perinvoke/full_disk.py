"""A full disk, as the caller is told of it: joins what an invocation met and what the environment knows of its disk."""

from __future__ import annotations

import os

from perinvoke.environment.disk_usage import comes_of_full, is_full, may_be_full
from perinvoke.errors import PerinvokeError, ScratchFull

TYPE_CHECKING = False
if TYPE_CHECKING:
    from perinvoke.environment.space import Space
    from perinvoke.invocation.context import Invocation


def raise_if_disk_is_full(invocation: Invocation, error: Exception, space: Space) -> None:
    """Raise ScratchFull in place of the system's own "no space left", if it was met on the root's file system.

    Before the invocation's own files are gone, so that the figures tell of them too. Room is made when they are.
    """
    if isinstance(error, ScratchFull):
        invocation.met_full_disk = True
        return
    if isinstance(error, PerinvokeError) or not (comes_of_full(error) or may_be_full(error)):
        return
    if not _is_of_root(error, invocation, space):
        return
    invocation.met_full_disk = True
    if is_full(error) or may_be_full(error):
        raise space.full(f"invocation {invocation.request_id} met {type(error).__name__}") from error


def _is_of_root(error: Exception, invocation: Invocation, space: Space) -> bool:
    """Whether a full disk was met on the root's file system.

    An error that names files tells by them; copying names two. One that doesn't could be of any file system, or of no disk at
    all: it counts if the root's is short now, or if the invocation has used its scratch directory: others may have made room
    since.
    """
    told = (getattr(error, "filename", None), getattr(error, "filename2", None))
    names = [name for name in told if isinstance(name, str | bytes)]
    if names and not may_be_full(error):
        root = _device(invocation.settings.root)
        return any(_device(name) == root for name in names)
    return space.is_short() or (is_full(error) and invocation.scratch_directory.handed_out)


def _device(path: str | bytes) -> int | None:
    """The file system that ``path`` lies on or lay on; None when it can't be told."""
    while path:
        try:
            return os.stat(path).st_dev
        except OSError:  # a temporary directory is gone with what was in it
            path = os.path.dirname(path) if path != os.path.dirname(path) else path[:0]
    return None
