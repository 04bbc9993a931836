"""What befalls the requests of one operation, one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from dynamodb_server import DynamoDb


class Script:
    """``DynamoDb.faults`` for one operation: what befalls the first request, the second, …; nothing those after them.

    A step is a fault's name, None, or something to call first, whose result it is then, if that is a name. What it asks of the
    server is left alone.
    """

    def __init__(self, operation: str, *steps: str | Callable[[], object] | None) -> None:
        self._operation = operation
        self._steps = list(steps)
        self._calling = False

    def __call__(self, operation: str, body: dict[str, Any]) -> str | None:
        if operation != self._operation or self._calling or not self._steps:
            return None
        step = self._steps.pop(0)
        if not callable(step):
            return step
        self._calling = True
        try:
            fault = step()
            return fault if isinstance(fault, str) else None
        finally:
            self._calling = False


def put(server: DynamoDb, table: str, item: dict[str, Any]) -> None:
    """Somebody else writes, knowing nothing of versions."""
    server.client().put_item(TableName=table, Item=item)
