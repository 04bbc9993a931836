"""A DynamoDB for tests: moto's, behind a server that serves one request at a time and loses answers when it is told to.

moto reads and then writes an item without a lock between; over several threads a condition would hold for two writers. Real
DynamoDB serves one after the other, so this does.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from moto.dynamodb.models import dynamodb_backends

from aws_server import answer
from moto_server import MotoServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_names = itertools.count(1)


class DynamoDb(MotoServer):
    """moto's DynamoDB, with tables of the asking test's own; lives as long as its ``with`` block.

    Attributes:
        operations: what was asked for, in order: ``"UpdateItem"``.
        faults: called with each operation and its request's body before it is served; says what befalls it. None: nothing.
            ``"lost"``: it is carried out, and its connection closed instead of an answer. ``"dropped"``: closed before it is
            carried out. Or the name of an error that DynamoDB would answer with, such as ``"ThrottlingException"``.
    """

    def __init__(self) -> None:
        super().__init__()
        self._one_at_a_time = threading.Lock()
        self.operations: list[str] = []
        self.faults: Callable[[str, dict[str, Any]], str | None] = lambda operation, body: None

    def reply_to(self, line: str, headers: dict[str, str], body: bytes) -> bytes | Iterable[bytes] | None:
        operation = headers.get("x-amz-target", "").partition(".")[2]
        self.operations.append(operation)
        fault = self.faults(operation, json.loads(body or b"{}"))
        if fault == "dropped":
            raise ConnectionResetError
        if fault not in {None, "lost"}:
            status = "500 Error" if fault == "InternalServerError" else "400 Bad Request"
            return answer(
                json.dumps({"__type": f"com.amazonaws.dynamodb.v20120810#{fault}", "message": "told so"}).encode(), status
            )
        with self._one_at_a_time:
            reply = super().reply_to(line, headers, body)
        if fault == "lost":
            raise ConnectionResetError
        return reply

    def client(self, **options: Any) -> Any:
        """A low-level client of this server, as boto3 makes them; it repeats at once what fails, twice."""
        config = Config(retries={"mode": "standard", "total_max_attempts": 3}, **options)
        return boto3.client("dynamodb", config=config, **self.account())

    def account(self) -> dict[str, str]:
        return {
            "endpoint_url": self.url,
            "region_name": "eu-west-1",
            "aws_access_key_id": "test",
            "aws_secret_access_key": "test",
        }

    def variables(self) -> dict[str, str]:
        """What a function's environment needs for ``boto3_client("dynamodb")`` to come here."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_REGION": "eu-west-1",
            "AWS_DEFAULT_REGION": "eu-west-1",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
        }

    def table(self, *, key: str = "id", kind: str = "S", sort: str | None = None, name: str | None = None) -> str:
        """A new table's name; its key is one string unless said otherwise."""
        name = name or f"table-{next(_names)}"
        keys = [(key, "HASH")] + ([(sort, "RANGE")] if sort else [])
        self.client().create_table(
            TableName=name,
            KeySchema=[{"AttributeName": attribute, "KeyType": role} for attribute, role in keys],
            AttributeDefinitions=[{"AttributeName": attribute, "AttributeType": kind} for attribute, _ in keys],
            BillingMode="PAY_PER_REQUEST",
        )
        return name

    def items(self, table: str) -> list[dict[str, Any]]:
        """All that a table holds, in the low-level form; without a request."""
        return [
            item.to_json()["Attributes"] for item in dynamodb_backends["123456789012"]["eu-west-1"].get_table(table).all_items()
        ]

    @contextlib.contextmanager
    def counted(self) -> Iterator[list[str]]:
        """The operations that are asked for meanwhile; complete when the block has ended."""
        before = len(self.operations)
        found: list[str] = []
        yield found
        found.extend(self.operations[before:])
