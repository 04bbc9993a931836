"""A disk that is far too small for what sixteen workers write at once: what callers are told, and that it passes."""

from __future__ import annotations

import asyncio
import collections
import json
import os
import random
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from perinvoke.local import LocalConfig, LocalEnvironment, Outcome
from perinvoke.local.outcome import Status
from processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

FUNCTIONS = Path(__file__).parent / "functions"
MEBIBYTE = 1024 * 1024
DISK_BYTES = 64 * MEBIBYTE
WORKERS = 16
WAYS = ("open", "text", "tempfile", "small files", "copyfile", "copy", "sqlite", "lock", "share", "share", "share")
# What shared files nobody uses may take, and with it the least that stays when the pressure ends.
SHARED_MAX_BYTES = 16 * MEBIBYTE


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own as PERINVOKE_ROOT."""
    yield from mounted_disk(tmp_path / "disk", "")


@pytest.fixture
def disk_of_few_files(tmp_path: Path) -> Iterator[Path]:
    """One that is full when it holds 200 files and directories; ext4 without a free block refuses directories just so."""
    yield from mounted_disk(tmp_path / "disk", ",nr_inodes=200")


def mounted_disk(path: Path, options: str) -> Iterator[Path]:
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700{options}", "none", str(path)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("a small disk is a mounted tmpfs, and there is no mount command")
    if mounted.returncode != 0:
        pytest.skip(f"a small disk is a mounted tmpfs, and mounting isn't allowed here: {mounted.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def environment(root: Path, **options: Any) -> LocalEnvironment:
    env = {"PERINVOKE_ROOT": str(root), **options.pop("env", {})}
    defaults = {"workers": WORKERS, "timeout_seconds": 60.0, "queue": True, "directory": FUNCTIONS}
    return LocalEnvironment(LocalConfig(handler="fills.handler", env=env, **{**defaults, **options}))


def used_bytes(path: Path) -> int:
    found = os.statvfs(path)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


async def invoke(local: LocalEnvironment, how: str, megabytes: float, **fields: Any) -> Outcome:
    return await local.invoke(json.dumps({"how": how, "megabytes": megabytes, "number": 0, **fields}).encode())


async def heavy_load(local: LocalEnvironment, source: Path) -> list[tuple[str, Outcome]]:
    """All workers at once, each with up to a fifth of the disk at a time."""
    generator = random.Random(1)
    numbers = iter(range(25 * WORKERS))
    outcomes: list[tuple[str, Outcome]] = []

    async def caller() -> None:
        for number in numbers:
            how, megabytes = generator.choice(WAYS), generator.choice((1, 3, 6, 12))
            fields = {"number": number, "source": str(source), "pause_seconds": 0.02, "keys": 4}
            outcomes.append((how, await invoke(local, how, megabytes, **fields)))

    async with asyncio.TaskGroup() as callers:
        for _ in range(WORKERS):
            callers.create_task(caller())
    return outcomes


async def modest_load(local: LocalEnvironment, source: Path) -> None:
    """Every way of writing, a little of it, until every worker has served; all succeed."""
    served: set[int] = set()
    for _ in range(20):
        ways = [*WAYS, *WAYS][:WORKERS]
        fields = {"source": str(source), "pause_seconds": 0.01}
        outcomes = await asyncio.gather(*(invoke(local, how, 0.25, number=n, **fields) for n, how in enumerate(ways)))
        assert [(how, outcome) for how, outcome in zip(ways, outcomes, strict=True) if not outcome.ok] == []
        served |= {json.loads(outcome.payload) for outcome in outcomes}
    assert served == set(local.worker_pids)


async def wait_until_used_at_most(path: Path, most_bytes: int, local: LocalEnvironment, source: Path) -> None:
    """What is removed after the answer takes a moment; what is looked for about once a second, a few."""
    until = time.monotonic() + 15
    while used_bytes(path) > most_bytes and time.monotonic() < until:
        await asyncio.sleep(0.2)
        await modest_load(local, source)
    assert used_bytes(path) <= most_bytes, subprocess.check_output(["du", "-ab", str(path)], text=True)


def test_a_full_disk_is_told_as_such_to_every_caller_and_passes(small_disk, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"x" * MEBIBYTE)

    async def scenario() -> None:
        async with environment(small_disk, env={"PERINVOKE_SHARED_MAX_BYTES": str(SHARED_MAX_BYTES)}) as local:
            workers = local.worker_pids
            outcomes = await heavy_load(local, source)
            failed = [(how, outcome) for how, outcome in outcomes if not outcome.ok]
            others = collections.Counter(
                (how, outcome.status.value, outcome.error_type, outcome.error_message.splitlines()[0])
                for how, outcome in failed
                if outcome.error_type != "ScratchFull"
            )
            assert others == {}
            assert failed, "the load was too small to fill the disk"
            assert len(failed) < len(outcomes), "nothing succeeded"
            for _, outcome in failed:
                assert outcome.status is Status.FUNCTION_ERROR
                assert "of 64.0 MiB free now" in outcome.error_message
                assert "Largest users: worker " in outcome.error_message or "Largest users: shared " in outcome.error_message
            await modest_load(local, source)
            await wait_until_used_at_most(small_disk, SHARED_MAX_BYTES + MEBIBYTE, local, source)
            assert local.worker_pids == workers

    asyncio.run(asyncio.wait_for(scenario(), 100))


def test_unused_shared_files_make_room_for_a_large_one(small_disk):
    async def scenario() -> None:
        async with environment(small_disk, workers=2) as local:
            for number in range(5):
                assert (await invoke(local, "share", 8, number=number, keys=5)).ok
            assert used_bytes(small_disk) >= 40 * MEBIBYTE
            outcome = await invoke(local, "share", 48)
            assert outcome.ok, outcome
            assert 48 * MEBIBYTE <= used_bytes(small_disk) < DISK_BYTES

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_shared_file_that_alone_is_larger_than_the_disk_is_refused_and_leaves_nothing(small_disk):
    async def scenario() -> None:
        async with environment(small_disk, workers=2) as local:
            assert (await invoke(local, "share", 8)).ok
            outcome = await invoke(local, "share", 72)
            assert outcome.error_type == "ScratchFull"
            assert "shared file '72-0' can't be built" in outcome.error_message
            wait_until(lambda: used_bytes(small_disk) < MEBIBYTE)  # what is removed after the answer takes a moment
            assert (await invoke(local, "open", 40)).ok

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_full_disk_is_told_as_such_when_the_error_names_what_is_gone_by_then(small_disk, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"x" * MEBIBYTE)

    async def scenario() -> None:
        async with environment(small_disk, workers=1) as local:
            outcome = await invoke(local, "copy for a moment", 80, source=str(source))
            assert outcome.error_type == "ScratchFull", outcome.error_message

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_worker_whose_first_scratch_takes_the_last_file_of_the_disk_serves_on(disk_of_few_files):
    async def scenario() -> None:
        async with environment(disk_of_few_files, workers=1) as local:
            assert (await invoke(local, "every last file", 0)).error_type == "ScratchFull"
            wait_until(lambda: os.statvfs(disk_of_few_files).f_favail > 100)
            assert (await invoke(local, "open", 1)).ok

    asyncio.run(asyncio.wait_for(scenario(), 60))
