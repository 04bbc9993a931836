"""A function that counts in a table, as people do it by hand and as perinvoke does."""

from __future__ import annotations

from typing import Any

from perinvoke import boto3_client, isolated
from perinvoke.fleet.dynamodb import increment, update_versioned

KEY = {"id": "counter"}
TYPED = {"id": {"S": "counter"}}


def naive(table: str) -> None:
    """Read, add, write."""
    client = boto3_client("dynamodb")
    item = client.get_item(TableName=table, Key=TYPED, ConsistentRead=True).get("Item", {})
    number = int(item.get("n", {"N": "0"})["N"]) + 1
    client.put_item(TableName=table, Item={**TYPED, "n": {"N": str(number)}})


def versioned(table: str) -> None:
    update_versioned(table, KEY, lambda item: {**item, "n": item.get("n", 0) + 1})


def counted(table: str) -> None:
    increment(table, KEY, "n")


@isolated
def handler(event: dict[str, Any], context: object) -> int:
    for _ in range(event["times"]):
        globals()[event["how"]](event["table"])
    times: int = event["times"]
    return times
