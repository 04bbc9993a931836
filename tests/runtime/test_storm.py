"""Workers killed at random under load, and replaced: every caller is answered, nothing foreign seen, nothing of the dead left.

Behind the exec wrapper, which replaces dead workers and answers their callers, so that the load goes on.
"""

from __future__ import annotations

import asyncio
import collections
import fcntl
import functools
import json
import os
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from perinvoke.local import LocalConfig, LocalEnvironment, Outcome
from perinvoke.local.outcome import Status
from processes import alive, wait_until

HERE = Path(__file__).parent
WORKERS = 16
INVOCATIONS = 6_000
KILLS = 300
# More than any of these invocations takes on a busy machine.
TIMEOUT_SECONDS = 10.0
CALLERS = 32
# How long the living may take to find what the dead left; they look about once a second.
CLEANUP_SECONDS = 15.0


def environment(root: Path, handler: str = "storm.handler", **options: Any) -> LocalEnvironment:
    env = {"PERINVOKE_ROOT": str(root), **options.pop("env", {})}
    defaults = {"workers": WORKERS, "timeout_seconds": TIMEOUT_SECONDS, "queue": True, "directory": HERE / "functions"}
    return LocalEnvironment(LocalConfig(handler=handler, env=env, **{**defaults, **options}))


class Storm:
    """One storm: what was sent, what came back, who was killed. Lives as long as its environment."""

    def __init__(self, local: LocalEnvironment, root: Path, counters: Path) -> None:
        self.local, self.root, self.counters = local, root, counters
        self.outcomes: list[Outcome] = []
        self.killed: set[int] = set()
        self.seen: set[int] = set()
        self.homes: dict[int, set[str]] = collections.defaultdict(set)
        self.findings: list[str] = []
        self.counted: collections.Counter[str] = collections.Counter()

    async def invoke(self, number: int, **fields: Any) -> Outcome:
        event = {"number": number, "counters": str(self.counters), **fields}
        outcome = await self.local.invoke(json.dumps(event).encode())
        if outcome.ok:
            answer = json.loads(outcome.payload)
            self.findings += answer["findings"]
            self.counted.update(filter(None, [answer["counted"]]))
            self.homes[answer["pid"]].update(filter(None, [answer["home"]]))
        return outcome

    async def load(self) -> None:
        numbers = iter(range(INVOCATIONS))

        async def caller() -> None:
            for number in numbers:
                self.outcomes.append(await self.invoke(number))

        async with asyncio.TaskGroup() as tasks:
            for _ in range(CALLERS):
                tasks.create_task(caller())
            tasks.create_task(self.kill())

    async def kill(self) -> None:
        """Spread over the load by the number of answers, and so over any machine's pace."""
        generator = random.Random(1)
        while len(self.killed) < KILLS:
            self.seen.update(self.local.worker_pids)
            living = [pid for pid in self.local.worker_pids if pid not in self.killed]
            due = len(self.outcomes) * KILLS >= len(self.killed) * INVOCATIONS * 0.95
            if living and due:
                pid = generator.choice(living)
                os.kill(pid, signal.SIGKILL)
                self.killed.add(pid)
            await asyncio.sleep(0.001)

    async def all_serve(self, numbers: range) -> None:
        """Some invocations on every worker, the ones just started included; all succeed."""
        served: set[int] = set()
        until = time.monotonic() + 30
        while len(self.local.worker_pids) < WORKERS or not served.issuperset(self.local.worker_pids):
            assert time.monotonic() < until, f"only {sorted(served)} of {self.local.worker_pids} serve after 30 seconds"
            outcomes = await asyncio.gather(*(self.invoke(number, pause_seconds=0.01) for number in numbers))
            assert [outcome for outcome in outcomes if not outcome.ok] == []
            served |= {json.loads(outcome.payload)["pid"] for outcome in outcomes}

    async def cleaned_up(self, files: dict[str, int]) -> list[str]:
        """Serve until nothing is amiss; what still is after a while."""
        until = time.monotonic() + CLEANUP_SECONDS
        while complaints := amiss(self.root, self.local.worker_pids, files):
            if time.monotonic() > until:
                break
            await self.all_serve(range(2 * WORKERS))
            await asyncio.sleep(0.2)
        return complaints


def amiss(root: Path, living: tuple[int, ...], files: dict[str, int]) -> list[str]:
    """What is not as it should be below a root where no invocation runs and only ``living`` workers live."""
    homes = listed(root, "worker-*")
    pids = [int(home.name.split("-")[1]) for home in homes]
    found = files_below(root)
    return [
        *(f"{home} is of a dead worker" for home, pid in zip(homes, pids, strict=True) if pid not in living),
        *(f"worker {pid} has {pids.count(pid)} directories" for pid in living if pids.count(pid) != 1),
        *(f"{home} is not locked" for home in homes if not is_locked(home)),
        *(f"{home} holds {os.listdir(home)}" for home in homes if is_in_use(home)),
        *(f"left: {building}" for building in listed(root, "shared/*/building-*")),
        *(f"{lock} is held" for lock in [*listed(root, "locks/*"), *listed(root, "shared/*/lock")] if is_locked(lock)),
        *(f"{generation} is in use" for generation in listed(root, "shared/*/*-*") if is_locked(generation)),
        *([] if found == files else [f"other files: {sorted(found.items() ^ files.items())}"]),
    ]


def is_in_use(home: Path) -> bool:
    """Whether a worker's directory holds more than its trash and what is prepared, all empty."""
    folders = [Path(folder) for folder, _, _ in os.walk(home)]
    return len(folders) > 3 or any(folder.parent != home for folder in folders[1:])


def is_locked(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def files_below(root: Path) -> dict[str, int]:
    """The size of every file, by its path without what differs from build to build."""
    found: dict[str, int] = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            told = re.sub(r"/[0-9a-f]+-[0-9a-f]+-[0-9a-f]+-\d+-[0-9a-f]+-[0-9a-f]+", "/GENERATION", str(path.relative_to(root)))
            if told in found:
                told = str(path)  # a second generation of a shared file
            try:
                found[told] = path.stat().st_size
            except FileNotFoundError:
                continue
    return found


def lasting_files_below(root: Path) -> dict[str, int]:
    """The same without second generations: one that was just superseded goes within a second, another comes in its place."""
    return {told: size for told, size in files_below(root).items() if not told.startswith("/")}


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_three_hundred_killed_workers_cost_their_own_invocations_and_nothing_else(root, tmp_path):
    counters = tmp_path / "counters"
    counters.mkdir()

    async def scenario() -> None:
        async with environment(root, supervise=True, preload="handler") as local:
            storm = Storm(local, root, counters)
            await storm.all_serve(range(20 * WORKERS))
            files = lasting_files_below(root)
            assert await storm.cleaned_up(files) == []
            await storm.load()
            await storm.all_serve(range(2 * WORKERS))
            assert_only_the_killed_were_lost(storm)
            assert await storm.cleaned_up(files) == []
            assert set(storm.local.worker_pids) == storm.seen.union(storm.local.worker_pids) - storm.killed
            kept = {pid: {str(path) for path in listed(root, f"worker-{pid}-*")} for pid in local.worker_pids}
            assert kept == {pid: storm.homes[pid] for pid in local.worker_pids}

    asyncio.run(asyncio.wait_for(scenario(), 220))


def listed(root: Path, pattern: str) -> list[Path]:
    """What matches, while directories may be removed under it: there glob fails on 3.11."""
    for _ in range(100):
        try:
            return sorted(root.glob(pattern))
        except FileNotFoundError:
            continue
    raise AssertionError(f"{root} never stands still")


def assert_only_the_killed_were_lost(storm: Storm) -> None:
    assert len(storm.outcomes) == INVOCATIONS
    assert len(storm.killed) == KILLS
    lost = [outcome for outcome in storm.outcomes if not outcome.ok]
    assert [outcome for outcome in lost if outcome.error_type != "WorkerDied"] == []
    assert [outcome for outcome in lost if outcome.worker_pid not in storm.killed] == []
    assert len({outcome.worker_pid for outcome in lost}) == len(lost) <= KILLS
    assert lost, "no kill met an invocation"
    assert storm.findings == []
    assert {pid: homes for pid, homes in storm.homes.items() if len(homes) > 1} == {}, "directories of living workers were lost"
    for name, counted in storm.counted.items():
        assert counted <= int((storm.counters / name).read_text()) <= counted + len(lost)


HOW = ("knows it by TMPDIR", "works in it", "has a file open", "was forked")


def test_a_killed_workers_directory_stays_while_a_child_of_it_lives(root, tmp_path):
    async def scenario() -> None:
        async with environment(root, "storm.parent", workers=len(HOW) + 1, timeout_seconds=3.0) as local:
            told = [tmp_path / how.replace(" ", "-") for how in HOW]
            events = [json.dumps({"how": how, "told": str(path)}).encode() for how, path in zip(HOW, told, strict=True)]
            outcomes = await asyncio.gather(*(local.invoke(event) for event in events))
            assert {outcome.status for outcome in outcomes} == {Status.TIMED_OUT}, outcomes
            children = dict(parsed(path.read_text()) for path in told)
            try:
                await serve(local, seconds=3.5)
                for (child, log), how in zip(children.items(), HOW, strict=True):
                    assert alive(child), how
                    assert log.exists(), f"the directory of a child that {how} is gone"
                    wait_until(functools.partial(is_larger, log, than_bytes=log.stat().st_size))
            finally:
                for child in children:
                    os.kill(child, signal.SIGKILL)
            until = time.monotonic() + CLEANUP_SECONDS
            while (left := [log for log in children.values() if log.parent.parent.exists()]) and time.monotonic() < until:
                await serve(local, seconds=0.2)
            assert left == []
            assert [path.name.split("-")[1] for path in root.iterdir()] == [str(pid) for pid in local.worker_pids]

    asyncio.run(asyncio.wait_for(scenario(), 60))


def is_larger(log: Path, *, than_bytes: int) -> bool:
    return log.stat().st_size > than_bytes


def parsed(line: str) -> tuple[int, Path]:
    pid, _, log = line.partition(" ")
    return int(pid), Path(log)


async def serve(local: LocalEnvironment, *, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        outcome = await local.invoke(b"{}")
        assert outcome.ok, outcome
        await asyncio.sleep(0.01)
