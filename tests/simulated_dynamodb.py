"""A DynamoDB for simulations: one dictionary, one request after the other, and a log of what was carried out.

It answers as botocore does: with a response, or by raising a ``ClientError``. It has no clock, and no faults of its own: who uses
it decides when a request gets here, how often, and whether its answer is heard.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from dynamodb_expressions import InvalidExpression, condition, placeholders, update

if TYPE_CHECKING:
    from perinvoke.fleet.dynamodb.steps import Call

_KEY = "id"


@dataclass(frozen=True)
class Carried:
    """A write that was carried out, or refused: then nothing differs. None: there was, or is, no record."""

    operation: str
    parameters: dict[str, Any]
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    refused: bool = False

    @property
    def key(self) -> str:
        return str(self.parameters["Key"][_KEY]["S"])


class SimulatedDynamoDb:
    """One table whose key is the string ``id``; lives as long as a simulation.

    Args:
        tells_item: whether a refusal says what stands there. Emulators from before 2023 don't.
    """

    def __init__(self, *, tells_item: bool = True) -> None:
        self.items: dict[str, dict[str, Any]] = {}
        self.log: list[Carried] = []
        self._tells_item = tells_item

    def carry_out(self, call: Call) -> dict[str, Any]:
        """A request's response.

        Raises:
            ClientError: it was refused, or is none that DynamoDB would take.
        """
        try:
            return {**self._answer(call.operation, call.parameters), "ResponseMetadata": {"HTTPStatusCode": 200}}
        except InvalidExpression as error:
            raise client_error("ValidationException", call, message=str(error)) from error

    def remove(self, key: str) -> dict[str, Any] | None:
        """As somebody does by hand, or DynamoDB when a record is old enough; what was there."""
        before = self.items.pop(key, None)
        if before is not None:
            self.log.append(Carried("remove", {"Key": {_KEY: {"S": key}}}, before, None))
        return before

    def _answer(self, operation: str, parameters: dict[str, Any]) -> dict[str, Any]:
        key = parameters["Key"][_KEY]["S"]
        before = self.items.get(key)
        if operation == "get_item":
            return {} if before is None else {"Item": dict(before)}
        names, values = parameters.get("ExpressionAttributeNames", {}), parameters.get("ExpressionAttributeValues", {})
        asked, wanted = parameters.get("UpdateExpression", ""), parameters.get("ConditionExpression", "")
        if placeholders(asked, wanted) != {*names, *values}:
            raise InvalidExpression(f"used: {placeholders(asked, wanted)}, given: {[*names, *values]}")
        if wanted and not condition(wanted)(before or {}, names, values):
            self.log.append(Carried(operation, parameters, before, before, refused=True))
            raise self._refusal(parameters, before)
        if operation == "delete_item":
            self.items.pop(key, None)
            self.log.append(Carried(operation, parameters, before, None))
            return {}
        after, written = update(asked).applied(before or {_KEY: {"S": key}}, names, values)
        self.items[key] = after
        self.log.append(Carried(operation, parameters, before, after))
        return {"Attributes": written} if parameters.get("ReturnValues") == "UPDATED_NEW" else {}

    def _refusal(self, parameters: dict[str, Any], before: dict[str, Any] | None) -> ClientError:
        told = self._tells_item and before is not None and parameters.get("ReturnValuesOnConditionCheckFailure") == "ALL_OLD"
        response: dict[str, Any] = {
            "Error": {"Code": "ConditionalCheckFailedException", "Message": "The conditional request failed"},
            "ResponseMetadata": {"HTTPStatusCode": 400},
            **({"Item": dict(before)} if told and before is not None else {}),
        }
        return ClientError(response, "UpdateItem")


def client_error(code: str, call: Call, *, status: int = 400, message: str = "told so") -> ClientError:
    """An error as botocore raises it."""
    return ClientError(
        {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}, call.operation
    )
