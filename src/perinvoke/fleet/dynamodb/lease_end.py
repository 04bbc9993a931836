"""The end of a hold: giving the lease back, in whatever state it is, in bounded time, without an error of its own.

Whatever goes wrong here does no harm: a lease that can't be given back ends by itself, and its successor has a higher token. So
there is a log record, and the error that the caller may be raising isn't hidden behind another one.

The request is conditional on the owner of this very acquisition. So it can be made twice, and it can be made for an acquisition
that was interrupted while nobody knew what had become of it.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time

from botocore.exceptions import BotoCoreError, ClientError

from perinvoke.errors import PerinvokeError
from perinvoke.fleet.dynamodb import heartbeat, lease_holds
from perinvoke.fleet.dynamodb.caller import ending_within
from perinvoke.fleet.dynamodb.lease_holds import Stage
from perinvoke.fleet.dynamodb.lease_protocol import release
from perinvoke.fleet.dynamodb.steps import run
from perinvoke.fleet.errors import LeaseTimeout, TableError, TableUnavailable
from perinvoke.fleet.patience import REAL_CLOCK, Patience

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable

    from perinvoke.fleet.dynamodb.lease_holds import Hold

# Seconds. One request takes some milliseconds; this is for repeating it through trouble. What can't be given back in that time
# is waited for by others until it ends by itself. Arbitrary.
RELEASE_SECONDS = 2.0
# Seconds. What an acquisition that came to nothing may take beyond its time-out: for one call, which only botocore repeats.
_UNDO_SECONDS = 1.0
# Seconds. By then a request that was sent before it was given up has surely come to DynamoDB, or never will. Arbitrary.
_ON_ITS_WAY_SECONDS = 0.05
# Of the end's time: what giving back may take. The rest is for telling that it was too little.
_AT_END_SHARE = 0.8
# Seconds: what the last of many leases is given. More than a request takes.
_LEAST_SECONDS = 0.05

logger = logging.getLogger("perinvoke")


def end(hold: Hold) -> str | None:
    """Give a lease back after its last release; why it had been lost before, if it had. Blocks for two seconds at most.

    Interrupted by an exception, it is done again before that goes on; interrupted again, at the end of the invocation.
    """
    try:
        _end(hold, RELEASE_SECONDS)
    except BaseException:
        _end(hold, RELEASE_SECONDS)
        raise
    return hold.loss


def undo(hold: Hold, error: BaseException) -> None:
    """Give back what may have become of an acquisition that ended with an error. Blocks for a second at most.

    A request that was sent before the interruption may be carried out after this one. So what wasn't ours now is looked at once
    more when the invocation ends.
    """
    if hold.stage is Stage.WAITING or _surely_not_taken(error):
        _forget(hold)
        return
    heartbeat.heart.stop(hold)
    ours = _release(hold, _UNDO_SECONDS, patience_seconds=0.0)
    hold.look_again_monotonic = REAL_CLOCK.monotonic() + _ON_ITS_WAY_SECONDS
    hold.turn.end()
    if ours or hold.owner.request_id is None or hold.owner.has_ended():
        lease_holds.holds.remove(hold)


def clear(hold: Hold, wait_seconds: float) -> None:
    """Give back what an interruption has left of an earlier hold of the same owner's. Blocks for a second at most."""
    if hold.stage is not Stage.WAITING:
        _release(hold, max(_LEAST_SECONDS, min(wait_seconds, _UNDO_SECONDS)), patience_seconds=0.0)
    _forget(hold)


def end_all(group: Hashable, wait_seconds: float) -> list[str]:
    """At the end of an invocation: give back what it still holds; what that was. Blocks for so many seconds at most.

    In a thread: a client that isn't bound to any deadline must not delay the answer.
    """
    left = lease_holds.holds.of_group(group)
    if not left:
        return []
    told: list[str] = []
    done = threading.Lock()  # not an Event: interrupted while it is waited for, that may stay locked
    done.acquire()
    until_monotonic = REAL_CLOCK.monotonic() + wait_seconds * _AT_END_SHARE

    def give_back_each() -> None:
        try:
            for hold in left:
                seconds = max(_LEAST_SECONDS, until_monotonic - REAL_CLOCK.monotonic())
                told.extend([str(hold)] if _given_back_at_end(hold, seconds) else [])
        finally:
            done.release()

    try:
        # It may outlive the invocation, and belongs to none.
        contextvars.Context().run(threading.Thread(target=give_back_each, name="perinvoke-lease-end", daemon=True).start)
    except RuntimeError as error:
        if error.__context__ is None:  # no thread can be had; else a signal handler's exception made another one, and it runs
            give_back_each()
    in_time = done.acquire(timeout=wait_seconds)
    for hold in left:
        if not in_time and hold in lease_holds.holds.of_group(group):
            _tell_not_given_back(hold, f"DynamoDB had not answered in {wait_seconds:.3g} s")
        _forget(hold)
    return list(told)


def _given_back_at_end(hold: Hold, wait_seconds: float) -> bool:
    """Whether there was something to give back; what was lost has its own record."""
    was_held = hold.stage is Stage.HELD
    if was_held or hold.stage is Stage.ENDING:
        return bool(_end(hold, wait_seconds)) and hold.loss is None and was_held
    if hold.stage is Stage.WAITING:  # its thread finds out by itself that the invocation has ended
        _forget(hold)
        return False
    pause = hold.look_again_monotonic - REAL_CLOCK.monotonic()
    if pause > 0:
        time.sleep(min(pause, wait_seconds / 2))
    ours = bool(_release(hold, wait_seconds))
    _forget(hold)
    return ours


def _end(hold: Hold, wait_seconds: float) -> bool | None:
    """Whether it was its owner's until now; None: nobody knows. What was lost has a record."""
    hold.stage = Stage.ENDING
    heartbeat.heart.stop(hold)
    hold.lost()  # how it is now, not when it has been given back
    ours = _release(hold, wait_seconds)
    if ours is False and hold.loss is None:
        hold.loss = hold.lost() or "stolen"
    held_seconds = hold.held_seconds()
    _forget(hold)
    if hold.loss is not None:
        logger.warning(
            "%s was lost (%s) while it was held, which was for %.3f s. Others may have held it meanwhile: guard what it protects "
            "(lock.guard), hold it for a shorter time, or let it last longer.",
            hold,
            hold.loss,
            held_seconds,
        )
    return ours


def _release(hold: Hold, wait_seconds: float, *, patience_seconds: float | None = None) -> bool | None:
    """Whether it was ours until now; None: nobody knows, and there is a log record."""
    patience = Patience(wait_seconds if patience_seconds is None else patience_seconds, REAL_CLOCK)
    again, hold.asked_to_end = hold.asked_to_end, True
    steps = release(hold.terms, hold.token, patience, again=again)
    try:
        ours: bool = ending_within(wait_seconds, run, steps, hold.client)
    except (PerinvokeError, BotoCoreError, ClientError) as error:  # not all: a signal handler's are the caller's
        _tell_not_given_back(hold, str(error))
        return None
    return ours


def _tell_not_given_back(hold: Hold, why: str) -> None:
    ends = (
        f"in {hold.left_seconds():.1f} s" if hold.token is not None else "at the latest when it would have ended, if it was taken"
    )
    logger.warning("%s could not be given back, and ends by itself %s: %s", hold, ends, why)


def _surely_not_taken(error: BaseException) -> bool:
    """What came of the last request says so. botocore's own errors are of requests that weren't sent, or not accepted."""
    if isinstance(error, TableUnavailable):
        return error.carried_out is False
    return isinstance(error, LeaseTimeout | TableError | BotoCoreError | ClientError)


def _forget(hold: Hold) -> None:
    """After the lease: the environment's next one in turn must not find it taken."""
    heartbeat.heart.stop(hold)
    hold.turn.end()
    lease_holds.holds.remove(hold)
