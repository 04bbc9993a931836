"""Leases in a world that knows true time: the package's own protocols, driven step by step through a schedule.

An environment has clocks of its own, and never sees true time. Its requests are the package's, with DynamoDB's expressions; they
get to the store late, twice, after their client gave them up, or not at all. What happens is recorded for ``lease_checker``.

True time is what only this module has; it tells an environment no more than when to go on.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError

from lease_checker import Granted, Removed, Told, Wrote
from lease_schedules import MAX_SKEW_SECONDS, Fault, Plan, Turn
from perinvoke.fleet.dynamodb import fencing, lease_protocol
from perinvoke.fleet.dynamodb.steps import call
from simulated_dynamodb import SimulatedDynamoDb, client_error
from simulated_environment import Environment, owner_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from lease_checker import Event
    from lease_schedules import Fate, Schedule
    from perinvoke.fleet.dynamodb.steps import Call

_ARRIVES = {Fault.NONE, Fault.LOST, Fault.TWICE, Fault.OVERTAKEN, Fault.FAILED}
_LATE = {Fault.LATE, Fault.OVERTAKEN}
_REPEATED = {Fault.TWICE, Fault.OVERTAKEN}  # by botocore, which tells so
_SEEN_INSTEAD: dict[Fault, Callable[[Call], Exception]] = {
    Fault.LOST: lambda request: ReadTimeoutError(endpoint_url="simulated"),
    Fault.DROPPED: lambda request: ConnectionClosedError(endpoint_url="simulated"),
    Fault.LATE: lambda request: ReadTimeoutError(endpoint_url="simulated"),
    Fault.THROTTLED: lambda request: client_error("ThrottlingException", request),
    Fault.CONFLICT: lambda request: client_error("ReplicatedWriteConflictException", request),
    Fault.FAILED: lambda request: client_error("InternalServerError", request, status=500),
}


@dataclass(frozen=True)
class Outcome:
    """What came of a schedule. ``stuck``: the keys that nobody could take when all was over."""

    history: list[Event]
    requests: int
    stuck: list[str]
    store: SimulatedDynamoDb


def simulate(schedule: Schedule, protocol: Any = lease_protocol, guarded: Any = fencing.guarded) -> Outcome:
    """Go through a schedule until nothing more happens, and then see whether every lease can be had.

    Args:
        schedule: what befalls whom.
        protocol: the module whose ``acquire``, ``renew`` and ``release`` are tried.
        guarded: what adds a token's condition to a write.
    """
    world = World(schedule, protocol, guarded)
    world.run()
    stuck = [key for key in sorted({turn.key for plan in schedule.plans for turn in plan.turns}) if not world.can_be_taken(key)]
    holds = [held for process in world.processes for held in process.holds()]
    return Outcome([*world.store_history(), *holds, *world.told], world.requests, stuck, world.store)


class World:
    """True time, what is going to happen, the store, and who is in it."""

    def __init__(self, schedule: Schedule, protocol: Any, guarded: Any) -> None:
        self.now = 0.0
        # Who comes last is to have the lease within the longest lease and the skew. A hundredth is for clocks that run unequally.
        self._at_last_seconds = 1.01 * schedule.longest_lease_seconds + MAX_SKEW_SECONDS + 1.0
        self.protocol = protocol
        self.guarded = guarded
        self.store = SimulatedDynamoDb(tells_item=schedule.tells_item)
        self.told: list[Told] = []
        self.requests = 0
        self._next: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._asked: dict[int, float] = {}  # when the requests were asked for that may still be carried out
        self._made: dict[str, float] = {}  # when the request was asked for that made the record
        self.processes = [Environment(self, number, plan) for number, plan in enumerate(schedule.plans)]
        for when in schedule.removals:
            self.at(when, self._remove_old)
        for when in schedule.removals_by_hand:
            self.at(when, self._remove_all)

    def at(self, when: float, do: Callable[[], object]) -> None:
        heapq.heappush(self._next, (when, next(self._numbers), do))

    def run(self) -> None:
        while self._next:
            self.now, _, do = heapq.heappop(self._next)
            do()

    def can_be_taken(self, key: str) -> bool:
        """Whether somebody who comes when all is over gets the lease in the time that is promised."""
        turn = Turn(key, patience_seconds=self._at_last_seconds, works=())
        last = Environment(self, len(self.processes), Plan(starts=self.now, turns=(turn,), poll_seconds=0.3))
        self.processes.append(last)
        self.run()
        return bool(last.holds())

    def ask(self, request: Call, asked: float, fate: Fate, sent: float, answer: Callable[[Any], None]) -> None:
        """Let a request's fate befall it. ``asked``: true time when its process began to make it."""
        self.requests += 1
        number, fault = self.requests, fate.fault
        self._asked[number] = asked
        arrives, answers = sent + fate.out, sent + fate.out + fate.back
        late = arrives + fate.late if fault in _LATE else arrives
        outcome: list[Any] = []

        def carry_out() -> None:
            outcome.append(self._carried_out(request, asked, repetitions=int(fault in _REPEATED)))

        if fault is Fault.TWICE:
            self.at(sent + fate.out / 2, carry_out)
        if fault in _ARRIVES:
            self.at(arrives, carry_out)
        if fault in _LATE:
            self.at(late, carry_out)
        error = _SEEN_INSTEAD.get(fault)
        self.at(answers, lambda: answer(call(_Answering(error(request) if error else outcome[-1]), request)))
        self.at(max(answers, late), lambda: self._asked.pop(number))

    def _carried_out(self, request: Call, asked: float, *, repetitions: int) -> Any:
        key = request.parameters["Key"]["id"]["S"]
        new = key not in self.store.items
        try:
            response = self.store.carry_out(request)
        except ClientError as error:
            error.response["ResponseMetadata"]["RetryAttempts"] = repetitions
            return error
        if new and key in self.store.items:
            self._made[key] = asked
        response["ResponseMetadata"]["RetryAttempts"] = repetitions
        return response

    def _remove_old(self) -> None:
        """Remove free records; but not while somebody may make one anew whose clock says it is earlier than when it was made.

        This is the limit that ``lease_protocol`` tells: after a removal, tokens grow only with the clocks.
        """
        for key, item in list(self.store.items.items()):
            earliest = min([self.now, *self._asked.values()])
            if key.startswith("lease#") and "owner" not in item and earliest > self._made[key] + MAX_SKEW_SECONDS:
                self.store.remove(key)

    def _remove_all(self) -> None:
        for key in [key for key in self.store.items if key.startswith("lease#")]:
            self.store.remove(key)

    def store_history(self) -> list[Event]:
        """What the store did, as the checker knows it."""
        events: list[Event] = []
        for write in self.store.log:
            key, before, after = write.key, write.before or {}, write.after or {}
            if key.startswith("data#"):
                values, names = write.parameters["ExpressionAttributeValues"], write.parameters["ExpressionAttributeNames"]
                token = int(values[next(name for name in names if names[name] == "lease_token").replace("#", ":")]["N"])
                events.append(Wrote(key, token, carried_out=not write.refused))
            elif write.after is None:
                events.append(Removed(_lease(key), owner_of(before)))
            elif not write.refused and ":floor" in write.parameters.get("ExpressionAttributeValues", {}):
                events.append(Granted(_lease(key), str(owner_of(after)), int(after["token"]["N"]), owner_of(before)))
        return events


class _Answering:
    """A client that has one answer."""

    def __init__(self, outcome: Any) -> None:
        self._outcome = outcome

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        return self._operation

    def _operation(self, **_: Any) -> Any:
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome


def _lease(record_key: str) -> str:
    return record_key.removeprefix("lease#")
