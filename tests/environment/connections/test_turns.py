from __future__ import annotations

import pytest

from perinvoke.environment.connections.turns import LEAST_TURN_SECONDS, MOST_TURN_SECONDS, given_up_at, is_turn_over, turn_seconds


@pytest.mark.parametrize(
    ("connect_seconds", "turn"), [(0.0, LEAST_TURN_SECONDS), (0.005, 0.05), (0.02, 0.2), (1.0, MOST_TURN_SECONDS)]
)
def test_a_turn_is_ten_times_as_long_as_connecting_within_bounds(connect_seconds, turn):
    assert turn_seconds(connect_seconds) == pytest.approx(turn)
    assert not is_turn_over(taken_at=10.0, connect_seconds=connect_seconds, now=10.0 + turn - 0.001)
    assert is_turn_over(taken_at=10.0, connect_seconds=connect_seconds, now=10.0 + turn + 0.001)


def test_an_idle_connection_is_kept_long_unless_somebody_asks():
    kept = {"idle_since": 10.0, "connect_seconds": 0.005, "idle_seconds": 60.0}
    assert given_up_at(**kept, is_asked=False) == 70.0
    assert given_up_at(**kept, is_asked=True) == pytest.approx(10.005)
    assert given_up_at(idle_since=10.0, connect_seconds=5.0, idle_seconds=60.0, is_asked=True) == pytest.approx(10.05)
