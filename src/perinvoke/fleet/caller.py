"""On whose behalf something is shared: the invocation that calls, and how long it may wait. Here this folder meets them."""

from __future__ import annotations

import math
import socket

from perinvoke.errors import FixConfiguration
from perinvoke.fleet.patience import REAL_CLOCK, Patience
from perinvoke.sharing.asker import asker, settings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from perinvoke.fleet.patience import Clock

# Seconds. Where there is no deadline nobody else sets a bound, and no wait is without one. Arbitrary; connections have the same.
_NO_DEADLINE_SECONDS = 30.0
# Seconds: Lambda's longest time-out. How long something may run where no deadline tells: a unit test, a script.
LONGEST_SECONDS = 900.0


def patience_of(timeout: float | None = None, clock: Clock = REAL_CLOCK) -> Patience:
    """How long the caller may wait: until its deadline less a margin, and no longer than ``timeout`` seconds.

    Raises:
        FixConfiguration: the time-out is negative or no number.
    """
    given: object = timeout
    if given is not None and not (isinstance(given, int | float) and given >= 0):  # also refuses nan
        raise FixConfiguration(
            f"timeout is {timeout!r}; allowed are seconds from 0 on, or None for as long as the invocation may wait"
        )
    longest = asker().wait_seconds()
    if timeout is None:
        timeout = _NO_DEADLINE_SECONDS if longest == math.inf else longest
    return Patience(min(timeout, longest), clock)


def runs_at_most_seconds() -> float:
    """How long what the caller does may still run: until its deadline; Lambda's longest where there is none."""
    return min(asker().remaining_seconds(), LONGEST_SECONDS)


def name_of_caller() -> str:
    """Who it is, for people: the invocation's request id, or the host."""
    return asker().request_id or socket.gethostname()


def request_id_of_caller() -> str | None:
    """The invocation's; None outside one."""
    return asker().request_id


def outermost_request_id() -> str | None:
    """That of the invocation that the platform began, also in isolated handlers that its own one calls; None outside one."""
    return asker().outermost_request_id


def notes_of_caller() -> dict[str, Any] | None:
    """What is remembered until the invocation ends, by whose it is; None outside one."""
    return asker().notes


def time_is_up() -> bool:
    """Whether the margin before the invocation's deadline has begun: nothing new should be. Never outside one."""
    return asker().wait_seconds() <= 0


def name_of_function() -> str:
    """The Lambda function's; empty where none runs."""
    return settings().function_name
