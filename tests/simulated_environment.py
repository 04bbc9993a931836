"""An environment in a simulation: its process, which takes leases as its plan says, and its clocks, which may be wrong.

What a process does between two looks at a clock, or at an answer, takes no time. So all that can come between two of its steps is
a standstill before a look, or a slow request; and both are in the plan.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from lease_checker import Held, Told
from lease_schedules import MAX_SKEW_SECONDS, QUICK
from perinvoke.fleet.dynamodb.answers import Answered, Refused
from perinvoke.fleet.dynamodb.insist import insist
from perinvoke.fleet.dynamodb.steps import Call, Pause
from perinvoke.fleet.errors import LeaseTimeout, TableUnavailable
from perinvoke.fleet.patience import Clock, Patience

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from lease_schedules import Plan, Turn
    from lease_simulation import World

_TABLE = "leases"
_EPOCH = 1_700_000_000.0  # true time 0, as a wall clock that is right shows it


class Environment:
    """One environment's process, from its start until it has nothing more to do, or dies."""

    def __init__(self, world: World, number: int, plan: Plan) -> None:
        self._world = world
        self._number = number
        self._plan = plan
        self._local = plan.starts  # true time, as far as this process has come; it may stand still ahead of the world
        self._looks = 0
        self._steps = 0
        self._requests = 0
        self._frozen: list[tuple[float, float]] = []  # from when to when its monotonic clock stood still
        self._holds: list[tuple[str, str, int, float, float | None, float]] = []
        self._highest = 0
        self._dead: float | None = None
        self.clock = Clock(self._monotonic, self._epoch, random.Random(number).uniform)
        self._life = self._lives()
        self._resumed = plan.starts
        world.at(plan.starts, lambda: self._resume(None))

    def holds(self) -> list[Held]:
        """When it counted on which lease."""
        found = []
        for key, owner, token, begins, given_back, until in self._holds:
            ends = [self._true_time_of(until)]
            ends += [moment for moment in (given_back, self._dead) if moment is not None]
            found.append(Held(key, owner, token, begins, min(ends)))
        return found

    # Clocks

    def _look(self) -> None:
        self._looks += 1
        seconds = self._plan.standstills.get(self._looks, 0.0)
        if seconds:
            if self._plan.frozen:
                self._frozen.append((self._local, self._local + seconds))
            self._local += seconds

    def _monotonic(self) -> float:
        self._look()
        return self._monotonic_at(self._local)

    def _monotonic_at(self, moment: float) -> float:
        frozen = sum(min(moment, until) - since for since, until in self._frozen if since < moment)
        return 1000.0 * self._number + (moment - frozen) * (1 + self._plan.drift)

    def _true_time_of(self, monotonic: float) -> float:
        """When its monotonic clock shows this; the end of that moment, where it stands still then."""
        moment = (monotonic - 1000.0 * self._number) / (1 + self._plan.drift)
        for since, until in self._frozen:
            if since <= moment:
                moment += until - since
        return moment

    def _epoch(self) -> float:
        self._look()
        skew = [skew for since, skew in self._plan.skews if since <= self._local][-1]
        return _EPOCH + self._local + skew

    # Steps

    def _resume(self, answer: Any) -> None:
        if self._dead is not None:
            return
        self._steps += 1
        self._local = self._resumed = max(self._local, self._world.now)
        if self._steps == self._plan.crashes_at:
            self._dead = self._local
            return
        try:
            step = self._life.send(answer)
        except StopIteration:
            return
        if isinstance(step, Pause):
            self._world.at(self._local + step.seconds / (1 + self._plan.drift), lambda: self._resume(None))
            return
        fate = self._plan.fates.get(self._requests, QUICK)
        self._requests += 1
        self._world.ask(step, self._resumed, fate, self._local, self._resume)

    def _lives(self) -> Generator[Call | Pause, Any, None]:
        for number, turn in enumerate(self._plan.turns):
            yield from self._takes_turn(turn, f"owner-{self._number}-{number}")
            yield Pause(turn.rests)

    def _takes_turn(self, turn: Turn, owner: str) -> Generator[Call | Pause, Any, None]:
        protocol = self._world.protocol
        terms = protocol.Terms(_TABLE, turn.key, owner=owner, holder=owner, max_skew_seconds=MAX_SKEW_SECONDS, clock=self.clock)
        floor = protocol.token_floor(self.clock, self._highest)
        patience = self._patience(turn.patience_seconds)
        seen = _Seen()
        try:
            taken = yield from seen.watched(protocol.acquire(terms, self._lasting(turn), patience, floor=floor))
        except LeaseTimeout:
            self._world.told.append(Told(turn.key, owner, "others hold it", saw=seen.owner))
            return
        except TableUnavailable:
            yield from self._gives_back(terms, None, seen)
            return
        self._highest = max(self._highest, taken.token)
        self._holds.append((turn.key, owner, taken.token, self._local, None, taken.until_monotonic))
        yield from self._works(turn, terms, taken.token)
        if turn.releases:
            self._holds[-1] = (*self._holds[-1][:4], self._local, self._holds[-1][5])
            yield from self._gives_back(terms, taken.token, seen)

    def _lasting(self, turn: Turn) -> Callable[[], float]:
        """How long its lease is to last, each time that it is asked for."""
        if not turn.until_then:
            return lambda: turn.lease_seconds
        ends_monotonic = self.clock.monotonic() + turn.lease_seconds
        return lambda: max(turn.lease_seconds / 4, ends_monotonic - self.clock.monotonic())

    def _works(self, turn: Turn, terms: Any, token: int) -> Generator[Call | Pause, Any, None]:
        """Work, look at the clock, write; as long as the lease lasts."""
        for number, seconds in enumerate(turn.works):
            yield Pause(seconds)
            if number in turn.renews:
                try:
                    renewed = yield from self._world.protocol.renew(terms, turn.lease_seconds, self._patience(1.0))
                except TableUnavailable:
                    renewed = self._holds[-1][5]  # what it had it still has
                if renewed is None:
                    return
                self._holds[-1] = (*self._holds[-1][:5], renewed)
            if self.clock.monotonic() >= self._holds[-1][5]:
                return
            try:
                answer = yield from insist(self._write(turn, token, number), self._patience(2.0))
            except TableUnavailable:
                continue
            if isinstance(answer, Refused):
                return

    def _gives_back(self, terms: Any, token: int | None, seen: _Seen) -> Generator[Call | Pause, Any, None]:
        try:
            ours = yield from seen.watched(self._world.protocol.release(terms, token, self._patience(2.0)))
        except TableUnavailable:
            return
        if token is not None:
            what = "given back" if ours else "robbed"
            self._world.told.append(Told(terms.key, terms.owner, what, token, lost=seen.lost))

    def _write(self, turn: Turn, token: int, number: int) -> Call:
        write = {
            "TableName": _TABLE,
            "Key": {"id": {"S": f"data#{turn.key}"}},
            "UpdateExpression": "SET written = :written",
            "ExpressionAttributeValues": {":written": {"S": f"{self._number}-{number}"}},
        }
        guarded = self._world.guarded(write, token, attribute="lease_token", lease=(_TABLE, turn.key))
        return Call("update_item", guarded)

    def _patience(self, seconds: float) -> Patience:
        return Patience(seconds, self.clock, last_seconds=self._plan.poll_seconds)


class _Seen:
    """What a protocol was answered: the last owner it saw, and whether an answer was lost."""

    def __init__(self) -> None:
        self.owner: str | None = None
        self.lost = False

    def watched(self, steps: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """The same steps."""
        answer = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as end:
                return end.value
            answer = yield step
            if isinstance(step, Call):
                self.lost = self.lost or answer.lost
                item = answer.item if isinstance(answer, Answered | Refused) else None
                self.owner = self.owner if item is None else owner_of(item)


def owner_of(item: Any) -> str | None:
    """Who is in a lease's record, as the low-level client has it."""
    return str(item["owner"]["S"]) if "owner" in item else None
