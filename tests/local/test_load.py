from __future__ import annotations

import pytest

from environments import event, local, run
from perinvoke.local import Status, drive
from perinvoke.local.load import percentile


def test_events_are_sent_in_turn_and_progress_is_told() -> None:
    async def scenario() -> None:
        seen: list[int] = []
        async with local("app.fail") as environment:
            events = [event(message="a"), event(message="b")]
            report = await drive(environment, events, requests=5, concurrency=1, on_progress=seen.append)
        assert seen == [1, 2, 3, 4, 5]
        assert report.outcomes == {Status.FUNCTION_ERROR: 5}
        assert report.errors == {"ValueError": 5}
        assert report.samples == {"ValueError": "a"}
        assert (report.requests, report.failed, report.workers, report.workers_left) == (5, 5, 2, 2)
        assert report.per_second > 0
        assert 0 < report.latency(0.5) <= report.latency(0.99) <= report.latency(1)

    run(scenario())


def test_each_event_is_sent_once_unless_asked_otherwise() -> None:
    async def scenario() -> None:
        async with local("app.echo") as environment:
            assert (await drive(environment, [b"1", b"2", b"3"])).requests == 3

    run(scenario())


def test_a_load_ends_early_when_the_environment_has() -> None:
    async def scenario() -> None:
        async with local("app.die", workers=1, timeout_seconds=20) as environment:
            report = await drive(environment, [b"{}"], requests=100_000, concurrency=1)
            assert report.outcomes == {Status.FUNCTION_ERROR: 1}
            assert report.gone is not None
            assert report.workers_left == 0
            assert len(report.latencies) == 1

    run(scenario(), seconds=10)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1), (0.5, 5), (0.51, 6), (0.9, 9), (0.95, 10), (1.0, 10)])
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(share: float, expected: object) -> None:
    assert percentile(range(1, 11), share) == expected
