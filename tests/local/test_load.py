from __future__ import annotations

import pytest

from environments import event, local, run
from perinvoke.local import Status, drive
from perinvoke.local.load import LoadReport, percentile
from perinvoke.local.report import print_report


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


def test_the_two_kinds_of_time_out_are_told_apart_and_each_invocation_is_counted_once(capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = {Status.OK: 10, Status.FUNCTION_ERROR: 7, Status.TIMED_OUT: 2, Status.REJECTED: 1}
    errors = {"InvocationTimeout": 4, "ValueError": 3, "Sandbox.Timedout": 2, "TooManyRequestsException": 1}
    report = LoadReport(1.0, (0.1,), outcomes, errors, workers=8, workers_left=7, supervised=True, replaced=3)
    print_report(report, "app.handler")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines() if line[:1] == "|"]
    assert ["ok", "10"] in rows
    assert ["function error", "3"] in rows
    assert ["timed out, ended by perinvoke (InvocationTimeout)", "4"] in rows
    assert ["timed out, cut by the platform (the handler may run on)", "2"] in rows
    assert ["rejected", "1"] in rows
    assert ["workers at the end", "7 of 8"] in rows
    assert ["workers replaced", "3"] in rows
