"""Time: the deadline of an invocation, counted on the monotonic clock because wall clocks jump."""

from __future__ import annotations

import math
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Deadline:
    """When the platform ends this invocation. Immutable; lives as long as the invocation; may be read from any thread.

    Args:
        remaining_seconds: from now; infinite where there is no deadline (a unit test without a Lambda context).
        epoch: the wall clock, in seconds since 1970.
        monotonic: the clock that waits go by.
    """

    __slots__ = ("_at_monotonic", "_epoch", "_monotonic", "_remaining_seconds")

    def __init__(
        self,
        remaining_seconds: float,
        *,
        epoch: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._remaining_seconds = remaining_seconds
        self._monotonic = monotonic
        self._at_monotonic = monotonic() + remaining_seconds
        self._epoch = epoch()

    @property
    def at_epoch_ms(self) -> int | None:
        """The deadline in milliseconds since 1970, as the wall clock stood when the invocation began; None where there is none.

        For logs and for other machines. Waits go by ``remaining_seconds``, which a jump of the wall clock doesn't move.
        """
        if self._remaining_seconds == math.inf:
            return None
        return round((self._epoch + self._remaining_seconds) * 1000)

    def remaining_seconds(self) -> float:
        """Seconds left, never below 0; infinite where there is no deadline. Doesn't block."""
        return max(0.0, self._at_monotonic - self._monotonic())

    def __repr__(self) -> str:
        return f"Deadline(remaining_seconds={self.remaining_seconds():.3f})"


def deadline_of(context: object) -> Deadline:
    """The deadline a Lambda context announces; no deadline for None, for a mock and for anything that isn't a number."""
    ask = getattr(context, "get_remaining_time_in_millis", None)
    try:
        remaining_ms = ask() if callable(ask) else None
    except Exception:  # noqa: BLE001  # somebody's own context in a test; the handler may never ask
        remaining_ms = None
    if isinstance(remaining_ms, (int, float)) and math.isfinite(remaining_ms):
        return Deadline(remaining_ms / 1000)
    return Deadline(math.inf)
