"""Counting: once for each call, whatever becomes of the answers."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from dynamodb_faults import Script, put
from dynamodb_tokens import TransactingDynamoDb
from perinvoke.errors import FixConfiguration
from perinvoke.fleet.dynamodb import increment
from perinvoke.fleet.errors import (
    OutcomeUnknown,
    TableMissing,
    TableSchemaError,
    TableUnavailable,
    TransactionCancelled,
    TransactionMismatch,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = {"id": "a"}


@pytest.fixture(scope="module")
def dynamodb() -> Iterator[TransactingDynamoDb]:
    with TransactingDynamoDb() as server:
        yield server


@pytest.fixture
def table(dynamodb):
    return dynamodb.table()


@pytest.fixture
def count(dynamodb, table):
    return functools.partial(increment, table, KEY, "n", client=dynamodb.client())


@pytest.fixture
def faults(dynamodb, monkeypatch):
    return lambda *script: monkeypatch.setattr(dynamodb, "faults", Script(*script))


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr("perinvoke.fleet.caller._NO_DEADLINE_SECONDS", 0.4)


def standing(dynamodb, table) -> Any:
    [item] = dynamodb.items(table)
    return item["n"]["N"]


def test_what_is_not_there_counts_as_zero_and_the_new_value_is_returned(dynamodb, count):
    with dynamodb.counted() as operations:
        assert [count(), count(5), count(-2)] == [1, 6, 4]
    assert operations == ["UpdateItem"] * 3
    assert type(count()) is int
    assert count(Decimal("0.5")) == Decimal("5.5")
    assert type(count(Decimal("0.50"))) is int


def test_key_in_dynamodbs_form_and_a_sort_key(dynamodb):
    table = dynamodb.table(key="user", sort="order")
    assert increment(table, {"user": {"S": "ann"}, "order": {"S": "7"}}, "a.b-c", 2, client=dynamodb.client()) == 2
    assert increment(table, {"user": "ann", "order": "7"}, "a.b-c", client=dynamodb.client()) == 3


def test_threads_lose_none(dynamodb, table):
    client = dynamodb.client()
    with ThreadPoolExecutor(4) as pool:
        values = list(pool.map(lambda _: increment(table, KEY, "n", client=client), range(60)))
    assert sorted(values) == list(range(1, 61))


def test_an_addition_whose_answer_was_lost_is_done_once(dynamodb, table, count, faults):
    count(10)
    faults("UpdateItem", "lost")
    with dynamodb.counted() as operations:
        assert count() == 11
    assert operations == ["UpdateItem", "GetItem"]
    assert standing(dynamodb, table) == "11"


@pytest.mark.parametrize("fault", ["dropped", "InternalServerError"])
def test_where_nothing_tells_it_is_an_unknown_outcome_and_not_repeated(dynamodb, table, count, faults, fault):
    count(10)
    faults("UpdateItem", fault)
    with dynamodb.counted() as operations, pytest.raises(OutcomeUnknown, match="pass token=") as caught:
        count()
    assert operations == ["UpdateItem", "GetItem"]
    assert (caught.value.table, caught.value.key) == (table, KEY)


def test_where_another_has_counted_since_it_is_an_unknown_outcome(dynamodb, table, count, faults):
    other = functools.partial(increment, table, KEY, "n", 100, client=dynamodb.client())
    faults("UpdateItem", "lost")
    real = dynamodb.faults
    dynamodb.faults = lambda operation, body: (other() and None) if operation == "GetItem" else real(operation, body)
    with pytest.raises(OutcomeUnknown):
        count()
    assert standing(dynamodb, table) == "101"


@pytest.mark.parametrize("fault", ["ThrottlingException", "TransactionConflictException", "ReplicatedWriteConflictException"])
def test_what_surely_was_not_done_is_repeated(dynamodb, table, count, faults, fault):
    faults("UpdateItem", fault, fault)
    with dynamodb.counted() as operations:
        assert count() == 1
    assert operations == ["UpdateItem"] * 3


def test_throttling_for_all_the_time_says_that_it_was_not_done(count, faults, short):
    faults("UpdateItem", *["ThrottlingException"] * 1000)
    with pytest.raises(TableUnavailable) as caught:
        count()
    assert caught.value.carried_out is False


@pytest.mark.parametrize("fault", ["lost", "dropped", "InternalServerError", "ThrottlingException"])
def test_with_a_token_it_is_done_exactly_once(dynamodb, table, count, faults, fault):
    count(10)
    faults("TransactWriteItems", fault, fault, fault, fault)
    assert count(token="t-1-" + fault) == 11
    assert standing(dynamodb, table) == "11"
    with dynamodb.counted() as operations:
        assert count(token="t-1-" + fault) == 11  # a repeated invocation
    assert operations == ["TransactWriteItems", "GetItem"]
    assert count(token="t-2-" + fault) == 12


def test_with_a_token_a_number_that_can_not_be_read_was_perhaps_added_to(dynamodb, table, count, faults, short):
    """It was. Who is told that it surely was not adds again with another token."""
    faults("GetItem", *["ThrottlingException"] * 1000)
    with pytest.raises(TableUnavailable, match="was added to with the token 'unread'.*throttled.*same token") as caught:
        count(token="unread")
    assert caught.value.carried_out is None
    assert caught.value.action == "dynamodb:GetItem"
    assert standing(dynamodb, table) == "1"
    faults("GetItem")
    assert count(token="unread") == 1


def test_what_others_keep_beside_the_number_is_left_alone(dynamodb, table, count):
    put(dynamodb, table, {"id": {"S": "a"}, "n": {"N": "3"}, "n_by": {"S": "alice"}})
    assert count() == 4
    [item] = dynamodb.items(table)
    assert item["n_by"] == {"S": "alice"}


def test_a_token_used_for_something_else_is_said(count):
    count(token="mine")
    with pytest.raises(TransactionMismatch, match="'mine'") as caught:
        count(2, token="mine")
    assert caught.value.token == "mine"


def test_conflicts_to_the_end_with_a_token(dynamodb, count, short, monkeypatch):
    monkeypatch.setattr(dynamodb, "cancels", lambda request: ["TransactionConflict"])
    with pytest.raises(TransactionCancelled) as caught:
        count(token="conflicting")
    assert caught.value.conflict


@pytest.mark.parametrize("token", [None, "text"])
def test_what_is_no_number_is_said(dynamodb, table, count, token):
    put(dynamodb, table, {"id": {"S": "a"}, "n": {"S": "one"}})
    with pytest.raises(TableSchemaError, match="number"):
        count(token=token)


def test_what_dynamodb_calls_a_validation_error_with_a_token_is_said(dynamodb, count, monkeypatch):
    monkeypatch.setattr(dynamodb, "cancels", lambda request: ["ValidationError"])
    with pytest.raises(TableSchemaError, match=r"'n'.*It may be no number, or the key another one") as raised:
        count(token="invalid")
    assert "Reason(" not in str(raised.value)


@pytest.mark.parametrize(
    "by", [0, Decimal(0), 1.0, True, "1", None, Decimal("nan"), Decimal("snan"), Decimal("inf"), Decimal("1." + "1" * 40)]
)
def test_what_can_not_be_added_is_said(dynamodb, count, by):
    with dynamodb.counted() as operations, pytest.raises(FixConfiguration):
        count(by)
    assert operations == []


@pytest.mark.parametrize("attribute", ["id", "", None, 3])
def test_what_can_not_be_added_to_is_said(dynamodb, table, attribute):
    with pytest.raises(FixConfiguration, match="attribute is"):
        increment(table, KEY, attribute, client=dynamodb.client())


@pytest.mark.parametrize("version", ["id", "", 3, "n", "n_counted_by"])
def test_what_can_not_be_its_version_is_said(count, version):
    with pytest.raises(FixConfiguration, match="version is"):
        count(version=version)


@pytest.mark.parametrize("token", ["", "x" * 37, 5])
def test_what_is_no_token_is_said(dynamodb, count, token):
    with dynamodb.counted() as operations, pytest.raises(FixConfiguration, match="36 characters"):
        count(token=token)
    assert operations == []


@pytest.mark.parametrize("token", [None, "missing-table"])
def test_a_table_that_is_not_there_is_said(dynamodb, token):
    with pytest.raises(TableMissing, match="no-such-table"):
        increment("no-such-table", KEY, "n", token=token, client=dynamodb.client())
