"""What is done with a table, one step at a time: the protocols of this folder decide, and whoever drives them acts.

A protocol is a generator. It yields a ``Call`` or a ``Pause``, is sent what came of it, and returns its result. It never calls,
sleeps or looks at a clock by itself. So the same code runs in a handler (``run``), beside an event loop (``run_beside_loop``),
and in a simulation that loses answers, stops it for an hour between two steps, or ends it there.
"""

from __future__ import annotations

import time

from perinvoke.fleet.caller import runs_at_most_seconds
from perinvoke.fleet.dynamodb.answers import answer_in, answer_of
from perinvoke.fleet.dynamodb.attempts import Attempts
from perinvoke.fleet.dynamodb.called import refuse_awaitable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any, TypeVar

    from perinvoke.fleet.dynamodb.answers import Answer

    Result = TypeVar("Result")
    Protocol = Generator["Call | Pause", "Answer | None", Result]


class Call:
    """One request to DynamoDB, as a low-level client takes it.

    Args:
        operation: the client's method: ``"update_item"``.
        parameters: its arguments.
        once: botocore must not repeat it when its answer is lost: done twice, it would do something else.
    """

    __slots__ = ("once", "operation", "parameters")

    def __init__(self, operation: str, parameters: dict[str, Any], *, once: bool = False) -> None:
        self.operation = operation
        self.parameters = parameters
        self.once = once

    @property
    def table(self) -> str:
        """Which table it is about; of several, the first."""
        name = self.parameters.get("TableName")
        if name is None:
            actions = [its for action in self.parameters.get("TransactItems", []) for its in action.values()]
            name = actions[0].get("TableName", "") if actions else ""
        return str(name)

    @property
    def name(self) -> str:
        """What it is, as DynamoDB names it: ``UpdateItem``."""
        return "".join(word.capitalize() for word in self.operation.split("_"))

    @property
    def action(self) -> str:
        """What it is, as IAM names it: ``dynamodb:UpdateItem``. A transaction is what its actions are."""
        if self.operation == "transact_write_items":
            kinds = sorted({kind for action in self.parameters.get("TransactItems", []) for kind in action})
            return ", ".join(f"dynamodb:{kind}Item" for kind in kinds)
        return f"dynamodb:{self.name}"

    def __repr__(self) -> str:
        return f"<Call {self.operation} {self.parameters}>"


class Pause:
    """Nothing is to be done for so many seconds."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __repr__(self) -> str:
        return f"<Pause {self.seconds:.3f} s>"


def run(protocol: Protocol[Result], client: Any) -> Result:
    """Drive a protocol to its end; blocks its thread while it does. What the protocol raises comes through."""
    answer: Answer | None = None
    while True:
        try:
            step = protocol.send(answer)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]  # what the generator returned
        if isinstance(step, Pause):
            answer = None
            time.sleep(step.seconds)
        else:
            answer = call(client, step)


# Seconds, and of what is left until the deadline. How long a cancelled coroutine waits for a call that is under way, so that what
# it does next doesn't overtake it; there must be time for that, too.
_CANCELLED_SECONDS, _CANCELLED_SHARE = 2.0, 0.25


async def run_beside_loop(protocol: Protocol[Result], client: Any) -> Result:
    """Drive a protocol from a coroutine: its calls block another thread, its pauses nobody.

    Cancelled while a call is under way, it waits for that to end: for two seconds, or a quarter of the time that is left.
    """
    import asyncio  # noqa: PLC0415  # cold start: 50 ms that only async handlers pay

    answer: Answer | None = None
    while True:
        try:
            step = protocol.send(answer)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]  # what the generator returned
        if isinstance(step, Pause):
            answer = None
            await asyncio.sleep(step.seconds)
        else:
            calling = asyncio.ensure_future(asyncio.to_thread(call, client, step))
            try:
                answer = await asyncio.shield(calling)
            except asyncio.CancelledError:
                seconds = min(_CANCELLED_SECONDS, _CANCELLED_SHARE * runs_at_most_seconds())
                await asyncio.wait([calling], timeout=seconds)
                if calling.done() and not calling.cancelled():
                    calling.exception()  # seen: else the loop complains of it
                raise


def call(client: Any, step: Call) -> Answer:
    """Make one call and tell what came of it. Raises what is nobody's answer: wrong parameters, no credentials, a coroutine."""
    attempts = Attempts(once=step.once)
    try:
        response = attempts.made_by(client, getattr(client, step.operation), step.parameters)
    except Exception as error:
        region = getattr(getattr(client, "meta", None), "region_name", None) or "its region"
        answer = answer_of(error, step, region, lost=attempts.lost(error))
        if answer is None:
            raise
        return answer
    refuse_awaitable(response, f"client is {client!r}, which is async: pass one of boto3's, boto3.client('dynamodb')")
    return answer_in(response, lost=attempts.lost())
