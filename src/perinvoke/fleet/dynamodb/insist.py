"""Repeating a call that met trouble, until it is answered or refused, or there is no more time.

Everything that is repeated here can be done twice: its condition lets it through once, and who it was is written in the item.
"""

from __future__ import annotations

from perinvoke.fleet.dynamodb.answers import Answered, Refused, TroubleKind
from perinvoke.fleet.dynamodb.steps import Pause
from perinvoke.fleet.errors import TableUnavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from perinvoke.fleet.dynamodb.answers import Answer, Trouble
    from perinvoke.fleet.dynamodb.steps import Call
    from perinvoke.fleet.patience import Patience

# Attempts, botocore's among them. Two regions that write one item in turn may go on so for ever, and each attempt costs a write
# in every region. Arbitrary: with full jitter eight attempts span some seconds.
_MAX_REPLICATED_CONFLICTS = 8


def insist(what: Call | Callable[[], Call], patience: Patience) -> Generator[Call | Pause, Answer | None, Answered | Refused]:
    """Make a call, and again after trouble; what came of it in the end. ``lost`` says whether an attempt's answer was lost.

    A call that goes by the time is made anew for each attempt: then ``what`` makes it.

    Raises:
        TableUnavailable: only trouble, for as long as there was time; or too many conflicts with other regions; or no answer to
            a call that must not be made twice.
    """
    attempts, conflicts, lost = 0, 0, False
    while True:
        call = what() if callable(what) else what
        answer = yield call
        if isinstance(answer, Answered | Refused):
            answer.lost = answer.lost or lost
            return answer
        assert answer is not None
        attempts += answer.attempts
        lost = lost or answer.lost
        if answer.kind is TroubleKind.REPLICATED_CONFLICT:
            conflicts += answer.attempts
        given_up = conflicts >= _MAX_REPLICATED_CONFLICTS or (call.once and lost)
        pause = None if given_up else patience.pause()
        if pause is None:
            raise _unavailable(call, answer, attempts, patience, lost=lost) from answer.error
        yield Pause(pause)


def _unavailable(call: Call, trouble: Trouble, attempts: int, patience: Patience, *, lost: bool) -> TableUnavailable:
    waited = patience.waited_seconds()
    doubt = " It may have been carried out." if lost else ""
    return TableUnavailable(
        f"{call.action} on table {call.table!r} was {trouble.kind.value} in {attempts} attempt(s) over {waited:.3f} s "
        f"({trouble.error}).{doubt} Try again later, or give the invocation more time.",
        table=call.table,
        action=call.action,
        attempts=attempts,
        waited_seconds=waited,
        carried_out=None if lost else False,
    )
