"""A function whose effect happens once for each key: requests counted, answers lost at every step, successors, duplicates."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import itertools
import json
import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any, NamedTuple

import pytest
from awslambdaric.lambda_context import LambdaContext
from awslambdaric.lambda_runtime_marshaller import to_json

from aws_server import answer
from perinvoke import isolated
from perinvoke.errors import DeadlineReached, FixConfiguration, InvocationTimeout
from perinvoke.fleet.dynamodb import idempotent, idempotent_call
from perinvoke.fleet.dynamodb.idempotency_protocol import Run, begin, complete, forget, other_bytes
from perinvoke.fleet.dynamodb.idempotency_result import MAX_ITEM_BYTES, kept
from perinvoke.fleet.dynamodb.states import Idempotency
from perinvoke.fleet.dynamodb.steps import call as make
from perinvoke.fleet.dynamodb.steps import run as drive
from perinvoke.fleet.errors import (
    AlreadyDone,
    AlreadyInProgress,
    IdempotencyKeyError,
    PayloadMismatch,
    ResultNotJson,
    ResultTooLarge,
    TableForbidden,
    TableMissing,
    TableSchemaError,
    TableUnavailable,
)
from perinvoke.fleet.patience import REAL_CLOCK, Clock, Patience
from stalls import repeated_after_a_stall

WRITE, READ, REMOVE = "UpdateItem", "GetItem", "DeleteItem"
KEY = "order-1"
EVENT = {"id": KEY, "amount": 10}


@pytest.fixture
def table(dynamodb):
    return dynamodb.table()


@pytest.fixture
def client(dynamodb):
    client = dynamodb.client()
    yield client
    client.close()


@pytest.fixture
def faults(dynamodb, monkeypatch):
    return lambda decide: monkeypatch.setattr(dynamodb, "faults", decide)


@pytest.fixture
def once(table, client):
    """Decorates with this test's table and client; all functions are called pay."""

    def decorate(function=None, /, **options):
        options = {"key": "id", "name": "pay", "client": client, **options}
        return (
            (lambda function: idempotent(table, **options)(function))
            if function is None
            else idempotent(table, **options)(function)
        )

    return decorate


@pytest.fixture
def record(dynamodb, table):
    """What stands in the table, in Python's values; None: nothing."""

    def look():
        items = dynamodb.items(table)
        assert len(items) <= 1
        return {name: next(iter(value.values())) for name, value in items[0].items()} if items else None

    return look


class Pays:
    """A function with an effect, which is counted."""

    def __init__(self, result=None, *, during=lambda: None):
        self.effects = []
        self.result = result
        self.during = during

    def __call__(self, event, context=None):
        self.effects.append(event["id"])
        self.during()
        if isinstance(self.result, BaseException):
            raise self.result
        return {"paid": event["amount"], "run": len(self.effects)} if self.result is None else self.result


def ahead(seconds):
    """A clock that is so far ahead of this machine's."""
    return Clock(time.monotonic, lambda: time.time() + seconds, lambda low, high: high)


def another(table, *, payload="-", clock=REAL_CLOCK, key=KEY):
    return Run(table, "pay", key, payload=payload, max_skew_seconds=1.0, clock=clock)


def brief():
    return Patience(0.0, REAL_CLOCK)


def begun(client, run, seconds=60.0):
    found = drive(begin(run, lambda: seconds, brief(), waits=False), client)
    assert found.state is Idempotency.OURS
    return run


def done(client, run, result='{"paid":1}', problem="", seconds=3600.0):
    begun(client, run)
    assert drive(complete(run, result, problem, seconds, brief()), client)
    return run


def context(seconds):
    return LambdaContext("8476a536-e9f4-11e8-9739-2dfe598c3fcd", None, None, int((time.time() + seconds) * 1000), "arn", None)


def nth(number, operation, fault):
    """That fault befalls the request of that number among those of the operation."""
    numbers = itertools.count(1)
    return lambda asked, body: fault if asked == operation and next(numbers) == number else None


STARTS = {
    Idempotency.ABSENT: lambda client, table, run: None,
    Idempotency.OURS: lambda client, table, run: begun(client, run),
    Idempotency.ABANDONED: lambda client, table, run: begun(client, another(table, clock=ahead(-120))),
    Idempotency.RUNNING: lambda client, table, run: begun(client, another(table)),
    Idempotency.EXPIRED: lambda client, table, run: done(client, another(table, clock=ahead(-7200))),
    Idempotency.DONE: lambda client, table, run: done(client, another(table)),
}
VALUES = {"result": "null", "problem": "", "expires_ms": 9_999_999_999_999, "expiration": 9_999_999_999}


@pytest.mark.parametrize("transition", Idempotency.TABLE.transitions, ids=lambda transition: transition.name)
@pytest.mark.parametrize("state", Idempotency.TABLE.states, ids=str)
def test_every_transition_goes_from_its_starts_to_its_end_and_from_nowhere_else(state, transition, table, client, record):
    run = another(table)
    STARTS[state](client, table, run)

    def now():
        found = client.get_item(TableName=table, Key={"id": {"S": run.record_key}}).get("Item")
        values = {name: int(value["N"]) if "N" in value else value["S"] for name, value in (found or {}).items()}
        return Idempotency.TABLE.state_of(values, run.values())

    assert now() is state
    before = record()
    answer = make(client, transition.call(table, run.record_key, {**run.beginning(60), **VALUES}))
    if state in transition.starts:
        assert now() is transition.end
    else:
        assert record() == before
        assert type(answer).__name__ == "Refused"


def test_the_first_call_writes_twice_and_a_replay_once(dynamodb, once):
    pays = Pays()
    pay = once(pays)
    with dynamodb.counted() as first:
        assert pay(EVENT) == {"paid": 10, "run": 1}
    with dynamodb.counted() as second:
        assert pay(EVENT) == {"paid": 10, "run": 1}
    assert (first, second) == ([WRITE, WRITE], [WRITE])
    assert pays.effects == [KEY]


def test_every_key_and_every_function_has_its_own_record(dynamodb, table, client):
    pays, refunds = Pays(), Pays()
    decorate = idempotent(table, "id", client=client)
    pay, refund = decorate(named("pay", pays)), decorate(named("refund", refunds))
    for order in ("a", "b", "a"):
        pay({"id": order, "amount": 1})
        refund({"id": order, "amount": 1})
    assert pays.effects == refunds.effects == ["a", "b"]
    assert {item["id"]["S"] for item in dynamodb.items(table)} == {
        f"idempotency#{__name__}.{function}#{order}" for function in ("pay", "refund") for order in ("a", "b")
    }


def named(name, function):
    def wrapper(event):
        return function(event)

    wrapper.__qualname__ = name
    return wrapper


def test_the_lambda_functions_name_is_part_of_the_records(dynamodb, table, client, monkeypatch):
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "shop")
    idempotent(table, "id", client=client)(named("pay", Pays()))(EVENT)
    [item] = dynamodb.items(table)
    assert item["id"] == {"S": f"idempotency#shop.{__name__}.pay#{KEY}"}


def test_a_decorated_function_keeps_its_name_signature_and_text(once):
    def pay(event, context=None):
        """Pay."""

    async def apay(event, context=None):
        """Pay."""

    for function in (pay, apay):
        wrapped = once(function)
        assert (wrapped.__name__, wrapped.__doc__, wrapped.__wrapped__) == (function.__name__, "Pay.", function)
        assert inspect.signature(wrapped) == inspect.signature(function)
        assert inspect.iscoroutinefunction(wrapped) is inspect.iscoroutinefunction(function)


def test_methods_take_their_key_after_self(once):
    class Shop:
        sold: list[str] = []  # noqa: RUF012  # of all shops

        @once
        def sell(self, event):
            self.sold.append(event["id"])
            return len(self.sold)

        @classmethod
        @once(name="rent")
        def rent(cls, event):
            return event["id"]

    assert [Shop().sell(EVENT), Shop().sell(event=EVENT), Shop.rent(EVENT)] == [1, 1, KEY]


def test_a_running_record_tells_its_deadline_and_a_finished_one_when_it_expires(once, record):
    seen = []
    before = time.time()
    once(Pays(during=lambda: seen.append(record())), expires_after_seconds=60)(EVENT)
    running, finished = seen[0], record()
    assert (running["state"], running["payload"], set(running)) == (
        "running",
        "-",
        {"id", "state", "owner", "payload", "deadline_ms", "expiration"},
    )
    assert 899 < int(running["deadline_ms"]) / 1000 - before < 930  # outside an invocation
    assert int(running["expiration"]) > int(running["deadline_ms"]) / 1000
    assert (finished["state"], finished["problem"]) == ("done", "")
    assert set(finished) == {"id", "state", "owner", "payload", "result", "problem", "expires_ms", "expiration"}
    assert 59 < int(finished["expires_ms"]) / 1000 - before < 90
    assert 0 <= int(finished["expiration"]) - int(finished["expires_ms"]) / 1000 <= 1


def test_in_an_invocation_a_run_counts_as_running_until_its_deadline(root, once, record):
    seen = []
    handler = isolated(once(Pays(during=lambda: seen.append(record()))))
    handler(EVENT, context(20))
    assert 10 < int(seen[0]["deadline_ms"]) / 1000 - time.time() < 20.5


def test_above_isolated_it_works_too(root, once):
    pays = Pays()
    handler = once(isolated(named("pay", pays)))
    assert [handler(EVENT), handler(EVENT)] == [{"paid": 10, "run": 1}] * 2
    assert pays.effects == [KEY]


# What a call gets: "runs", its own result; "replays", the record's; or an error.
IN_EACH_STATE = {
    "absent": ("runs", "runs", "runs", "runs"),
    "abandoned": ("runs", "runs", "runs", "runs"),
    "expired": ("runs", "runs", "runs", "runs"),
    "running": (AlreadyInProgress, AlreadyInProgress, AlreadyInProgress, "skips"),
    "done": ("replays", "replays", AlreadyDone, "skips"),
}


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("state", "on_duplicate", "expected"),
    [
        (state, on_duplicate, expected)
        for state, of_each in IN_EACH_STATE.items()
        for on_duplicate, expected in zip(("wait", "return", "raise", "skip"), of_each, strict=True)
    ],
)
def test_what_a_call_gets(  # noqa: PLR0917  # fixtures
    state, on_duplicate, expected, is_async, dynamodb, table, client, once
):
    [start] = [begins for each, begins in STARTS.items() if each.name == state]
    start(client, table, another(table))
    pays = Pays()
    options = {"skip_value": "skipped"} if on_duplicate == "skip" else {}
    pay = run_of(once, pays, is_async=is_async, on_duplicate=on_duplicate, timeout=0.3, **options)
    with dynamodb.counted() as operations:
        if isinstance(expected, str):
            assert pay(EVENT) == {"runs": {"paid": 10, "run": 1}, "replays": {"paid": 1}, "skips": "skipped"}[expected]
        else:
            with pytest.raises(expected) as caught:
                pay(EVENT)
            assert caught.value.key == KEY
    assert pays.effects == ([KEY] if expected == "runs" else [])
    waits = (state, on_duplicate) == ("running", "wait")
    assert operations[:1] == [WRITE]
    assert set(operations[1:]) == ({READ} if waits else {WRITE} if expected == "runs" else set())
    assert waits or len(operations) == (2 if expected == "runs" else 1)


def run_of(once, pays, *, is_async, **options):
    if not is_async:
        return once(pays, **options)

    @once(**options)
    async def apay(event):
        await asyncio.sleep(0)
        return pays(event)

    return lambda event: asyncio.run(apay(event))


def test_who_waits_gets_the_result_of_a_run_that_ends_meanwhile(table, client, once):
    first = begun(client, another(table))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(once(Pays()), EVENT)
        time.sleep(0.2)
        assert not waiting.done()
        assert drive(complete(first, '"from the first"', "", 60, brief()), client)
        assert waiting.result(10) == "from the first"


def test_who_waits_runs_itself_when_the_first_one_has_failed(table, client, once):
    first, pays = begun(client, another(table)), Pays()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(once(pays), EVENT)
        time.sleep(0.2)
        drive(forget(first, brief()), client)
        assert waiting.result(10) == {"paid": 10, "run": 1}
    assert pays.effects == [KEY]


def test_who_waits_runs_itself_when_the_first_one_has_died(table, client, once):
    pays, started = Pays(), time.monotonic()
    begun(client, another(table), seconds=0.3)
    assert once(pays, max_clock_skew_seconds=0.2)(EVENT) == {"paid": 10, "run": 1}
    assert time.monotonic() - started > 0.4


@repeated_after_a_stall
def test_who_waits_reads_what_was_written_last(table, client, once, faults):
    begun(client, another(table))
    asked = []
    faults(lambda operation, body: asked.append(body) if operation == READ else None)
    with pytest.raises(AlreadyInProgress):
        once(Pays(), timeout=0.3)(EVENT)
    assert asked
    assert all(body["ConsistentRead"] is True for body in asked)


def test_eight_threads_with_one_key_have_one_effect(once):
    pays = Pays(during=lambda: time.sleep(0.1))
    pay = once(pays)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(pay, [EVENT] * 8))
    assert results == [{"paid": 10, "run": 1}] * 8
    assert pays.effects == [KEY]


def test_an_error_tells_how_long_the_first_one_counts_as_running(table, client, once):
    begun(client, another(table), seconds=60)
    with pytest.raises(AlreadyInProgress, match=r"pay is in progress for key 'order-1': .* another (5\d|6[01])\.\d s at most"):
        once(Pays(), on_duplicate="return")(EVENT)


@pytest.mark.parametrize(("state", "level"), [("done", logging.INFO), ("running", logging.WARNING)])
def test_a_skipped_duplicate_leaves_one_log_record(  # noqa: PLR0917  # fixtures
    state, level, root, table, client, once, caplog
):
    (done if state == "done" else begun)(client, another(table))
    caplog.set_level(logging.INFO)
    assert isolated(once(Pays(), on_duplicate="skip"))(EVENT, context(20)) is None
    [told] = [each for each in caplog.records if each.name == "perinvoke"]
    assert told.levelno == level
    assert told.perinvoke == {
        "key": KEY,
        "name": "pay",
        "table": table,
        "request_id": "8476a536-e9f4-11e8-9739-2dfe598c3fcd",
        "state": "done" if state == "done" else "in progress",
    }


@pytest.mark.parametrize("lost", [1, 3])
@pytest.mark.parametrize("step", ["begin", "complete"])
def test_a_write_whose_answer_was_lost_is_known_as_ours(  # noqa: PLR0917  # fixtures
    step, lost, dynamodb, once, record, faults, caplog
):
    """Once, and botocore repeats it; three times, and we do."""
    first = 1 if step == "begin" else 2
    numbers = itertools.count(1)
    faults(lambda operation, body: "lost" if operation == WRITE and first <= next(numbers) < first + lost else None)
    pays = Pays()
    pay = once(pays)
    assert pay(EVENT) == pay(EVENT) == {"paid": 10, "run": 1}
    assert pays.effects == [KEY]
    assert record()["state"] == "done"
    assert caplog.records == []


@pytest.fixture
def silent(dynamodb, monkeypatch):
    """It refuses without telling what stands there, as old emulators do."""
    serve = dynamodb.reply_to

    def reply_to(*request):
        found = serve(*request)
        return answer(b'{"__type": "ConditionalCheckFailedException"}', "400 Bad Request") if b"400" in found[:12] else found

    monkeypatch.setattr(dynamodb, "reply_to", reply_to)


@pytest.mark.usefixtures("silent")
def test_what_a_refusal_does_not_tell_is_read(dynamodb, table, client, once, record, faults, caplog):  # noqa: PLR0917  # fixtures
    pay = once(Pays())
    assert pay(EVENT) == {"paid": 10, "run": 1}
    with dynamodb.counted() as operations:
        assert pay(EVENT) == {"paid": 10, "run": 1}
    assert operations == [WRITE, READ]
    begun(client, another(table, key="other"))
    with pytest.raises(AlreadyInProgress):
        once(Pays(), timeout=0.2)({**EVENT, "id": "other"})
    client.delete_item(TableName=table, Key={"id": {"S": another(table, key="other").record_key}})
    for lost in ("begin", "complete"):
        client.delete_item(TableName=table, Key={"id": {"S": another(table).record_key}})
        faults(nth(1 if lost == "begin" else 2, WRITE, "lost"))
        assert once(Pays())(EVENT) == {"paid": 10, "run": 1}
        assert record()["state"] == "done"
    assert caplog.records == []


@pytest.mark.parametrize("lost", [1, 3])
def test_a_removal_whose_answer_was_lost_is_repeated(lost, once, record, faults):
    numbers = itertools.count(1)
    faults(lambda operation, body: "lost" if operation == REMOVE and next(numbers) <= lost else None)
    with pytest.raises(ValueError, match="no money"):
        once(Pays(ValueError("no money")))(EVENT)
    assert record() is None


def test_a_function_that_raises_has_not_happened(dynamodb, once, record):
    pays = Pays(error := ValueError("no money"))
    pay = once(pays)
    with dynamodb.counted() as operations, pytest.raises(ValueError, match="no money") as caught:
        pay(EVENT)
    assert caught.value is error
    assert operations == [WRITE, REMOVE]
    assert record() is None
    pays.result = "done"
    assert pay(EVENT) == "done"
    assert pays.effects == [KEY, KEY]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), StopIteration("x"), DeadlineReached()])
def test_so_it_is_with_whatever_else_it_raises(error, once, record):
    with pytest.raises(type(error)) as caught:
        once(Pays(error))(EVENT)
    assert caught.value is error
    assert record() is None


def test_an_error_stays_the_functions_own_when_its_record_can_not_be_removed(once, record, faults, caplog):
    faults(nth(1, REMOVE, "AccessDeniedException"))
    with pytest.raises(ValueError, match="no money"):
        once(Pays(ValueError("no money")))(EVENT)
    assert record()["state"] == "running"
    [told] = caplog.records
    assert (told.levelno, told.perinvoke["state"]) == (logging.WARNING, "not forgotten")
    assert "a retry runs after this run's deadline (TableForbidden" in told.getMessage()


def succeeded_by(client, table):
    """What happens to a run that stands still for longer than its deadline."""
    successor = another(table)

    def happens():
        client.update_item(
            TableName=table,
            Key={"id": {"S": successor.record_key}},
            UpdateExpression="SET #o = :o",
            ExpressionAttributeNames={"#o": "owner"},
            ExpressionAttributeValues={":o": {"S": successor.owner}},
        )

    return happens, successor


def test_a_late_run_leaves_its_successors_record_alone_and_returns_its_own_result(table, client, once, record, caplog):
    happens, successor = succeeded_by(client, table)
    assert once(Pays(during=happens))(EVENT) == {"paid": 10, "run": 1}
    assert (record()["state"], record()["owner"]) == ("running", successor.owner)
    [told] = caplog.records
    assert (told.levelno, told.perinvoke["state"]) == (logging.WARNING, "late")
    assert drive(complete(successor, "2", "", 60, brief()), client)


def test_a_late_run_leaves_also_its_successors_result_alone(table, client, once, record, caplog):
    happens, successor = succeeded_by(client, table)

    def all_happens():
        happens()
        assert drive(complete(successor, '"its own"', "", 60, brief()), client)

    assert once(Pays(during=all_happens))(EVENT) == {"paid": 10, "run": 1}
    assert record()["result"] == '"its own"'
    assert len(caplog.records) == 1


def test_a_late_run_that_fails_leaves_its_successors_record_alone(table, client, once, record):
    happens, successor = succeeded_by(client, table)
    with pytest.raises(ValueError, match="no money"):
        once(Pays(ValueError("no money"), during=happens))(EVENT)
    assert record()["owner"] == successor.owner


def test_a_run_whose_record_was_removed_returns_its_result(table, client, once, record, caplog):
    remove = {"TableName": table, "Key": {"id": {"S": another(table).record_key}}}
    assert once(Pays(during=lambda: client.delete_item(**remove)))(EVENT) == {"paid": 10, "run": 1}
    assert record() is None
    assert [told.perinvoke["state"] for told in caplog.records] == ["late"]


def test_a_success_that_can_not_be_noted_is_a_success_and_one_error_record(once, record, faults, caplog):
    faults(nth(2, WRITE, "AccessDeniedException"))
    assert once(Pays())(EVENT) == {"paid": 10, "run": 1}
    assert record()["state"] == "running"
    [told] = caplog.records
    assert (told.levelno, told.perinvoke["state"]) == (logging.ERROR, "not noted")
    assert "a duplicate that comes after this run's deadline runs again (TableForbidden" in told.getMessage()


@repeated_after_a_stall
def test_so_it_is_when_the_table_throttles_until_the_deadline(root, once, faults, caplog):
    numbers = itertools.count()
    faults(lambda operation, body: "ThrottlingException" if operation == WRITE and next(numbers) else None)
    event = {**EVENT, "id": os.urandom(4).hex()}  # the last try's is left running
    assert isolated(once(Pays()))(event, context(1.5)) == {"paid": 10, "run": 1}
    [told] = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert "(TableUnavailable: dynamodb:UpdateItem" in told.getMessage()


@pytest.mark.parametrize("is_async", [False, True])
def test_a_function_interrupted_at_its_deadline_has_not_happened(is_async, root, once, record, monkeypatch):
    monkeypatch.setenv("PERINVOKE_TIMEOUT_MARGIN_MS", "1600")

    def pay(event, context):
        time.sleep(30)

    async def apay(event, context):
        await asyncio.sleep(30)

    with pytest.raises(InvocationTimeout):
        isolated(once(apay if is_async else pay))(EVENT, context(3.2))
    assert record() is None


@pytest.mark.parametrize("when", ["before it is carried out", "after it was carried out"])
@pytest.mark.parametrize("is_async", [False, True])
def test_one_interrupted_after_its_effect_is_noted_in_what_time_is_left(  # noqa: PLR0917  # fixtures
    is_async, when, root, dynamodb, once, record, monkeypatch, caplog
):
    """The first attempt to note it stands still until after the deadline, as somebody's own client lets it."""
    monkeypatch.setenv("PERINVOKE_TIMEOUT_MARGIN_MS", "1600")
    requests, go_on, serve = itertools.count(1), threading.Event(), dynamodb.reply_to

    def stand_still(*request):
        is_first_attempt = next(requests) == 2
        if is_first_attempt and when.startswith("before"):
            go_on.wait(5)
        reply = serve(*request)
        if is_first_attempt:
            go_on.wait(5)
        return reply

    monkeypatch.setattr(dynamodb, "reply_to", stand_still)
    pays = Pays()

    async def apay(event, context):
        return pays(event)

    with pytest.raises(InvocationTimeout):
        isolated(once(apay if is_async else pays))(EVENT, context(3.2))
    noted = record()
    go_on.set()
    assert (noted["state"], json.loads(noted["result"])) == ("done", {"paid": 10, "run": 1})
    told = [record.getMessage() for record in caplog.records]
    assert [one for one in told if "noted" in one and "Stacks" not in one] == []  # those name functions


def test_an_async_run_leaves_nothing_behind_in_its_invocation(root, once, caplog):
    @isolated
    @once
    async def handler(event, context):
        await asyncio.sleep(0)
        return 1

    assert [handler(EVENT, context(20)), handler(EVENT, context(20))] == [1, 1]
    assert caplog.records == []


def test_a_begin_that_may_have_been_carried_out_is_taken_back(once, record, faults):
    """The table answers nothing for as long as the caller waits, and has begun the run all the same."""
    faults(lambda operation, body: "lost" if operation == WRITE else None)
    pays = Pays()
    with pytest.raises(TableUnavailable) as caught:
        once(pays, timeout=0.2)(EVENT)
    assert caught.value.carried_out is None
    assert pays.effects == []
    assert record() is None


@pytest.mark.parametrize("on_duplicate", ["wait", "return", "raise", "skip"])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_run_that_calls_itself_with_its_own_key_does_not_wait_for_itself(is_async, on_duplicate, dynamodb, once):
    inner = []

    @once(on_duplicate=on_duplicate)
    def pay(event):
        inner.append(1)
        return pay(event)

    @once(on_duplicate=on_duplicate)
    async def apay(event):
        inner.append(1)
        return await apay(event)

    def call():
        return asyncio.run(apay(EVENT)) if is_async else pay(EVENT)

    if on_duplicate == "skip":
        assert call() is None
    else:
        with dynamodb.counted() as operations, pytest.raises(AlreadyInProgress, match="made from that run"):
            call()
        assert operations == [WRITE, REMOVE]
    assert inner == [1]


def test_the_same_key_in_another_table_is_another_call(dynamodb, client):
    one, other = (idempotent(dynamodb.table(), "id", name="pay", client=client) for _ in range(2))
    assert one(other(lambda event: "both"))(EVENT) == "both"


@pytest.mark.parametrize("result", [1, ValueError("no money")], ids=repr)
@pytest.mark.parametrize("is_async", [False, True])
def test_a_call_that_has_ended_leaves_nothing_behind_in_its_context(is_async, result, once):
    pays = Pays(result)

    @once
    async def apay(event):
        return pays(event)

    async def scenario():
        try:
            return await apay(EVENT)
        except ValueError as error:
            return error
        finally:
            assert idempotent_call._runs.get() == ()

    assert (asyncio.run(scenario()) if is_async else outcome(once(pays), EVENT)) == result
    assert idempotent_call._runs.get() == ()


def test_so_it_is_in_a_thread_of_the_run_and_other_keys_run(root, once):
    def pay(event, context=None):
        if event["id"] == "inner":
            return "inner"
        found = []
        for key in ("inner", "outer"):
            thread = threading.Thread(target=lambda key=key: found.append(outcome(decorated, {"id": key})))
            thread.start()
            thread.join()
        return [str(each) for each in found]

    decorated = once(pay)
    told = isolated(decorated)({"id": "outer"}, context(20))
    assert told[0] == "inner"
    assert "made from that run" in told[1]


def outcome(function, *args):
    try:
        return function(*args)
    except Exception as error:
        return error


def test_a_thread_that_outlives_its_run_is_a_duplicate_like_others(root, once):
    go_on, threads = threading.Event(), []

    def pay(event, context=None):
        threads.append(pool.submit(contextvars.copy_context().run, lambda: go_on.wait(10) and decorated(event)))
        return "first"

    decorated = once(pay)
    with ThreadPoolExecutor(1) as pool:
        assert decorated(EVENT) == "first"
        go_on.set()
        assert threads[0].result(10) == "first"


class Coordinates(NamedTuple):
    """What simplejson writes as an object."""

    north: int
    east: int


RESULTS: list[Any] = [
    None,
    "text",
    7,
    0.1,
    True,
    [],
    {"é": "ü", 7: 2, None: 3, True: 4, 1.5: 5},
    (1, (2,)),
    {"total": Decimal("12.30"), "many": Decimal(5), "huge": Decimal("1E+30"), "none": Decimal("0.00")},
    {"at": Coordinates(1, 2)},
    {"bytes": b"text", b"name": 1},
    "half \ud83d of a pair",
    float("inf"),
]


@pytest.mark.parametrize("result", RESULTS, ids=repr)
def test_a_replay_answers_what_the_runtime_has_answered_the_first_time(result, once, monkeypatch):
    monkeypatch.delenv("AWS_EXECUTION_ENV", raising=False)
    pay = once(Pays(result) if result is not None else lambda event: None)
    assert pay(EVENT) is result
    assert json.loads(to_json(pay(EVENT))) == json.loads(to_json(result))


class Strange:
    def _asdict(self):
        raise KeyError("strange")


@pytest.mark.parametrize("result", [object(), {"a": {1, 2}}, {(1, 2): 3}, b"bytes", {"a": b"\xff"}, Strange()], ids=repr)
def test_a_result_that_is_no_json_is_an_error_for_everybody_and_nothing_is_done_twice(result, once, record):
    pays = Pays(result)
    pay = once(pays)
    for _ in range(2):
        with pytest.raises(
            ResultNotJson, match="pay has succeeded for key 'order-1', and its result, of type .*, is no JSON"
        ) as caught:
            pay(EVENT)
        assert caught.value.key == KEY
    assert pays.effects == [KEY]
    assert record()["state"] == "done"


def test_so_it_is_with_what_holds_itself(once):
    own: list[object] = []
    own.append(own)
    with pytest.raises(ResultNotJson, match="nested too deep"):
        once(Pays(own))(EVENT)


def test_a_result_that_is_too_large_is_an_error_for_everybody_and_nothing_is_done_twice(once):
    pays = Pays("é" * 204_800)
    pay = once(pays)
    told = []
    for _ in range(2):
        with pytest.raises(
            ResultTooLarge, match="409,602 bytes as JSON; DynamoDB can keep 409,4.. beside this key.* S3"
        ) as caught:
            pay(EVENT)
        told.append((caught.value.key, caught.value.bytes, caught.value.max_bytes))
    assert told[0] == told[1] == (KEY, 409_602, told[0][2])
    assert pays.effects == [KEY]


def test_a_large_result_is_kept(once):
    """moto's own limit is below DynamoDB's."""
    pay = once(Pays("x" * 404_000))
    assert [len(pay(EVENT)), len(pay(EVENT))] == [404_000, 404_000]


@pytest.mark.parametrize("key", ["k", "é" * 1_000])
def test_the_room_for_a_result_is_what_the_other_attributes_leave(key, table):
    run = another(table, key=key)
    room = MAX_ITEM_BYTES - other_bytes(run.completed("", "", 60), run.record_key)
    fits = kept(run, "x" * (room - 2), 60)
    assert (len(fits.result), fits.problem) == (room, "")
    assert json.loads(kept(run, "x" * (room - 1), 60).problem)["bytes"] == room + 1
    names = ["id", "state", "owner", "payload", "result", "problem", "expires_ms", "expiration"]
    values = [run.record_key, "done", run.owner, "-", fits.result, ""]
    numbers = (7 + 1) + (5 + 1)  # a byte for two digits, and one
    size = sum(map(len, names)) + sum(len(value.encode()) for value in values) + numbers
    assert MAX_ITEM_BYTES - 2 <= size <= MAX_ITEM_BYTES


def test_a_key_that_comes_with_another_payload_is_refused(once, dynamodb):
    pays = Pays()
    pay = once(pays, payload="amount", on_duplicate="skip")
    pay(EVENT)
    with dynamodb.counted() as operations, pytest.raises(PayloadMismatch, match="key 'order-1' of pay came before") as caught:
        pay({**EVENT, "amount": 11})
    assert (operations, caught.value.key) == ([WRITE], KEY)
    assert pay({**EVENT, "amount": 10.0, "other": 1}) is None
    assert pays.effects == [KEY]


def test_so_it_is_while_the_first_one_runs_and_not_when_that_is_over(table, client, once):
    pay = once(Pays(), payload=lambda event: event["amount"])
    begun(client, running := another(table, payload="another"))
    with pytest.raises(PayloadMismatch):
        pay(EVENT)
    drive(forget(running, brief()), client)
    begun(client, another(table, payload="another", clock=ahead(-120)))
    assert pay(EVENT) == {"paid": 10, "run": 1}


def test_payloads_are_not_compared_where_one_of_both_has_none(once):
    assert once(Pays())(EVENT) == once(Pays(), payload="amount")(EVENT) == {"paid": 10, "run": 1}


def test_async_calls_with_one_key_have_one_effect_and_do_not_block_their_loop(once):
    pays = Pays()

    @once
    async def pay(event):
        await asyncio.sleep(0.2)
        return pays(event)

    async def scenario():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.005)

        ticking = asyncio.create_task(tick())
        results = await asyncio.gather(*(pay(EVENT) for _ in range(5)))
        ticking.cancel()
        return results, ticks

    results, ticks = asyncio.run(scenario())
    assert results == [{"paid": 10, "run": 1}] * 5
    assert pays.effects == [KEY]
    assert ticks > 10


def test_a_coroutine_that_is_cancelled_has_not_happened(once, record):
    started = asyncio.Event()

    @once
    async def pay(event):
        started.set()
        await asyncio.sleep(30)

    async def scenario():
        task = asyncio.create_task(pay(EVENT))
        await asyncio.wait_for(started.wait(), 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    assert record() is None


def test_a_coroutine_that_nobody_drives_any_more_ends_in_silence(once):
    @once
    async def pay(event):
        await asyncio.sleep(30)

    async def scenario():
        coroutine = pay(EVENT)
        task = asyncio.create_task(coroutine)
        await asyncio.sleep(0.3)
        task.cancel()
        coroutine_two = pay({**EVENT, "id": "other"})
        coroutine_two.send(None)
        coroutine_two.close()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())


def test_so_does_one_whose_function_had_begun(once, record):
    started = asyncio.Event()

    @once
    async def pay(event):
        started.set()
        await asyncio.sleep(30)

    async def scenario():
        coroutine = pay(EVENT)
        task = asyncio.create_task(coroutine)
        await asyncio.wait_for(started.wait(), 10)
        coroutine.close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(scenario())
    assert record()["state"] == "running"


def test_so_does_one_that_is_being_noted_but_tells_of_it(once, faults, caplog):
    being_noted, numbers = threading.Event(), itertools.count(1)

    def slow(operation, body):
        if operation == WRITE and next(numbers) == 2:
            being_noted.set()
            time.sleep(0.2)

    @once
    async def pay(event):
        return 1

    async def scenario():
        coroutine = pay(EVENT)
        task = asyncio.create_task(coroutine)
        assert await asyncio.to_thread(being_noted.wait, 10)
        coroutine.close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    faults(slow)
    asyncio.run(scenario())
    assert [told.perinvoke["state"] for told in caplog.records] == ["not noted"]


def test_a_function_that_returns_an_awaitable_is_told_where_to_be_decorated(once, record):
    async def apay(event):
        return 1

    with pytest.raises(FixConfiguration, match="pay returned an awaitable"):
        once(lambda event: apay(event))(EVENT)
    assert record() is None


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("ends", ["returns", "raises"])
def test_a_forked_child_leaves_the_record_of_its_parents_run_alone(ends, once, record):
    parent = os.getpid()
    pids = []

    def pay(event):
        pids.append(os.fork())
        if pids[0] == 0 and ends == "raises":
            raise ValueError("the child's")
        if pids[0]:
            os.waitpid(pids[0], 0)
            return record()["state"]
        return "the child's"

    decorated = once(pay)
    try:
        result = decorated(EVENT)
    finally:
        if os.getpid() != parent:
            os._exit(0)
    assert result == "running"
    assert json.loads(record()["result"]) == "running"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"table": ""}, "idempotent's table is ''"),
        ({"table": lambda event: 1}, "idempotent's table is <function"),
        ({"key": "a..b"}, "no JMESPath expression"),
        ({"payload": 7}, "idempotent's payload is 7"),
        ({"on_duplicate": "replay"}, "on_duplicate is 'replay'; allowed is one of wait, return, raise, skip"),
        ({"skip_value": 1}, "skip_value is only for on_duplicate='skip', and that is 'wait'"),
        ({"expires_after_seconds": 0}, "expires_after_seconds is 0; allowed are seconds above 0, up to 3,155,760,000"),
        ({"expires_after_seconds": float("nan")}, "expires_after_seconds is nan"),
        ({"expires_after_seconds": "3600"}, "expires_after_seconds is '3600'"),
        ({"expires_after_seconds": True}, "expires_after_seconds is True"),
        ({"max_clock_skew_seconds": -1}, "max_clock_skew_seconds is -1; allowed are seconds from 0 on, up to 900"),
        ({"max_clock_skew_seconds": 901}, "max_clock_skew_seconds is 901"),
        ({"timeout": -1}, "timeout is -1"),
        ({"name": "a#b"}, "name is 'a#b'"),
    ],
)
def test_an_argument_that_is_not_allowed_is_named_when_the_function_is_decorated(options, told):
    with pytest.raises(FixConfiguration, match=told):
        idempotent(**{"table": "table", "key": "id", **options})


def test_what_can_not_be_wrapped_is_named(once):
    def generator(event):
        yield 1

    wrongs: list[tuple[Any, str]] = [
        (7, "7 is none"),
        (generator, "is a generator"),
        ([], "is none"),
        (staticmethod(named("pay", Pays())), "put it below classmethod, staticmethod or property"),
        (classmethod(named("pay", Pays())), "put it below classmethod, staticmethod or property"),
    ]
    for wrong, told in wrongs:
        with pytest.raises(FixConfiguration, match=told):
            once(wrong)
    with pytest.raises(FixConfiguration, match="has no name of its own"):
        once(lambda event: 1, name=None)


def test_a_function_that_is_decorated_twice_needs_two_names(once):
    """One record for both: the second one would find the run of the first, or take another call's result for its own."""
    pays = Pays()
    inner = once(pays, key="amount")
    for decorated in (inner, isolated(inner)):
        with pytest.raises(FixConfiguration, match="pay is idempotent already, and one record can't serve two.* name="):
            once(decorated)
    both = once(inner, name="twice")
    assert [both(EVENT), both({"id": "order-2", "amount": 10}), both(EVENT)] == [{"paid": 10, "run": 1}] * 3
    with pytest.raises(FixConfiguration, match="pay is idempotent already"):
        once(both)


def test_an_event_without_its_key_runs_nothing_and_asks_for_nothing(dynamodb, once):
    pays = Pays()
    with dynamodb.counted() as operations, pytest.raises(IdempotencyKeyError, match="key='id' found a key that is null"):
        once(pays)({"amount": 10})
    assert (operations, pays.effects) == ([], [])


def test_a_table_that_can_not_be_used_runs_nothing(dynamodb, client, once, faults, table):
    pays = Pays()
    for name, error in (("none-such", TableMissing), (dynamodb.table(key="other"), TableSchemaError)):
        with pytest.raises(error):
            idempotent(name, "id", name="pay", client=client)(pays)(EVENT)
    faults(nth(1, WRITE, "AccessDeniedException"))
    with pytest.raises(TableForbidden) as caught:
        once(pays)(EVENT)
    assert caught.value.action == "dynamodb:UpdateItem"
    faults(lambda operation, body: "ThrottlingException")
    unavailable = pytest.raises(TableUnavailable, match=r"dynamodb:UpdateItem on table .* was throttled")
    with dynamodb.counted() as operations, unavailable:
        once(pays, timeout=0.2)(EVENT)
    assert set(operations) == {WRITE}  # nothing has begun, and nothing is taken back
    assert pays.effects == []


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"state": {"S": "paid"}},
        {"state": {"S": "running"}, "owner": {"S": "x"}},
        {"state": {"S": "running"}, "owner": {"S": "x"}, "payload": {"S": "-"}},
        {"state": {"M": {}}, "owner": {"S": "x"}, "payload": {"S": "-"}},
        {"state": {"S": "running"}, "owner": {"N": "1"}, "payload": {"S": "-"}, "deadline_ms": {"N": "9999999999999"}},
        {"state": {"S": "done"}, "owner": {"S": "x"}, "payload": {"S": "-"}, "expires_ms": {"N": "9999999999999"}},
    ],
)
def test_an_item_that_is_no_record_is_an_error_and_stays(others, table, client, once, record):
    client.put_item(TableName=table, Item={"id": {"S": another(table).record_key}, **others})
    before = record()
    with pytest.raises(TableSchemaError, match="is no record of a call: somebody else has written it"):
        once(Pays())(EVENT)
    assert record() == before


@pytest.mark.parametrize(("result", "problem"), [("{", ""), ("", "{"), ("", '{"error":"Other"}'), ("", "[]")])
def test_a_spoilt_result_is_an_error(result, problem, table, client, once):
    done(client, another(table), result, problem)
    with pytest.raises(TableSchemaError, match="holds no result that was written here"):
        once(Pays())(EVENT)


def test_an_expired_result_counts_as_gone_and_leaves_nothing_behind(table, client, once, record):
    done(client, another(table, clock=ahead(-7200)), '"old"')
    seen = []
    pays = Pays("new", during=lambda: seen.append(record()))
    assert once(pays)(EVENT) == "new"
    assert not {"result", "problem", "expires_ms"} & set(seen[0])


def test_a_run_whose_clock_is_behind_is_not_taken_over_within_the_skew(table, client, once):
    begun(client, another(table, clock=ahead(-0.5)), seconds=0.0)
    with pytest.raises(AlreadyInProgress):
        once(Pays(), on_duplicate="return", max_clock_skew_seconds=30)(EVENT)
