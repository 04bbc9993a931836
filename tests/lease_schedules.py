"""What befalls some environments that want the same leases: made from dice, which hypothesis may throw or a seeded generator.

Times are seconds of true time. A schedule says everything; the simulation of it decides nothing and always goes the same way.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

# How far the wall clocks of two environments may be apart, whenever each of them is looked at: each is half of it off at most.
MAX_SKEW_SECONDS = 1.0
# Of a second in each second: how much a monotonic clock runs fast or slow at most; that of Linux is slewed by no more.
MAX_DRIFT = 0.0005
# A request's way to the store, and back.
_QUICK = 0.01


class Fault(enum.Enum):
    """What becomes of a request."""

    NONE = "carried out and answered"
    LOST = "carried out; its answer is lost"
    DROPPED = "lost on its way"
    LATE = "the client gives up, and then it is carried out"
    TWICE = "carried out; its answer is lost; repeated by botocore, and answered"
    OVERTAKEN = "repeated by botocore, and answered; the first attempt is carried out later"
    THROTTLED = "refused, because there are too many"
    CONFLICT = "in the way of a write in another region"
    FAILED = "carried out; answered with an internal error"


@dataclass(frozen=True)
class Fate:
    """Of one request. ``late``: seconds until the attempt that was thought lost is carried out."""

    fault: Fault = Fault.NONE
    out: float = _QUICK
    back: float = _QUICK
    late: float = 0.0


QUICK = Fate()


@dataclass(frozen=True)
class Turn:
    """One acquisition: how long it may wait, how long the lease is, and what is done with it.

    Attributes:
        until_then: the lease is to last until a moment that doesn't move while its owner waits, as to an invocation's deadline;
            so the first request asks for a longer one than the last. Else for ``lease_seconds`` from each request on.
        works: seconds of work before each guarded write.
        renews: before which of those writes the lease is renewed.
        releases: whether it is given back, or left to run out.
    """

    key: str = "k"
    patience_seconds: float = 30.0
    lease_seconds: float = 2.0
    until_then: bool = False
    works: tuple[float, ...] = (0.5,)
    renews: frozenset[int] = frozenset()
    releases: bool = True
    rests: float = 0.0


@dataclass(frozen=True)
class Plan:
    """One environment: when it starts, its clocks, what it does, and what goes wrong.

    Attributes:
        drift: how much faster than true time its monotonic clock runs, per second.
        skews: seconds that its wall clock is ahead, from which true time on.
        standstills: before which of its looks at a clock it stands still, and for how long. What it does between two looks
            takes no time.
        frozen: its monotonic clock stands still with it, as in a virtual machine that is suspended.
        crashes_at: which of its steps it doesn't live to do.
        fates: of its requests, by number; the others are quick.
        poll_seconds: the longest pause between two looks at somebody else's lease.
    """

    starts: float = 0.0
    turns: tuple[Turn, ...] = (Turn(),)
    drift: float = 0.0
    skews: tuple[tuple[float, float], ...] = ((0.0, 0.0),)
    standstills: dict[int, float] = field(default_factory=dict)
    frozen: bool = False
    crashes_at: int | None = None
    fates: dict[int, Fate] = field(default_factory=dict)
    poll_seconds: float = 0.3


@dataclass(frozen=True)
class Schedule:
    """All of it.

    Attributes:
        removals: when the records are looked through, and those that are free and old enough removed.
        removals_by_hand: when all records are removed, whatever they say. Tokens need not grow then, and two may hold.
        tells_item: whether the store says what stands where it refuses to write.
        tame: whether clocks keep to what they promise, so that no two may hold at once.
    """

    plans: tuple[Plan, ...]
    removals: tuple[float, ...] = ()
    removals_by_hand: tuple[float, ...] = ()
    tells_item: bool = True
    tame: bool = True

    @property
    def longest_lease_seconds(self) -> float:
        """Of all that are taken."""
        return max(turn.lease_seconds for plan in self.plans for turn in plan.turns)


_FAULTS = (*list(Fault)[1:], *[Fault.LATE, Fault.OVERTAKEN] * 3, Fault.LOST)
_SLOWER = 300.0  # a lease of two seconds becomes one of ten minutes
_SLOW_POLL_SECONDS = 40.0
_LONG = (0.5, 1.5, 2.5, 5.0, 9.0)  # seconds; leases are two or four


def drawn(dice: random.Random, *, tame: bool, environments: int | None = None, keys: int | None = None) -> Schedule:
    """A schedule, as the dice fall: the lower, the less goes wrong. Its clocks keep their promises (``tame``), or they don't.

    In some all is three hundred times as slow, but for the network and the skew: clocks that run unequally matter there.
    """
    keys = keys or dice.choice((1, 1, 1, 2))
    plans = tuple(_plan(dice, keys, tame=tame) for _ in range(environments or dice.randint(2, 6)))
    removals = tuple(dice.uniform(1.5, 20.0) for _ in range(dice.choice((0, 0, 1, 3)))) if tame else ()
    tells_item = dice.random() < 0.9
    if dice.random() > 0.9:
        plans, removals = tuple(_slowed(plan, _SLOWER) for plan in plans), tuple(when * _SLOWER for when in removals)
    return Schedule(plans, removals=removals, tells_item=tells_item, tame=tame)


def _plan(dice: random.Random, keys: int, *, tame: bool) -> Plan:
    turns = tuple(_turn(dice, keys) for _ in range(dice.choice((1, 1, 2, 3))))
    requests = 6 * len(turns)
    return Plan(
        starts=dice.choice((0.0, 0.0, 0.005, dice.uniform(0.0, 3.0))),
        turns=turns,
        drift=dice.choice((0.0, MAX_DRIFT, -MAX_DRIFT)),
        skews=_skews(dice, tame=tame),
        standstills={dice.randint(1, 12 * len(turns)): dice.choice(_LONG) for _ in range(dice.choice((0, 0, 1, 2)))},
        frozen=not tame and dice.random() > 0.5,
        crashes_at=dice.randint(1, 10 * len(turns)) if dice.random() > 0.85 else None,
        fates={dice.randrange(requests): _fate(dice) for _ in range(dice.choice((0, 1, 2, 4, 6)))},
        poll_seconds=dice.choice((0.5, 0.5, 0.05)),
    )


def _slowed(plan: Plan, times: float) -> Plan:
    turns = (
        replace(
            turn,
            patience_seconds=turn.patience_seconds * times,
            lease_seconds=turn.lease_seconds * times,
            works=tuple(seconds * times for seconds in turn.works),
            rests=turn.rests * times,
        )
        for turn in plan.turns
    )
    return replace(
        plan,
        starts=plan.starts * times,
        turns=tuple(turns),
        skews=tuple((since * times, skew) for since, skew in plan.skews),
        standstills={look: seconds * times for look, seconds in plan.standstills.items()},
        fates={number: replace(fate, late=fate.late * times) for number, fate in plan.fates.items()},
        poll_seconds=min(plan.poll_seconds * times, _SLOW_POLL_SECONDS),
    )


def _turn(dice: random.Random, keys: int) -> Turn:
    works = tuple(dice.choice((0.01, 0.5, 1.2, 3.0)) for _ in range(dice.randint(1, 4)))
    return Turn(
        key=f"k{dice.randrange(keys)}",
        patience_seconds=dice.choice((20.0, 20.0, 3.0, 0.0)),
        lease_seconds=dice.choice((2.0, 2.0, 4.0)),
        until_then=dice.random() > 0.8,
        works=works,
        renews=frozenset(number for number in range(len(works)) if dice.random() > 0.6),
        releases=dice.random() < 0.8,
        rests=dice.choice((0.0, 0.3, 2.0)),
    )


def _skews(dice: random.Random, *, tame: bool) -> tuple[tuple[float, float], ...]:
    most = MAX_SKEW_SECONDS / 2 if tame else 30.0
    starts = [0.0, *(dice.uniform(0.0, 15.0) for _ in range(dice.choice((0, 0, 1, 3))))]
    return tuple((start, dice.choice((0.0, -most, most, dice.uniform(-most, most)))) for start in sorted(starts))


def _fate(dice: random.Random) -> Fate:
    fault = dice.choice(_FAULTS)
    slow = dice.random() > 0.8
    return Fate(
        fault,
        out=dice.choice(_LONG) if slow else _QUICK,
        back=_QUICK if not slow or dice.random() < 0.5 else dice.choice(_LONG),
        late=dice.choice((0.02, *_LONG)),
    )
