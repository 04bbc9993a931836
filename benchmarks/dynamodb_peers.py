"""What is measured on DynamoDB: perinvoke and three libraries, each as its documentation has it used."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

from aws_lambda_powertools.utilities.idempotency import DynamoDBPersistenceLayer, IdempotencyConfig
from aws_lambda_powertools.utilities.idempotency import idempotent as powertools_idempotent
from awslambdaric.lambda_context import LambdaContext
from pynamodb.attributes import NumberAttribute, UnicodeAttribute, VersionAttribute
from pynamodb.models import Model

from dynamodb_waiters import DOUBLE, SINGLE, client_of, lock_client_of
from perinvoke.fleet.dynamodb import LeaseLock, idempotent, update_versioned

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from python_dynamodb_lock.python_dynamodb_lock import DynamoDBLockClient

__all__ = ["client_of", "fresh_event", "handlers", "lease_cycles", "lock_client_of", "make_tables", "versioned_updates"]


def make_tables(client: Any) -> None:
    """One for each kind of key: ``id`` for perinvoke, Powertools and PynamoDB, two keys for python-dynamodb-lock."""
    for name, keys in ((SINGLE, ("id",)), (DOUBLE, ("lock_key", "sort_key"))):
        client.create_table(
            TableName=name,
            KeySchema=[{"AttributeName": key, "KeyType": role} for key, role in zip(keys, ("HASH", "RANGE"), strict=False)],
            AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"} for key in keys],
            BillingMode="PAY_PER_REQUEST",
        )


# --- a lease, taken and given back -------------------------------------------------------------------------------------------


def lease_cycles(client: Any, lock_client: DynamoDBLockClient) -> dict[str, Callable[[], object]]:
    """One cycle of each."""
    lease = LeaseLock(SINGLE, "cycle", client=client)

    def ours() -> None:
        with lease:
            pass

    def theirs() -> None:
        lock_client.acquire_lock("cycle").release()

    def bare() -> None:
        for value in ("taken", "free"):
            client.update_item(
                TableName=SINGLE,
                Key={"id": {"S": "bare"}},
                UpdateExpression="SET holder = :value",
                ExpressionAttributeValues={":value": {"S": value}},
            )

    return {"perinvoke": ours, "python-dynamodb-lock": theirs, "boto3": bare}


# --- idempotency -------------------------------------------------------------------------------------------------------------


def handlers(client: Any) -> dict[str, Callable[[dict[str, str]], object]]:
    """The same handler, made idempotent by each."""
    context = LambdaContext("8476a536-e9f4-11e8-9739-2dfe598c3fcd", None, None, int(time.time() + 900) * 1000, "arn")

    def handler(event: dict[str, str], context: object) -> dict[str, str]:
        return {"paid": event["id"]}

    store = DynamoDBPersistenceLayer(SINGLE, boto3_client=client)
    decorator: Any = powertools_idempotent(persistence_store=store, config=IdempotencyConfig(event_key_jmespath="id"))
    theirs = decorator(handler)
    ours = idempotent(SINGLE, key="id", name="pay", client=client)(handler)
    return {"perinvoke": lambda event: ours(event, context), "Powertools": lambda event: theirs(event, context)}


def fresh_event() -> dict[str, str]:
    """One that has never been."""
    return {"id": uuid.uuid4().hex}


# --- versioned writes --------------------------------------------------------------------------------------------------------


def versioned_updates(client: Any, url: str, account: Mapping[str, str]) -> dict[str, Callable[[], object]]:
    """Read an item, change it, and write it if nobody else has."""

    class Account(Model):
        class Meta:
            table_name = SINGLE
            host = url
            region = account["region_name"]
            aws_access_key_id = account["aws_access_key_id"]
            aws_secret_access_key = account["aws_secret_access_key"]

        id = UnicodeAttribute(hash_key=True)
        balance = NumberAttribute(default=0)
        version = VersionAttribute()

    Account("theirs").save()

    def ours() -> None:
        update_versioned(SINGLE, {"id": "ours"}, _richer, client=client)

    def theirs() -> None:
        item = Account.get("theirs", consistent_read=True)
        item.balance += 1
        item.save()

    return {"perinvoke": ours, "PynamoDB": theirs}


def _richer(item: dict[str, Any]) -> dict[str, Any]:
    return {**item, "balance": item.get("balance", 0) + 1}
