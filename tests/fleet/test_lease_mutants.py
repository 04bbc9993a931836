"""The checker finds the fault when the lock is broken on purpose; and each fault that this lock had stays mended."""

from __future__ import annotations

import random

import pytest

from lease_checker import violations
from lease_mutants import MUTANTS, STUCK, Mutant
from lease_schedules import MAX_DRIFT, Fate, Fault, Plan, Schedule, Turn, drawn
from lease_simulation import simulate

# How many schedules are tried at most. Of the lock as it is, many more are (``test_lease_simulation.py``).
SEARCHED = 300

# Faults that need so much ill luck that a search takes long. Each of these tells one way to have it.
BY_HAND = {
    # A renewal is repeated, and the first attempt comes when the next renewal was carried out: the published end would go back.
    # An impatient one whose clock is ahead, by no more than clocks may be, then finds the lease over.
    "a late renewal shortens the lease": Schedule(
        (
            Plan(
                turns=(Turn(works=(1.0, 1.0, 3.0), renews=frozenset({0, 1})),),
                skews=((0.0, -0.5),),
                fates={1: Fate(Fault.OVERTAKEN, late=1.3)},
            ),
            Plan(starts=0.1, skews=((0.0, 0.5),), poll_seconds=0.03),
        )
    ),
    # The first take is carried out, but nobody hears of it for longer than the lease; then it is taken anew, by the same owner.
    # Somebody who has seen the first one since decided to displace it, and its request is on its way.
    "who took it anew is silent still": Schedule(
        (
            Plan(turns=(Turn(works=(3.0,)),), fates={0: Fate(Fault.LOST), 1: Fate(Fault.DROPPED, back=3.05)}),
            Plan(starts=0.1, skews=((0.0, -0.5),), fates={number: Fate(out=1.2) for number in range(1, 9)}),
        )
    ),
    # Its lease ends while its renewal is on the way. Another one has it, and gives it back. Then the first attempt of its own
    # take comes, which was thought lost, and then the renewal: it is its owner's again, but not the lease that is to be renewed.
    "who had it before renews it": Schedule(
        (
            Plan(
                turns=(Turn(lease_seconds=4.0, works=(3.9, 3.0), renews=frozenset({0})),),
                fates={0: Fate(Fault.OVERTAKEN, late=5.0), 1: Fate(out=2.0)},
            ),
            Plan(starts=0.1, turns=(Turn(works=(0.01,)),), poll_seconds=0.03),
        )
    ),
    # A renewal is on its way, and so is the take of somebody who has seen nothing of it. The renewal comes first.
    "who renewed is displaced": Schedule(
        (
            Plan(turns=(Turn(lease_seconds=4.0, works=(3.9, 3.0), renews=frozenset({0})),), fates={1: Fate(out=1.2)}),
            Plan(starts=0.1, skews=((0.0, -0.5),), fates={number: Fate(out=1.0) for number in range(1, 20)}),
        )
    ),
    # It stands still before it asks. Somebody else makes the record meanwhile, and it is removed.
    "who waits doesn't look at the clock again": Schedule(
        (Plan(standstills={2: 3.0}), Plan(starts=1.0, turns=(Turn(works=(0.01,)),))), removals_by_hand=(1.5,)
    ),
    # Ten minutes on a clock that runs slow are more than on one that runs fast.
    "all clocks are equal": Schedule(
        (
            Plan(turns=(Turn(lease_seconds=600.0, works=(700.0,)),), skews=((0.0, 0.5),), drift=-MAX_DRIFT),
            Plan(starts=0.1, turns=(Turn(patience_seconds=900.0),), drift=MAX_DRIFT),
        )
    ),
}


def broken_rules(schedule: Schedule, **broken: object) -> list[str]:
    outcome = simulate(schedule, **broken)
    return [violation.rule for violation in violations(outcome.history)] + [STUCK for _ in outcome.stuck]


def schedules(mutant: Mutant):
    if mutant.name in BY_HAND:
        return [BY_HAND[mutant.name]]
    return (drawn(random.Random(seed), tame=True) for seed in range(SEARCHED))


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_lock_that_is_broken_is_found(mutant):
    broken = vars(mutant.simulated())
    found = (broken_rules(schedule, **broken) for schedule in schedules(mutant))
    assert any(mutant.rule in rules for rules in found)


@pytest.mark.parametrize("name", BY_HAND)
def test_what_breaks_it_does_no_harm_to_the_lock_as_it_is(name):
    assert name in map(str, MUTANTS)
    assert broken_rules(BY_HAND[name]) == []
