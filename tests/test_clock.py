from __future__ import annotations

import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perinvoke.clock import Deadline, deadline_of
from perinvoke.settings import read_settings
from stalls import repeated_after_a_stall

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


class Context:
    def __init__(self, remaining_ms: Any) -> None:
        self._remaining_ms = remaining_ms

    def get_remaining_time_in_millis(self) -> Any:
        return self._remaining_ms


def total(remaining_ms: Any = None, event: Any = None, **variables: str) -> float:
    return deadline_of(read_settings(variables), event, Context(remaining_ms)).total_seconds


def request(seconds_ago: float, name: str = "requestTimeEpoch") -> dict[str, Any]:
    return {"requestContext": {name: int((time.time() - seconds_ago) * 1000)}}


@pytest.mark.parametrize("nonsense", [-1e9, math.nan, math.inf, 34 * 86_400_000, 10**400, None, True, "3000", []])
def test_a_nonsense_deadline_of_the_platform_is_none(nonsense):
    assert total(nonsense) == math.inf
    assert total(nonsense, PERINVOKE_TIMEOUT_SECONDS="5") == 5


@pytest.mark.parametrize("over", [0, 0.0, -1, -5000.5])
def test_a_deadline_that_is_over_leaves_no_time(over):
    deadline = deadline_of(read_settings({"PERINVOKE_TIMEOUT_SECONDS": "5"}), {}, Context(over))
    assert (deadline.total_seconds, deadline.bound(), deadline.remaining_seconds(), deadline.set_by) == (0, 0, 0, "the platform")
    assert deadline.interrupt_at_monotonic <= time.monotonic()


@pytest.mark.parametrize(("margin_ms", "remaining_ms", "expected"), [("0", 3000, 0.2), ("300", 3000, 0.3), ("0", 200, 0.1)])
def test_a_worker_that_may_be_replaced_has_a_least_margin(margin_ms, remaining_ms, expected):
    variables = {"PERINVOKE_TIMEOUT_MARGIN_MS": margin_ms, "PERINVOKE_ON_TIMEOUT": "replace"}
    assert deadline_of(read_settings(variables), {}, Context(remaining_ms)).margin_seconds == expected


def test_the_earliest_of_platform_function_and_caller_counts_and_says_who_set_it():
    caller = {"PERINVOKE_CALLER_TIMEOUT_SECONDS": "29"}
    assert total(30_000) == 30
    assert total(30_000, PERINVOKE_TIMEOUT_SECONDS="2.5") == 2.5
    assert total(2_000, PERINVOKE_TIMEOUT_SECONDS="2.5") == 2
    assert 15 < total(900_000, request(9), **caller) <= 20.5
    assert 15 < total(900_000, request(9, "timeEpoch"), **caller) <= 20.5
    assert total(900_000, request(9), PERINVOKE_TIMEOUT_SECONDS="3", **caller) == 3
    settings = read_settings({"PERINVOKE_TIMEOUT_SECONDS": "50", **caller})
    assert deadline_of(settings, request(0), Context(900_000)).set_by == "PERINVOKE_CALLER_TIMEOUT_SECONDS"
    assert deadline_of(settings, {}, Context(900_000)).set_by == "PERINVOKE_TIMEOUT_SECONDS"
    assert deadline_of(settings, {}, Context(9_000)).set_by == "the platform"


def test_a_caller_that_has_gone_leaves_no_time_a_replay_has_no_caller_and_the_future_is_now():
    caller = {"PERINVOKE_CALLER_TIMEOUT_SECONDS": "29"}
    assert total(60_000, request(100), **caller) == 0
    assert total(60_000, request(901), **caller) == 60
    assert total(60_000, request(-500), **caller) == 29
    assert total(60_000, request(9)) == 60  # only when asked for


@given(about=anything, start=anything)
def test_nonsense_in_the_event_is_no_deadline(about, start):
    plain = (int, float)
    for event in (about, {"requestContext": about}, {"requestContext": {"requestTimeEpoch": start}}):
        if isinstance(start, plain) and not isinstance(start, bool) and 1e12 < start < 1e15:
            continue  # a date of our time
        assert total(60_000, event, PERINVOKE_CALLER_TIMEOUT_SECONDS="29") in (60, 29)


@pytest.mark.parametrize(
    ("remaining", "margin", "expected"), [(10, 0.3, 0.3), (0.4, 0.3, 0.2), (1, 5, 0.5), (0, 5, 0), (3, 0, 0)]
)
def test_a_margin_is_at_most_half_of_the_time(remaining, margin, expected):
    deadline = Deadline(remaining, margin_seconds=margin, monotonic=lambda: 1000.0)
    assert deadline.margin_seconds == expected
    assert deadline.bound() == pytest.approx(remaining - expected)
    until_interrupt = deadline.interrupt_at_monotonic - 1000
    assert remaining - expected <= until_interrupt <= remaining - expected + min(0.05, expected / 4) + 1e-9


def test_a_bound_is_never_longer_than_asked_nor_than_the_time_there_is():
    now = [0.0]
    deadline = Deadline(10, margin_seconds=1, monotonic=lambda: now[0])
    assert (deadline.bound(), deadline.bound(3), deadline.bound(30), deadline.bound(0)) == (9, 3, 9, 0)
    now[0] = 9.5
    assert (deadline.bound(), deadline.bound(3), deadline.remaining_seconds()) == (0, 0, 0.5)
    assert Deadline(math.inf, margin_seconds=1).bound() == math.inf
    assert Deadline(math.inf, margin_seconds=1).bound(7) == 7


@pytest.mark.parametrize("wrong", [-1, math.nan, "1", [], -math.inf])
def test_a_wrong_timeout_is_an_error(wrong):
    deadline = Deadline(10)
    with pytest.raises(ValueError, match="allowed are seconds from 0 on"):
        deadline.bound(wrong)
    with pytest.raises(ValueError, match="allowed are seconds from 0 on"):
        deadline.sleep(wrong)


@repeated_after_a_stall
def test_a_sleep_ends_where_the_margin_begins_and_says_so():
    deadline = Deadline(0.3, margin_seconds=0.1)
    assert deadline.sleep(0.01) is True
    started = time.monotonic()
    assert deadline.sleep(60) is False
    assert time.monotonic() - started < 10
    assert deadline.bound() == 0
    with pytest.raises(ValueError, match="never end"):
        Deadline(math.inf).sleep(math.inf)
