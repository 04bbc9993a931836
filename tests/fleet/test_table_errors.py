"""A table that can't be used: what each way of using it says of that, and after how long."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import boto3
import pytest
from awslambdaric.lambda_context import LambdaContext

from aws_server import answer
from perinvoke import isolated
from perinvoke.errors import FixConfiguration
from perinvoke.fleet import caller
from perinvoke.fleet.dynamodb import (
    LeaseLock,
    VersionedItem,
    create_once,
    idempotent,
    idempotent_call,
    increment,
    read,
    transact,
    update_versioned,
)
from perinvoke.fleet.errors import TableError, TableForbidden, TableMissing, TableSchemaError, TableUnavailable
from stalls import repeated_after_a_stall

if TYPE_CHECKING:
    from collections.abc import Callable

    from dynamodb_server import DynamoDb

    Use = Callable[[str, Any], object]


def lease(table: str, client: Any) -> None:
    with LeaseLock(table, uuid4().hex, client=client):
        pass


def call(table: str, client: Any) -> None:
    idempotent(table, key="id", name="call", client=client)(lambda event: "done")({"id": uuid4().hex})


def transaction(table: str, client: Any) -> None:
    transact([{"Put": {"TableName": table, "Item": {"id": uuid4().hex}}}], client=client)


USES: dict[str, Use] = {
    "a lease": lease,
    "an idempotent call": call,
    "update_versioned": lambda table, client: update_versioned(table, {"id": "a"}, lambda item: item, client=client),
    "create_once": lambda table, client: create_once(table, {"id": uuid4().hex}, client=client),
    "VersionedItem": lambda table, client: VersionedItem.read(table, {"id": "b"}, client=client).write({"id": "b"}),
    "increment": lambda table, client: increment(table, {"id": "c"}, "count", client=client),
    "transact": transaction,
    "read": lambda table, client: read(table, {"id": "a"}, client=client),
}
# The action of its first request, as IAM names it: a transaction needs those that it is made of.
FIRST = {
    "a lease": "UpdateItem",
    "an idempotent call": "UpdateItem",
    "update_versioned": "GetItem",
    "create_once": "PutItem",
    "VersionedItem": "GetItem",
    "increment": "UpdateItem",
    "transact": "PutItem",
    "read": "GetItem",
}
SCHEMAS: dict[str, dict[str, str]] = {"name": {"key": "pk"}, "type": {"kind": "N"}, "sort key": {"sort": "at"}}
# It reads with a key of any type, and ends a transaction with another key in an error of its own.
MOTO_CANNOT = {("read", "type"), ("transact", "name"), ("transact", "sort key")}
every_use = pytest.mark.parametrize("use", USES)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> float:
    """Seconds that anything waits outside an invocation."""
    monkeypatch.setattr(caller, "_NO_DEADLINE_SECONDS", 0.3)
    monkeypatch.setattr(idempotent_call, "_FORGETS_SECONDS", 0.3)
    return 0.3


@every_use
def test_without_ttl_it_works_and_nobody_asks_for_it(dynamodb: DynamoDb, use: str) -> None:
    table = dynamodb.table()
    with dynamodb.counted() as operations:
        USES[use](table, dynamodb.client())
    assert set(operations) <= {"GetItem", "PutItem", "UpdateItem", "TransactWriteItems"}


@every_use
def test_a_missing_table_is_named_with_its_region_and_how_to_make_it(dynamodb: DynamoDb, use: str) -> None:
    with dynamodb.counted() as operations, pytest.raises(TableMissing) as raised:
        USES[use]("nowhere", dynamodb.client())
    assert len(operations) == 1
    assert raised.value.table == "nowhere"
    assert raised.value.action == f"dynamodb:{FIRST[use]}"
    for told in ("'nowhere'", "eu-west-1", "perinvoke table create nowhere"):
        assert told in str(raised.value)


@every_use
def test_what_a_server_cannot_do_that_is_not_dynamodb_is_told(
    dynamodb: DynamoDb, monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    table = dynamodb.table()
    monkeypatch.setattr(dynamodb, "faults", lambda operation, body: "UnknownOperationException")
    with dynamodb.counted() as operations, pytest.raises(TableError) as raised:
        USES[use](table, dynamodb.client())
    assert raised.value.table == table
    assert f"has no {operations[0]}:" in str(raised.value)
    assert len(operations) == 1


WRONG: dict[str, tuple[Any, str]] = {
    "a resource": (lambda **account: boto3.resource("dynamodb", **account), "resource"),
    "a table": (lambda **account: boto3.resource("dynamodb", **account).Table("table"), "resource"),
    "a resource's client": (lambda **account: boto3.resource("dynamodb", **account).meta.client, "takes Python's values"),
    "another service's": (lambda **account: boto3.client("s3", **account), "client for s3"),
    "a session": (lambda **account: boto3.session.Session(), "no client"),
}


@every_use
@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_low_level_client_is_said_before_anything_is_sent(dynamodb: DynamoDb, use: str, kind: str) -> None:
    make, says = WRONG[kind]
    client = make(**dynamodb.account())
    with dynamodb.counted() as operations, pytest.raises(FixConfiguration, match=says) as raised:
        USES[use]("table", client)
    assert not operations
    assert not isinstance(raised.value, TableError)
    assert "boto3.client('dynamodb')" in str(raised.value)


class AsyncClient:
    """As aiobotocore's: what it returns has to be awaited."""

    meta = SimpleNamespace(endpoint_url="http://localhost", events=None)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def operation(**parameters: Any) -> None: ...

        return operation


@every_use
def test_an_async_client_is_refused(use: str) -> None:
    with pytest.raises(FixConfiguration, match="which is async"):
        USES[use]("table", AsyncClient())


@pytest.fixture
def dynamodbs_words(dynamodb: DynamoDb, monkeypatch: pytest.MonkeyPatch) -> None:
    """DynamoDB's own for a key without its sort key, in the place of moto's."""

    def reply_to(line: str, headers: dict[str, str], body: bytes) -> Any:
        found = reply(line, headers, body)
        if isinstance(found, bytes) and b"Validation Exception" in found:
            told = b"The provided key element does not match the schema"
            return answer(found.partition(b"\r\n\r\n")[2].replace(b"Validation Exception", told), "400 Bad Request")
        return found

    reply = dynamodb.reply_to
    monkeypatch.setattr(dynamodb, "reply_to", reply_to)


@pytest.mark.usefixtures("dynamodbs_words")
@pytest.mark.parametrize(
    ("use", "schema"),
    [(use, schema) for use in USES for schema in SCHEMAS if (use, schema) not in MOTO_CANNOT],
)
def test_another_key_is_told_at_once(dynamodb: DynamoDb, use: str, schema: str) -> None:
    table = dynamodb.table(**SCHEMAS[schema])
    with dynamodb.counted() as operations, pytest.raises(TableSchemaError) as raised:
        USES[use](table, dynamodb.client())
    assert len(operations) == len(set(operations))
    assert raised.value.table == table
    assert f"perinvoke table describe {table}" in str(raised.value)
    assert dynamodb.items(table) == []


@every_use
def test_a_missing_permission_is_told_as_iam_names_it(dynamodb: DynamoDb, monkeypatch: pytest.MonkeyPatch, use: str) -> None:
    table = dynamodb.table()
    with dynamodb.counted() as every:
        USES[use](table, dynamodb.client())
    for denied in sorted(set(every)):
        monkeypatch.setattr(
            dynamodb, "faults", lambda operation, body, denied=denied: "AccessDeniedException" if operation == denied else None
        )
        with pytest.raises(TableForbidden) as raised:
            USES[use](table, dynamodb.client())
        assert raised.value.table == table
        action = f"dynamodb:{FIRST[use] if denied == 'TransactWriteItems' else denied}"
        assert raised.value.action == action
        assert f"{action} on table {table!r}" in str(raised.value)
        assert isinstance(raised.value, PermissionError)


@every_use
@repeated_after_a_stall
def test_throttling_that_does_not_end_is_told_when_time_is_up(
    dynamodb: DynamoDb, monkeypatch: pytest.MonkeyPatch, short: float, use: str
) -> None:
    table = dynamodb.table()
    monkeypatch.setattr(dynamodb, "faults", lambda operation, body: "ThrottlingException")
    began = time.monotonic()
    with dynamodb.counted() as operations, pytest.raises(TableUnavailable) as raised:
        USES[use](table, dynamodb.client())
    assert time.monotonic() - began < short + 10
    assert raised.value.table == table
    assert raised.value.action == f"dynamodb:{FIRST[use]}"
    assert 1 < raised.value.attempts <= len(operations)  # some look afterwards what became of it, or take it back
    assert "was throttled" in str(raised.value)


@every_use
def test_throttling_that_ends_in_time_disturbs_nobody(dynamodb: DynamoDb, monkeypatch: pytest.MonkeyPatch, use: str) -> None:
    table, left = dynamodb.table(), [5]

    def throttled(operation: str, body: dict[str, Any]) -> str | None:
        left[0] -= 1
        return "ProvisionedThroughputExceededException" if left[0] >= 0 else None

    monkeypatch.setattr(dynamodb, "faults", throttled)
    USES[use](table, dynamodb.client())
    assert left[0] < 0


@repeated_after_a_stall
def test_throttling_ends_with_the_invocation(dynamodb: DynamoDb, monkeypatch: pytest.MonkeyPatch, root: object) -> None:
    table = dynamodb.table()
    monkeypatch.setattr(dynamodb, "faults", lambda operation, body: "ThrottlingException")
    handler = isolated(lambda event, context: call(table, dynamodb.client()))
    lambda_context = LambdaContext("r-1", None, None, int(time.time() * 1000) + 3000, "arn")
    with pytest.raises(TableUnavailable):
        handler({}, lambda_context)
    assert lambda_context.get_remaining_time_in_millis() > 0
