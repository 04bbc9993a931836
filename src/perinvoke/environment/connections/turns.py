"""Whose connection is closed for whose: decided here, from figures, without doing anything.

A connection can't be handed to another process; it is closed here and opened there. That costs what a new connection costs, so
who has one keeps it for a turn while others wait, and no longer:

* A turn is ten times as long as connecting took: of the time that a slot is used, a tenth at most goes into changing hands.
* A connection that nobody uses, and that somebody waits for, is kept as long as opening a new one takes: whatever comes next,
  that costs at most twice what the best choice would have cost (the argument of the rented skis).
* When nobody waits, it is kept until it has been idle too long.
"""

from __future__ import annotations

# Seconds. The bounds of a turn: no change of hands for every invocation where connecting is fast (a unix socket), and nobody
# waits for long where it is slow (TLS over a busy network).
LEAST_TURN_SECONDS, MOST_TURN_SECONDS = 0.02, 0.25
_TURN_TIMES = 10
MOST_GRACE_SECONDS = 0.05


def turn_seconds(connect_seconds: float) -> float:
    """How long a slot is kept while others wait for one."""
    return min(MOST_TURN_SECONDS, max(LEAST_TURN_SECONDS, _TURN_TIMES * connect_seconds))


def is_turn_over(*, taken_at: float, connect_seconds: float, now: float) -> bool:
    """Whether who has had a slot since ``taken_at`` closes its connection at the end of this use, because others wait."""
    return now - taken_at >= turn_seconds(connect_seconds)


def given_up_at(*, idle_since: float, connect_seconds: float, idle_seconds: float, is_asked: bool) -> float:
    """The second at which an idle connection is closed, if nobody has used it by then."""
    return idle_since + (min(connect_seconds, MOST_GRACE_SECONDS) if is_asked else idle_seconds)
