"""A database that goes away in the middle of load, and comes back: nobody hangs, nobody fails afterwards, no worker dies."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import pytest

from database_environments import BUDGET, PGBOUNCER, options_for
from databases import PeakWatch
from environments import local, run
from perinvoke.local.outcome import Outcome, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from perinvoke.local import LocalEnvironment

FUNCTIONS = Path(__file__).parent / "functions"
WORKERS = 4
CONNECTIONS = 2
TIMEOUT_SECONDS = 5.0
DOWN_SECONDS = 0.5
LOAD_SECONDS = 0.6  # before the database goes away, and after it is back
BACK_SECONDS = 10.0  # what PgBouncer gets to be back; it takes less than one, on a machine that has nothing else to do
AGAIN_SECONDS = 20.0  # what calls get to succeed again; they take as long as PgBouncer, or no time at all
EVENT = json.dumps({"seconds": 0.01}).encode()


@pytest.fixture(params=[BUDGET, PGBOUNCER])
def options(request, own_postgres, root) -> dict[str, Any]:
    own_postgres.execute("CREATE TABLE account (id int PRIMARY KEY, balance int)")
    return options_for(request.param, own_postgres, root, connections=CONNECTIONS)


class Call(NamedTuple):
    began: float
    ended: float
    outcome: Outcome


class Load:
    """Callers that call until told to stop; lives as long as its ``async with`` block."""

    def __init__(self, environment: LocalEnvironment) -> None:
        self.calls: list[Call] = []
        self._environment = environment
        self._stopped = False

    async def __aenter__(self) -> Self:
        self._callers = [asyncio.create_task(self._call()) for _ in range(WORKERS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopped = True
        await asyncio.gather(*self._callers)

    async def _call(self) -> None:
        while not self._stopped:
            began = time.monotonic()
            outcome = await self._environment.invoke(EVENT)
            self.calls.append(Call(began, time.monotonic(), outcome))


def environment_with(options: dict[str, Any]) -> LocalEnvironment:
    return local("sessions.transfer", workers=WORKERS, directory=FUNCTIONS, timeout_seconds=TIMEOUT_SECONDS, **options)


async def disturbed(options: dict[str, Any], disturb: Callable[[], Coroutine[Any, Any, None]]) -> tuple[list[Call], float]:
    """The calls of a load in the middle of which something happens, and when that was over; no worker dies of it.

    It goes on for a while, and until more calls have succeeded than there are workers.
    """
    async with environment_with(options) as environment:
        workers = environment.worker_pids
        async with Load(environment) as load:
            await asyncio.sleep(LOAD_SECONDS)
            await disturb()
            over = time.monotonic()
            await asyncio.sleep(LOAD_SECONDS)
            until = over + AGAIN_SECONDS
            while len(succeeded(load.calls, over)) <= WORKERS and time.monotonic() < until:  # noqa: ASYNC110  # by nothing told
                await asyncio.sleep(0.05)
        assert environment.worker_pids == workers
        assert environment.workers_replaced == 0
        return load.calls, over


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_of_postgres_costs_those_who_need_it_just_then_and_nobody_else(mode, options, own_postgres):
    async def restart() -> None:
        stopped = signal.SIGINT if mode == "fast" else signal.SIGQUIT
        await asyncio.to_thread(own_postgres.stop, stopped)
        await asyncio.sleep(DOWN_SECONDS)
        await asyncio.to_thread(own_postgres.start)

    with PeakWatch(own_postgres) as watch:
        calls, over = run(disturbed(options, restart), 60)
    assert watch.peak <= CONNECTIONS, watch.states
    assert_none_hung(calls)
    again = succeeded(calls, over)
    assert len(again) > WORKERS
    # PgBouncer tries to reach a server that was away once in an interval, and until then tells its clients that it is away.
    back = again[0].ended if "extensions" in options else over
    assert [call.outcome for call in calls if call.began >= back and not call.outcome.ok] == []


def test_a_restart_while_connections_are_idle_is_seen_by_nobody(options, own_postgres):
    async def scenario() -> None:
        async with environment_with(options) as environment:
            for restarts in range(3):
                outcomes = await asyncio.gather(*(environment.invoke(EVENT) for _ in range(2 * WORKERS)))
                assert [outcome for outcome in outcomes if not outcome.ok] == [], f"after {restarts} restarts"
                await asyncio.to_thread(own_postgres.restart)

    run(scenario(), 60)


def test_pgbouncer_is_back_after_it_was_killed(own_postgres, root):
    own_postgres.execute("CREATE TABLE account (id int PRIMARY KEY, balance int)")
    options = options_for(PGBOUNCER, own_postgres, root, connections=CONNECTIONS)
    killed: list[float] = []

    async def kill() -> None:
        [pid] = pgbouncers(root)
        os.kill(pid, signal.SIGKILL)
        killed.append(time.monotonic())
        while pgbouncers(root) in ([], [pid]):
            assert time.monotonic() < killed[0] + 10, "nobody has started it again"
            await asyncio.sleep(0.01)

    calls, _ = run(disturbed(options, kill), 60)
    assert_none_hung(calls)
    failed = [call for call in calls if not call.outcome.ok]
    assert [call.outcome for call in failed if not killed[0] - TIMEOUT_SECONDS < call.began < killed[0] + BACK_SECONDS] == []
    assert max(call.ended for call in calls if call.outcome.ok) > killed[0]


def succeeded(calls: list[Call], since: float) -> list[Call]:
    return [call for call in calls if call.began >= since and call.outcome.ok]


def assert_none_hung(calls: list[Call]) -> None:
    assert [call.outcome for call in calls if call.outcome.status is Status.TIMED_OUT] == []
    assert [call for call in calls if call.ended - call.began > TIMEOUT_SECONDS] == []


def pgbouncers(root: Path) -> list[int]:
    """The processes that run PgBouncer with a configuration below the root."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if Path(os.fsdecode(words[0])).name == "pgbouncer" and any(os.fsdecode(word).startswith(str(root)) for word in words):
            found.append(int(entry.name))
    return found
