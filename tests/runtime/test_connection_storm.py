"""Workers killed at random under load, also in the middle of transactions: the server never sees more than the budget."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from database_environments import options_for
from databases import PeakWatch
from environments import local, result, run
from processes import wait_until

if TYPE_CHECKING:
    from perinvoke.local import LocalEnvironment, Outcome

FUNCTIONS = Path(__file__).parent / "functions"
WORKERS = 16
BUDGET = 4
KILLS = 100
INVOCATIONS = 800
CALLERS = 24


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_hundred_killed_workers_never_bring_more_connections_than_the_budget(own_postgres, root):
    own_postgres.execute("CREATE TABLE account (id int PRIMARY KEY, balance int)")
    options = options_for("budget", own_postgres, root, connections=BUDGET)

    async def scenario() -> None:
        where = {"workers": WORKERS, "directory": FUNCTIONS, "timeout_seconds": 20}
        async with local("sessions.both", **where, **options) as environment:
            storm = Storm(environment)
            with PeakWatch(own_postgres) as watch:
                await storm.blow()
                assert await environment.wait_complete(20)
                assert watch.peak <= BUDGET, watch.states
                watch.reset()
                await storm.all_serve()
                assert 0 < watch.peak <= BUDGET, watch.states
            assert watch.samples > KILLS
            lost = [outcome for outcome in storm.outcomes if not outcome.ok]
            assert {outcome.error_type for outcome in lost} == {"WorkerDied"}, lost
            assert len(lost) <= KILLS
            assert len(storm.killed) == KILLS
            await asyncio.sleep(0.1)
            figures = result(await environment.invoke(json.dumps({"stats": True}).encode()))
            assert figures["max_connections"] == BUDGET
            assert 0 < figures["open"] <= BUDGET
            assert (figures["in_use"], figures["waiting"], figures["leaks"]) == (0, 0, 0)

    run(scenario(), 220)
    wait_until(lambda: own_postgres.connection_count() == 0)


class Storm:
    """Lives as long as its environment."""

    def __init__(self, environment: LocalEnvironment) -> None:
        self.environment = environment
        self.outcomes: list[Outcome] = []
        self.killed: set[int] = set()
        self._random = random.Random(4)

    async def blow(self) -> None:
        numbers = iter(range(INVOCATIONS))

        async def caller() -> None:
            for number in numbers:
                event = {"seconds": 0.05 if number % 3 == 0 else 0}
                self.outcomes.append(await self.environment.invoke(json.dumps(event).encode()))

        async with asyncio.TaskGroup() as tasks:
            for _ in range(CALLERS):
                tasks.create_task(caller())
            tasks.create_task(self._kill())

    async def _kill(self) -> None:
        """Spread over the load by the number of answers, and so over any machine's pace."""
        while len(self.killed) < KILLS:
            living = [pid for pid in self.environment.worker_pids if pid not in self.killed]
            due = len(self.outcomes) * KILLS >= len(self.killed) * INVOCATIONS * 0.95
            if living and due:
                pid = self._random.choice(living)
                os.kill(pid, signal.SIGKILL)
                self.killed.add(pid)
            await asyncio.sleep(self._random.uniform(0.001, 0.02))

    async def all_serve(self) -> None:
        """Some invocations on every worker; all succeed."""
        served: set[int] = set()
        async with asyncio.timeout(30):
            while not served.issuperset(self.environment.worker_pids):
                calls = [self.environment.invoke(b'{"wait_seconds": 0.02}') for _ in range(2 * WORKERS)]
                served |= {result(outcome)["worker"] for outcome in await asyncio.gather(*calls)}
