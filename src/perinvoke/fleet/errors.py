"""The errors of what is shared over all environments: branches of the one tree, loaded by those who share so.

They are kept apart from ``perinvoke.errors`` because that is loaded by every worker.
"""

from __future__ import annotations

import json

from perinvoke.errors import FixConfiguration, InvocationFailed, TryAgain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from perinvoke.fleet.dynamodb.transaction import Reason

_CONFLICT = 409  # HTTP's number for it: RFC 9110, 15.5.10


class TableError(FixConfiguration):
    """A DynamoDB table can't be used as asked.

    Attributes:
        table: its name or ARN.
        action: what was to be done there, as IAM names it: ``dynamodb:UpdateItem``.
    """

    table: str
    action: str


class TableMissing(TableError):
    """There is no such table: in this region, in this account."""


class TableSchemaError(TableError):
    """The table's key, or what an item of it holds, isn't what is needed."""


class TableForbidden(TableError, PermissionError):
    """The function's role may not do this there; ``action`` is what its policy lacks."""


class TableUnavailable(TryAgain):
    """A table throttled, conflicted or could not be reached for as long as there was time.

    Attributes:
        table: its name or ARN.
        action: what was to be done there, as IAM names it.
        attempts: how often it was tried, botocore's own repetitions included.
        waited_seconds: since the first one.
        carried_out: False where it surely was not; None where nobody knows, because an answer was lost.
    """

    table: str
    action: str
    attempts: int
    waited_seconds: float
    carried_out: bool | None


class OutcomeUnknown(TryAgain):
    """A write may have been carried out, or not: its answer was lost, and the item doesn't tell. Look before you repeat it.

    Attributes:
        table: its name or ARN.
        key: of the item.
    """

    table: str
    key: dict[str, Any]


class LeaseError(FixConfiguration):
    """A lease is used in a way that can't work: its key, its duration, a write that can't be guarded."""

    table: str
    key: str


class LeaseNotHeld(LeaseError, RuntimeError):
    """A lease was used by somebody who has not taken it, or has given it back."""


class LeaseTimeout(TryAgain, TimeoutError):
    """A lease was held by others for as long as its owner could wait.

    Attributes:
        table: its name or ARN.
        key: of the lease.
        waited_seconds: how long.
        holder: who held it last, as far as it was seen: the request id of an invocation, or the name of a host.
    """

    table: str
    key: str
    waited_seconds: float
    holder: str | None


class LeaseLost(TryAgain):
    """A lease is not held any more, though it was not given back.

    Attributes:
        table: its name or ARN.
        key: of the lease.
        reason: ``"stolen"``, ``"expired"`` or ``"outage"``.
    """

    table: str
    key: str
    reason: str


class IdempotencyKeyError(FixConfiguration, ValueError):
    """An event or a call has no key that it could be known by: none, an empty one, or one that is too long."""


class PayloadMismatch(FixConfiguration):
    """A key came again, but not what belongs to it: two different requests under one key.

    Attributes:
        key: of the request.
    """

    key: str


class Duplicate(InvocationFailed):
    """A call with this key was there before; raised where duplicates are to be refused.

    Attributes:
        key: of the request.
    """

    key: str


class AlreadyDone(Duplicate):
    """The earlier call has succeeded."""


class AlreadyInProgress(Duplicate, TryAgain):
    """The earlier call still runs, or has died and its deadline isn't over."""


class ResultError(FixConfiguration):
    """What was done can't be answered again: its result can't be kept. It is not done twice for all that.

    Attributes:
        key: of the request.
    """

    key: str


class ResultTooLarge(ResultError, ValueError):
    """The result has more bytes than DynamoDB can keep beside its key.

    Attributes:
        bytes: of the result, as JSON in UTF-8.
        max_bytes: how many there may be.
    """

    bytes: int
    max_bytes: int


class ResultNotJson(ResultError, TypeError):
    """The result can't be written as JSON."""


class WriteConflict(TryAgain):
    """Somebody else changed an item or a row in between, every time until there was no more time; nothing was written.

    Attributes:
        table: its name; None where a database didn't tell.
        key: of the item or row; None likewise.
        attempts: how often it was tried.
        waited_seconds: since the first one.
    """

    table: str | None
    key: object
    attempts: int
    waited_seconds: float

    def as_http(self) -> dict[str, Any]:
        """An answer for API Gateway, a function URL or a load balancer: 409 Conflict, and what to do, as JSON."""
        body = {"error": "conflict", "message": "Somebody else changed this meanwhile. Read it again, and repeat the change."}
        return {"statusCode": _CONFLICT, "headers": {"Content-Type": "application/json"}, "body": json.dumps(body)}


class RowLocked(TryAgain, TimeoutError):
    """A row, or what an advisory lock stands for, was locked by others for as long as its transaction could wait.

    The transaction goes on where the database allows that (SQLite, MariaDB, MySQL); in PostgreSQL it has to be rolled back.

    Attributes:
        what: the model or the key that was to be locked.
        key: of the row.
        waited_seconds: how long.
    """

    what: str
    key: object
    waited_seconds: float


class SqlUseError(FixConfiguration):
    """A session, a model or a database is used in a way that can't be right; the message says which, and what to do."""


class CommitUnknown(TryAgain):
    """The connection broke while a transaction was committed: nobody knows whether it was. Look before you repeat it.

    Attributes:
        attempts: how often it was tried, this time included.
    """

    attempts: int


class TokenInvalid(FixConfiguration, ValueError):
    """What a caller sent along, an ETag in ``If-Match`` or a read token, is missing, or isn't one that was handed out.

    Attributes:
        token: what came; None: nothing.
        status: HTTP's number for it.
    """

    token: str | None
    status: int

    def as_http(self) -> dict[str, Any]:
        """An answer for API Gateway, a function URL or a load balancer: 428, 412 or 400, and what to do, as JSON."""
        body = {"error": "precondition", "message": str(self)}
        return {"statusCode": self.status, "headers": {"Content-Type": "application/json"}, "body": json.dumps(body)}


class ChangeError(FixConfiguration, TypeError):
    """A ``change`` returned something that can't be written in the item's place."""


class TransactionCancelled(TryAgain):
    """DynamoDB carried out none of a transaction's actions.

    Attributes:
        reasons: of every action that had one, in their order.
        conflict: whether only others' writes stood in the way, until there was no more time. Else a condition didn't hold, or an
            action couldn't be carried out: repeating it won't help.
    """

    reasons: Sequence[Reason]
    conflict: bool


class TransactionMismatch(FixConfiguration):
    """This transaction's token was used for another one in the last ten minutes.

    Attributes:
        token: the one.
    """

    token: str
