"""Transactions: the same one however often, what kept it from being done, and what can't be one."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from awslambdaric.lambda_context import LambdaContext

from dynamodb_faults import Script
from dynamodb_tokens import TransactingDynamoDb
from perinvoke import isolated
from perinvoke.errors import FixConfiguration
from perinvoke.fleet.dynamodb import transact
from perinvoke.fleet.dynamodb.transact_actions import actions_of
from perinvoke.fleet.errors import TableMissing, TableUnavailable, TransactionCancelled, TransactionMismatch

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def dynamodb() -> Iterator[TransactingDynamoDb]:
    with TransactingDynamoDb() as server:
        yield server


@pytest.fixture
def table(dynamodb):
    return dynamodb.table()


@pytest.fixture
def carry_out(dynamodb):
    return functools.partial(transact, client=dynamodb.client())


@pytest.fixture
def faults(dynamodb, monkeypatch):
    return lambda *script: monkeypatch.setattr(dynamodb, "faults", Script(*script))


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr("perinvoke.fleet.caller._NO_DEADLINE_SECONDS", 0.4)


def put(table: str, key: Any, **others: Any) -> dict[str, Any]:
    return {"Put": {"TableName": table, "Item": {"id": key, **others}}}


def put_new(table: str, key: Any, **others: Any) -> dict[str, Any]:
    action = put(table, key, **others)
    action["Put"]["ConditionExpression"] = "attribute_not_exists(id)"
    return action


def add(table: str, key: Any, by: Any = 1) -> dict[str, Any]:
    return {
        "Update": {
            "TableName": table,
            "Key": {"id": key},
            "UpdateExpression": "ADD n :by",
            "ExpressionAttributeValues": {":by": by},
        }
    }


def check(table: str, key: Any) -> dict[str, Any]:
    return {"ConditionCheck": {"TableName": table, "Key": {"id": key}, "ConditionExpression": "attribute_exists(id)"}}


def delete(table: str, key: Any) -> dict[str, Any]:
    return {"Delete": {"TableName": table, "Key": {"id": key}}}


def numbers(dynamodb, table) -> dict[str, str]:
    return {item["id"]["S"]: item.get("n", {}).get("N") for item in dynamodb.items(table)}


def context(request_id: str) -> LambdaContext:
    import time

    return LambdaContext(request_id, None, None, int(time.time() * 1000) + 3000, "arn", None)


def test_all_of_it_or_nothing(dynamodb, table, carry_out):
    with dynamodb.counted() as operations:
        assert carry_out([put(table, "a", n=1), put(table, "b", n=2)]) is None
        carry_out([add(table, "a", 10), delete(table, "b"), check(dynamodb.table(), "x")][:2])
    assert operations.count("TransactWriteItems") == 2
    assert numbers(dynamodb, table) == {"a": "11"}
    with pytest.raises(TransactionCancelled):
        carry_out([add(table, "a", 10), check(table, "x")])
    assert numbers(dynamodb, table) == {"a": "11"}


def test_each_action_may_have_its_own_form(dynamodb, table, carry_out):
    carry_out([put(table, {"S": "a"}, n={"N": "1"}), put(table, "b", n=2, map={"S": "x"}), add(table, {"S": "c"}, {"N": "3"})])
    assert numbers(dynamodb, table) == {"a": "1", "b": "2", "c": "3"}


def test_a_set_is_sent_in_one_order_whatever_the_process():
    """Python orders a set of strings in each process anew; the token would be used for another request."""
    code = (
        "from perinvoke.fleet.dynamodb.transact_actions import actions_of;"
        "item = {'id': 'a', 'set': set('abcdefgh'), 'in': [{'a map': {'of': {b'a', b'b', b'c', b'd'}}}]};"
        "print(actions_of([{'Put': {'TableName': 't', 'Item': item}}])[0].low_level)"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            text=True,
            capture_output=True,
            timeout=60,
            check=True,
        ).stdout
        for seed in range(3)
    }
    assert len(printed) == 1


def test_keys_of_many_digits_are_told_apart(dynamodb, carry_out):
    table = dynamodb.table(kind="N")
    carry_out([put(table, 10**37), put(table, 10**37 + 1), delete(table, 10**37 + 2), delete(table, 10**37 + 3)])
    assert len(dynamodb.items(table)) == 2


def test_the_callers_actions_are_left_as_they_were(table, carry_out):
    action = put_new(table, "a", n=1)
    carry_out([action])
    assert action == put_new(table, "a", n=1)


def test_what_failed_is_named(table, carry_out):
    carry_out([put(table, "b", n=2)])
    with pytest.raises(TransactionCancelled) as caught:
        carry_out([put_new(table, "a"), put_new(table, "b"), add(table, "c"), check(table, "d")])
    error = caught.value
    assert not error.conflict
    assert [(reason.index, reason.code) for reason in error.reasons] == [
        (1, "ConditionalCheckFailed"),
        (3, "ConditionalCheckFailed"),
    ]
    assert error.reasons[0].item == {"id": "b", "n": 2}
    assert error.reasons[1].item is None
    assert f"action 1, Put of {table} {{'id': 'b'}}: ConditionalCheckFailed" in str(error)
    assert f"action 3, ConditionCheck of {table} {{'id': 'd'}}: ConditionalCheckFailed" in str(error)
    assert "2 more" not in str(error)


def test_of_many_failures_some_are_named(table, carry_out):
    with pytest.raises(TransactionCancelled, match="and 95 more") as caught:
        carry_out([check(table, str(number)) for number in range(100)])
    assert len(caught.value.reasons) == 100


def test_a_condition_that_does_not_hold_is_not_tried_again(dynamodb, table, carry_out, monkeypatch):
    monkeypatch.setattr(dynamodb, "cancels", lambda request: ["ConditionalCheckFailed", "TransactionConflict"])
    with dynamodb.counted() as operations, pytest.raises(TransactionCancelled) as caught:
        carry_out([put_new(table, "a"), put(table, "b")])
    assert operations == ["TransactWriteItems"]
    assert not caught.value.conflict


def test_without_any_reason_it_is_not_tried_again(dynamodb, table, carry_out, monkeypatch):
    monkeypatch.setattr(dynamodb, "cancels", lambda request: ["None"])
    with dynamodb.counted() as operations, pytest.raises(TransactionCancelled, match="gave no reason") as caught:
        carry_out([put(table, "a")])
    assert operations == ["TransactWriteItems"]
    assert not caught.value.conflict


@pytest.mark.parametrize("code", ["TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded"])
def test_others_in_the_way_are_waited_for_with_the_same_token(dynamodb, table, carry_out, monkeypatch, code):
    tokens = []
    cancels = iter([["None", code], [code, "None"]])
    monkeypatch.setattr(dynamodb, "cancels", lambda request: next(cancels, None))
    monkeypatch.setattr(dynamodb, "faults", lambda operation, body: tokens.append(body["ClientRequestToken"]))
    carry_out([put(table, "a", n=1), put(table, "b", n=2)])
    assert len(tokens) == 3
    assert len(set(tokens)) == 1
    assert numbers(dynamodb, table) == {"a": "1", "b": "2"}


def test_others_in_the_way_to_the_end_are_a_conflict(dynamodb, table, carry_out, monkeypatch, short):
    monkeypatch.setattr(dynamodb, "cancels", lambda request: ["None", "TransactionConflict"])
    with pytest.raises(TransactionCancelled, match="action 1, Put .*TransactionConflict.*try again later") as caught:
        carry_out([put(table, "a"), put(table, "b")])
    assert caught.value.conflict
    assert [reason.index for reason in caught.value.reasons] == [1]


@pytest.mark.parametrize(
    "fault", ["lost", "dropped", "InternalServerError", "ThrottlingException", "TransactionInProgressException"]
)
def test_an_answer_that_was_lost_changes_nothing(dynamodb, table, carry_out, faults, fault):
    faults("TransactWriteItems", *[fault] * 4)
    carry_out([add(table, "a"), put_new(table, "b")])
    assert numbers(dynamodb, table) == {"a": "1", "b": None}


def test_silence_to_the_end_says_that_nobody_knows(table, carry_out, faults, short):
    faults("TransactWriteItems", *["lost"] * 1000)
    with pytest.raises(TableUnavailable) as caught:
        carry_out([add(table, "a")], token="again")
    assert caught.value.carried_out is None
    assert caught.value.action == "dynamodb:UpdateItem"
    faults("TransactWriteItems")
    carry_out([add(table, "a")], token="again")


def test_a_repeated_invocation_does_the_same_transactions(dynamodb, table, carry_out):
    """And another one does its own; nested isolated functions count along."""

    @isolated
    def inner(event, context):
        carry_out([add(table, "inner")])

    @isolated
    def handler(event, context):
        carry_out([add(table, "first")])
        inner(event, context)
        inner(event, None)  # which has an id of its own, made up
        carry_out([add(table, "first")])

    for _ in range(3):
        handler({}, context("request-1"))
    assert numbers(dynamodb, table) == {"first": "2", "inner": "2"}
    handler({}, context("request-2"))
    assert numbers(dynamodb, table) == {"first": "4", "inner": "4"}


def test_a_repeated_invocation_that_does_something_else_is_told_to_pass_a_token(table, carry_out):
    @isolated
    def handler(event, context):
        carry_out([put(table, "a", n=event["n"])])

    handler({"n": 1}, context("request-3"))
    with pytest.raises(TransactionMismatch, match="token=") as caught:
        handler({"n": 2}, context("request-3"))
    assert len(caught.value.token) <= 36


def test_a_token_of_ones_own_holds_over_invocations(dynamodb, table, carry_out):
    @isolated
    def handler(event, context):
        carry_out([add(table, "a")], token="payment-1")

    handler({}, context("request-4"))
    handler({}, context("request-5"))
    carry_out([add(table, "a")], token="payment-1")
    assert numbers(dynamodb, table) == {"a": "1"}


def test_threads_of_an_invocation_have_a_number_each(dynamodb, table, carry_out):
    ready = threading.Barrier(4)

    @isolated
    def handler(event, context):
        def one(_):
            ready.wait(10)
            carry_out([add(table, "a")])

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(one, range(4)))

    handler({}, context("request-6"))
    assert numbers(dynamodb, table) == {"a": "4"}


def test_outside_an_invocation_each_call_is_a_transaction_of_its_own(dynamodb, table, carry_out):
    for _ in range(3):
        carry_out([add(table, "a")])
    assert numbers(dynamodb, table) == {"a": "3"}


GOOD = {"TableName": "t", "Key": {"id": "a"}}


@pytest.mark.parametrize(
    ("items", "says"),
    [
        ([], "0 actions"),
        ([put("t", str(number)) for number in range(101)], "101 actions.*100"),
        (None, "None"),
        (put("t", "a"), "1 to 100"),
        ([put("t", "a"), 5], "action 1 is 5"),
        ([{}], "action 0 has nothing"),
        ([{"Get": GOOD}], "action 0 has Get"),
        ([{"Delete": GOOD, "Put": GOOD}], "action 0 has Delete, Put"),
        ([{"Put": None}], "action 0, Put, is None"),
        ([{"Put": {"TableName": "t"}}], "action 0, Put, has no Item"),
        ([{"Update": GOOD}], "action 0, Update, has no UpdateExpression"),
        ([{"ConditionCheck": GOOD}], "action 0, ConditionCheck, has no ConditionExpression"),
        ([{"Delete": {"Key": {"id": "a"}}}], "action 0, Delete, has no TableName"),
        ([put("t", "a"), put("t", "b", n=1.5)], "action 1, Put: attribute 'n' is 1.5"),
        ([{"Delete": {"TableName": "t", "Key": "a"}}], "action 0, Delete: Key is 'a'"),
        ([{"Delete": {"TableName": 5, "Key": {"id": "a"}}}], "action 0, Delete: the table is 5"),
        ([put("t", "a", n=set())], "action 0, Put: attribute 'n' .*empty"),
        ([add("t", "a", {"N": "1"})], "action 0, Update: .*one form"),
        ([add("t", {"S": "a"}, 1)], "action 0, Update: .*one form"),
        ([add("t", "a"), add("u", "a"), delete("t", "a")], "action 2, Delete .*same item as action 0"),
        ([put("t", "a", n=1), delete("t", {"S": "a"})], "action 1, Delete .*same item as action 0, Put"),
        ([add("t", 1), delete("t", {"N": "1.0"})], "same item"),
    ],
)
def test_what_is_no_transaction_is_said_before_anything_is_sent(dynamodb, carry_out, items, says):
    with dynamodb.counted() as operations, pytest.raises(FixConfiguration, match=says):
        carry_out(items)
    assert operations == []


@pytest.mark.parametrize("key", [{"N": "five"}, {"S": ""}, {"BOOL": True}, {"B": "text"}])
def test_what_is_wrong_with_a_key_in_dynamodbs_form_dynamodb_says(key):
    assert actions_of([delete("t", key), delete("t", key)])[1].low_level == delete("t", key)


def test_two_puts_of_one_item_are_said_by_dynamodb(table, carry_out):
    with pytest.raises(FixConfiguration, match="two actions on one item"):
        carry_out([put(table, "a"), put(table, "a")])


def test_a_table_that_is_not_there_is_said(carry_out):
    with pytest.raises(TableMissing, match="no-such-table"):
        carry_out([put("no-such-table", "a")])


@pytest.mark.parametrize("token", ["", "x" * 37, 5])
def test_what_is_no_token_is_said(table, carry_out, token):
    with pytest.raises(FixConfiguration, match="36 characters"):
        carry_out([put(table, "a")], token=token)
