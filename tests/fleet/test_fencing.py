"""Guarded writes: what is added to a write, in every form that boto3 takes, and that DynamoDB refuses the late one."""

from __future__ import annotations

import copy
import itertools
import time
from decimal import Decimal

import boto3
import pytest
from boto3.dynamodb.conditions import Attr
from botocore.exceptions import ClientError

from perinvoke.fleet.dynamodb import LeaseError, LeaseLock
from perinvoke.fleet.dynamodb.fencing import guarded

pytestmark = pytest.mark.usefixtures("root")
_keys = itertools.count()


@pytest.fixture(scope="module")
def table(dynamodb):
    return dynamodb.table()


@pytest.fixture(scope="module")
def client(dynamodb):
    return dynamodb.client()


@pytest.fixture(scope="module")
def resource(dynamodb, table):
    return boto3.resource("dynamodb", **dynamodb.account()).Table(table)


@pytest.fixture
def key():
    return f"item-{next(_keys)}"


def guard(write, token=5, **options):
    return guarded(write, token, **{"attribute": "lease_token", "lease": ("t", "k"), **options})


def item_of(resource, key):
    return resource.get_item(Key={"id": key}, ConsistentRead=True)["Item"]


UPDATES = {
    "SET": ("SET a = :a", {":a": 1}),
    "set, twice": ("set a = :a, b = if_not_exists(b, :a)", {":a": 1}),
    "only REMOVE": ("REMOVE b", {}),
    "only ADD": ("ADD a :a", {":a": 1}),
    "only DELETE": ("delete s :s", {":s": {"x"}}),
    "all clauses": ("REMOVE b ADD n :a SET a = :a DELETE s :s", {":a": 1, ":s": {"x"}}),
    "nothing": (None, {}),
    "names like the clause": ("SET #set = :set", {":set": 1}),
    "names like the clause without one": ("ADD #set :set", {":set": 1}),
    "a longer word": ("REMOVE sunset, settings.b", {}),
    "across lines": ("\n  SET\n    a = :a\n", {":a": 1}),
}


@pytest.mark.parametrize("form", ["client", "table"])
@pytest.mark.parametrize(("update", "values"), UPDATES.values(), ids=UPDATES)
def test_an_update_in_any_form_does_what_it_did_and_keeps_the_token(  # noqa: PLR0917  # fixtures
    client, resource, table, key, update, values, form
):
    resource.put_item(Item={"id": key, "settings": {"b": 1}, "sunset": 2, "s": {"x", "y"}})
    write = {"Key": {"id": key}}
    if update:
        write["UpdateExpression"] = update
        if "#set" in update:
            write["ExpressionAttributeNames"] = {"#set": "set"}
        if values:
            write["ExpressionAttributeValues"] = values
    if update:  # moto can't do without
        resource.update_item(**copy.deepcopy(write))
    expected = {**item_of(resource, key), "lease_token": Decimal(5)}
    resource.put_item(Item={"id": key, "settings": {"b": 1}, "sunset": 2, "s": {"x", "y"}})
    if form == "client":
        serialize = boto3.dynamodb.types.TypeSerializer().serialize
        write = {**write, "TableName": table, "Key": {"id": {"S": key}}}
        if values:
            write["ExpressionAttributeValues"] = {name: serialize(value) for name, value in values.items()}
    before = copy.deepcopy(write)
    (client if form == "client" else resource).update_item(**guard(write))
    assert write == before
    assert item_of(resource, key) == expected


CONDITIONS = {
    "none": None,
    "text": "attribute_exists(id) OR x = :x",
    "text in parentheses": "(attribute_exists(id) OR x = :x)",
    "two in parentheses": "(attribute_exists(id)) OR (x = :x)",
    "Attr": Attr("id").exists() | Attr("x").eq(1),
    "one Attr": Attr("x").not_exists(),
}


@pytest.mark.parametrize("kind", ["put", "update"])
@pytest.mark.parametrize("condition", CONDITIONS.values(), ids=CONDITIONS)
@pytest.mark.parametrize("form", ["client", "table"])
def test_a_lower_token_is_refused_and_the_same_and_higher_ones_are_not(  # noqa: PLR0917  # fixtures
    client, resource, table, key, kind, condition, form
):
    resource.put_item(Item={"id": key})

    def write(token: int) -> None:
        typed = form == "client"
        fields = {"TableName": table} if typed else {}
        if kind == "put":
            fields["Item"] = {"id": {"S": key}} if typed else {"id": key}
        else:
            fields |= {"Key": {"id": {"S": key}} if typed else {"id": key}, "UpdateExpression": "REMOVE y"}
        if condition is not None:
            fields["ConditionExpression"] = condition
        if isinstance(condition, str):
            fields["ExpressionAttributeValues"] = {":x": {"N": "1"} if typed else 1}
        getattr(client if typed else resource, f"{kind}_item")(**guard(fields, token))

    for token in (5, 5, 7):
        write(token)
    with pytest.raises(ClientError, match="ConditionalCheckFailed"):
        write(6)
    assert item_of(resource, key)["lease_token"] == 7


def test_the_writes_own_condition_still_counts(resource, key):
    resource.put_item(Item={"id": key})
    for condition in ("attribute_not_exists(id) OR attribute_exists(x)", Attr("id").not_exists() | Attr("x").exists()):
        with pytest.raises(ClientError, match="ConditionalCheckFailed"):
            resource.put_item(**guard({"Item": {"id": key}, "ConditionExpression": condition}))


def test_a_condition_of_boto3s_does_not_take_the_writes_own_placeholders(resource, key):
    resource.put_item(Item={"id": key, "a": 1})
    write = {"Key": {"id": key}, "UpdateExpression": "SET #n0 = :v1", "ConditionExpression": Attr("b").ne(2) & Attr("c").ne(3)}
    names = {"ExpressionAttributeNames": {"#n0": "a"}, "ExpressionAttributeValues": {":v1": 9}}
    resource.update_item(**guard(write | names))
    assert item_of(resource, key) == {"id": key, "a": 9, "lease_token": 5}


def test_actions_of_a_transaction_are_guarded(client, resource, table, key):
    put = {"Put": {"TableName": table, "Item": {"id": {"S": key}}}}
    update = {"Update": {"TableName": table, "Key": {"id": {"S": key + "!"}}, "UpdateExpression": "REMOVE x"}}
    client.transact_write_items(TransactItems=[guard(put, 5), guard(update, 5)])
    with pytest.raises(ClientError, match="ConditionalCheckFailed"):
        client.transact_write_items(TransactItems=[guard(put, 6), guard(update, 4)])
    assert item_of(resource, key)["lease_token"] == 5


def test_two_leases_can_guard_one_write(client, resource, table, key):
    write = {"TableName": table, "Key": {"id": {"S": key}}, "UpdateExpression": "SET a = :lease_token"}
    write["ExpressionAttributeValues"] = {":lease_token": {"S": "mine"}}
    client.update_item(**guard(guard(write, 5), 9, attribute="other token"))
    assert item_of(resource, key) == {"id": key, "a": "mine", "lease_token": 5, "other token": 9}


@pytest.mark.parametrize(
    ("write", "message"),
    [
        ({"Delete": {"TableName": "t", "Key": {"id": {"S": "x"}}}}, "tombstone.*condition_check"),
        ({"ConditionCheck": {}}, "writes nothing"),
        ({"Put": {}, "Update": {}}, "guard each action on its own"),
        ({"RequestItems": {}}, "a batch takes no conditions"),
        ({"Key": {"id": "x"}, "AttributeUpdates": {}}, "say it with UpdateExpression"),
        ({"Key": {"id": "x"}, "Expected": {}}, "say it with UpdateExpression"),
        ({"Key": {"lease_token": "x"}}, "attribute 'lease_token' is the item's key"),
        ({}, "takes the arguments of update_item or put_item"),
        (None, "takes the arguments of update_item or put_item"),
        ([1], "takes the arguments of update_item or put_item"),
    ],
)
def test_what_cannot_be_guarded_is_refused_with_what_to_do_instead(write, message):
    with pytest.raises(LeaseError, match=message):
        guard(write)


@pytest.mark.parametrize("attribute", ["", None, 7])
def test_the_tokens_attribute_has_a_name(attribute):
    with pytest.raises(LeaseError, match="attribute is"):
        guard({"Key": {"id": "x"}}, attribute=attribute)


def test_a_late_holder_cannot_overwrite_its_successor(client, resource, table, key):
    late = LeaseLock(table, key, client=client, lease_seconds=0.5)
    late.acquire()
    write = {"TableName": table, "Key": {"id": {"S": key}}, "UpdateExpression": "SET who = :who"}
    late_write = late.guard({**write, "ExpressionAttributeValues": {":who": {"S": "late"}}})
    client.update_item(**late_write)
    time.sleep(0.55)
    client.update_item(**late.guard({**write, "ExpressionAttributeValues": {":who": {"S": "nobody came after it"}}}))
    late_check = late.condition_check()
    token = late.token
    late.release()
    with LeaseLock(table, key, client=client) as successor:
        assert successor.token > token
        client.update_item(**successor.guard({**write, "ExpressionAttributeValues": {":who": {"S": "successor"}}}))
        with pytest.raises(ClientError, match="ConditionalCheckFailed"):
            client.update_item(**late_write)
        delete = {"Delete": {"TableName": table, "Key": {"id": {"S": key}}}}
        with pytest.raises(ClientError, match="ConditionalCheckFailed"):
            client.transact_write_items(TransactItems=[late_check, delete])
        assert item_of(resource, key)["who"] == "successor"
        client.transact_write_items(TransactItems=[successor.condition_check(), delete])
    assert "Item" not in resource.get_item(Key={"id": key})
