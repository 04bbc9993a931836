"""The watch over deadlines: which way it is done in which thread, and what the caller is told.

The two ways are loaded at the first invocation that has a deadline: ctypes takes 4 ms, which a worker doesn't pay at init.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
from threading import get_ident

from perinvoke.errors import InvocationTimeout
from perinvoke.invocation.watched import replaced_at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from perinvoke.invocation.context import Invocation
    from perinvoke.invocation.thread_watch import ThreadWatch
    from perinvoke.invocation.watched import Watched
    from perinvoke.settings import Settings

    class Watch(Protocol):
        """One way to watch."""

        def arm(self, invocation: Invocation) -> None:
            """Watch over it."""

        def disarm(self, invocation: Invocation) -> None:
            """Watch over it no more; idempotent."""


_TOLD_FRAMES = 3  # in a message; the error's field has some more

logger = logging.getLogger("perinvoke")


class Watches:
    """All that watches over this process's invocations; lives as long as the process. A forked child starts with new ones."""

    def __init__(self) -> None:
        self._main_ident = threading.main_thread().ident
        self._main: Watch | None = None
        self._others: ThreadWatch | None = None
        self._unwatched = False  # told once that nothing can be watched here
        self._replacing: list[Invocation] = []
        self._replace_at: Callable[[float, float], None] | None = None  # the supervisor's
        self._lock = threading.Lock()  # two threads' first invocations make one ThreadWatch

    def arm(self, invocation: Invocation, replace_at: Callable[[float, float], None] | None) -> None:
        """Watch over ``invocation``, which runs in the calling thread, until ``disarm``. Raises nothing, doesn't block.

        Args:
            invocation: what to watch over.
            replace_at: the supervisor's, which ends this worker then, where there is one.
        """
        mode = invocation.settings.on_timeout
        if invocation.deadline.interrupt_at_monotonic == math.inf or mode == "off":
            return
        in_main = get_ident() == self._main_ident
        try:
            if mode == "replace" and in_main and replace_at is not None:
                invocation.replaced_at = replaced_at(invocation.deadline)
            watch = self._main if in_main else self._others
            if watch is None:
                watch = self._new_main(invocation.settings) if in_main else self._new_others()
            invocation.watch = watch
            watch.arm(invocation)
        except Exception as error:  # noqa: BLE001  # no threads, no ctypes: a handler works without being watched
            if not self._armed_by_thread(invocation, error):
                invocation.replaced_at = 0.0
        if invocation.replaced_at:  # not before: whose interrupt can't come, is not to be ended instead
            self._replace_at = replace_at
            self._replacing.append(invocation)
            self._tell_supervisor()

    def disarm(self, invocation: Invocation) -> None:
        """Watch over it no more, so that nothing interrupts its end; idempotent. Doesn't block."""
        if invocation.watch is not None:
            invocation.watch.disarm(invocation)

    def take_back(self, invocation: Invocation) -> None:
        """It has come to its end: its worker need not be replaced. Idempotent. Doesn't block."""
        if invocation.replaced_at:
            if invocation in self._replacing:
                self._replacing.remove(invocation)
            self._tell_supervisor()

    def close(self) -> None:
        """End the thread of the watch, if there is one and it has nothing to watch. For tests."""
        if self._others is not None:
            self._others.close()

    def _new_main(self, settings: Settings) -> Watch:
        # Then no handler of Python's runs while the worker waits for its next invocation.
        deaf = "runtime_client" in sys.modules and not settings.polls_in_helper_thread
        try:
            from perinvoke.invocation.deadline_watch import DeadlineWatch  # noqa: PLC0415  # cold start, see above
            from perinvoke.invocation.process_timer import TimerUnavailable  # noqa: PLC0415  # the same
        except ImportError:
            self._main = self._new_others()  # no ctypes; which then says so itself
            return self._main
        try:
            self._main = DeadlineWatch(deaf=deaf)
        except TimerUnavailable as error:
            logger.warning("perinvoke watches over deadlines by a thread, because there is no timer: %s", error)
            self._main = self._new_others()
        return self._main

    def _new_others(self) -> ThreadWatch:
        from perinvoke.invocation.thread_watch import ThreadWatch  # noqa: PLC0415  # cold start, see above

        with self._lock:
            if self._others is None:
                self._others = ThreadWatch()
            return self._others

    def _armed_by_thread(self, invocation: Invocation, error: Exception) -> bool:
        """After the first way has failed."""
        if invocation.watch is not None and invocation.watch is not self._others:
            try:
                invocation.watch = self._main = others = self._new_others()
                others.arm(invocation)
            except Exception as failed:  # noqa: BLE001  # the same
                error = failed
            else:
                logger.warning("perinvoke watches over deadlines by a thread from now on: its timer is lost: %s", error)
                return True
        if not self._unwatched:
            self._unwatched = True
            logger.warning("perinvoke can't watch over deadlines here: %s: %s", type(error).__name__, error)
        return False

    def _tell_supervisor(self) -> None:
        """The earliest of several counts: an inner invocation may have more time than the outer one."""
        first = min(self._replacing, key=lambda invocation: invocation.replaced_at, default=None)
        if self._replace_at is not None:
            try:
                self._replace_at(
                    0.0 if first is None else first.replaced_at, 0.0 if first is None else first.deadline.total_seconds
                )
            except Exception:
                logger.exception("perinvoke's supervisor could not be told when to replace this worker")


def timed_out(invocation: Invocation, error: BaseException) -> InvocationTimeout | None:
    """What the caller is told instead of ``error``, if that came of this invocation's own interrupt."""
    watched = invocation.watched
    if watched is None or not watched.caused(error):
        return None
    deadline = invocation.deadline
    return InvocationTimeout(
        _message(invocation, watched),
        request_id=invocation.request_id,
        seconds=deadline.total_seconds,
        set_by=deadline.set_by,
        stack=watched.stack,
    ).with_traceback(error.__traceback__)


def _message(invocation: Invocation, watched: Watched) -> str:
    deadline = invocation.deadline
    stood = (
        f"it stood at {', called from '.join(watched.stack[:_TOLD_FRAMES])}" if watched.stack else "nobody knows where it stood"
    )
    left = watched.left_seconds
    when = f"{left:.3g} s before" if left else "when"
    return (
        f"invocation {invocation.request_id} was interrupted {when} its "
        f"{deadline.total_seconds:.6g} s were over, which {deadline.set_by} set: {stood}. Let it do less, or give it more time."
    )
