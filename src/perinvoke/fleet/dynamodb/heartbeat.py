"""Renewing leases for work that lasts longer than they do: one thread of the process for all of them.

* It starts with the first lease that wants it and ends with the last one. It belongs to no invocation.
* Each lease is renewed when a third of it is over: so one renewal may fail, and be repeated until the lease ends.
* No call takes longer than a sixth of its lease. So a server that doesn't answer costs the other leases no more than that. (Not
  so through a client of the caller's own that no deadline is bound to: it waits as long as its own time-outs say.)
* A lease isn't renewed beyond its invocation, even if a handler goes on after that: it may be stuck for ever.
* What is lost isn't renewed any more: refused (``stolen``), without an answer for as long as it lasted (``outage``), or not
  renewed because the whole process stood still (``expired``).
* In a forked child nothing is renewed. Its parent goes on.
"""

from __future__ import annotations

import contextvars
import logging
import os
import threading

from perinvoke.errors import TryAgain
from perinvoke.fleet.dynamodb.answers import Trouble
from perinvoke.fleet.dynamodb.caller import ending_within
from perinvoke.fleet.dynamodb.lease_holds import Stage
from perinvoke.fleet.dynamodb.lease_protocol import renew
from perinvoke.fleet.dynamodb.steps import Pause, call
from perinvoke.fleet.patience import REAL_CLOCK, Patience

TYPE_CHECKING = False
if TYPE_CHECKING:
    from perinvoke.fleet.dynamodb.answers import Answer
    from perinvoke.fleet.dynamodb.lease_holds import Hold
    from perinvoke.fleet.dynamodb.lease_protocol import Steps

# A waiter waits that long for a holder that has died, and two renewals may fail in a row. Arbitrary beyond that.
DEFAULT_LEASE_SECONDS = 30.0
_BEATS_IN_LEASE = 3
# Seconds: the least that a call is given, however short the lease. More than a request takes.
_LEAST_CALL_SECONDS = 0.1

logger = logging.getLogger("perinvoke")


class _Beat:
    """One lease's renewals; lives as long as it is renewed. Used by the heart's thread only, but for ``hold``.

    Attributes:
        due_monotonic: when its next step is due.
    """

    __slots__ = ("_answer", "_lasts", "_steps", "due_monotonic", "hold")

    def __init__(self, hold: Hold) -> None:
        assert hold.beats_seconds is not None
        self.hold = hold
        self.due_monotonic = self._next_renewal(hold.left_seconds())
        self._steps: Steps[float | None] | None = None
        self._answer: Answer | None = None
        self._lasts = 0.0

    @staticmethod
    def _next_renewal(lasts: float) -> float:
        return REAL_CLOCK.monotonic() + lasts / _BEATS_IN_LEASE

    def step(self) -> bool:
        """Do what is due; whether there will be more to do. Blocks for one call at most."""
        hold = self.hold
        if hold.stage is not Stage.HELD or hold.lost() is not None:
            return False
        if self._steps is None and not self._begin():
            return False
        try:
            return self._go_on()
        except Exception as error:  # noqa: BLE001  # no connection, no permission, no credentials: until the lease ends it may change
            logger.debug("renewing %s: %r", hold, error)
            hold.trouble = error
            self._steps = None
            self.due_monotonic = min(self._next_renewal(self._lasts), hold.until_monotonic)
            return True

    def _begin(self) -> bool:
        """Whether there is anything to be gained."""
        hold, now = self.hold, REAL_CLOCK.monotonic()
        assert hold.beats_seconds is not None
        self._lasts = min(hold.beats_seconds, hold.ends_monotonic - now)
        self._answer = None
        if now + self._lasts <= hold.until_monotonic:
            return False
        self._steps = renew(hold.terms, self._lasts, Patience(hold.left_seconds(), REAL_CLOCK))
        return True

    def _go_on(self) -> bool:
        hold, steps = self.hold, self._steps
        assert steps is not None
        try:
            step = steps.send(self._answer)
        except StopIteration as end:
            return self._renewed(end.value)
        if isinstance(step, Pause):
            self._answer = None
            self.due_monotonic = REAL_CLOCK.monotonic() + step.seconds
            return True
        seconds = min(max(self._lasts / 6, _LEAST_CALL_SECONDS), max(hold.left_seconds(), _LEAST_CALL_SECONDS))
        self._answer = ending_within(seconds, call, hold.client, step)
        if isinstance(self._answer, Trouble):
            hold.trouble = self._answer.error
        self.due_monotonic = REAL_CLOCK.monotonic()
        return True

    def _renewed(self, until_monotonic: float | None) -> bool:
        """A renewal has ended; a hold that is given back meanwhile is nobody's business any more."""
        hold = self.hold
        self._steps = None
        if until_monotonic is None:
            if hold.stage is Stage.HELD:
                hold.loss = hold.loss or "stolen"
            return False
        hold.until_monotonic, hold.trouble = until_monotonic, None
        hold.note_turn()
        self.due_monotonic = self._next_renewal(self._lasts)
        return hold.lost() is None


class Heart:
    """Renews what is given to it; lives as long as the process, its thread as long as there is something to renew."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # reentrant: a signal handler may take a lease itself
        # Entered through the lock. A Condition's own __enter__ is Python code: interrupted in it, the lock would stay taken.
        self._changed = threading.Condition(self._lock)
        self._beats: dict[Hold, _Beat] = {}
        self._thread: threading.Thread | None = None

    def start(self, hold: Hold) -> None:
        """Renew this one from now on.

        Raises:
            TryAgain: no thread can be had.
        """
        with self._lock:
            self._beats[hold] = _Beat(hold)
            self._changed.notify()
            if self._thread is not None and self._thread.is_alive():
                return
            self._thread = threading.Thread(target=self._run, name="perinvoke-lease", daemon=True)
            try:
                contextvars.Context().run(self._thread.start)  # in no invocation: its deadline must not end a renewal's call
            except RuntimeError as error:
                self._beats.pop(hold, None)
                if error.__context__ is not None:  # a signal handler's exception, which came in the middle and made another one
                    raise error.__context__ from None
                raise TryAgain(
                    f"{hold} can't be renewed, because no thread can be had: {error}. Take it without heartbeat"
                ) from error

    def stop(self, hold: Hold) -> None:
        """Renew this one no more; idempotent. A renewal that is under way may still be carried out."""
        if hold in self._beats:
            with self._lock:
                self._beats.pop(hold, None)
                self._changed.notify()

    def _run(self) -> None:
        beat = self._next()
        while beat is not None:
            if not beat.step():
                self.stop(beat.hold)
            beat = self._next()

    def _next(self) -> _Beat | None:
        """Wait until something is due; None: there is nothing left to do for this thread."""
        with self._lock:
            while self._beats and self._thread is threading.current_thread():
                beat = min(self._beats.values(), key=lambda beat: beat.due_monotonic)
                seconds = beat.due_monotonic - REAL_CLOCK.monotonic()
                if seconds <= 0:
                    return beat
                self._changed.wait(seconds)
            if self._thread is threading.current_thread():
                self._thread = None
            return None


heart = Heart()
_forgotten: list[Heart] = []


def _forget() -> None:
    """In a forked child, which has no such thread. Whoever held the lock in the parent will never release it here."""
    global heart  # noqa: PLW0603  # there is one process, and after a fork another one
    _forgotten.append(heart)
    heart = Heart()


os.register_at_fork(after_in_child=_forget)
