"""Transactions: all of up to a hundred actions, or none; and a repeated one is the same one.

DynamoDB keeps a transaction's token for ten minutes: the same request with the same token changes nothing then, and is answered
as the first one was. That is what a lost answer and a repeated invocation need. A token is made from the invocation's request
id, which Lambda keeps when it repeats an asynchronous invocation, and from how many transactions the invocation began before. So
what a repeated invocation does again has to come in the same order, with the same values: no new random ids and times in it.
Where that can't be, or the request id is another one (a queue's message that is delivered again), pass a token that belongs to
the event.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import os

from perinvoke.errors import FixConfiguration
from perinvoke.fleet.caller import notes_of_caller, outermost_request_id, patience_of
from perinvoke.fleet.dynamodb.answers import Cancelled
from perinvoke.fleet.dynamodb.caller import client_of
from perinvoke.fleet.dynamodb.insist import insist
from perinvoke.fleet.dynamodb.steps import Call, Pause, run
from perinvoke.fleet.dynamodb.transact_actions import actions_of
from perinvoke.fleet.dynamodb.values import plain
from perinvoke.fleet.dynamodb.writes import note_low_level
from perinvoke.fleet.errors import TransactionCancelled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence
    from typing import Any

    from perinvoke.fleet.dynamodb.answers import Answer
    from perinvoke.fleet.dynamodb.transact_actions import Action
    from perinvoke.fleet.patience import Patience

MAX_TOKEN_CHARACTERS = 36  # DynamoDB's limit
_NOTE = "dynamodb transactions"
_TOKEN_BYTES = 24  # 32 characters; no two transactions have the same
# What an action that nothing was wrong with is said to have.
_NOTHING = "None"
# What passes: others' writes and transactions on the same items, and too many of them. https://docs.aws.amazon.com/amazondynamodb/
# latest/APIReference/API_TransactWriteItems.html
_CONFLICTS = frozenset({"TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded"})
_SHOWN = 5  # failing actions in a message; arbitrary


class Reason:
    """Why one action kept a transaction from being carried out; lives as long as the error that has it.

    Attributes:
        index: of the action, from 0.
        code: DynamoDB's: ``"ConditionalCheckFailed"``, ``"TransactionConflict"``, ``"ValidationError"``, …
        message: DynamoDB's; may be empty.
        item: what stands there, in Python's values, where a condition didn't hold; None: nothing.
    """

    __slots__ = ("code", "index", "item", "message")

    def __init__(self, index: int, code: str, message: str, item: dict[str, Any] | None) -> None:
        self.index = index
        self.code = code
        self.message = message
        self.item = item

    def __repr__(self) -> str:
        return f"Reason(index={self.index}, code={self.code!r}, message={self.message!r}, item={self.item!r})"


def transact(items: Sequence[Mapping[str, Any]], *, token: str | None = None, client: Any = None) -> None:
    """Carry out all of these actions, or none of them; and not twice, however often it is asked for within ten minutes.

    Each action is a dict as ``transact_write_items`` takes them: ``{"Put": {"TableName": …, "Item": …, "ConditionExpression":
    …}}``, and ``Update``, ``Delete`` and ``ConditionCheck`` likewise. Keys, items and values are Python's, or all of an action in
    DynamoDB's form. A condition that doesn't hold tells what stands there.

    While others' transactions stand in the way it is tried again, after pauses, with the same token. What a condition refuses
    isn't.

    Price: one request; each action costs two writes. Blocks; waits until the invocation's deadline less a margin, outside an
    invocation for 30 seconds. May be called from any thread, and in a forked child with a token of its own; threads that begin
    transactions at once need tokens of their own, too: which one comes first isn't the same the next time.

    Args:
        items: 1 to 100 actions, each on another item.
        token: up to 36 characters: the same one for the same transaction, for ten minutes. By default it is made from the
            invocation's request id and the number of this call within it, so that a repeated invocation's transactions are the
            same ones; outside an invocation it is random.
        client: a low-level client of your own.

    Raises:
        TransactionCancelled: nothing was carried out: a condition didn't hold (``conflict`` False), or only others stood in the
            way until there was no more time (True). ``reasons`` tells which actions, and why.
        TransactionMismatch: the token was used for another transaction in the last ten minutes.
        TableUnavailable: throttled, or no answer, for as long as there was time. Asking again with the same token is safe. Where
            none was passed another call is another transaction; only the repeated invocation's one is the same.
        TableMissing, TableForbidden, TableSchemaError, FixConfiguration: a table, the role or an argument is wrong.
    """
    actions = actions_of(items)
    checked = checked_token(token)
    carry_out(actions, checked or _own_token(), patience_of(), client)


def carry_out(actions: Sequence[Action], token: str, patience: Patience, client: Any) -> None:
    """As ``transact``."""
    parameters = {"TransactItems": [action.low_level for action in actions], "ClientRequestToken": token}
    note_low_level("TransactWriteItems", parameters)
    run(transaction(actions, Call("transact_write_items", parameters), patience), client_of(client))


def transaction(actions: Sequence[Action], call: Call, patience: Patience) -> Generator[Call | Pause, Answer | None, None]:
    """Have it carried out, step by step. A lost answer needs no care: the token does what is needed.

    Raises:
        TransactionCancelled, TableUnavailable: as above.
    """
    while True:
        answer = yield from insist(call, patience)
        if not isinstance(answer, Cancelled):
            return
        reasons = [_reason(index, its) for index, its in enumerate(answer.reasons) if its.get("Code", _NOTHING) != _NOTHING]
        passes = bool(reasons) and all(reason.code in _CONFLICTS for reason in reasons)
        pause = patience.pause() if passes else None
        if pause is None:
            raise _cancelled(actions, reasons, patience, conflict=passes)
        yield Pause(pause)


def checked_token(token: object) -> str | None:
    """The same; None where there is none.

    Raises:
        FixConfiguration: it can't be one.
    """
    if token is not None and not (isinstance(token, str) and 0 < len(token) <= MAX_TOKEN_CHARACTERS):
        raise FixConfiguration(
            f"token is {token!r}; DynamoDB takes strings of 1 to {MAX_TOKEN_CHARACTERS} characters. "
            "Of something longer use a digest: hashlib.sha256(…).hexdigest()[:36]"
        )
    return token


def _own_token() -> str:
    notes, request_id = notes_of_caller(), outermost_request_id()
    if notes is None or request_id is None:
        return base64.urlsafe_b64encode(os.urandom(_TOKEN_BYTES)).decode()
    counter: Iterator[int] = notes.setdefault(_NOTE, itertools.count())
    number = next(counter)
    digest = hashlib.sha256(f"perinvoke transaction {number} of {request_id}".encode()).digest()
    return base64.urlsafe_b64encode(digest[:_TOKEN_BYTES]).decode()


def _reason(index: int, its: Mapping[str, Any]) -> Reason:
    item = its.get("Item")
    return Reason(index, str(its["Code"]), str(its.get("Message") or ""), plain(item) if item else None)


def _cancelled(
    actions: Sequence[Action], reasons: Sequence[Reason], patience: Patience, *, conflict: bool
) -> TransactionCancelled:
    told = [f"{actions[reason.index]}: {_told(reason)}" for reason in reasons[:_SHOWN] if reason.index < len(actions)]
    more = f"; and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
    what_next = (
        f"Others stood in the way for {patience.waited_seconds():.3f} s: try again later, or give the invocation more time."
        if conflict
        else "Repeating it as it is won't help: look at what stands there (reasons[…].item), or correct the action."
    )
    return TransactionCancelled(
        f"nothing was carried out of {len(actions)} actions: {'; '.join(told) or 'DynamoDB gave no reason'}{more}. {what_next}",
        reasons=list(reasons),
        conflict=conflict,
    )


def _told(reason: Reason) -> str:
    # The usual message of a condition that didn't hold says nothing more.
    return reason.code if reason.code == "ConditionalCheckFailed" or not reason.message else f"{reason.code} ({reason.message})"
