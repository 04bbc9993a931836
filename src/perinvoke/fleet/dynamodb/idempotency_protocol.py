"""A call that is to happen once, step by step: beginning, waiting for who has begun, completing, forgetting.

A key is one record. Who begins writes an owner (random, used for one run), that it is running, and until when it may run. Who
has done it writes the result in its place; who has failed removes the record. A duplicate is refused by the record, and the same
answer tells it what stands there.

Who may begin where a record is?

* A result that has expired counts as gone. DynamoDB removes it minutes to days later, which nothing here waits for.
* A run whose published end is past, even if its clock was ``max_skew_seconds`` ahead of ours, has died: its record is taken over.
  Nobody else can know whether it had its effect. So a run that is killed may happen again; one that is not, happens once.

A run that is late, because it stood still or didn't stop at its deadline, finds another owner, or none, when it completes or
forgets. It then leaves the record alone.

Every answer may be lost, and the request be repeated by botocore. So a refusal is looked at: a running record with our owner was
begun by us, a finished one was completed by us.
"""

from __future__ import annotations

import os
from decimal import Decimal

from perinvoke.fleet.dynamodb.answers import Answered
from perinvoke.fleet.dynamodb.conditions import KEY
from perinvoke.fleet.dynamodb.idempotency_key import NO_PAYLOAD, record_id
from perinvoke.fleet.dynamodb.insist import insist
from perinvoke.fleet.dynamodb.states import CONSTANTS, Idempotency
from perinvoke.fleet.dynamodb.steps import Call, Pause
from perinvoke.fleet.dynamodb.values import plain
from perinvoke.fleet.errors import PayloadMismatch, TableSchemaError, TableUnavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from typing import Any, TypeVar

    from perinvoke.fleet.dynamodb.answers import Answer, Item
    from perinvoke.fleet.dynamodb.conditions import State
    from perinvoke.fleet.patience import Clock, Patience

    Result = TypeVar("Result")
    Steps = Generator[Call | Pause, Answer | None, Result]

_KINDS: Mapping[str, type] = {
    "state": str,
    "owner": str,
    "payload": str,
    "deadline_ms": Decimal,
    "result": str,
    "problem": str,
    "expires_ms": Decimal,
}
_OF_EVERY = ("state", "owner", "payload")
_OF_STATE = {"running": ("deadline_ms",), "done": ("result", "problem", "expires_ms")}
# Seconds that the record of a run that has died is kept after its deadline, so that people can look at it. Arbitrary.
_KEPT_SECONDS = 86_400


class Run:
    """One run of a function under its key, or the wish for one; lives as long as the call.

    Args:
        table: the table's name or ARN.
        name: of the function.
        key: of the call.
        payload: a digest of what belongs to the key, or ``NO_PAYLOAD``.
        max_skew_seconds: how far the wall clocks of two environments may be apart.
        clock: this process's.
        owner: random; used for no other run.

    Attributes:
        in_doubt: it may have begun without anybody knowing: its request was sent, and not answered.
        over: its function has ended.
        pid: of the process that runs it; a child that it forks has no part in it.
    """

    __slots__ = (
        "clock",
        "in_doubt",
        "key",
        "max_skew_seconds",
        "name",
        "over",
        "owner",
        "payload",
        "pid",
        "record_key",
        "table",
    )

    def __init__(
        self, table: str, name: str, key: str, *, payload: str, max_skew_seconds: float, clock: Clock, owner: str | None = None
    ) -> None:
        self.table = table
        self.name = name
        self.key = key
        self.record_key = record_id(name, key)
        self.payload = payload
        self.max_skew_seconds = max_skew_seconds
        self.clock = clock
        self.owner = os.urandom(16).hex() if owner is None else owner
        self.in_doubt = False
        self.over = False
        self.pid = os.getpid()

    def values(self, **others: object) -> dict[str, Any]:
        """What states and transitions are made with, now."""
        now_ms = self.clock.epoch_ms()
        overdue_ms = now_ms - round(self.max_skew_seconds * 1000)
        return {**CONSTANTS, "us": self.owner, "now_ms": now_ms, "overdue_ms": overdue_ms, "payload": self.payload, **others}

    def beginning(self, runs_seconds: float) -> dict[str, Any]:
        """The values of a run that begins now and ends then at the latest."""
        deadline_ms = self.clock.epoch_ms() + round(runs_seconds * 1000)
        return self.values(deadline_ms=deadline_ms, expiration=deadline_ms // 1000 + _KEPT_SECONDS)

    def completed(self, result: str, problem: str, expires_after_seconds: float) -> dict[str, Any]:
        """The values of one that has succeeded, and whose result counts so long from now on."""
        expires_ms = self.clock.epoch_ms() + round(expires_after_seconds * 1000)
        return self.values(result=result, problem=problem, expires_ms=expires_ms, expiration=expires_ms // 1000 + 1)


class Found:
    """How a call stands: ``OURS``, and it is to run; ``DONE``, and this is its record; ``RUNNING``, elsewhere."""

    __slots__ = ("record", "state")

    def __init__(self, state: State, record: Mapping[str, Any]) -> None:
        self.state = state
        self.record = record

    def __repr__(self) -> str:
        return f"<Found {self.state}>"


def begin(run: Run, runs_seconds: Callable[[], float], patience: Patience, *, waits: bool) -> Steps[Found]:
    """Begin the run; or find what it is a duplicate of.

    One write, whatever it finds. Who waits reads on, and writes again only when the record says that it may begin.

    Args:
        run: the run.
        runs_seconds: tells how long it may take, if it begins now.
        patience: how long to wait, for who has begun or for a table that can't be used.
        waits: for a run elsewhere to end; else ``RUNNING`` is told at once, as it is when patience ends.

    Raises:
        PayloadMismatch: the record's payload is another one.
        TableUnavailable: there was no answer all that time. If ``run.in_doubt``, it may have begun: ``forget`` it.
    """
    paused = -1
    while True:
        if patience.pauses == paused:  # gone as soon as it was refused: others come and go, or the server is of two minds
            pause = patience.pause()
            if pause is None:
                raise _never_the_same(run, patience)
            yield Pause(pause)
        paused = patience.pauses
        run.in_doubt = True
        answer = yield from insist(
            lambda: Idempotency.BEGIN.call(run.table, run.record_key, run.beginning(runs_seconds())), patience
        )
        if isinstance(answer, Answered):
            return Found(Idempotency.OURS, {})
        # One that doesn't tell why it refuses is an old emulator.
        found = _found(run, answer.item or (yield from _item(run, patience)))
        run.in_doubt = found.state is Idempotency.OURS
        if waits:
            found = yield from _wait(run, found, patience)
        if found.state not in Idempotency.BEGIN.starts:
            return found


def _never_the_same(run: Run, patience: Patience) -> TableUnavailable:
    waited = patience.waited_seconds()
    return TableUnavailable(
        f"{run.name} can't begin for key {run.key!r}: for {waited:.3f} s its record in table {run.table!r} was there at each "
        "write, and gone at each look. Try again later.",
        table=run.table,
        action="dynamodb:UpdateItem",
        attempts=patience.pauses,
        waited_seconds=waited,
        carried_out=False,
    )


def _wait(run: Run, found: Found, patience: Patience) -> Steps[Found]:
    """Read until it no longer runs elsewhere, or patience ends."""
    while found.state is Idempotency.RUNNING:
        pause = patience.pause()
        if pause is None:
            break
        yield Pause(pause)
        found = _found(run, (yield from _item(run, patience)))
    return found


def _item(run: Run, patience: Patience) -> Steps[Item | None]:
    call = Call("get_item", {"TableName": run.table, "Key": {KEY: {"S": run.record_key}}, "ConsistentRead": True})
    answer = yield from insist(call, patience)
    assert isinstance(answer, Answered)  # a read has no condition
    return answer.item


def complete(run: Run, result: str, problem: str, expires_after_seconds: float, patience: Patience) -> Steps[bool]:
    """Put the result, or the problem with it, in the run's place. Whether it was, or had been, ours; else nothing was changed.

    Raises:
        TableUnavailable: there was no answer all that time.
    """
    values = run.completed(result, problem, expires_after_seconds)
    answer = yield from insist(Idempotency.COMPLETE.call(run.table, run.record_key, values), patience)
    if isinstance(answer, Answered):
        return True
    item = answer.item
    if item is None and answer.lost:  # a DynamoDB that doesn't tell why; or it was removed
        item = yield from _item(run, patience)
    record = parse(run, item)
    return record.get("state") == CONSTANTS["done"] and record.get("owner") == run.owner


def forget(run: Run, patience: Patience) -> Steps[None]:
    """Remove the record, if it is that of this run: a retry then begins at once.

    Raises:
        TableUnavailable: there was no answer all that time.
    """
    yield from insist(Idempotency.FORGET.call(run.table, run.record_key, run.values()), patience)


def _found(run: Run, item: Item | None) -> Found:
    record = parse(run, item)
    state = Idempotency.TABLE.state_of(record, run.values())
    if state is None:
        raise _no_record(run)
    if (
        state in {Idempotency.RUNNING, Idempotency.DONE}
        and NO_PAYLOAD not in {run.payload, record["payload"]}
        and (run.payload != record["payload"])
    ):
        raise PayloadMismatch(
            f"key {run.key!r} of {run.name} came before with another payload. Two requests need two keys; look at who sends them",
            key=run.key,
        )
    return Found(state, record)


def parse(run: Run, item: Item | None) -> dict[str, Any]:
    """A call's record in Python's values; empty where there is none.

    Raises:
        TableSchemaError: it is something else's.
    """
    record = plain(item or {})
    if not record:
        return record
    all_right = all(isinstance(record[name], kind) for name, kind in _KINDS.items() if name in record)
    if not all_right or not all(name in record for name in (*_OF_EVERY, *_OF_STATE.get(record.get("state", ""), ()))):
        raise _no_record(run)
    return record


def _no_record(run: Run) -> TableSchemaError:
    return TableSchemaError(
        f"item {run.record_key!r} of table {run.table!r} is no record of a call: somebody else has written it. "
        "Give the function another name, or remove it.",
        table=run.table,
        action="dynamodb:UpdateItem",
    )


def other_bytes(values: Mapping[str, Any], record_key: str) -> int:
    """How many bytes of a finished record are not its result: all names, and all other values.

    As DynamoDB counts them, which says "approximately" of numbers; so a byte each is spared:
    https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/CapacityUnitCalculations.html
    """
    begun, done = Idempotency.BEGIN, Idempotency.COMPLETE
    kept = {name: to for name, to in {**begun.sets, **done.sets}.items() if name not in done.removes}
    names = sum(len(name) for name in (KEY, *kept))
    held = [values[to.removeprefix(":")] for name, to in kept.items() if name != "result"]
    return names + sum(map(_bytes, [record_key, *held]))


def _bytes(value: str | int) -> int:
    return len(value.encode()) if isinstance(value, str) else (len(str(value)) + 1) // 2 + 2
