"""Time: the deadline of an invocation, counted on the monotonic clock because wall clocks jump.

Three may set it, and the earliest counts: the platform, ``PERINVOKE_TIMEOUT_SECONDS``, and the caller's own patience
(``PERINVOKE_CALLER_TIMEOUT_SECONDS``, counted from the start that API Gateway writes into the event).
"""

from __future__ import annotations

import math
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from perinvoke.settings import Settings

# A time-out is 15 minutes at most. What a platform announces beyond a day is no deadline: the emulator's is 34 days off.
_NONSENSE_SECONDS = 86_400.0
# Seconds. The margin where a worker that doesn't give way is replaced: half of it is the supervisor's, to end it and to answer.
_LEAST_REPLACE_MARGIN_SECONDS = 0.2
# Lambda's longest time-out: an event older than that is replayed, from a queue or by hand, and nobody waits for its answer.
_REPLAY_SECONDS = 900.0
# Waits that are bounded by the margin end on their own, with an error that tells more; the interrupt comes after them.
_AFTER_BOUND_SECONDS = 0.05
# Where API Gateway writes the request's start, in milliseconds since 1970: REST and WebSocket APIs; HTTP APIs and function URLs.
_STARTS = ("requestTimeEpoch", "timeEpoch")


class Deadline:
    """When this invocation has to be over. Immutable; lives as long as the invocation; may be read from any thread.

    Args:
        remaining_seconds: from now; infinite where there is no deadline (a unit test without a Lambda context).
        margin_seconds: how long before it waits should end, so that there is an answer in time; at most half of what remains.
        platform_seconds: from now to the platform's own cut, which may be later.
        set_by: who set it, for messages.
        epoch: the wall clock, in seconds since 1970.
        monotonic: the clock that waits go by.
    """

    __slots__ = (
        "_at_monotonic",
        "_epoch",
        "_monotonic",
        "interrupt_at_monotonic",
        "margin_seconds",
        "platform_at_monotonic",
        "set_by",
        "total_seconds",
    )

    def __init__(
        self,
        remaining_seconds: float,
        *,
        margin_seconds: float = 0.0,
        platform_seconds: float = math.inf,
        set_by: str = "the platform",
        epoch: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        half = remaining_seconds / 2
        margin = margin_seconds if margin_seconds < half else half if half > 0 else 0.0
        now = monotonic()
        self.total_seconds = remaining_seconds
        self.margin_seconds = 0.0 if remaining_seconds == math.inf else margin
        self.set_by = set_by
        self._monotonic = monotonic
        self._at_monotonic = at = now + remaining_seconds
        self.platform_at_monotonic = now + platform_seconds
        quarter = margin / 4
        self.interrupt_at_monotonic = at - margin + (min(_AFTER_BOUND_SECONDS, quarter))
        self._epoch = epoch()

    @property
    def at_epoch_ms(self) -> int | None:
        """The deadline in milliseconds since 1970, as the wall clock stood when the invocation began; None where there is none.

        For logs and for other machines. Waits go by ``remaining_seconds``, which a jump of the wall clock doesn't move.
        """
        if self.total_seconds == math.inf:
            return None
        return round((self._epoch + self.total_seconds) * 1000)

    def remaining_seconds(self) -> float:
        """Seconds left, never below 0; infinite where there is no deadline. Doesn't block."""
        return max(0.0, self._at_monotonic - self._monotonic())

    def bound(self, timeout: float | None = None) -> float:
        """How many seconds a wait may take from now on: ``timeout``, but no longer than until the margin begins. Doesn't block.

        Never below 0; infinite with neither a deadline nor a ``timeout``. For the time-outs of clients, queues and locks:
        ``queue.get(timeout=current().deadline.bound(5))``.

        Raises:
            ValueError: ``timeout`` is negative or not a number.
        """
        left = max(0.0, self._at_monotonic - self.margin_seconds - self._monotonic())
        return left if timeout is None else min(_checked(timeout, "timeout"), left)

    def sleep(self, seconds: float) -> bool:
        """Sleep so many seconds, but no longer than until the margin begins: so a pause never runs into the deadline.

        Blocks its thread. Whether all of it was slept; False says that time is up and the handler should come to its end.

        Raises:
            ValueError: ``seconds`` is negative or not a number, or infinite where there is no deadline.
        """
        bounded = self.bound(_checked(seconds, "seconds"))
        if bounded == math.inf:
            raise ValueError("sleep(inf) would never end: this invocation has no deadline")
        time.sleep(bounded)
        return bounded == seconds

    def __repr__(self) -> str:
        return f"Deadline(remaining_seconds={self.remaining_seconds():.3f})"


def deadline_of(settings: Settings, event: object, context: object) -> Deadline:
    """The earliest of the platform's, the function's own and the caller's deadline; what makes no sense is none."""
    platform = remaining = _platform_seconds(context)
    set_by = "the platform"
    own = settings.timeout_seconds
    if own is not None and own < remaining:
        remaining, set_by = own, "PERINVOKE_TIMEOUT_SECONDS"
    patience = settings.caller_timeout_seconds
    if patience is not None:
        left = _caller_seconds(event, patience, time.time())
        if left < remaining:
            remaining, set_by = left, "PERINVOKE_CALLER_TIMEOUT_SECONDS"
    margin = settings.timeout_margin_seconds
    if settings.on_timeout == "replace":
        margin = max(margin, _LEAST_REPLACE_MARGIN_SECONDS)
    return Deadline(remaining, margin_seconds=margin, platform_seconds=platform, set_by=set_by)


def _platform_seconds(context: object) -> float:
    """What a Lambda context announces, 0 when it is over; infinite for a mock, for whatever isn't a number or can't be meant."""
    ask = getattr(context, "get_remaining_time_in_millis", None)
    try:
        remaining_ms = ask() if callable(ask) else None
    except Exception:  # noqa: BLE001  # somebody's own context in a test; the handler may never ask
        remaining_ms = None
    if not isinstance(remaining_ms, (int, float)) or isinstance(remaining_ms, bool):
        return math.inf
    # The comparison refuses nan too.
    if -_NONSENSE_SECONDS * 1000 <= remaining_ms <= _NONSENSE_SECONDS * 1000:
        return max(0.0, remaining_ms / 1000)
    return math.inf


def _caller_seconds(event: object, patience_seconds: float, now_epoch: float) -> float:
    """How long the caller still waits; infinite when the event doesn't say when it began. A start in the future is now."""
    started = _started_epoch(event)
    if started is None or now_epoch - started > _REPLAY_SECONDS:
        return math.inf
    return max(0.0, patience_seconds - max(0.0, now_epoch - started))


def _started_epoch(event: object) -> float | None:
    about = event.get("requestContext") if isinstance(event, dict) else None
    if isinstance(about, dict):
        for name in _STARTS:
            value = about.get(name)
            # 1e15 ms is the year 33658: an int beyond that might not even fit a float.
            if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e15:  # noqa: PLR2004  # told above
                return value / 1000
    return None


def _checked(seconds: float, name: str) -> float:
    given: object = seconds  # whatever a caller passed
    if not (isinstance(given, (int, float)) and given >= 0):  # also refuses nan
        raise ValueError(f"{name} is {given!r}; allowed are seconds from 0 on")
    return seconds
