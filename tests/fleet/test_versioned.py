"""Versioned writes and items that are made once, against lost answers and other writers at every place between."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from awslambdaric.lambda_context import LambdaContext

from dynamodb_faults import Script, put
from perinvoke import isolated
from perinvoke.errors import FixConfiguration
from perinvoke.fleet.dynamodb import VersionedItem, create_once, increment, update_versioned, versioned_protocol
from perinvoke.fleet.dynamodb.answers import Answered, Refused, Trouble, TroubleKind
from perinvoke.fleet.dynamodb.item_key import ItemKey
from perinvoke.fleet.dynamodb.steps import Call, Pause
from perinvoke.fleet.dynamodb.versioned_protocol import Terms
from perinvoke.fleet.dynamodb.write_marks import Version, new_mark
from perinvoke.fleet.errors import (
    ChangeError,
    OutcomeUnknown,
    TableMissing,
    TableSchemaError,
    TableUnavailable,
    TokenInvalid,
    WriteConflict,
)
from perinvoke.fleet.patience import Clock, Patience
from stalls import repeated_after_a_stall

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = {"id": "a"}


@pytest.fixture
def table(dynamodb):
    return dynamodb.table()


@pytest.fixture
def faults(dynamodb, monkeypatch):
    return lambda *script: monkeypatch.setattr(dynamodb, "faults", Script(*script))


@pytest.fixture
def update(dynamodb, table):
    client = dynamodb.client()
    return functools.partial(update_versioned, table, KEY, client=client)


@pytest.fixture
def create(dynamodb, table):
    return functools.partial(create_once, table, KEY, client=dynamodb.client())


def add(by: int = 1) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(item: dict[str, Any]) -> dict[str, Any]:
        return {**item, "n": item.get("n", 0) + by}

    return change


def standing(dynamodb, table) -> dict[str, Any]:
    [item] = dynamodb.items(table)
    return dict(item)


# update_versioned


def test_an_item_that_is_not_there_is_made(dynamodb, table, update):
    seen = []

    def change(item):
        seen.append(dict(item))
        item["n"] = 1
        return item  # changed in place

    with dynamodb.counted() as operations:
        assert update(change) == {"id": "a", "n": 1, "version": 1}
    assert seen == [KEY]
    assert operations == ["GetItem", "PutItem"]
    assert standing(dynamodb, table)["version"] == {"N": "1"}


def test_each_write_counts_the_version_up_whatever_change_does_to_it(dynamodb, table, update):
    update(add())
    marks = standing_marks(dynamodb, table)  # as an item has them that was read in another way
    assert update(lambda item: {**item, "n": 5, "version": 99, "version_by": marks}) == {"id": "a", "n": 5, "version": 2}
    assert update(lambda item: {"id": item["id"]}) == {"id": "a", "version": 3}
    assert len(standing(dynamodb, table)["version_by"]["S"].split(".")) == 3


def test_change_sees_the_version_but_no_marks(update):
    update(add())
    seen: list[dict[str, Any]] = []

    def change(item):
        seen.append(dict(item))
        return item

    update(change)
    assert seen == [{"id": "a", "n": 1, "version": 1}]
    assert isinstance(seen[0]["n"], Decimal)


@pytest.mark.parametrize("its", [{"S": "alice"}, {"N": "5"}, {"S": "Ab12Cd34.Ef56Gh7"}])
@pytest.mark.parametrize("version", [{}, {"version": {"N": "3"}}])
def test_what_others_keep_where_the_marks_would_be_is_not_overwritten(dynamodb, table, update, its, version):
    item = {"id": {"S": "a"}, "version_by": its, **version}
    put(dynamodb, table, item)
    with pytest.raises(TableSchemaError, match="'version_by'.*overwritten.*version="):
        update(add())
    with pytest.raises(TableSchemaError, match="'version_by'"):
        VersionedItem.read(table, KEY, client=dynamodb.client())
    assert standing(dynamodb, table) == item
    assert update(add(), version="edition")["edition"] == 1


def test_what_a_caller_wants_to_keep_where_the_marks_are_is_said(dynamodb, table, update):
    with pytest.raises(ChangeError, match="'version_by'.*kept for the marks"):
        update(lambda item: {**item, "version_by": "me"})
    with pytest.raises(FixConfiguration, match="'version_by'.*kept for the marks"):
        VersionedItem.read(table, KEY, client=dynamodb.client()).write({"version_by": 7})
    assert dynamodb.items(table) == []


def test_a_version_counted_by_hand_with_and_without_our_marks(dynamodb, table, update):
    """Who puts the item as a whole removes the marks (PynamoDB does); who updates it leaves them. Neither is in our way."""
    put(dynamodb, table, {"id": {"S": "a"}, "n": {"N": "7"}, "version": {"N": "41"}})
    assert update(add()) == {"id": "a", "n": 8, "version": 42}
    dynamodb.client().update_item(
        TableName=table,
        Key={"id": {"S": "a"}},
        UpdateExpression="ADD n :one, version :one",
        ExpressionAttributeValues={":one": {"N": "1"}},
    )
    assert update(add()) == {"id": "a", "n": 10, "version": 44}
    assert len(standing_marks(dynamodb, table).split(".")) == 2
    put(dynamodb, table, {"id": {"S": "a"}, "n": {"N": "20"}, "version": {"N": "45"}})
    assert update(add()) == {"id": "a", "n": 21, "version": 46}


def test_an_item_without_a_version_gets_one(dynamodb, table, update):
    put(dynamodb, table, {"id": {"S": "a"}, "n": {"N": "7"}})
    assert update(add()) == {"id": "a", "n": 8, "version": 1}


def test_the_version_may_be_called_otherwise_and_the_key_be_two_attributes(dynamodb):
    table = dynamodb.table(key="user", sort="order")
    key = {"user": "ann", "order": "7"}
    written = update_versioned(table, key, add(), version="counter", client=dynamodb.client())
    assert written == {**key, "n": 1, "counter": 1}
    again = update_versioned(table, key, add(), version="counter", client=dynamodb.client())
    assert again == {**key, "n": 2, "counter": 2}


@pytest.mark.parametrize(("kind", "value"), [("N", 7), ("N", Decimal("1.50")), ("B", b"\x00\xff"), ("S", "ä" * 1000)])
def test_keys_of_every_kind(dynamodb, kind, value):
    table = dynamodb.table(kind=kind)
    for n in (1, 2):
        assert update_versioned(table, {"id": value}, add(), client=dynamodb.client()) == {"id": value, "n": n, "version": n}


def test_key_and_item_may_be_in_dynamodbs_form(dynamodb, table):
    key = {"id": {"S": "a"}}
    written = update_versioned(table, key, lambda item: {**key, "n": {"N": "3"}}, client=dynamodb.client())
    assert written == {"id": "a", "n": 3, "version": 1}


def test_a_map_that_looks_like_dynamodbs_form_stays_a_map(dynamodb, table, create):
    assert create({"size": {"S": "small"}}) == ({"id": "a", "size": {"S": "small"}}, True)
    assert standing(dynamodb, table)["size"] == {"M": {"S": {"S": "small"}}}


def other_writer(dynamodb, table, by: int) -> Callable[[], None]:
    def write() -> None:
        update_versioned(table, KEY, add(by), client=dynamodb.client())

    return write


def test_a_conflict_is_tried_again_on_what_stands_there_then(dynamodb, table, update, faults):
    update(add())
    other = other_writer(dynamodb, table, 10)
    faults("PutItem", other, other)
    with dynamodb.counted() as operations:
        assert update(add()) == {"id": "a", "n": 22, "version": 4}
    assert operations.count("GetItem") == 3 + 2  # ours and theirs
    assert operations.count("PutItem") == 3 + 2


@pytest.mark.parametrize("before", ["nothing", "unversioned", "versioned"])
@pytest.mark.parametrize("fault", ["lost", "InternalServerError", "dropped"])
def test_a_write_whose_answer_was_lost_is_done_once(dynamodb, table, faults, before, fault):
    update = functools.partial(update_versioned, table, KEY, client=dynamodb.client())
    start = 0
    if before == "unversioned":
        put(dynamodb, table, {"id": {"S": "a"}, "n": {"N": "7"}})
        start = 7
    elif before == "versioned":
        start = int(update(add(7))["n"])
    faults("PutItem", fault)
    with dynamodb.counted() as operations:
        assert update(add())["n"] == start + 1
    assert standing(dynamodb, table)["n"] == {"N": str(start + 1)}
    assert operations == ["GetItem", "PutItem", "PutItem"]  # the refusal tells; nothing is read


@pytest.mark.parametrize("others", [1, 7])
def test_a_lost_answer_with_other_writers_between(dynamodb, table, update, faults, others):
    """They have written on top of ours: it is still found among the last writers, and not done again."""
    update(add())
    other = other_writer(dynamodb, table, 10)
    faults("PutItem", "lost", lambda: [other() for _ in range(others)])
    written = update(add())
    assert written == {"id": "a", "n": 2, "version": 2}  # as we wrote it
    assert standing(dynamodb, table)["n"] == {"N": str(2 + 10 * others)}


def test_more_writers_between_than_are_kept_is_an_unknown_outcome(dynamodb, table, update, faults):
    update(add())
    other = other_writer(dynamodb, table, 10)
    faults("PutItem", "lost", lambda: [other() for _ in range(8)])
    with pytest.raises(OutcomeUnknown, match="may have been written") as caught:
        update(add())
    assert caught.value.key == KEY
    assert caught.value.table == table
    assert standing(dynamodb, table)["n"] == {"N": "82"}


@pytest.mark.parametrize("before", ["nothing", "unversioned", "versioned"])
def test_an_equal_write_of_somebody_else_is_not_taken_for_ours(dynamodb, table, update, faults, before):
    """The same content, the next version; ours never came through. Without marks they could not be told apart."""
    if before == "unversioned":
        put(dynamodb, table, {"id": {"S": "a"}, "n": {"N": "0"}})
    elif before == "versioned":
        update(add(0))
    faults("PutItem", "dropped", other_writer(dynamodb, table, 1))
    assert update(add())["n"] == 2
    assert standing(dynamodb, table)["n"] == {"N": "2"}


def test_an_item_removed_after_a_lost_answer_is_an_unknown_outcome(dynamodb, table, update, faults):
    update(add())
    client = dynamodb.client()
    faults("PutItem", "lost", lambda: client.delete_item(TableName=table, Key={"id": {"S": "a"}}))
    with pytest.raises(OutcomeUnknown):
        update(add())


def test_an_item_made_anew_between_read_and_write_is_a_conflict(dynamodb, table, update, faults):
    """It has the version that was read, but isn't what was read."""
    update(add(5))
    client = dynamodb.client()

    def make_anew() -> None:
        client.delete_item(TableName=table, Key={"id": {"S": "a"}})
        update_versioned(table, KEY, add(100), client=client)

    faults("PutItem", make_anew)
    assert update(add()) == {"id": "a", "n": 101, "version": 2}


def test_an_item_made_anew_here_is_not_the_one_that_others_counted(dynamodb, table, update):
    """It has the version that was read, and marks, which that one had not."""
    put(dynamodb, table, {"id": {"S": "a"}, "n": {"N": "5"}, "version": {"N": "1"}})
    client = dynamodb.client()
    before = VersionedItem.read(table, KEY, client=client)
    client.delete_item(TableName=table, Key={"id": {"S": "a"}})
    update(add(100))
    with pytest.raises(WriteConflict):
        before.write({"n": 6})
    assert standing(dynamodb, table)["n"] == {"N": "100"}


@pytest.mark.parametrize("before", ["unversioned", "versioned"])
def test_an_item_removed_between_read_and_write_is_a_conflict(dynamodb, table, update, faults, before):
    put(dynamodb, table, {"id": {"S": "a"}, "n": {"N": "7"}})
    if before == "versioned":
        update(add(0))
    client = dynamodb.client()
    faults("PutItem", lambda: client.delete_item(TableName=table, Key={"id": {"S": "a"}}))
    assert update(add()) == {"id": "a", "n": 1, "version": 1}


# What is given up long before there is no more time.
IN_THE_WAY = ["ReplicatedWriteConflictException"] * 20


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr("perinvoke.fleet.dynamodb.insist._MAX_REPLICATED_CONFLICTS", 2)


@pytest.mark.usefixtures("soon")
def test_after_silence_to_the_end_a_read_tells(dynamodb, update, faults):
    faults("PutItem", "lost", *IN_THE_WAY)
    with dynamodb.counted() as operations:
        assert update(add()) == {"id": "a", "n": 1, "version": 1}
    assert operations[-2:] == ["PutItem", "GetItem"]


@pytest.mark.usefixtures("soon")
def test_after_silence_and_another_writer_it_is_done_once_more(dynamodb, table, update, faults):
    update(add(0))
    other = other_writer(dynamodb, table, 10)
    faults("PutItem", lambda: [other(), "InternalServerError"][1], *IN_THE_WAY[:2])  # as often as botocore tries
    assert update(add()) == {"id": "a", "n": 11, "version": 3}
    assert standing(dynamodb, table)["n"] == {"N": "11"}


def test_silence_that_nothing_explains_says_that_nobody_knows(dynamodb, table, update, faults):
    update(add())
    faults("PutItem", *["dropped"] * 1000)
    with pytest.raises(TableUnavailable) as caught:
        update(add(), timeout=0.3)
    assert caught.value.carried_out is None  # it might still be under way


def test_throttling_for_all_the_time_is_said(dynamodb, table, update, faults):
    faults("PutItem", *["ThrottlingException"] * 1000)
    with pytest.raises(TableUnavailable, match="throttled") as caught:
        update(add(), timeout=0.3)
    assert caught.value.action == "dynamodb:PutItem"
    assert caught.value.carried_out is False
    assert dynamodb.items(table) == []


@pytest.mark.usefixtures("soon")
def test_what_surely_was_not_written_is_not_looked_for(dynamodb, update, create, faults):
    for work, reads in ((functools.partial(update, add()), 1), (create, 0)):
        faults("PutItem", *IN_THE_WAY)
        with dynamodb.counted() as operations, pytest.raises(TableUnavailable):
            work()
        assert operations.count("GetItem") == reads


class Slow:
    """A clock of which a call takes all the time there is."""

    def __init__(self) -> None:
        self.now = 0.0
        self.patience = Patience(1.0, Clock(lambda: self.now, lambda: self.now, lambda low, high: high))

    def lose(self, protocol):
        """Drive a protocol whose first call is lost after all the time; what it calls then."""
        next(protocol)
        self.now = 5.0
        return protocol.send(Trouble(TroubleKind.LOST, OSError("silence"), lost=True))


def test_no_look_is_begun_when_the_time_is_up():
    terms = Terms(ItemKey("t", KEY), "version", new_mark)
    slow = Slow()
    with pytest.raises(TableUnavailable):
        slow.lose(versioned_protocol.write(terms, {}, Version(None, exists=False), slow.patience))
    slow = Slow()
    with pytest.raises(TableUnavailable):
        slow.lose(versioned_protocol.create(terms.key, {}, "mark", slow.patience))


def test_between_two_conflicts_there_is_a_pause():
    steps = versioned_protocol.update(Terms(ItemKey("t", KEY), "version", new_mark), add(), Slow().patience)
    for _ in range(3):
        assert isinstance(next(steps), Call)
        assert isinstance(steps.send(Answered({})), Call)
        pause = steps.send(Refused({"id": {"S": "a"}}, lost=False))
        assert isinstance(pause, Pause)
        assert pause.seconds > 0


def test_conflicts_to_the_end_are_a_409(dynamodb, table, update, faults):
    update(add(0))
    other = other_writer(dynamodb, table, 1)
    faults("PutItem", *[other] * 1000)
    with pytest.raises(WriteConflict, match="changed by others") as caught:
        update(add(), timeout=0.3)
    error = caught.value
    assert (error.table, error.key) == (table, KEY)
    assert error.attempts >= 1
    assert error.as_http()["statusCode"] == 409
    # Nothing of ours was written.
    assert standing(dynamodb, table)["n"]["N"] == str(int(standing(dynamodb, table)["version"]["N"]) - 1)


@pytest.mark.usefixtures("root")
@repeated_after_a_stall
def test_the_wait_ends_before_the_invocations_deadline(dynamodb, table, faults, monkeypatch):
    for name, value in dynamodb.variables().items():
        monkeypatch.setenv(name, value)
    other = other_writer(dynamodb, table, 1)
    faults("PutItem", *[other] * 10_000)

    @isolated
    def handler(event, context):
        try:
            update_versioned(table, KEY, add())  # with the worker's client: a call of another one may outlast the deadline
        except (WriteConflict, TableUnavailable) as error:  # on a slow machine the last call ends for want of time
            return error, context.get_remaining_time_in_millis()

    error, left_ms = handler({}, LambdaContext("r-1", None, None, int(time.time() * 1000) + 3000, "arn"))
    assert error.attempts >= 1
    assert left_ms > 0


def test_threads_lose_none(dynamodb, table):
    client = dynamodb.client()

    def ten(_):
        for _ in range(10):
            update_versioned(table, KEY, add(), client=client)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ten, range(4)))
    assert standing(dynamodb, table)["n"] == {"N": "40"}
    assert standing(dynamodb, table)["version"] == {"N": "40"}


def test_increment_and_update_versioned_lose_none_of_each_others(dynamodb, table, update, faults):
    update(add())
    faults("PutItem", lambda: increment(table, KEY, "m", version="version", client=dynamodb.client()))
    written = update(add())
    assert written.pop("m_counted_by") == standing(dynamodb, table)["m_counted_by"]["S"]
    assert written == {"id": "a", "n": 2, "m": 1, "version": 3}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda item: None, "returned NoneType.*return the item"),
        (lambda item: 5, "returned int.*return the item"),
        (lambda item: [item], "returned list.*return the item"),
        (lambda item: {**item, "id": "b"}, "'id'"),
        (lambda item: {"n": 1}, "without its key 'id'"),
        (lambda item: {}, "without its key 'id'"),
        (lambda item: {**item, "n": 1.5}, "'n' is 1.5.*Decimal"),
        (lambda item: {**item, "n": object()}, "no type"),
        (lambda item: asyncio.sleep(0), "returned coroutine"),
        (lambda item: (item for _ in range(1)), "returned generator"),
        (lambda item: {**item, "n": set()}, "'n' is set.*empty sets"),
        (lambda item: {**item, "n": {"m": [{"x": frozenset()}]}}, "'n' is .*empty sets"),
        (lambda item: {**item, "n": {1: "one"}}, "'n' is .*names must be strings"),
        (lambda item: {**item, 5: "n"}, "is called 5"),
        (lambda item: {**item, "n": 10**38 + 1}, "'n' is 1000"),
    ],
)
def test_what_change_must_not_return(dynamodb, table, update, change, says):
    with pytest.raises(ChangeError, match=says):
        update(change)
    assert dynamodb.items(table) == []


@pytest.mark.parametrize("change", [None, {"n": 1}, "n"])
def test_a_change_that_is_no_function_is_said_before_anything_is_sent(dynamodb, update, change):
    with dynamodb.counted() as operations, pytest.raises(ChangeError, match="must be a function"):
        update(change)
    assert operations == []


def test_values_of_every_kind_come_back_as_they_were_written(update):
    values = {
        "text": "",
        "bytes": b"\x00\xff",
        "number": Decimal("9" * 38),
        "texts": {"a", "b"},
        "numbers": {Decimal("1.5"), Decimal(2)},
        "many bytes": {b"a", b"b"},
        "nothing": None,
        "truth": True,
        "nested": {"list": [Decimal(1), {"set": {"x"}}], "empty": {}},
    }
    assert update(lambda item: {**item, **values}) == {"id": "a", "version": 1, **values}
    assert update(lambda item: item) == {"id": "a", "version": 2, **values}


def test_an_error_shows_the_beginning_of_what_is_wrong(update):
    with pytest.raises(ChangeError, match="'n' is .*…") as caught:
        update(lambda item: {**item, "n": [1.5] * 100_000})
    assert len(str(caught.value)) < 1000


def test_what_change_raises_comes_through(dynamodb, table, update):
    class NotToday(Exception):
        pass

    def change(item):
        item["n"] = 1
        raise NotToday

    with pytest.raises(NotToday):
        update(change)
    assert dynamodb.items(table) == []


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("a", "must be a dict"),
        (None, "must be a dict"),
        ({}, "must be a dict"),
        ({"id": "a", "b": 1, "c": 2}, "one or two"),
        ({"id": None}, "is None"),
        ({"id": ""}, "is empty"),
        ({"id": b""}, "is empty"),
        ({"id": True}, "is True"),
        ({"id": 1.5}, "float|1.5"),
        ({"id": ["a"]}, "a string, a number or bytes"),
        ({"id": "x" * 2049}, "2049 bytes.*2048"),
        ({"id": "ä" * 1025}, "2050 bytes"),
        ({"id": Decimal("nan")}, "no type"),
        ({"user": "ann", "order": {"S": "7"}}, "'order'.*all in DynamoDB's form"),
        ({"id": {"S": 5}}, "no value in DynamoDB's form"),
        ({"id": {"S": None}}, "no value in DynamoDB's form"),
        ({"id": {"N": 5}}, "no value in DynamoDB's form"),
        ({"id": {"N": "five"}}, "no value in DynamoDB's form"),
        ({"id": {"N": "NaN"}}, "no value in DynamoDB's form"),
        ({"id": {"N": "1" * 39}}, "no value in DynamoDB's form"),
        ({"id": {"B": "five"}}, "no value in DynamoDB's form"),
    ],
)
def test_what_is_no_key_is_said_before_anything_is_sent(dynamodb, table, key, says):
    with dynamodb.counted() as operations, pytest.raises(FixConfiguration, match=says):
        update_versioned(table, key, add(), client=dynamodb.client())
    assert operations == []


@pytest.mark.parametrize("table", [None, "", 7])
def test_what_is_no_table_is_said(table):
    with pytest.raises(FixConfiguration, match="name or the ARN"):
        update_versioned(table, KEY, add())


@pytest.mark.parametrize("version", ["", None, "id", 3])
def test_what_is_no_versions_name_is_said(update, version):
    with pytest.raises(FixConfiguration, match="version is"):
        update(add(), version=version)


@pytest.mark.parametrize("value", [{"S": "one"}, {"N": "1.5"}, {"NULL": True}])
def test_a_version_that_is_no_whole_number_is_said(dynamodb, table, update, value):
    put(dynamodb, table, {"id": {"S": "a"}, "version": value})
    with pytest.raises(TableSchemaError, match="'version'.*whole number"):
        update(add())


def test_a_table_that_is_not_there_or_has_another_key_is_said(dynamodb, table):
    with pytest.raises(TableMissing, match="no-such-table"):
        update_versioned("no-such-table", KEY, add(), client=dynamodb.client())
    with pytest.raises(TableSchemaError, match="another key"):
        update_versioned(table, {"name": "a"}, add(), client=dynamodb.client())


# create_once


def test_an_item_is_made_once(dynamodb, table, create):
    with dynamodb.counted() as operations:
        assert create({"n": 1}) == ({"id": "a", "n": 1}, True)
        assert create({"n": 2}) == ({"id": "a", "n": 1}, False)
    assert operations == ["PutItem", "PutItem"]
    assert standing(dynamodb, table)["n"] == {"N": "1"}


def test_an_item_of_nothing_but_its_key(create):
    assert create() == (KEY, True)
    assert create() == (KEY, False)


def test_an_item_that_a_stranger_made_is_not_ours(dynamodb, table, create):
    put(dynamodb, table, {"id": {"S": "a"}, "n": {"N": "7"}})
    assert create({"n": 1}) == ({"id": "a", "n": 7}, False)


def test_of_all_who_create_at_once_one_has_created(dynamodb, table):
    clients = [dynamodb.client() for _ in range(8)]
    ready = threading.Barrier(8)

    def one(number):
        ready.wait(10)
        return create_once(table, KEY, {"by": number}, client=clients[number])

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(one, range(8)))
    assert Counter(created for _, created in results) == {True: 1, False: 7}
    [winner] = [item["by"] for item, created in results if created]
    assert {item["by"] for item, _ in results} == {winner}


@pytest.mark.parametrize("fault", ["lost", "InternalServerError", "dropped"])
def test_a_repetition_of_our_own_creation_is_not_somebody_elses(dynamodb, table, create, faults, fault):
    faults("PutItem", fault)
    with dynamodb.counted() as operations:
        assert create({"n": 1}) == ({"id": "a", "n": 1}, True)
    assert operations == ["PutItem", "PutItem"]


def test_an_item_changed_after_a_lost_answer_is_still_our_creation(dynamodb, table, create, faults):
    faults("PutItem", "lost", lambda: update_versioned(table, KEY, add(10), client=dynamodb.client()))
    assert create({"n": 1}) == ({"id": "a", "n": 11, "version": 1, "version_by": standing_marks(dynamodb, table)}, True)


def standing_marks(dynamodb, table) -> str:
    marks: str = standing(dynamodb, table)["version_by"]["S"]
    return marks


def test_an_equal_creation_of_somebody_else_is_not_ours(dynamodb, table, create, faults):
    faults("PutItem", "dropped", lambda: create_once(table, KEY, {"n": 1}, client=dynamodb.client()))
    assert create({"n": 1}) == ({"id": "a", "n": 1}, False)


@pytest.mark.parametrize("deed", ["removed", "overwritten"])
def test_a_creation_whose_traces_are_gone_after_a_lost_answer_is_an_unknown_outcome(dynamodb, table, create, faults, deed):
    client = dynamodb.client()

    def then(operation: str, body: dict[str, Any]) -> str | None:
        if operation != "GetItem":
            return real(operation, body)
        if deed == "removed":
            client.delete_item(TableName=table, Key={"id": {"S": "a"}})
        else:
            put(dynamodb, table, {"id": {"S": "a"}, "n": {"N": "5"}})
        return None

    silent = dynamodb.client()
    # The repetition must meet what was there: the item is gone only when it is looked for.
    silent.meta.events.register("before-parameter-build.dynamodb.PutItem", forget_what_stands_there)
    faults("PutItem", "lost")
    real: Callable[[str, dict[str, Any]], str | None] = dynamodb.faults
    dynamodb.faults = then
    with pytest.raises(OutcomeUnknown, match="is gone" if deed == "removed" else "has no 'created_once_by'"):
        create_once(table, KEY, {"n": 1}, client=silent)


@pytest.mark.usefixtures("soon")
def test_after_silence_to_the_end_a_read_tells_who_created(dynamodb, table, create, faults):
    faults("PutItem", "lost", *IN_THE_WAY)
    assert create({"n": 1}) == ({"id": "a", "n": 1}, True)
    faults("PutItem", "dropped", *IN_THE_WAY)
    with pytest.raises(TableUnavailable):
        create_once(table, {"id": "b"}, client=dynamodb.client())


def test_who_was_in_the_way_and_is_gone_is_in_the_way_no_more(dynamodb, table, create, monkeypatch):
    """Of a server that doesn't tell what stood there."""
    put(dynamodb, table, {"id": {"S": "a"}})
    removed: list[object] = []

    def removed_before_it_is_read(operation, body):
        if operation == "GetItem" and not removed:
            removed.append(dynamodb.client().delete_item(TableName=table, Key={"id": {"S": "a"}}))

    silent = dynamodb.client()
    silent.meta.events.register("before-parameter-build.dynamodb.PutItem", forget_what_stands_there)
    monkeypatch.setattr(dynamodb, "faults", removed_before_it_is_read)
    assert create_once(table, KEY, {"n": 1}, client=silent) == ({"id": "a", "n": 1}, True)
    assert removed


def forget_what_stands_there(params, **_):
    params.pop("ReturnValuesOnConditionCheckFailure")


@pytest.mark.parametrize("lost", [False, True])
def test_a_server_that_does_not_tell_what_stands_there_is_asked(dynamodb, table, update, faults, lost):
    update(add())
    silent = dynamodb.client()
    silent.meta.events.register("before-parameter-build.dynamodb.PutItem", forget_what_stands_there)
    faults("PutItem", "lost" if lost else None, other_writer(dynamodb, table, 10))
    with dynamodb.counted() as operations:
        assert update_versioned(table, KEY, add(), client=silent)["n"] == 2
    assert standing(dynamodb, table)["n"] == {"N": "12" if lost else "2"}
    assert operations.count("GetItem") == (3 if lost else 1)


@pytest.mark.parametrize("item", [5, "x", ["n"], {"id": "b"}, {"id": {"S": "b"}}, {"n": 1.5}])
def test_what_is_no_item_is_said(create, item):
    with pytest.raises(FixConfiguration):
        create(item)


# VersionedItem


def test_read_now_and_write_later(dynamodb, table):
    with dynamodb.counted() as operations:
        found = VersionedItem.read(table, KEY, client=dynamodb.client())
        assert (found.item, found.version, found.exists) == (KEY, None, False)
        first = found.write({"n": 1})
        assert (first.item, first.version, first.exists) == ({"id": "a", "n": 1, "version": 1}, 1, True)
        second = first.write({"n": 2})
    assert operations == ["GetItem", "PutItem", "PutItem"]
    assert len({found.etag, first.etag, second.etag}) == 3
    with pytest.raises(WriteConflict) as caught:
        first.write({"n": 3})
    assert caught.value.as_http()["statusCode"] == 409
    assert standing(dynamodb, table)["n"] == {"N": "2"}


@pytest.mark.parametrize("before", ["nothing", "unversioned", "versioned"])
def test_over_two_requests_with_nothing_but_the_etag(dynamodb, table, update, before):
    if before == "unversioned":
        put(dynamodb, table, {"id": {"S": "a"}})
    elif before == "versioned":
        update(add())
    client = dynamodb.client()
    read = VersionedItem.read(table, KEY, client=client)
    assert VersionedItem.read(table, KEY, client=client).etag == read.etag
    with dynamodb.counted() as operations:
        theirs = VersionedItem.matching(table, KEY, read.etag, client=client).write({"n": 5})
    assert operations == ["PutItem"]
    assert theirs.version == (read.version or 0) + 1
    with pytest.raises(WriteConflict):
        VersionedItem.matching(table, KEY, read.etag, client=client).write({"n": 6})
    assert standing(dynamodb, table)["n"] == {"N": "5"}


def test_an_item_is_in_the_form_that_the_key_is_in(dynamodb, table):
    typed_key = VersionedItem.read(table, {"id": {"S": "a"}}, client=dynamodb.client())
    first = typed_key.write({"n": {"N": "3"}})
    assert first.item == {"id": "a", "n": 3, "version": 1}
    assert first.write({"n": 4}).item["n"] == 4
    plain_key = VersionedItem.read(table, KEY, client=dynamodb.client())
    assert plain_key.write({"n": {"N": "3"}}).item["n"] == {"N": "3"}
    assert plain_key.item == {"id": "a", "n": 4, "version": 2}


@pytest.mark.parametrize("versioned", [False, True])
def test_a_lost_answer_of_the_second_request(dynamodb, table, update, faults, versioned):
    if versioned:
        update(add())
    client = dynamodb.client()
    etag = VersionedItem.read(table, KEY, client=client).etag
    faults("PutItem", "lost", other_writer(dynamodb, table, 10))
    written = VersionedItem.matching(table, KEY, etag, client=client).write({"n": 5})
    assert written.item["n"] == 5
    assert standing(dynamodb, table)["n"] == {"N": "15"}


def test_the_etag_of_an_item_made_anew_is_another_one(dynamodb, table, update):
    update(add())
    client = dynamodb.client()
    before = VersionedItem.read(table, KEY, client=client)
    client.delete_item(TableName=table, Key={"id": {"S": "a"}})
    update(add())
    assert VersionedItem.read(table, KEY, client=client).version == before.version
    with pytest.raises(WriteConflict):
        before.write({"n": 9})


@pytest.mark.parametrize("header", [None, "*", "1", 'W/"1.Ab12Cd34"', '"x"'])
def test_a_wrong_if_match_costs_no_request(dynamodb, table, header):
    with dynamodb.counted() as operations, pytest.raises(TokenInvalid):
        VersionedItem.matching(table, KEY, header, client=dynamodb.client())
    assert operations == []
