"""One call and what comes of it: botocore's errors told apart, repetitions, and calls that must not be repeated."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time

import boto3
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError

from hostile_servers import UnreachablePort
from perinvoke.fleet.dynamodb.answers import Answered, Refused, Trouble, TroubleKind
from perinvoke.fleet.dynamodb.insist import insist
from perinvoke.fleet.dynamodb.steps import Call, Pause, call, run, run_beside_loop
from perinvoke.fleet.errors import TableForbidden, TableMissing, TableSchemaError, TableUnavailable
from perinvoke.fleet.patience import REAL_CLOCK, Clock, Patience
from stalls import repeated_after_a_stall


def add_one(table: str, *, once: bool = False) -> Call:
    parameters = {
        "TableName": table,
        "Key": {"id": {"S": "a"}},
        "UpdateExpression": "ADD n :one",
        "ExpressionAttributeValues": {":one": {"N": "1"}},
        "ReturnValues": "ALL_NEW",
    }
    return Call("update_item", parameters, once=once)


def first(count: int, fault: str):
    """The first so many requests suffer it."""
    numbers = itertools.count()
    return lambda operation, body: fault if next(numbers) < count else None


@pytest.fixture
def faults(dynamodb, monkeypatch):
    return lambda decide: monkeypatch.setattr(dynamodb, "faults", decide)


def test_a_call_is_answered(dynamodb):
    answer = call(dynamodb.client(), add_one(dynamodb.table()))
    assert isinstance(answer, Answered)
    assert answer.attributes["n"] == {"N": "1"}
    assert not answer.lost


def test_an_answer_after_a_lost_one_says_so(dynamodb, faults):
    table, client = dynamodb.table(), dynamodb.client()
    faults(first(1, "lost"))
    answer = call(client, add_one(table))
    assert isinstance(answer, Answered)
    assert answer.lost
    assert answer.attributes["n"] == {"N": "2"}  # botocore has repeated it


@pytest.mark.parametrize("fault", ["lost", "dropped", "InternalServerError", "ThrottlingException"])
def test_a_call_that_is_sent_once_is_not_repeated_by_botocore(dynamodb, faults, fault):
    table, client = dynamodb.table(), dynamodb.client()
    faults(first(1, fault))
    with dynamodb.counted() as operations:
        answer = call(client, add_one(table, once=True))
    assert isinstance(answer, Trouble)
    assert answer.lost is (fault != "ThrottlingException")
    assert operations == ["UpdateItem"]
    with dynamodb.counted() as operations:
        faults(first(1, "dropped"))
        assert isinstance(call(client, add_one(table)), Answered)  # other calls of the client's are repeated as ever
    assert operations == ["UpdateItem"] * 2


def test_another_thread_is_repeated_while_one_is_not(dynamodb, faults):
    table, client, answers = dynamodb.table(), dynamodb.client(), {}
    first_of_b = first(2, "ThrottlingException")
    faults(lambda operation, body: "ThrottlingException" if body["Key"]["id"]["S"] == "a" else first_of_b(operation, body))

    def of_b() -> None:
        step = add_one(table)
        step.parameters["Key"] = {"id": {"S": "b"}}
        answers["b"] = call(client, step)

    thread = threading.Thread(target=of_b)
    thread.start()
    answers["a"] = call(client, add_one(table, once=True))
    thread.join(30)
    assert isinstance(answers["a"], Trouble)
    assert isinstance(answers["b"], Answered)


def test_who_could_not_connect_has_sent_nothing():
    options = {"region_name": "eu-west-1", "aws_access_key_id": "test", "aws_secret_access_key": "test"}
    client = boto3.client("dynamodb", endpoint_url="http://127.0.0.1:1", **options)
    once, again = call(client, add_one("t", once=True)), call(client, add_one("t"))
    assert isinstance(once, Trouble)
    assert isinstance(again, Trouble)
    assert (once.kind, once.lost) == (again.kind, again.lost) == (TroubleKind.UNREACHED, False)
    assert isinstance(once.error, EndpointConnectionError)


def test_a_refusal_has_what_stands_there(dynamodb):
    table, client = dynamodb.table(), dynamodb.client()
    step = add_one(table)
    step.parameters |= {"ConditionExpression": "n = :one", "ReturnValuesOnConditionCheckFailure": "ALL_OLD"}
    nothing = call(client, step)
    assert isinstance(nothing, Refused)
    assert nothing.item is None
    client.put_item(TableName=table, Item={"id": {"S": "a"}, "n": {"N": "7"}})
    answer = call(client, step)
    assert isinstance(answer, Refused)
    assert answer.item == {"id": {"S": "a"}, "n": {"N": "7"}}
    assert not answer.lost


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("ProvisionedThroughputExceededException", TroubleKind.THROTTLED),
        ("ThrottlingException", TroubleKind.THROTTLED),
        ("RequestLimitExceeded", TroubleKind.THROTTLED),
        ("TransactionConflictException", TroubleKind.CONFLICT),
        ("TransactionInProgressException", TroubleKind.CONFLICT),
        ("ReplicatedWriteConflictException", TroubleKind.REPLICATED_CONFLICT),
        ("InternalServerError", TroubleKind.LOST),
    ],
)
def test_trouble_is_told_apart(dynamodb, faults, fault, kind):
    table, client = dynamodb.table(), dynamodb.client()
    faults(lambda operation, body: fault)
    answer = call(client, add_one(table))
    assert isinstance(answer, Trouble)
    assert (answer.kind, answer.lost) == (kind, kind is TroubleKind.LOST)


@pytest.mark.parametrize("fault", ["lost", "dropped", "InternalServerError"])
def test_what_botocore_repeats_is_lost_when_one_attempt_was(dynamodb, faults, fault):
    """Whatever came of the others."""
    table, client = dynamodb.table(), dynamodb.client()
    script = iter([fault, "ThrottlingException", "ThrottlingException"])
    faults(lambda operation, body: next(script))
    answer = call(client, add_one(table))
    assert isinstance(answer, Trouble)
    assert (answer.kind, answer.lost) == (TroubleKind.THROTTLED, True)


def test_what_a_stand_in_for_a_client_repeats_may_be_lost(dynamodb):
    class StandIn:
        def update_item(self, **_: object) -> dict[str, object]:
            return {"ResponseMetadata": {"RetryAttempts": 1}}

    answer = call(StandIn(), add_one("t"))
    assert isinstance(answer, Answered)
    assert answer.lost


def test_what_will_not_pass_is_raised(dynamodb, faults):
    client = dynamodb.client()
    with pytest.raises(TableMissing, match=r"no table 'nowhere' in eu-west-1.*perinvoke table create nowhere") as missing:
        call(client, add_one("nowhere"))
    assert (missing.value.table, missing.value.action) == ("nowhere", "dynamodb:UpdateItem")
    with pytest.raises(TableSchemaError, match="another key than was given"):
        call(client, add_one(dynamodb.table(key="pk")))
    table = dynamodb.table()
    faults(lambda operation, body: "AccessDeniedException")
    with pytest.raises(TableForbidden, match=f"may not do dynamodb:UpdateItem on table '{table}'"):
        call(client, add_one(table))
    faults(lambda operation, body: "SomethingElse")
    with pytest.raises(ClientError, match="SomethingElse"):
        call(client, add_one(table))


def test_what_is_no_answer_comes_through(dynamodb, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    client = boto3.session.Session().client("dynamodb", region_name="eu-west-1", endpoint_url=dynamodb.url)
    with pytest.raises(NoCredentialsError):
        call(client, add_one("t"))


def test_throttling_is_waited_out(dynamodb, faults):
    table, client = dynamodb.table(), dynamodb.client()
    faults(first(7, "ThrottlingException"))
    answer = run(insist(add_one(table), Patience(20, REAL_CLOCK, last_seconds=0.1)), client)
    assert isinstance(answer, Answered)
    assert answer.attributes["n"] == {"N": "1"}


@repeated_after_a_stall
def test_throttling_for_all_the_time_there_is_names_the_action_and_the_wait(dynamodb, faults):
    table, client = dynamodb.table(), dynamodb.client()
    faults(lambda operation, body: "ThrottlingException")
    started = time.monotonic()
    with pytest.raises(TableUnavailable, match=f"dynamodb:UpdateItem on table '{table}' was throttled") as raised:
        run(insist(add_one(table, once=True), Patience(0.5, REAL_CLOCK)), client)
    assert time.monotonic() - started < 20
    assert raised.value.carried_out is False
    assert raised.value.attempts >= 2


def test_conflicts_of_regions_are_repeated_eight_times_with_botocores_own(dynamodb, faults):
    table, client = dynamodb.table(), dynamodb.client()
    faults(lambda operation, body: "ReplicatedWriteConflictException")
    with dynamodb.counted() as operations, pytest.raises(TableUnavailable, match="in the way of a write in another region"):
        run(insist(add_one(table), Patience(100, REAL_CLOCK, last_seconds=0.01)), client)
    assert 8 <= len(operations) <= 8 + 2  # botocore makes three of one attempt


def test_a_call_that_must_not_be_made_twice_ends_when_its_answer_is_lost(dynamodb, faults):
    table, client = dynamodb.table(), dynamodb.client()
    faults(first(1, "lost"))
    with pytest.raises(TableUnavailable, match="It may have been carried out") as raised:
        run(insist(add_one(table, once=True), Patience(100, REAL_CLOCK)), client)
    assert raised.value.carried_out is None


def test_beside_a_loop_nobody_else_is_held_up(dynamodb, faults):
    table, client = dynamodb.table(), dynamodb.client()
    faults(first(4, "ThrottlingException"))

    async def scenario() -> tuple[object, int]:
        protocol = insist(add_one(table, once=True), Patience(20, REAL_CLOCK))
        task = asyncio.ensure_future(run_beside_loop(protocol, client))
        turns = 0
        while not task.done():
            await asyncio.sleep(0.001)
            turns += 1
        return await task, turns

    answer, turns = asyncio.run(scenario())
    assert isinstance(answer, Answered)
    assert turns > 3


@repeated_after_a_stall
def test_who_is_cancelled_while_a_call_is_under_way_waits_for_its_end(dynamodb, faults):
    table, client, carried_out = dynamodb.table(), dynamodb.client(), threading.Event()

    def slowly(operation, body):
        time.sleep(0.3)
        carried_out.set()

    faults(slowly)

    async def scenario() -> bool:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(run_beside_loop(insist(add_one(table), Patience(20, REAL_CLOCK)), client), 0.05)
        return carried_out.is_set()

    assert asyncio.run(scenario())
    assert dynamodb.items(table) == [{"id": {"S": "a"}, "n": {"N": "1"}}]


def test_no_pause_is_longer_than_what_is_left_nor_than_its_bound():
    now = [0.0]
    clock = Clock(lambda: now[0], lambda: 0.0, lambda low, high: high)
    patience = Patience(2.0, clock, first_seconds=0.25, last_seconds=1.0)
    assert [patience.pause(), patience.pause(), patience.pause(), patience.pause()] == [0.25, 0.5, 1.0, 1.0]
    now[0] = 1.5
    assert patience.left() == 0.5
    assert patience.pause() is None
    now[0] = 3.0
    assert patience.left() == 0.0
    assert patience.waited_seconds() == 3.0


@pytest.mark.parametrize("dice", [0.3, 0.6, 0.9, 0.99])
def test_who_waits_goes_on_looking_until_the_time_is_up(dice):
    now = [0.0]
    patience = Patience(3.0, Clock(lambda: now[0], lambda: 0.0, lambda low, high: low + dice * (high - low)))
    while (pause := patience.pause()) is not None:
        now[0] += pause
    assert 2.98 < now[0] < 3.0
    assert patience.pauses < 50


def test_a_call_and_a_pause_say_what_they_are():
    step = add_one("t")
    assert (step.table, step.action) == ("t", "dynamodb:UpdateItem")
    actions = Call("transact_write_items", {"TransactItems": [{"Put": {"TableName": "u", "Item": {}}}]})
    assert (actions.table, actions.action) == ("u", "dynamodb:PutItem")
    assert repr(Pause(1.5)) == "<Pause 1.500 s>"
    assert "update_item" in repr(step)


def test_a_server_that_cannot_be_reached_ends_with_patience():
    with UnreachablePort() as unreachable:
        options = {"region_name": "eu-west-1", "aws_access_key_id": "test", "aws_secret_access_key": "test"}
        config = boto3.session.Config(connect_timeout=0.2, retries={"total_max_attempts": 1})
        client = boto3.client("dynamodb", endpoint_url=f"http://127.0.0.1:{unreachable.port}", config=config, **options)
        with pytest.raises(TableUnavailable, match="not reached") as raised:
            run(insist(add_one("t", once=True), Patience(0.5, REAL_CLOCK)), client)
    assert raised.value.carried_out is False
