from __future__ import annotations

import pytest

from perinvoke.runtime.early_deaths import EarlyDeaths
from perinvoke.runtime.stop_plan import StopPlan, StopStage


def test_replacements_wait_ever_longer_until_one_is_ready():
    deaths = EarlyDeaths()
    deaths.worker_ready()
    delays = []
    for _ in range(10):
        deaths.worker_died(ready=False)
        delays.append(deaths.delay_seconds(ready=False))
    assert delays == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5]
    assert deaths.delay_seconds(ready=True) == 0
    deaths.worker_ready()
    deaths.worker_died(ready=False)
    assert deaths.delay_seconds(ready=False) == 0


def test_workers_that_served_are_no_early_deaths():
    deaths = EarlyDeaths()
    deaths.worker_ready()
    for _ in range(100):
        deaths.worker_died(ready=True)
        assert deaths.delay_seconds(ready=True) == 0
    assert not deaths.is_crash_loop(workers=1, living=0)


@pytest.mark.parametrize(("workers", "enough"), [(1, 8), (7, 8), (16, 17), (64, 65)])
def test_too_many_in_a_row_are_a_crash_loop(workers, enough):
    deaths = EarlyDeaths()
    deaths.worker_ready()
    for _ in range(enough - 1):
        deaths.worker_died(ready=False)
    assert not deaths.is_crash_loop(workers=workers, living=0)
    deaths.worker_died(ready=False)
    assert deaths.is_crash_loop(workers=workers, living=workers - 1)


def test_an_init_in_which_all_died_has_failed_and_before_that_nothing_is_replaced_at_once():
    deaths = EarlyDeaths()
    deaths.worker_died(ready=False)
    assert deaths.delay_seconds(ready=False) == 1.0
    assert not deaths.is_crash_loop(workers=2, living=1)
    assert deaths.is_crash_loop(workers=2, living=0)


def test_the_end_comes_in_stages_and_once():
    plan = StopPlan(10.0)
    assert (plan.is_stopping, plan.next_at, plan.advance(1e9)) == (False, float("inf"), None)
    assert plan.begin(100.0)
    assert not plan.begin(101.0)
    assert (plan.is_stopping, plan.next_at, plan.advance(103.9)) == (True, 104.0, None)
    assert plan.advance(104.0) is StopStage.INTERRUPTED
    assert plan.next_at == 107.0
    assert plan.advance(200.0) is StopStage.KILLED
    assert (plan.next_at, plan.advance(1e9)) == (float("inf"), None)
