"""A DynamoDB for tests that knows a transaction's token, as the real one does for ten minutes and moto doesn't."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from aws_server import answer
from dynamodb_server import DynamoDb
from moto_server import MotoServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_PREFIX = "com.amazonaws.dynamodb.v20120810#"


class _TokenKeeper(MotoServer):
    """Answers a repeated transaction as the first one was answered, without carrying it out.

    Attributes:
        cancels: called with a transaction's request; the codes of its reasons, one for each action, if it is to be cancelled.
        carried_out: how many transactions were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cancels: Callable[[dict[str, Any]], list[str] | None] = lambda request: None
        self.carried_out = 0
        self._done: dict[str, dict[str, Any]] = {}

    def reply_to(self, line: str, headers: dict[str, str], body: bytes) -> bytes | Iterable[bytes] | None:
        if not headers.get("x-amz-target", "").endswith(".TransactWriteItems"):
            return super().reply_to(line, headers, body)
        request = json.loads(body)
        token = request.pop("ClientRequestToken")
        if token in self._done:
            return answer() if self._done[token] == request else error("IdempotentParameterMismatchException")
        codes = self.cancels(request)
        if codes is not None:
            return error("TransactionCanceledException", CancellationReasons=[{"Code": code} for code in codes])
        reply = super().reply_to(line, headers, body)
        if isinstance(reply, bytes) and reply.startswith(b"HTTP/1.1 200"):
            self._done[token] = request
            self.carried_out += 1
        return reply


class TransactingDynamoDb(DynamoDb, _TokenKeeper):
    """Lives as long as its ``with`` block; has the tables of all of a process's."""


def error(code: str, **fields: Any) -> bytes:
    return answer(json.dumps({"__type": _PREFIX + code, "Message": "told so", **fields}).encode(), "400 Bad Request")
