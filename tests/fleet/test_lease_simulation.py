"""Leases over all that can befall them: no two hold at once, tokens grow, writes don't go back, and nobody waits for ever.

A schedule that fails is printed; ``simulate(Schedule(…))`` goes through it again, always in the same way.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lease_checker import Held, violations
from lease_schedules import MAX_DRIFT, Fate, Fault, Plan, Schedule, Turn, drawn
from lease_simulation import simulate

made_by_hypothesis = settings(
    max_examples=120, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@st.composite
def schedules(draw, *, tame):
    return drawn(draw(st.randoms(use_true_random=False)), tame=tame)


def is_right(schedule):
    """Whether nothing can be said against what comes of it; shows what can."""
    outcome = simulate(schedule)
    found = violations(outcome.history, exclusive=schedule.tame)
    assert not found, f"{found[0]}\nin {schedule}"
    assert not outcome.stuck, f"nobody can take {outcome.stuck}\nin {schedule}"
    return outcome


def held(outcome):
    return [event for event in outcome.history if isinstance(event, Held) and event.ends > event.begins]


@made_by_hypothesis
@given(schedules(tame=True))
def test_while_clocks_keep_their_promises_no_two_hold_at_once(schedule):
    is_right(schedule)


@made_by_hypothesis
@given(schedules(tame=False))
def test_whatever_clocks_do_tokens_grow_and_guarded_writes_do_not_go_back(schedule):
    is_right(schedule)


@pytest.mark.parametrize("tame", [True, False])
def test_hundreds_of_schedules_are_right(tame):
    outcomes = [is_right(drawn(random.Random(seed), tame=tame)) for seed in range(250)]
    assert sum(len(held(outcome)) for outcome in outcomes) > 750  # it isn't right because nothing happens


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("tame", [True, False])
def test_thousands_of_schedules_are_right(tame):
    for seed in range(250, 1250):
        is_right(drawn(random.Random(seed), tame=tame))


@pytest.mark.parametrize("tame", [True, False])
def test_a_thousand_environments_are_right(tame):
    outcome = is_right(drawn(random.Random(0), tame=tame, environments=1000, keys=200))
    assert len(held(outcome)) > 500


def test_a_schedule_always_goes_the_same_way():
    schedule = drawn(random.Random(3), tame=True)
    assert simulate(schedule).history == simulate(schedule).history


# One thing that goes wrong, at every step, while two others want the same.

RENEWING = Turn(works=(0.9, 0.9, 0.9), renews=frozenset({0, 1, 2}))
OTHERS = (
    Plan(starts=0.3, skews=((0.0, 0.5),), poll_seconds=0.03),
    Plan(starts=0.6, turns=(RENEWING,), skews=((0.0, -0.5),), drift=MAX_DRIFT),
)
STEPS = range(1, 26)  # more than such a turn has


def beside_others(**what: Any) -> Schedule:
    return Schedule((Plan(turns=(RENEWING, Turn(lease_seconds=4.0)), skews=((0.0, -0.5),), drift=-MAX_DRIFT, **what), *OTHERS))


def test_a_crash_at_any_step_is_survived():
    for step in STEPS:
        outcome = is_right(beside_others(crashes_at=step))
        assert {event.owner for event in held(outcome)} >= {"owner-1-0", "owner-2-0"}


@pytest.mark.parametrize("frozen", [False, True])
def test_a_standstill_before_any_look_at_the_clock_is_survived(frozen):
    for look in STEPS:
        for seconds in (1.5, 2.5, 9.0):
            is_right(replace(beside_others(standstills={look: seconds}, frozen=frozen), tame=not frozen))


@pytest.mark.parametrize("fault", list(Fault))
def test_a_fault_of_any_request_is_survived(fault):
    for request in range(14):
        for late in (0.02, 1.3, 3.0) if fault in {Fault.LATE, Fault.OVERTAKEN} else (0.0,):
            is_right(beside_others(fates={request: Fate(fault, late=late)}))


@pytest.mark.slow
def test_two_faults_of_any_two_requests_are_survived():
    for first in range(8):
        for second in range(first + 1, 9):
            for one in Fault:
                for other in Fault:
                    fates = {first: Fate(one, late=2.5), second: Fate(other, late=1.3)}
                    is_right(beside_others(fates=fates))


@pytest.mark.parametrize("tells_item", [True, False])
def test_who_asks_while_all_answers_are_lost_has_the_lease_when_they_come_again(tells_item):
    lost = {number: Fate(Fault.LOST) for number in range(5)}
    outcome = is_right(Schedule((Plan(fates=lost),), tells_item=tells_item))
    assert next(event.owner for event in held(outcome)) == "owner-0-0"


# What tokens promise where the record is gone, and where that ends.


def removed_between(*, seconds: float) -> Schedule:
    """Two holders one after the other, the first one's clock a second ahead of the other's; the record is removed in between."""
    first = Plan(turns=(Turn(works=(0.01,)),), skews=((0.0, 0.5),))
    return Schedule((first, Plan(starts=seconds, skews=((0.0, -0.5),))), removals_by_hand=(0.15,))


def test_tokens_grow_over_a_removal_if_more_time_is_in_between_than_clocks_differ():
    assert len(held(is_right(removed_between(seconds=1.1)))) == 2


def test_tokens_go_back_over_a_removal_only_if_a_clock_is_behind_by_more_than_the_time_in_between():
    found = violations(simulate(removed_between(seconds=0.9)).history)
    assert [violation.rule for violation in found] == ["tokens grow"]


def test_a_lease_whose_record_is_removed_by_hand_is_taken_at_once_and_the_late_holder_s_writes_are_refused():
    schedule = Schedule((Plan(turns=(Turn(works=(1.0, 0.5)),)), Plan(starts=0.6)), removals_by_hand=(0.5,))
    outcome = simulate(schedule)
    assert [violation.rule for violation in violations(outcome.history)] == ["no two hold at once"]
    assert violations(outcome.history, exclusive=False) == []


def test_a_process_remembers_the_highest_token_that_it_got_whatever_its_clock_says():
    turns = (Turn(works=(0.01,), rests=1.0), Turn(works=(0.01,)))
    is_right(Schedule((Plan(turns=turns, skews=((0.0, 0.0), (0.5, -30.0))),), removals_by_hand=(0.3,), tame=False))
