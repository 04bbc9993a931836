"""The simulated DynamoDB says what moto's says, of every request that simulated environments make."""

from __future__ import annotations

import random

import pytest
from botocore.exceptions import ClientError

import lease_simulation
from dynamodb_expressions import InvalidExpression, condition, update
from lease_schedules import drawn
from perinvoke.fleet.dynamodb.steps import Call
from simulated_dynamodb import SimulatedDynamoDb

# moto leaves out of UPDATED_NEW what is written but stays as it was; DynamoDB doesn't.
# https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_UpdateItem.html
TOLD = {"owner", "token"}


def said(ask):
    """What is said of a request, as far as it doesn't depend on who says it."""
    try:
        response = ask()
    except ClientError as error:
        return error.response["Error"]["Code"], error.response.get("Item")
    told = response.get("Attributes")
    return response.get("Item"), told and {name: value for name, value in told.items() if name in TOLD}


def requests_of(seed, monkeypatch):
    """The requests of a schedule in the order in which the store got them, each with what it said."""
    found = []

    class Recording(SimulatedDynamoDb):
        def carry_out(self, call):
            ask = super().carry_out
            outcome = said(lambda: keep(ask(call)))
            found.append((call, outcome))
            return kept.pop() if kept else ask(call)  # a refusal changes nothing: it is said again

    kept = []

    def keep(response):
        kept.append(response)
        return response

    with monkeypatch.context() as patch:
        patch.setattr(lease_simulation, "SimulatedDynamoDb", Recording)
        lease_simulation.simulate(drawn(random.Random(seed), tame=False, environments=4, keys=1))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_moto_says_the_same(dynamodb, monkeypatch, seed):
    table, client = dynamodb.table(), dynamodb.client()
    writes = [(call, outcome) for call, outcome in requests_of(seed, monkeypatch) if call.operation != "get_item"]
    assert len(writes) > 10
    for call, outcome in writes:
        ask = getattr(client, call.operation)
        assert said(lambda ask=ask, call=call: ask(**{**call.parameters, "TableName": table})) == outcome, call


def store(**attributes):
    simulated = SimulatedDynamoDb()
    simulated.items["k"] = {"id": {"S": "k"}, **attributes}
    return simulated


def call(**parameters):
    return Call("update_item", {"Key": {"id": {"S": "k"}}, **parameters})


ITEM = {"a": {"N": "1"}, "b": {"S": "x"}}


@pytest.mark.parametrize(
    ("expression", "holds"),
    [
        ("a = :one", True),
        ("a = :x", False),  # of another type
        ("a <> :x", True),
        ("b = :x AND a < :one", False),
        ("b = :x AND a <= :one", True),
        ("a > :one OR a >= :one", True),
        ("NOT a = :one", False),
        ("c = :one", False),
        ("c <> :one", True),
        ("attribute_exists(c) OR (attribute_not_exists(c) AND attribute_exists(#a))", True),
        ("a = :one OR b = :one AND a = :x", True),  # AND binds closer
    ],
)
def test_conditions_are_what_moto_says(dynamodb, expression, holds):
    names = {"#a": "a"} if "#a" in expression else {}
    values = {name: value for name, value in {":one": {"N": "1"}, ":x": {"S": "x"}}.items() if name in expression}
    assert condition(expression)(ITEM, names, values) is holds
    table, client = dynamodb.table(), dynamodb.client()
    client.put_item(TableName=table, Item={"id": {"S": "k"}, **ITEM})
    given = {"ExpressionAttributeNames": names, "ExpressionAttributeValues": values}
    parameters = {name: value for name, value in given.items() if value}
    refused = isinstance(
        said(lambda: client.delete_item(TableName=table, Key={"id": {"S": "k"}}, ConditionExpression=expression, **parameters))[
            0
        ],
        str,
    )
    assert refused is not holds


def test_everything_is_computed_from_what_was_there_before():
    after, written = update("SET a = :two, c = a + :two REMOVE b").applied(ITEM, {}, {":two": {"N": "2"}})
    assert after == {"a": {"N": "2"}, "c": {"N": "3"}}
    assert written == after


@pytest.mark.parametrize(
    "parameters",
    [
        {"UpdateExpression": "SET a = missing + :one", "ExpressionAttributeValues": {":one": {"N": "1"}}},
        {"UpdateExpression": "SET a = b + :one", "ExpressionAttributeValues": {":one": {"N": "1"}}},
        {"UpdateExpression": "SET a = :one", "ExpressionAttributeValues": {":one": {"N": "1"}, ":unused": {"N": "1"}}},
        {"UpdateExpression": "SET a = :missing"},
        {"UpdateExpression": "SET a = :one :one", "ExpressionAttributeValues": {":one": {"N": "1"}}},
    ],
    ids=lambda parameters: parameters["UpdateExpression"],
)
def test_what_dynamodb_does_not_take_is_refused(parameters):
    simulated = store(**ITEM)
    assert said(lambda: simulated.carry_out(call(**parameters))) == ("ValidationException", None)
    assert simulated.items["k"] == {"id": {"S": "k"}, **ITEM}


@pytest.mark.parametrize("expression", ["a ! b", "a =", "(a = b", "a = b c", "a b c"])
def test_what_is_no_condition_is_not_guessed(expression):
    with pytest.raises(InvalidExpression):
        condition(expression)


def test_a_refusal_tells_what_stands_there_where_it_is_asked_and_the_store_can():
    asked = call(
        ConditionExpression="attribute_not_exists(id)", UpdateExpression="REMOVE a", ReturnValuesOnConditionCheckFailure="ALL_OLD"
    )
    simulated, mute = store(**ITEM), SimulatedDynamoDb(tells_item=False)
    mute.items = simulated.items
    assert said(lambda: simulated.carry_out(asked)) == ("ConditionalCheckFailedException", {"id": {"S": "k"}, **ITEM})
    assert said(lambda: mute.carry_out(asked)) == ("ConditionalCheckFailedException", None)
