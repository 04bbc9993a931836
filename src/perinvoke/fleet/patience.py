"""How long one wait may take, and how long it pauses between two looks: exponential backoff with full jitter.

Full jitter (each pause is drawn from zero up to a bound that doubles) spreads those who collided best:
https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
"""

from __future__ import annotations

import random
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# Seconds. The first bound is about what a request takes; the last one is what a waiter may come late by. Both arbitrary.
_FIRST_SECONDS = 0.05
_LAST_SECONDS = 1.0
# Seconds. About what a request takes, too: nothing comes of one that is begun later.
_LEAST_SECONDS = 0.01


class Clock:
    """The clocks and the dice of one process; lives as long as it. Monotonic clocks of two machines have nothing in common."""

    __slots__ = ("epoch", "monotonic", "uniform")

    def __init__(
        self, monotonic: Callable[[], float], epoch: Callable[[], float], uniform: Callable[[float, float], float]
    ) -> None:
        self.monotonic = monotonic
        self.epoch = epoch
        self.uniform = uniform

    def epoch_ms(self) -> int:
        """Milliseconds since 1970, as this machine's wall clock has it."""
        return round(self.epoch() * 1000)


REAL_CLOCK = Clock(time.monotonic, time.time, random.uniform)


class Patience:
    """How long somebody waits; lives as long as the wait.

    Args:
        seconds: how long at most, from now; may be infinite.
        clock: what it goes by.
        first_seconds: the bound of the first pause.
        last_seconds: the bound that pauses grow to.

    Attributes:
        pauses: how many there were.
    """

    __slots__ = ("_bound", "_last", "_until", "clock", "pauses", "started")

    def __init__(
        self, seconds: float, clock: Clock, *, first_seconds: float = _FIRST_SECONDS, last_seconds: float = _LAST_SECONDS
    ) -> None:
        self.clock = clock
        self.started = clock.monotonic()
        self._until = self.started + seconds
        self._bound = first_seconds
        self._last = last_seconds
        self.pauses = 0

    def left(self) -> float:
        """Seconds; never below 0."""
        return max(0.0, self._until - self.clock.monotonic())

    def waited_seconds(self) -> float:
        """Since it began."""
        return self.clock.monotonic() - self.started

    def pause(self) -> float | None:
        """How long to pause next; None when there would be no time left for what comes after it.

        Drawn from no more than what is left: who drew from more would give up long before the end, and not see what happens then.
        """
        self.pauses += 1
        left = self.left()
        pause = self.clock.uniform(0.0, min(self._bound, left))
        self._bound = min(self._bound * 2, self._last)
        return pause if left > _LEAST_SECONDS and pause < left else None
