"""The stacks of all threads, as text for one log record."""

from __future__ import annotations

import logging
import os
import sys
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

    from perinvoke.invocation.watched import Watched

logger = logging.getLogger("perinvoke")

_MAX_FRAMES = 40  # of each thread, innermost first; a log line has its limits
_STDERR = 2
# What logs, and what a logging handler may wait for, takes locks that aren't reentrant: those of a QueueHandler's queue.
_TAKE_LOCKS = frozenset({"concurrent", "logging", "multiprocessing", "queue", "threading"})


def stacks_of_all_threads(thread_id: int, here: FrameType) -> dict[str, list[str]]:
    """Thread names and their frames, innermost first; those of thread ``thread_id`` begin with ``here``."""
    # Not threading.enumerate(), whose lock the interrupted code may hold.
    names = {ident: thread.name for ident, thread in dict(getattr(threading, "_active", {})).items()}
    stacks = {}
    for ident, frame in sys._current_frames().items():  # noqa: SLF001  # documented; the underscore says "for debuggers"
        stacks[f"{names.get(ident, 'unknown')} ({ident})"] = _texts(here if ident == thread_id else frame)
    return stacks


def log_stacks(watched: Watched, stacks: dict[str, list[str]], what: str, *, directly: bool) -> None:
    """One record, with the stacks as text and in ``record.perinvoke``. Raises nothing.

    Args:
        watched: of the invocation concerned.
        stacks: what to log.
        what: what happened.
        directly: to stderr, past ``logging``: for when the interrupted code may hold a lock that ``logging`` would wait for.
    """
    invocation = watched.invocation
    told = "; ".join(f"thread {name}: " + ", ".join(frames) for name, frames in stacks.items())
    text = f"invocation {invocation.request_id} {what}. Stacks, innermost first: {told}"
    try:
        if directly:
            write_line(text)
            return
        fields = {"request_id": invocation.request_id, "seconds": invocation.deadline.total_seconds, "stacks": stacks}
        logger.error("%s", text, extra={"perinvoke": fields})
    except Exception:  # noqa: BLE001, S110  # somebody's logging filter or handler: it must not cost the answer
        pass


def may_hold_locks(frame: FrameType | None) -> bool:
    """Whether the code in ``frame``, or any that called it, may hold a lock that ``logging`` would wait for, for ever."""
    while frame is not None:
        module = frame.f_globals.get("__name__")
        if isinstance(module, str) and module.partition(".")[0] in _TAKE_LOCKS:
            return True
        frame = frame.f_back
    return False


def write_line(text: str) -> None:
    """One line on stderr, past ``logging``. Takes no lock; raises nothing."""
    try:
        os.write(_STDERR, f"perinvoke: {' '.join(text.splitlines())}\n".encode(errors="replace"))
    except OSError:
        pass  # closed, or full: there is nowhere else to tell it


def _texts(frame: FrameType | None) -> list[str]:
    texts: list[str] = []
    while frame is not None and len(texts) < _MAX_FRAMES:
        texts.append(f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}")
        frame = frame.f_back
    return texts
