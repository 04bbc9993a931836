"""What answers isn't DynamoDB: a page, a server that says yes to everything, one that never says the same twice, and emulators.

A wait ends there, too, and nothing is taken for done that wasn't.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.exceptions import ClientError

from aws_server import AwsServer, answer
from dynamodb_faults import Script
from perinvoke.fleet import caller
from perinvoke.fleet.dynamodb import (
    AlreadyInProgress,
    LeaseLock,
    LeaseTimeout,
    OutcomeUnknown,
    PayloadMismatch,
    WriteConflict,
    create_once,
    idempotent,
    increment,
    read,
    transact,
    update_versioned,
)
from perinvoke.fleet.dynamodb.answers import Answered, answer_in
from perinvoke.fleet.errors import TableError, TableUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from dynamodb_server import DynamoDb

KEY = {"id": "a"}


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caller, "_NO_DEADLINE_SECONDS", 0.3)


@pytest.fixture
def page() -> Iterator[Any]:
    """A client of a server that has a page for everybody, as the one behind a wrong port or a proxy has."""
    with AwsServer(lambda line: answer(b"<html>welcome</html>", **{"Content-Type": "text/html; charset=utf-8"})) as server:
        account = {"region_name": "eu-west-1", "aws_access_key_id": "test", "aws_secret_access_key": "test"}
        yield boto3.client("dynamodb", endpoint_url=server.url, **account)


@pytest.mark.parametrize(
    "use",
    [
        lambda client: LeaseLock("table", "k", client=client).acquire(),
        lambda client: idempotent("table", key="id", name="call", client=client)(lambda event: "done")(KEY),
        lambda client: update_versioned("table", KEY, lambda item: item, client=client),
        lambda client: create_once("table", KEY, client=client),
        lambda client: transact([{"Put": {"TableName": "table", "Item": KEY}}], client=client),
        lambda client: read("table", KEY, client=client),
    ],
    ids=["a lease", "an idempotent call", "update_versioned", "create_once", "transact", "read"],
)
def test_a_page_is_no_answer(page: Any, use: Callable[[Any], object]) -> None:
    with pytest.raises(TableUnavailable, match="text/html.*check the endpoint") as raised:
        use(page)
    assert raised.value.carried_out is None


def test_a_page_is_no_answer_to_an_addition_either(page: Any) -> None:
    with pytest.raises(OutcomeUnknown, match="text/html"):
        increment("table", KEY, "n", client=page)


@pytest.mark.parametrize("body", [b"{}", b'{"Attributes":{"n":{"N":"7"}}}'])
def test_an_answer_that_is_called_a_page_is_one_nevertheless(body: bytes) -> None:
    response = {"ResponseMetadata": {"HTTPHeaders": {"content-type": "text/html", "content-length": str(len(body))}}}
    response.update(json.loads(body))
    assert isinstance(answer_in(response, lost=None), Answered)


class StandIn:
    """In the place of a client: each operation answers, or raises, what it was made with."""

    def __init__(self, **answers: dict[str, Any] | Exception) -> None:
        self._answers = answers
        self.meta = boto3.client("dynamodb", "eu-west-1").meta
        self.calls = 0

    def __getattr__(self, name: str) -> Callable[..., dict[str, Any]]:
        def operation(**parameters: Any) -> dict[str, Any]:
            self.calls += 1
            its = self._answers[name]
            if isinstance(its, Exception):
                raise its
            return its

        return operation


REFUSED = ClientError({"Error": {"Code": "ConditionalCheckFailedException", "Message": "no"}}, "UpdateItem")
MOST_CALLS = 100  # with pauses between them; without any there are thousands


def test_a_lease_that_was_not_written_is_not_held() -> None:
    yes = StandIn(update_item={}, get_item={})
    with pytest.raises(TableError, match="nothing was"):
        LeaseLock("table", "k", client=yes).acquire()
    assert yes.calls == 2  # to take it, and to look


def test_a_lease_that_is_never_to_be_had_though_nobody_has_it_is_waited_for_with_pauses() -> None:
    of_two_minds = StandIn(update_item=REFUSED, get_item={})
    with pytest.raises(LeaseTimeout):
        LeaseLock("table", "k", client=of_two_minds).acquire()
    assert of_two_minds.calls <= MOST_CALLS


def test_a_call_that_never_begins_though_nobody_has_is_waited_for_with_pauses() -> None:
    of_two_minds = StandIn(update_item=REFUSED, get_item={})
    with pytest.raises(TableUnavailable, match="gone at each look") as raised:
        idempotent("table", key="id", name="call", client=of_two_minds)(lambda event: "done")(KEY)
    assert raised.value.carried_out is False
    assert of_two_minds.calls <= MOST_CALLS


def test_an_item_that_is_never_made_though_there_is_none_is_waited_for_with_pauses() -> None:
    of_two_minds = StandIn(put_item=REFUSED, get_item={})
    with pytest.raises(WriteConflict):
        create_once("table", KEY, client=of_two_minds)
    assert of_two_minds.calls <= MOST_CALLS


@pytest.fixture
def emulator(dynamodb: DynamoDb, monkeypatch: pytest.MonkeyPatch) -> DynamoDb:
    """One that doesn't know ReturnValuesOnConditionCheckFailure, as dynalite and others."""

    def reply_to(line: str, headers: dict[str, str], body: bytes) -> bytes | Iterable[bytes] | None:
        request = json.loads(body)
        request.pop("ReturnValuesOnConditionCheckFailure", None)
        return reply(line, {**headers, "content-length": str(len(json.dumps(request)))}, json.dumps(request).encode())

    reply = dynamodb.reply_to
    monkeypatch.setattr(dynamodb, "reply_to", reply_to)
    return dynamodb


@pytest.mark.usefixtures("root")
def test_an_emulator_that_does_not_tell_what_refuses_has_leases(emulator: DynamoDb, monkeypatch: pytest.MonkeyPatch) -> None:
    table, client = emulator.table(), emulator.client()
    monkeypatch.setattr(emulator, "faults", Script("UpdateItem", "lost", None, "lost"))  # of taking it, and of giving it back
    first, second = LeaseLock(table, "k", client=client), LeaseLock(table, "k", client=client)
    with first:
        token = first.token
    assert first.lost is None
    with second:
        assert second.token == token + 1


def test_an_emulator_that_does_not_tell_what_refuses_has_idempotent_calls(
    emulator: DynamoDb, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, client, runs = emulator.table(), emulator.client(), []

    @idempotent(table, key="id", payload="n", name="call", on_duplicate="return", client=client)
    def function(event: dict[str, Any]) -> int:
        runs.append(event["n"])
        with pytest.raises(AlreadyInProgress):
            idempotent(table, key="id", payload="n", name="call", on_duplicate="return", client=client)(len)(event)
        return len(runs)

    monkeypatch.setattr(emulator, "faults", Script("UpdateItem", "lost", None, None, "lost"))  # of beginning, and of completing
    assert [function({"id": "a", "n": 1}) for _ in range(2)] == [1, 1]
    with pytest.raises(PayloadMismatch):
        function({"id": "a", "n": 2})
    assert runs == [1]


def test_an_emulator_that_does_not_tell_what_was_written_has_leases(dynamodb: DynamoDb, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(params: dict[str, Any], **_: Any) -> None:
        params.pop("ReturnValues", None)

    table, client = dynamodb.table(), dynamodb.client()
    client.meta.events.register("before-parameter-build.dynamodb.UpdateItem", silent)
    with dynamodb.counted() as operations, LeaseLock(table, "k", client=client) as lock:
        assert lock.token
    assert operations == ["UpdateItem", "GetItem", "UpdateItem"]
