"""A batch of records, one after the other: one that fails doesn't stop the next, and only the failed ones come again."""

from __future__ import annotations

import logging

from perinvoke.errors import FixConfiguration
from perinvoke.fleet.caller import request_id_of_caller, time_is_up
from perinvoke.fleet.dynamodb.called import is_async, is_generator, refuse_awaitable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

# Where each source writes what Lambda knows a record by.
_IDENTIFIERS = {
    "aws:sqs": ("messageId",),
    "aws:kinesis": ("kinesis", "sequenceNumber"),
    "aws:dynamodb": ("dynamodb", "SequenceNumber"),
}

logger = logging.getLogger("perinvoke")


def process_records(event: Mapping[str, Any], function: Callable[[Any], object]) -> dict[str, list[dict[str, str]]]:
    """Call ``function(record)`` for every record of an event of SQS, Kinesis or DynamoDB streams; say which have failed.

    For a handler, whose answer it is::

        @idempotent("table", key="messageId")
        def process(record): ...

        @isolated
        def handler(event, context):
            return process_records(event, process)

    That is one effect for a message, however often it is delivered. A sender that sends twice sends two messages: where it may,
    take the key from the body.

    The event source mapping needs ``FunctionResponseTypes: [ReportBatchItemFailures]``. Without it Lambda takes the answer for a
    success, and failed records are lost.

    A record whose call raises an ``Exception`` is logged with its traceback, and reported: Lambda delivers it again. Of a
    standard queue the others go on. Of a FIFO queue or a stream the rest is reported too, untouched, because their order counts.
    What isn't reached before the deadline's margin begins is reported as well, instead of being cut off in the middle. A
    ``BaseException``, such as the interrupt at the deadline, passes: Lambda then delivers the whole batch again, and what
    ``idempotent`` has seen succeed is not done twice.

    Blocks until all are done; calls them in this thread. What the function returns is dropped.

    Args:
        event: the handler's.
        function: what to do with a record; not async.

    Returns:
        ``{"batchItemFailures": [{"itemIdentifier": …}]}``.

    Raises:
        FixConfiguration: the event isn't one of those, or the function is async, a generator or can't be called. No record was
            processed.
    """
    given: object = function
    if not callable(given) or is_async(given) or is_generator(given):
        raise FixConfiguration(
            f"process_records calls function(record), one by one; {function!r} is async, is a generator or can't be called"
        )
    records = _records(event)
    identifiers = [_identifier(record) for record in records]
    ordered = any(_is_ordered(record) for record in records)
    failed: list[str] = []
    for index, (record, identifier) in enumerate(zip(records, identifiers, strict=True)):
        if time_is_up():
            _tell_unreached(len(records) - index, "there was no time for")
            failed += identifiers[index:]
            break
        if _succeeds(function, record, identifier):
            continue
        failed.append(identifier)
        if ordered:
            failed += identifiers[index + 1 :]
            _tell_unreached(len(records) - index - 1, "to keep their order, nothing was done with")
            break
    return {"batchItemFailures": [{"itemIdentifier": identifier} for identifier in failed]}


def _succeeds(function: Callable[[Any], object], record: Any, identifier: str) -> bool:
    try:
        refuse_awaitable(function(record), f"{function!r} returned an awaitable, which nobody would wait for: let it await it")
    except Exception:
        logger.exception(
            "record %s failed and is reported, to be delivered again",
            identifier,
            extra={"perinvoke": {"record": identifier, "request_id": request_id_of_caller()}},
        )
        return False
    return True


def _tell_unreached(count: int, why: str) -> None:
    if count:
        fields = {"unreached": count, "request_id": request_id_of_caller()}
        logger.warning("%s %d record(s): they are reported, to be delivered again", why, count, extra={"perinvoke": fields})


def _records(event: Any) -> Sequence[Any]:
    records = event.get("Records") if hasattr(event, "get") else None
    if not isinstance(records, list):
        found = f"members {sorted(map(str, event))}" if isinstance(event, dict) else f"type {type(event).__name__}"
        raise FixConfiguration(
            f"process_records takes an event of SQS, Kinesis or DynamoDB streams, with a list of Records; got one of {found}"
        )
    return records


def _identifier(record: Any) -> str:
    source = record.get("eventSource") if isinstance(record, dict) else None
    path = _IDENTIFIERS.get(source) if isinstance(source, str) else None
    if path is None:
        raise FixConfiguration(
            f"a record's eventSource is {source!r}; process_records knows {', '.join(_IDENTIFIERS)}. Other sources can't be told "
            "which records have failed"
        )
    found = record
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    if not isinstance(found, str) or not found:
        raise FixConfiguration(f"a record of {source} has no {'.'.join(path)}, by which Lambda knows it; got {found!r}")
    return found


def _is_ordered(record: Any) -> bool:
    return record["eventSource"] != "aws:sqs" or str(record.get("eventSourceARN", "")).endswith(".fifo")
