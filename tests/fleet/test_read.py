"""Reads: strongly consistent where this invocation has written, or a token says so; else half the price."""

from __future__ import annotations

import decimal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamodb_faults import Script, put
from perinvoke import boto3_client, boto3_resource, isolated
from perinvoke.errors import FixConfiguration
from perinvoke.fleet.dynamodb import (
    VersionedItem,
    create_once,
    increment,
    note_writes,
    read,
    read_token,
    transact,
    update_versioned,
)
from perinvoke.fleet.dynamodb.item_key import ItemKey, digest
from perinvoke.fleet.dynamodb.writes import has_written, note_write
from perinvoke.fleet.errors import TableMissing, TableSchemaError, TableUnavailable, TokenInvalid

KEY = {"id": "a"}
TYPED = {"id": {"S": "a"}}
SET = {"UpdateExpression": "SET n = :n", "ExpressionAttributeValues": {":n": {"N": "1"}}}


@pytest.fixture
def table(dynamodb):
    return dynamodb.table()


@pytest.fixture
def reads(dynamodb, monkeypatch) -> list[bool]:
    """Of each read that comes, whether it was to be consistent."""
    seen: list[bool] = []

    def note(operation: str, body: dict[str, Any]) -> None:
        if operation == "GetItem":
            seen.append(body["ConsistentRead"])

    monkeypatch.setattr(dynamodb, "faults", note)
    return seen


@pytest.fixture
def here(dynamodb, monkeypatch, root):
    """The worker's own clients come here."""
    for name, value in dynamodb.variables().items():
        monkeypatch.setenv(name, value)


def in_invocation(work, context):
    isolated(lambda event, context: work())({}, context)


def test_items_are_plain_and_what_is_not_there_is_none(dynamodb, table):
    client = dynamodb.client()
    assert read(table, KEY, client=client) is None
    put(dynamodb, table, {"id": {"S": "a"}, "n": {"N": "1.5"}, "list": {"L": [{"S": "x"}]}})
    found = read(table, TYPED, client=client)
    assert found == {"id": "a", "n": Decimal("1.5"), "list": ["x"]}


def test_by_default_it_is_not_consistent_and_costs_one_request(dynamodb, table, reads):
    client = dynamodb.client()
    with dynamodb.counted() as operations:
        for consistent in (None, True, False):
            read(table, KEY, consistent=consistent, client=client)
    assert reads == [False, True, False]
    assert operations == ["GetItem"] * 3


# Every way to write an item, with the worker's own client or resource where it is not of this module.
WRITES = {
    "update_versioned": lambda table: update_versioned(table, KEY, lambda item: item),
    "create_once": lambda table: create_once(table, KEY),
    "increment": lambda table: increment(table, KEY, "n"),
    "increment with a token": lambda table: increment(table, KEY, "n", token=table),
    "transact, a put": lambda table: transact([{"Put": {"TableName": table, "Item": KEY}}]),
    "transact, a delete": lambda table: transact([{"Delete": {"TableName": table, "Key": KEY}}]),
    "put_item": lambda table: boto3_client("dynamodb").put_item(TableName=table, Item={**TYPED, "other": {"S": "b"}}),
    "update_item": lambda table: boto3_client("dynamodb").update_item(TableName=table, Key=TYPED, **SET),
    "delete_item": lambda table: boto3_client("dynamodb").delete_item(TableName=table, Key=TYPED),
    "batch_write_item": lambda table: boto3_client("dynamodb").batch_write_item(
        RequestItems={table: [{"PutRequest": {"Item": TYPED}}]}
    ),
    "transact_write_items": lambda table: boto3_client("dynamodb").transact_write_items(
        TransactItems=[{"Put": {"TableName": table, "Item": TYPED}}]
    ),
    "a table's put_item": lambda table: boto3_resource("dynamodb").Table(table).put_item(Item={**KEY, "n": 5}),
    "a table's delete_item": lambda table: boto3_resource("dynamodb").Table(table).delete_item(Key=KEY),
    "a table's batch": lambda table: batch(table),
}


# Ours, with a client that nobody listens to.
OURS = {
    "update_versioned": lambda table, client: update_versioned(table, KEY, lambda item: item, client=client),
    "VersionedItem": lambda table, client: VersionedItem.matching(table, KEY, '"missing"', client=client).write({}),
    "create_once": lambda table, client: create_once(table, KEY, client=client),
    "increment": lambda table, client: increment(table, KEY, "n", client=client),
    "increment with a token": lambda table, client: increment(table, KEY, "n", token=table, client=client),
    "transact": lambda table, client: transact([{"Put": {"TableName": table, "Item": KEY}}], client=client),
}


def batch(table: str) -> None:
    with boto3_resource("dynamodb").Table(table).batch_writer() as writer:
        writer.delete_item(Key={"id": "other"})
        writer.put_item(Item={**KEY, "n": 5})


@pytest.mark.parametrize("how", WRITES)
def test_what_this_invocation_wrote_is_read_consistently(table, reads, here, lambda_context, how):
    def work() -> None:
        WRITES[how](table)
        reads.clear()
        read(table, KEY)
        read(table, KEY, consistent=False)
        read(table, {"id": "b"})

    in_invocation(work, lambda_context)
    assert reads == [True, False, False]
    in_invocation(lambda: read(table, KEY), lambda_context)  # the next one knows nothing of it
    assert reads[3:] == [False]


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("how", OURS)
def test_what_was_written_with_a_client_of_ones_own_is_read_consistently(dynamodb, table, reads, lambda_context, how):
    silent = dynamodb.client()

    def work() -> None:
        OURS[how](table, silent)
        reads.clear()
        read(table, KEY, client=silent)
        read(table, {"id": "b"}, client=silent)

    in_invocation(work, lambda_context)
    assert reads == [True, False]


def test_what_was_only_checked_is_not_written(dynamodb, table, reads, lambda_context, root):
    client = dynamodb.client()
    check = {"TableName": table, "Key": {"id": "b"}, "ConditionExpression": "attribute_not_exists(id)"}

    def work() -> None:
        transact([{"ConditionCheck": check}, {"Delete": {"TableName": table, "Key": KEY}}], client=client)
        read(table, {"id": "b"}, client=client)

    in_invocation(work, lambda_context)
    assert reads == [False]


def test_a_write_that_failed_counts_too(dynamodb, table, here, lambda_context, monkeypatch):
    seen = []

    def work() -> None:
        monkeypatch.setattr(dynamodb, "faults", Script("PutItem", *["AccessDeniedException"] * 9))
        with pytest.raises(Exception, match="PutItem"):
            create_once(table, KEY)
        monkeypatch.setattr(dynamodb, "faults", lambda operation, body: seen.append(body["ConsistentRead"]))
        read(table, KEY)

    in_invocation(work, lambda_context)
    assert seen == [True]


def test_threads_of_an_invocation_share_what_they_wrote(table, reads, here, lambda_context):
    def work() -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(increment, table, KEY, "n").result()
        thread = threading.Thread(target=read, args=(table, KEY))
        thread.start()
        thread.join()
        isolated(lambda event, context: read(table, KEY))({}, None)

    in_invocation(work, lambda_context)
    assert reads == [True, True]


def test_outside_an_invocation_nothing_is_remembered(table, reads, here):
    increment(table, KEY, "n")
    read(table, KEY)
    assert reads == [False]


def test_a_key_of_two_attributes_and_numbers_written_otherwise(dynamodb, reads, here, lambda_context):
    table = dynamodb.table(key="user", kind="N", sort="order")

    def work() -> None:
        boto3_client("dynamodb").put_item(TableName=table, Item={"user": {"N": "1.0"}, "order": {"N": "2"}, "x": {"S": "y"}})
        for user, order in ((1, 2), (2, 1), (1, 3)):
            read(table, {"user": user, "order": order})

    in_invocation(work, lambda_context)
    assert reads == [True, False, False]


def test_a_table_named_by_its_arn_is_the_same_table(table, lambda_context, root):
    arn = f"arn:aws:dynamodb:eu-west-1:123456789012:table/{table}"
    assert ItemKey(arn, KEY).digest() == ItemKey(table, KEY).digest()
    assert read_token(arn, KEY) == read_token(table, KEY)
    noted = []

    def work() -> None:
        note_write(ItemKey(arn, KEY))
        noted.append(has_written(ItemKey(table, KEY)))

    in_invocation(work, lambda_context)
    assert noted == [True]


def test_the_order_of_a_keys_attributes_does_not_matter():
    assert read_token("t", {"user": "ann", "order": "7"}) == read_token("t", {"order": "7", "user": "ann"})
    assert read_token("t", {"user": "ann", "order": "7"}) != read_token("t", {"user": "7", "order": "ann"})


def test_very_many_puts_make_all_of_the_table_consistent(table, reads, here, lambda_context, monkeypatch):
    monkeypatch.setattr("perinvoke.fleet.dynamodb.writes._MAX_ITEMS", 3)

    def work() -> None:
        client = boto3_client("dynamodb")
        for number in range(5):
            client.put_item(TableName=table, Item={"id": {"S": str(number)}})
        for key in ("0", "4", "never written"):
            read(table, {"id": key})

    in_invocation(work, lambda_context)
    assert reads == [True, True, True]


def test_very_many_keys_make_all_of_the_table_consistent(table, reads, here, lambda_context, monkeypatch):
    monkeypatch.setattr("perinvoke.fleet.dynamodb.writes._MAX_KEYS", 3)

    def work() -> None:
        for number in range(5):
            increment(table, {"id": str(number)}, "n")
        for key in ("0", "4", "never written"):
            read(table, {"id": key})

    in_invocation(work, lambda_context)
    assert reads == [True, True, True]


def test_a_client_of_ones_own_is_noted_once_it_is_said(dynamodb, table, reads, lambda_context, root):
    silent, noted = dynamodb.client(), dynamodb.client()
    resource = boto3.resource("dynamodb", **dynamodb.account())
    note_writes(noted)
    note_writes(noted)
    note_writes(resource.Table("any"))

    def work() -> None:
        silent.put_item(TableName=table, Item=TYPED)
        read(table, KEY, client=silent)
        noted.put_item(TableName=table, Item={"id": {"S": "b"}})
        read(table, {"id": "b"}, client=silent)
        resource.Table(table).put_item(Item={"id": "c", "set": {1, 2}})
        read(table, {"id": "c"}, client=silent)

    in_invocation(work, lambda_context)
    assert reads == [False, True, True]


@pytest.mark.parametrize("target", [None, 5, "client"])
def test_what_is_no_client_is_said(target):
    with pytest.raises(FixConfiguration, match="note_writes got"):
        note_writes(target)


def test_another_services_client_is_said(dynamodb):
    with pytest.raises(FixConfiguration, match="note_writes got"):
        note_writes(boto3.client("s3", **dynamodb.account()))


def test_clients_made_before_the_import_are_noted_from_it_on(dynamodb, table):
    """And the wrong parameters of a call are botocore's to tell."""
    script = f"""
import time
from awslambdaric.lambda_context import LambdaContext
from perinvoke import boto3_client, boto3_resource, isolated
client, resource = boto3_client("dynamodb"), boto3_resource("dynamodb")
from perinvoke.fleet.dynamodb import read
seen = []
client.meta.events.register("before-parameter-build.dynamodb.GetItem", lambda params, **_: seen.append(params["ConsistentRead"]))

@isolated
def handler(event, context):
    client.put_item(TableName={table!r}, Item={{"id": {{"S": "a"}}}})
    resource.Table({table!r}).put_item(Item={{"id": "b"}})
    for key in "abc":
        read({table!r}, {{"id": key}})
    for wrong in (dict(Key=[7]), dict(Key="x"), dict(Item="x"), dict(Item={{"id": "b"}})):
        try:
            client.put_item(TableName={table!r}, **wrong)
        except Exception as error:
            assert type(error).__name__ == "ParamValidationError", error
    print(seen)

handler({{}}, LambdaContext("id", None, None, int(time.time() * 1000) + 20_000, "arn", None))
"""
    env = {**dynamodb.variables(), "PATH": "/usr/bin:/bin"}
    told = subprocess.run([sys.executable, "-c", script], env=env, text=True, capture_output=True, timeout=60, check=False)
    assert told.stdout.strip() == "[True, True, False]", told


def test_a_token_makes_that_items_reads_consistent(dynamodb, table, reads):
    client, token = dynamodb.client(), read_token(table, KEY)
    assert len(token) == 25
    assert token == read_token(table, TYPED)
    for key in (KEY, {"id": "b"}):
        read(table, key, after=token, client=client)
    read(table, KEY, after=token, consistent=False, client=client)
    assert reads == [True, False, False]


@pytest.mark.parametrize("token", ["", "r1.", "r1." + "x" * 21, "x" * 25, 5, b"r1." + b"x" * 22, "r1." + "x" * 21 + "\n"])
def test_what_is_no_token_is_said(dynamodb, table, token):
    with dynamodb.counted() as operations, pytest.raises(TokenInvalid, match="after is") as caught:
        read(table, KEY, after=token, client=dynamodb.client())
    assert caught.value.as_http()["statusCode"] == 400
    assert operations == []


@given(
    st.dictionaries(
        st.text(min_size=1), st.one_of(st.text(min_size=1), st.integers(), st.binary(min_size=1)), min_size=1, max_size=2
    ),
    st.dictionaries(
        st.text(min_size=1), st.one_of(st.text(min_size=1), st.integers(), st.binary(min_size=1)), min_size=1, max_size=2
    ),
)
def test_two_keys_have_two_tokens(one, other):
    try:
        tokens = [read_token("table", key) for key in (one, other)]
    except FixConfiguration:
        return  # an integer of more than 38 digits
    assert (tokens[0] == tokens[1]) is (one == other)


def test_numbers_are_one_however_they_are_written():
    assert len({digest("t", {"id": {"N": text}}) for text in ("100", "1E+2", "100.0", "+100", "0100")}) == 1
    assert len({digest("t", {"id": {"N": text}}) for text in ("0", "-0", "0.0", "0E5")}) == 1
    assert digest("t", {"id": {"N": "1"}}) != digest("t", {"id": {"S": "1"}})


def test_a_token_does_not_depend_on_how_the_caller_calculates():
    key = {"id": 123_456_789}
    with decimal.localcontext() as context:
        context.prec = 3
        token = read_token("t", key)
    assert token == read_token("t", key)
    assert read_token("t", {"id": 10**37 + 1}) != read_token("t", {"id": 10**37 + 2})


def test_a_key_that_is_not_the_tables_hides_no_write(dynamodb, table, reads, here, lambda_context):
    def work() -> None:
        boto3_client("dynamodb").put_item(TableName=table, Item={"id": {"S": "b"}})
        with pytest.raises(TableSchemaError):
            read(table, {"name": "x"})
        boto3_client("dynamodb").put_item(TableName=table, Item={**TYPED, "name": {"S": "x"}})
        reads.clear()
        read(table, KEY)

    in_invocation(work, lambda_context)
    assert reads == [True]


@pytest.mark.parametrize("consistent", ["yes", 1, 0, 1.0, []])
def test_what_is_neither_consistent_nor_not_is_said(table, consistent):
    with pytest.raises(FixConfiguration, match="consistent is"):
        read(table, KEY, consistent=consistent)


def test_trouble_is_waited_for_until_there_is_no_more_time(dynamodb, table, monkeypatch):
    client = dynamodb.client()
    monkeypatch.setattr(dynamodb, "faults", Script("GetItem", *["ThrottlingException"] * 5))
    assert read(table, KEY, client=client) is None
    monkeypatch.setattr("perinvoke.fleet.caller._NO_DEADLINE_SECONDS", 0.3)
    monkeypatch.setattr(dynamodb, "faults", Script("GetItem", *["ThrottlingException"] * 1000))
    with pytest.raises(TableUnavailable, match="GetItem.*throttled"):
        read(table, KEY, client=client)


def test_a_table_that_is_not_there_is_said(dynamodb):
    with pytest.raises(TableMissing, match="no-such-table"):
        read("no-such-table", KEY, client=dynamodb.client())
