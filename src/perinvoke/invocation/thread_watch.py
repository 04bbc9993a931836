"""The watch over invocations outside the main thread, by CPython's asynchronous exceptions.

One thread sleeps until the next deadline. What it raises in another thread strikes there at the next bytecode: code that waits in
C, for a lock or a socket, is interrupted when the wait returns, and not before. An exception that hasn't struck is taken back
when the invocation is disarmed.

The lock guards the list of invocations and is held from the look at a thread to the raise in it: so nothing strikes after
``disarm``. Whoever is struck while holding it gives it back. What is to be logged is logged after the lock is released.
"""

from __future__ import annotations

import contextvars
import ctypes
import logging
import math
import os
import sys
import threading
import time

from perinvoke.invocation.measures import act
from perinvoke.invocation.stacks import log_stacks, stacks_of_all_threads
from perinvoke.invocation.watched import Look, Watched, decide, next_look_at, standing_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from perinvoke.invocation.context import Invocation

# Seconds. A thread that has nothing to watch ends after that: a process that forks should have few of them. Arbitrary.
_LINGER_SECONDS = 5.0

logger = logging.getLogger("perinvoke")


class ThreadWatch:
    """The watch of all other threads; lives as long as the process. A forked child forgets it. Thread-safe."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._lock = threading.RLock()
        self._armed: dict[Invocation, None] = {}  # in the order of their entry: outer ones first
        self._wake = threading.Event()
        self._wakes_at = math.inf
        self._thread: threading.Thread | None = None
        self._linger_seconds = _LINGER_SECONDS

    def arm(self, invocation: Invocation) -> None:
        """Watch over ``invocation``, which runs in the calling thread. Starts the watch's own thread where there is none."""
        try:
            self._lock.acquire()
            self._armed[invocation] = None
            start = self._thread is None
            if start:
                self._thread = threading.Thread(target=self._watch, name="perinvoke-deadlines", daemon=True)
                contextvars.Context().run(self._thread.start)  # it belongs to no invocation
            if invocation.deadline.interrupt_at_monotonic < self._wakes_at:
                self._wake.set()
        except RuntimeError:  # no thread can be had
            self._thread = None
            raise
        finally:
            self._give_back_lock()

    def disarm(self, invocation: Invocation) -> None:
        """Watch over it no more, and take back what has not struck yet; idempotent. May be called by its own thread only."""
        try:
            self._lock.acquire()
            self._armed.pop(invocation, None)
            watched = invocation.watched
            if watched is not None:
                watched.end()
                if watched.struck:
                    _raise_in(invocation.thread_id, None)
        finally:
            self._give_back_lock()

    def close(self) -> None:
        """End the thread, if nothing is watched, and wait for it; for tests. The next ``arm`` starts another."""
        thread = self._thread
        if thread is not None and not self._armed:
            self._linger_seconds = 0.0
            self._wake.set()
            thread.join()
            self._linger_seconds = _LINGER_SECONDS

    def _give_back_lock(self) -> None:
        # However often it was taken: an interrupt in the middle of disarm makes it begin again.
        while self._lock._is_owned():  # type: ignore[attr-defined]  # noqa: SLF001  # threading.Condition relies on it too
            self._lock.release()

    def _watch(self) -> None:
        while True:
            self._wake.clear()
            try:
                records: list[tuple[Watched, dict[str, list[str]], str]] = []
                with self._lock:
                    next_at = self._wakes_at = self._looked(records)
                for watched, stacks, what in records:
                    log_stacks(watched, stacks, what, directly=False)
            except Exception:
                logger.exception("perinvoke could not watch over a deadline; it will try again")
                next_at = time.monotonic() + 1.0
            idle = next_at == math.inf
            if self._wake.wait(self._linger_seconds if idle else max(0.0, next_at - time.monotonic())) and self._linger_seconds:
                continue
            with self._lock:  # who arms meanwhile, finds either this thread or none
                if idle and not self._armed:
                    self._thread = None
                    return

    def _looked(self, records: list[tuple[Watched, dict[str, list[str]], str]]) -> float:
        """Look at every thread whose time is up; when to look again. What is to be logged is added to ``records``."""
        now, next_at = time.monotonic(), math.inf
        due = []
        for invocation in self._armed:
            if now < invocation.deadline.interrupt_at_monotonic:
                next_at = min(next_at, invocation.deadline.interrupt_at_monotonic)
            else:
                due.append(invocation)
        on_their_way: set[int] = set()
        for invocation in due:
            if invocation.thread_id in on_their_way and invocation.task is None:
                continue
            watched = invocation.watched
            if watched is None:
                watched = invocation.watched = Watched(invocation)
            look = Look.GIVE_UP if watched.over else self._looked_at(watched, now, records)
            if look is not None:
                next_at = min(next_at, next_look_at(watched, look, now))
                if look is not Look.GIVE_UP:
                    on_their_way.add(invocation.thread_id)
        return next_at

    @staticmethod
    def _looked_at(watched: Watched, now: float, records: list[tuple[Watched, dict[str, list[str]], str]]) -> Look | None:
        """Look at one thread, and raise in it where that is due; None: it has ended."""
        thread_id = watched.invocation.thread_id
        # Asked for each thread anew, and last: whatever runs between this and the raise, lets the thread go on.
        handling: Any = sys._current_exceptions().get(thread_id)  # noqa: SLF001  # documented; the underscore says "for debuggers"
        frame = sys._current_frames().get(thread_id)  # noqa: SLF001
        if frame is None:
            return None
        if isinstance(handling, tuple):  # Python 3.11: type, value and traceback
            handling = handling[1]
        standing = standing_of(watched, frame, handling)
        look = decide(watched, standing, now)
        watched.place = standing.place if look is Look.DELICATE else None
        what = act(watched, look, frame, now)
        if look is Look.INTERRUPT:
            _raise_in(thread_id, watched.error_type)
        if what is not None:
            records.append((watched, stacks_of_all_threads(thread_id, frame), what))
        return look


def _raise_in(thread_id: int, error_type: type[BaseException] | None) -> None:
    """Have ``error_type`` raised in the thread; None takes back what was not raised yet."""
    error = ctypes.py_object() if error_type is None else ctypes.py_object(error_type)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), error)
