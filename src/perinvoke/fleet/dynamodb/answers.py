"""What came of a call: the one place where botocore's errors become answers that a protocol decides about, or errors of ours.

A call was answered, refused by its own condition, or met trouble that passes: it was throttled, stood in the way of another
write, or its answer was lost. Trouble is repeated (``insist.py``). What won't pass is raised: a table that isn't there, has
another key or may not be touched; a server that isn't DynamoDB and can't do it.
"""

from __future__ import annotations

import enum
import re

from botocore.exceptions import ClientError, ConnectionError, HTTPClientError  # noqa: A004  # botocore's own
from botocore.parsers import ResponseParserError

from perinvoke.errors import FixConfiguration
from perinvoke.fleet.dynamodb.attempts import is_no_answer, never_sent
from perinvoke.fleet.errors import TableError, TableForbidden, TableMissing, TableSchemaError, TransactionMismatch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, TypeAlias

    from perinvoke.fleet.dynamodb.steps import Call

    Answer: TypeAlias = "Answered | Refused | Trouble"
    Item: TypeAlias = Mapping[str, Any]  # as the low-level client has it: {"id": {"S": "…"}}

_FORBIDDEN = frozenset({"AccessDeniedException", "AccessDenied", "UnauthorizedOperation"})
# How DynamoDB says in prose, which is all there is, that a key isn't the table's.
_OTHER_KEY = re.compile(
    r"key element does not match|[Mm]issing the key|[Tt]ype mismatch for key|number of conditions on the keys"
)
# And that an attribute which is added to isn't a number.
_OTHER_TYPE = re.compile(r"incorrect data type|Incorrect operand type")
_TOO_LARGE = re.compile(r"Item size .*has exceeded the maximum allowed size|[Ii]tem too large")
_TWICE = re.compile(r"multiple operations on one item")


class TroubleKind(enum.Enum):
    """Why a call was neither answered nor refused."""

    THROTTLED = "throttled"
    CONFLICT = "in the way of a transaction"
    REPLICATED_CONFLICT = "in the way of a write in another region"
    LOST = "without an answer"
    UNREACHED = "not reached"


# Nothing was carried out, says DynamoDB's documentation of its errors.
_TROUBLES = {
    "ProvisionedThroughputExceededException": TroubleKind.THROTTLED,
    "ThrottlingException": TroubleKind.THROTTLED,
    "Throttling": TroubleKind.THROTTLED,
    "RequestLimitExceeded": TroubleKind.THROTTLED,
    "LimitExceededException": TroubleKind.THROTTLED,
    "TransactionConflictException": TroubleKind.CONFLICT,
    "TransactionInProgressException": TroubleKind.CONFLICT,
    "ReplicatedWriteConflictException": TroubleKind.REPLICATED_CONFLICT,
}


class Answered:
    """It was carried out, and this is the response.

    Args:
        response: as the client returns it.
        lost: whether an earlier attempt of this call, botocore's or ours, may have been carried out; None: if botocore made any.
    """

    __slots__ = ("lost", "response")

    def __init__(self, response: dict[str, Any], *, lost: bool | None = None) -> None:
        self.response = response
        self.lost = _repetitions(response) > 0 if lost is None else lost

    @property
    def item(self) -> Item | None:
        """What a ``get_item`` found."""
        return self.response.get("Item")

    @property
    def attributes(self) -> Item:
        """What ``ReturnValues`` asked for."""
        attributes: Item = self.response.get("Attributes", {})
        return attributes

    def __repr__(self) -> str:
        return f"<Answered {self.response}>"


class Refused:
    """Its condition didn't hold; or holds no more, because a repetition met what the first attempt had done.

    Attributes:
        item: what stands there, where the call asked for it (``ReturnValuesOnConditionCheckFailure``); None: nothing.
        lost: whether an earlier attempt of this call, botocore's or ours, may have been carried out.
    """

    __slots__ = ("item", "lost")

    def __init__(self, item: Item | None, *, lost: bool) -> None:
        self.item = item
        self.lost = lost

    def __repr__(self) -> str:
        return f"<Refused {self.item}{', an answer was lost' if self.lost else ''}>"


class Cancelled(Refused):
    """None of a transaction's actions was carried out.

    Attributes:
        reasons: DynamoDB's, one for each action: ``{"Code": …, "Message": …, "Item": …}``.
    """

    __slots__ = ("reasons",)

    def __init__(self, reasons: Sequence[Mapping[str, Any]], *, lost: bool) -> None:
        super().__init__(None, lost=lost)
        self.reasons = reasons

    def __repr__(self) -> str:
        return f"<Cancelled {self.reasons}>"


class Trouble:
    """It may work the next time.

    Attributes:
        kind: what it is.
        error: botocore's.
        attempts: how often botocore has tried it.
        lost: whether it may have been carried out.
    """

    __slots__ = ("attempts", "error", "kind", "lost")

    def __init__(self, kind: TroubleKind, error: Exception, *, attempts: int = 1, lost: bool) -> None:
        self.kind = kind
        self.error = error
        self.attempts = attempts
        self.lost = lost

    def __repr__(self) -> str:
        return f"<Trouble {self.kind.value}: {self.error!r}>"


def answer_in(response: dict[str, Any], *, lost: bool | None) -> Answer:
    """What a response says that came without an error: that it was carried out; or that somebody else has answered.

    botocore takes any page for an answer, and of many requests the answer is empty. So the wrong endpoint, or a proxy, would be
    taken for a DynamoDB that has carried everything out. An emulator may call its answers HTML, too: as many a web framework does
    by default. So what botocore found something in, or is no longer than ``{}``, is an answer.
    """
    metadata = response.get("ResponseMetadata", {})
    headers = metadata.get("HTTPHeaders", {}) if isinstance(metadata, dict) else {}
    kind = headers.get("content-type", "") if isinstance(headers, dict) else ""
    if "html" not in kind or len(response) > 1 or headers.get("content-length", "") in {"0", "2"}:
        return Answered(response, lost=lost)
    error = ResponseParserError(
        f"a page, {kind}, came, and no DynamoDB answers so: check the endpoint, and proxies on the way to it"
    )
    return Trouble(TroubleKind.LOST, error, attempts=1 + _repetitions(response), lost=True)


def answer_of(error: Exception, step: Call, region: str, *, lost: bool | None = None) -> Answer | None:
    """What an error of the client's says; None where it is not for us to say.

    Args:
        error: the error.
        step: the call that met it.
        region: for messages.
        lost: whether nobody knows what became of one of its attempts; None: it can't be told, so it is if there may be one.

    Raises:
        TableMissing: there is no such table.
        TableSchemaError: its key is another one, or an attribute has another type.
        TableForbidden: the role's policy doesn't allow the action.
        TableError: whoever answers there doesn't know the operation.
        TransactionMismatch: its token was used for another transaction.
        FixConfiguration: a transaction has two actions on one item.
    """
    if isinstance(error, ClientError):
        return _of_service(error, step, region, lost=lost)
    if not isinstance(error, ConnectionError | HTTPClientError):
        return None
    if never_sent(error) and lost is False:
        return Trouble(TroubleKind.UNREACHED, error, lost=False)
    return Trouble(TroubleKind.LOST, error, lost=True)


def _of_service(error: ClientError, step: Call, region: str, *, lost: bool | None) -> Answer | None:
    response = error.response
    code = response.get("Error", {}).get("Code", "")
    repetitions = _repetitions(response)
    attempts, lost = 1 + repetitions, repetitions > 0 if lost is None else lost
    if code == "ConditionalCheckFailedException":
        return Refused(response.get("Item") or None, lost=lost)
    if code == "TransactionCanceledException":
        return Cancelled(response.get("CancellationReasons") or [], lost=lost)
    kind = _TROUBLES.get(code)
    if kind is not None:
        return Trouble(kind, error, attempts=attempts, lost=lost)
    if is_no_answer(response):
        return Trouble(TroubleKind.LOST, error, attempts=attempts, lost=True)
    _raise_what_will_not_pass(error, code, step, region)
    return None


def _raise_what_will_not_pass(error: ClientError, code: str, step: Call, region: str) -> None:
    table, action = step.table, step.action
    message = str(error.response.get("Error", {}).get("Message", ""))
    if code in {"ResourceNotFoundException", "TableNotFoundException"}:
        raise TableMissing(
            f"DynamoDB has no table {table!r} in {region}. Correct the name or the region, or make the table; "
            f"for leases and idempotency: perinvoke table create {table.rpartition('/')[2]}",
            table=table,
            action=action,
        ) from error
    if code in _FORBIDDEN:
        raise TableForbidden(
            f"the function's role may not do {action} on table {table!r}: add that action to its policy ({message})",
            table=table,
            action=action,
        ) from error
    if code == "UnknownOperationException":
        raise TableError(
            f"the server that answers for table {table!r} has no {step.name}: it is an emulator, or another database that speaks "
            "as DynamoDB does. What needs it can't be used there; point the endpoint to a server that has it, or to DynamoDB",
            table=table,
            action=action,
        ) from error
    if code == "ValidationException" and _OTHER_KEY.search(message):
        raise TableSchemaError(
            f"table {table!r} has another key than was given: {message.strip() or error}. See: perinvoke table describe {table}",
            table=table,
            action=action,
        ) from error
    if code == "ValidationException" and _TOO_LARGE.search(message):
        item = f"item {step.parameters['Key']}" if "Key" in step.parameters else "an item"
        raise TableSchemaError(
            f"{item} of table {table!r} would have more than 400 KB, which is all that DynamoDB keeps in one: {message.strip()}. "
            "Keep large parts in S3 or in items of their own.",
            table=table,
            action=action,
        ) from error
    if code == "ValidationException" and _OTHER_TYPE.search(message):
        names = " or ".join(map(repr, step.parameters.get("ExpressionAttributeNames", {}).values())) or "an attribute"
        item = f"item {step.parameters['Key']}" if "Key" in step.parameters else "an item"
        raise TableSchemaError(
            f"{names} of {item} in table {table!r} isn't a number: {message.strip()}. "
            "Add to another attribute, or correct the item.",
            table=table,
            action=action,
        ) from error
    if step.operation == "transact_write_items":
        _raise_of_a_transaction(error, code, message, step)


def _raise_of_a_transaction(error: ClientError, code: str, message: str, step: Call) -> None:
    if code == "ValidationException" and _TWICE.search(message):
        raise FixConfiguration(
            f"a transaction has two actions on one item, of table {step.table!r} or another, which DynamoDB doesn't take. "
            "Make them one: an Update takes a condition, too"
        ) from error
    if code == "IdempotentParameterMismatchException":
        token = str(step.parameters.get("ClientRequestToken"))
        raise TransactionMismatch(
            f"token {token!r} was used for another transaction in the last ten minutes. Pass transact(items, token=…): "
            "the same one for a repetition of the same actions, another one for others. (Without it the token is made from "
            "the request id and how many transactions the invocation began before: a repeated invocation must begin them in "
            "the same order, with the same values.)",
            token=token,
        ) from error


def _repetitions(response: Mapping[str, Any]) -> int:
    """How often botocore sent it again; 0 where a stand-in for the client doesn't say."""
    repetitions = response.get("ResponseMetadata", {}).get("RetryAttempts", 0)
    return repetitions if isinstance(repetitions, int) else 0
