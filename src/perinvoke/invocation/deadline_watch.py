"""The watch over invocations in the main thread, by a timer's signal.

Guarantees:
* ``SIGALRM``, ``setitimer`` and ``signal.alarm`` are the handler's own.
* Nothing strikes an invocation that has been disarmed: disarming and the signal's handler run in the same thread.
* No wait misses it: a signal that comes just before a system call begins to wait is noted by Python, and the wait goes on. So it
  is sent again and again, until it has been looked at.
* No locks: the signal's handler runs between any two bytecodes of the code that would hold one. ``logging`` takes some, so where
  the interrupted code may hold one of those, stderr is written to directly.

What it costs: nothing but a list entry, mostly. The timer isn't set for each invocation: where it will strike earlier than an
invocation needs, it is left alone, and what it then finds decides when it strikes next. So with one time-out for all, it is set
about once in that time, and a signal that finds nothing to do is as rare.

Code that is stuck in C doesn't let Python's signal handlers run. For it there is a second timer, with a signal that
``faulthandler`` answers in C: it writes the main thread's stack to stderr. Not those of all threads: the others run meanwhile,
and who reads the frames of running code may crash. It can't ask whether anything is stuck, so it is set to a moment that comes
only if the first timer's look didn't: arming puts it off, a look that finds nothing stops it. Only when the whole process stood
still past both moments (frozen, SIGSTOP) does it write a healthy stack, and then a look says so: stopping it at the end of every
invocation would cost each 5 µs.
"""

from __future__ import annotations

import atexit
import faulthandler
import logging
import math
import os
import signal
import sys
import time
from _signal import getsignal, pthread_sigmask  # type: ignore[import-not-found]  # signal's own make enums: 10 times the time

from perinvoke.invocation.measures import act
from perinvoke.invocation.process_timer import ProcessTimer, TimerUnavailable, free_signal
from perinvoke.invocation.stacks import log_stacks, may_hold_locks, stacks_of_all_threads, write_line
from perinvoke.invocation.watched import GRACE_SECONDS, Look, Watched, decide, next_look_at, spare_seconds, standing_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

    from perinvoke.invocation.context import Invocation

# Seconds. How much later than needed the second timer strikes, so that it is set seldom.
_STUCK_SPARE_SECONDS = 5.0
# Seconds until a signal is sent again that nobody has looked at. More than a tenth: psycopg's wait in C looks for signals only
# when it has slept for 0.1 s without one.
_AGAIN_SECONDS = 0.15
_STDERR = 2
_SIG_BLOCK, _SIG_UNBLOCK = int(signal.SIG_BLOCK), int(signal.SIG_UNBLOCK)  # not the enums: see the import
_NOBODY = (signal.SIG_IGN, signal.SIG_DFL)
_ON_THEIR_WAY = frozenset({Look.DELICATE, Look.CANCEL, Look.UNWINDING, Look.INTERRUPT})

logger = logging.getLogger("perinvoke")


class DeadlineWatch:
    """The main thread's watch; lives as long as the process, and in no forked child. Made and used by the main thread only.

    Args:
        deaf: while the thread waits for the next invocation, no signal handler of Python's can run.

    Raises:
        TimerUnavailable: there can be no such timer or signal here.
    """

    def __init__(self, *, deaf: bool) -> None:
        global _watch  # noqa: PLW0603  # a process has one main thread
        self.pid = os.getpid()
        self._deaf = deaf
        self._armed: list[Invocation] = []
        self._look_at = math.inf  # when the first timer strikes; infinite: it is not set
        self._stuck_at = 0.0  # when the second one does; 0: it is not set
        self._looking = False
        self._stuck_signal = 0
        self._signal = free_signal(_is_ours)
        try:
            signal.signal(self._signal, _on_signal)
        except ValueError as error:  # a subinterpreter
            raise TimerUnavailable(str(error)) from error
        self._timer = ProcessTimer(self._signal, _AGAIN_SECONDS)
        self._stuck_timer = self._with_faulthandler()
        _watch = self
        atexit.register(self.close)  # the interpreter puts signals back to what would end the process

    def arm(self, invocation: Invocation) -> None:
        """Watch over ``invocation`` from now on. Doesn't block; takes 1 µs, or 4 when a timer must be set.

        Raises:
            TimerUnavailable: the signal is no longer to be had. Then this watch is closed.
        """
        # Each time: it may be an earlier invocation that blocked or ignored all signals, and its timer need not have struck.
        if getsignal(self._signal) is not _on_signal or self._signal in pthread_sigmask(_SIG_BLOCK, ()):
            self._mend()
        self._armed.append(invocation)
        at = invocation.deadline.interrupt_at_monotonic
        if at < self._look_at:
            self._set_look(at)
        if invocation.replaced_at:
            self._set_stuck(invocation.replaced_at - spare_seconds(invocation.deadline))  # the worker is ended a moment later
        elif at + GRACE_SECONDS > self._stuck_at:
            self._put_off_stuck(at)

    def disarm(self, invocation: Invocation) -> None:
        """Watch over it no more; idempotent. The timers stay as they are, unless nothing of Python's runs until the next one."""
        if invocation in self._armed:
            self._armed.remove(invocation)
        if invocation.watched is not None:
            invocation.watched.end()
        if self._deaf and not self._armed:
            self._stop()

    def look(self, frame: FrameType) -> None:
        """The signal has come, and interrupted the code in ``frame``: raises DeadlineReached where that is due."""
        if self._looking:
            return  # it has interrupted a look, which sets the timer anew at its end
        self._looking = True
        try:
            error = self._look(frame, sys.exc_info()[1])
        finally:
            self._looking = False
        if error is not None:
            try:
                raise error
            finally:
                del error  # else it and this frame would wait for the garbage collector

    def _look(self, frame: FrameType, handling: BaseException | None) -> BaseException | None:
        self._look_at = math.inf
        error: BaseException | None = None
        next_at = time.monotonic() + GRACE_SECONDS
        try:
            self._explain_stack()
            next_at, error = self._looked(frame, handling)
        except Exception as failed:  # noqa: BLE001  # a mistake here must not cost the answer
            write_line(f"could not watch over a deadline, and will try again: {type(failed).__name__}: {failed}")
        if next_at == math.inf:
            self._stop()
        else:
            self._set_look(next_at)
            self._put_off_stuck(next_at)
        return error

    def _explain_stack(self) -> None:
        """Tell of a stack that ``faulthandler`` has written though nothing is late."""
        now = time.monotonic()
        if 0.0 < self._stuck_at <= now and all(now < one.deadline.interrupt_at_monotonic for one in self._armed):
            write_line("the stack above was written because this process had stood still; nothing is stuck")

    def close(self) -> None:
        """Give the timers back; idempotent."""
        if os.getpid() == self.pid:
            self._armed.clear()
            self._timer.close()
            if self._stuck_timer is not None:
                self._stuck_timer.close()

    def _looked(self, frame: FrameType, handling: BaseException | None) -> tuple[float, BaseException | None]:
        """When to look again, and what to raise. The outermost invocation first: what is inside of it ends with it."""
        next_at, error, now = math.inf, None, time.monotonic()
        on_their_way: list[Invocation] = []
        for invocation in list(self._armed):
            watched = invocation.watched
            if now >= invocation.deadline.interrupt_at_monotonic:
                if _is_inside_any(invocation, on_their_way):
                    continue
                if watched is None:
                    watched = invocation.watched = Watched(invocation)
                if watched.over:
                    continue
                standing = standing_of(watched, frame, handling)
                look = decide(watched, standing, now)
                watched.place = standing.place if look is Look.DELICATE else None
                what = act(watched, look, frame, now)
                if what is not None:
                    stacks = stacks_of_all_threads(invocation.thread_id, frame)
                    log_stacks(watched, stacks, what, directly=may_hold_locks(frame))
                if look is Look.INTERRUPT and error is None:
                    error = watched.error_type(f"the time of invocation {invocation.request_id} is up")
                if look in _ON_THEIR_WAY:
                    on_their_way.append(invocation)
                next_at = min(next_at, next_look_at(watched, look, now))
            else:
                next_at = min(next_at, invocation.deadline.interrupt_at_monotonic)
        return next_at, error

    def _set_look(self, at: float) -> None:
        self._look_at = at
        self._timer.set(at - time.monotonic())

    def _put_off_stuck(self, next_look_at: float) -> None:
        """Not before the next look would have come; but where the worker is ended, that sets the time."""
        late_enough = next_look_at + GRACE_SECONDS <= self._stuck_at
        if not late_enough and not any(invocation.replaced_at for invocation in self._armed):
            self._set_stuck(next_look_at + GRACE_SECONDS + _STUCK_SPARE_SECONDS)

    def _set_stuck(self, at: float) -> None:
        if self._stuck_timer is not None:
            self._stuck_at = at
            self._stuck_timer.set(at - time.monotonic())
        else:
            self._stuck_at = math.inf

    def _stop(self) -> None:
        self._timer.stop()
        self._look_at = math.inf
        if self._stuck_at and self._stuck_timer is not None:
            self._stuck_timer.stop()
        self._stuck_at = 0.0

    def _mend(self) -> None:
        """An earlier invocation blocked the signal for good, or ignored it, or took it for something else."""
        self._look_at = math.inf
        if self._signal in pthread_sigmask(_SIG_BLOCK, ()):
            logger.warning("perinvoke found its signal %d blocked in the main thread, and unblocks it", self._signal)
            pthread_sigmask(_SIG_UNBLOCK, {self._signal, self._stuck_signal or self._signal})
        handler = getsignal(self._signal)
        if handler is _on_signal:
            return
        if handler in _NOBODY:
            logger.warning("perinvoke found its signal %d ignored, and takes it back", self._signal)
            signal.signal(self._signal, _on_signal)
        else:
            logger.warning("perinvoke found its signal %d handled by somebody else, and takes another one", self._signal)
            try:
                number = free_signal(_is_ours, but=self._stuck_signal)
                timer = ProcessTimer(number, _AGAIN_SECONDS)
            except TimerUnavailable:
                self.close()
                raise
            signal.signal(number, _on_signal)
            self._timer.close()
            self._signal, self._timer = number, timer
        self._mend_stuck()

    def _mend_stuck(self) -> None:
        """Whoever took the one signal mostly took the other as well, and Python doesn't know that it was ``faulthandler``'s."""
        if self._stuck_timer is None:
            return
        self._stuck_timer.close()
        if signal.getsignal(self._stuck_signal) in _NOBODY:
            signal.signal(self._stuck_signal, signal.SIG_DFL)
            faulthandler.unregister(self._stuck_signal)  # else its next register would change nothing
        self._stuck_at = 0.0
        self._stuck_timer = self._with_faulthandler()

    def _with_faulthandler(self) -> ProcessTimer | None:
        try:
            number = free_signal(lambda _: False, but=self._signal)
            faulthandler.register(number, file=_STDERR, all_threads=False)
            timer = ProcessTimer(number)
        except (TimerUnavailable, OSError, RuntimeError, ValueError):
            return None  # the stack of code that is stuck in C is a nicety
        self._stuck_signal = number
        return timer


_watch: DeadlineWatch | None = None


def _on_signal(_number: int, frame: FrameType | None) -> None:
    watch = _watch
    if watch is not None and frame is not None and watch.pid == os.getpid():
        watch.look(frame)


def _is_ours(handler: object) -> bool:
    return handler is _on_signal


def _is_inside_any(invocation: Invocation, others: list[Invocation]) -> bool:
    ancestor = invocation.parent
    while ancestor is not None:
        if ancestor in others:
            return True
        ancestor = ancestor.parent
    return False
