"""Messages delivered eight times over sixteen workers of which some are killed: how often the effect happens, by a ledger.

A run that is killed between its effect and the note of it can't be told from one that was killed before its effect: its retry has
the effect again. So there are two storms. In the first one kills strike at random everywhere but there, and every effect happens
once. In the second one they strike there too, and every effect that is one too many is that of a killed run.
"""

from __future__ import annotations

import asyncio
import collections
import fcntl
import json
import os
import random
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from environments import run
from perinvoke.local import LocalConfig, LocalEnvironment
from processes import Process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from perinvoke.local import Outcome

FUNCTIONS = Path(__file__).parent / "functions"
# Half of all the work is moto's. In a process of its own it takes no turns with who delivers. For each line it makes a table.
SERVER = f"""
import json
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from dynamodb_server import DynamoDb
with DynamoDb() as server:
    for _ in sys.stdin:
        print(json.dumps({{"TABLE": server.table(), **server.variables()}}), flush=True)
"""
WORKERS = 16
DELIVERIES = 8
IN_A_BATCH = 4
BATCHES_AT_ONCE = 3
# Until then the record of a killed run keeps its retries out. Far more than a batch takes: an interrupt would be a kill, too.
TIMEOUT_SECONDS = 6.0


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    with Process(SERVER) as process:
        yield process


@pytest.fixture
def table(server: Process) -> dict[str, str]:
    """What a function's environment needs for a table of this test's own."""
    assert server.popen.stdin is not None
    server.popen.stdin.write("\n")
    server.popen.stdin.flush()
    variables: dict[str, str] = json.loads(server.line())
    return variables


class Storm:
    """What is delivered, until each delivery has succeeded, as a queue does; lives as long as its environment."""

    def __init__(self, local: LocalEnvironment, windows: Path, pause_seconds: float) -> None:
        self.local, self.windows, self.pause_seconds = local, windows, pause_seconds
        self.runs: dict[str, list[str]] = collections.defaultdict(list)  # which run's result each delivery got
        self.answered = 0
        self.failed: list[Outcome] = []
        self.killed: set[int] = set()
        self._random = random.Random(6)

    async def blow(self, keys: Sequence[str], kills: int, kill: Callable[[int], bool]) -> None:
        batches = iter([keys[at : at + IN_A_BATCH] for at in range(0, len(keys), IN_A_BATCH)])

        async def deliver_some() -> None:
            for batch in batches:
                await asyncio.gather(*(self.deliver(self._random.sample(batch, len(batch))) for _ in range(DELIVERIES)))

        async def strike() -> None:
            """Spread over the load by the number of answers, and so over any machine's pace; the last ones aren't waited for."""
            while len(self.killed) < kills:
                pid = self._random.choice(self.local.worker_pids or (0,))
                due = self.answered * kills >= len(self.killed) * len(keys) * DELIVERIES * 0.7
                if due and pid and pid not in self.killed and kill(pid):
                    self.killed.add(pid)
                await asyncio.sleep(self._random.uniform(0.0005, 0.005))

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(strike())
            for _ in range(BATCHES_AT_ONCE):
                tasks.create_task(deliver_some())

    async def deliver(self, keys: list[str]) -> None:
        """One copy of each message, until each has succeeded."""
        while keys:
            records = [{"eventSource": "aws:sqs", "messageId": key, "body": str(self.pause_seconds)} for key in keys]
            outcome = await self.local.invoke(json.dumps({"Records": records}).encode())
            if outcome.ok:
                told = json.loads(outcome.payload)
                for key, its_run in told["runs"].items():
                    self.runs[key].append(its_run)
                self.answered += len(told["runs"])
                keys = [failure["itemIdentifier"] for failure in told["batchItemFailures"]]
            else:
                self.failed.append(outcome)
            if keys:
                await asyncio.sleep(0.3)

    def kill_outside_the_window(self, pid: int) -> bool:
        """Who isn't there can't get there any more, and is killed."""
        fd = os.open(self.windows / str(pid), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return self.kill(pid)
        except BlockingIOError:
            return False
        finally:
            os.close(fd)

    def kill(self, pid: int) -> bool:
        os.kill(pid, signal.SIGKILL)
        return True


def blown(
    table: dict[str, str], root: Path, folder: Path, *, keys: Sequence[str], kills: int, anywhere: bool
) -> tuple[Storm, list[tuple[str, str, int]]]:
    """A storm that is over, and what is in the ledger: keys, runs, and the workers that ran them."""
    ledger, windows = folder / "ledger", folder / "windows"
    ledger.touch()
    windows.mkdir()
    variables = {"LEDGER": str(ledger), "WINDOWS": str(windows), "PERINVOKE_ROOT": str(root)}
    config = LocalConfig(
        handler="idempotency.handler",
        workers=WORKERS,
        timeout_seconds=TIMEOUT_SECONDS,
        directory=FUNCTIONS,
        queue=True,
        preload="handler",
        env={**variables, **table},
    )

    async def scenario() -> Storm:
        async with LocalEnvironment(config) as local:
            storm = Storm(local, windows, 0.05 if anywhere else 0)  # after the effect, to be met there
            await storm.blow(keys, kills, storm.kill if anywhere else storm.kill_outside_the_window)
            return storm

    storm = run(scenario(), 180)
    lines = [line.split() for line in ledger.read_text().splitlines()]
    return storm, [(key, request_id, int(pid)) for key, request_id, pid in lines]


def assert_all_were_served(storm: Storm, keys: Sequence[str], kills: int) -> None:
    assert {key: len(runs) for key, runs in storm.runs.items()} == dict.fromkeys(keys, DELIVERIES)
    assert len(storm.killed) == kills
    assert {outcome.error_type for outcome in storm.failed} == {"WorkerDied"}, "no kill met an invocation, or others failed"
    assert {outcome.worker_pid for outcome in storm.failed} <= storm.killed


def orders(count: int) -> list[str]:
    return [f"order-{number}" for number in range(count)]


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_five_hundred_keys_delivered_eight_times_while_workers_die_have_one_effect_each(table, root, tmp_path):
    keys, kills = orders(500), 40
    storm, ledger = blown(table, root, tmp_path, keys=keys, kills=kills, anywhere=False)
    assert_all_were_served(storm, keys, kills)
    assert collections.Counter(key for key, _, _ in ledger) == dict.fromkeys(keys, 1)
    # And all eight were answered with what that one run returned.
    assert {key: set(runs) for key, runs in storm.runs.items()} == {key: {request_id} for key, request_id, _ in ledger}


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_an_effect_too_many_is_that_of_a_run_that_was_killed_before_it_could_be_noted(table, root, tmp_path):
    keys, kills = orders(40), 16
    storm, ledger = blown(table, root, tmp_path, keys=keys, kills=kills, anywhere=True)
    assert_all_were_served(storm, keys, kills)
    of_each: dict[str, list[tuple[str, int]]] = collections.defaultdict(list)
    for key, request_id, pid in ledger:
        of_each[key].append((request_id, pid))
    assert of_each.keys() == set(keys)
    died = {outcome.request_id for outcome in storm.failed}
    for key, effects in of_each.items():
        *too_many, (last, _) = effects
        assert {request_id for request_id, _ in too_many} <= died, key
        assert {pid for _, pid in too_many} <= storm.killed, key
        assert set(storm.runs[key]) == {last}, key
    assert len(ledger) - len(keys) <= kills
