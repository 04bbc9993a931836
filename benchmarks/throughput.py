"""Throughput on the real runtime client with 8 workers, bare against isolated: rows of ``overhead.py``."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from measure import Measured
from perinvoke.local import LocalConfig, LocalEnvironment, drive
from results import Row, Target, Unit

if TYPE_CHECKING:
    from collections.abc import Sequence

WORKERS = 8
_TARGET = Target(0.97, at_least=True)
_PAIRS = (
    ("a handler that only answers", "trivial", "trivial"),
    ("a handler that writes and reads one file", "one_unique_file", "one_file"),
    ("a handler that waits 10 ms for a service", "waiting", "waiting"),
)


def throughput_rows(folder: Path, *, rounds: int, requests: int) -> list[Row]:
    """Both environments are alive at the same time and take turns of ``requests`` invocations; the idle one only waits."""
    rows = []
    for what, bare, ours in _PAIRS:
        configs = _config(folder, bare, isolate=False), _config(folder, ours, isolate=True)
        found = asyncio.run(taking_turns(*configs, rounds=rounds, requests=requests))
        rows.append(
            Row(f"throughput of {WORKERS} workers, {what}, isolated", Unit.PER_SECOND, found[1], "bare", found[0], _TARGET)
        )
    return rows


async def taking_turns(bare: LocalConfig, ours: LocalConfig, *, rounds: int, requests: int) -> tuple[Measured, Measured]:
    """The rates of two environments, both alive, in the order bare, ours, ours, bare, and so on."""
    rates: tuple[list[float], list[float]] = ([], [])
    async with contextlib.AsyncExitStack() as stack:
        environments = [await stack.enter_async_context(LocalEnvironment(config)) for config in (bare, ours)]
        for number in range(-2, rounds):
            for which in (0, 1) if number % 2 else (1, 0):
                rate = await _rate(environments[which], requests)
                if number >= 0:
                    rates[which].append(rate)
    return _measured(rates[0]), _measured(rates[1])


def _config(folder: Path, handler: str, *, isolate: bool) -> LocalConfig:
    return LocalConfig(
        handler=f"throughput_handlers.{handler}",
        workers=WORKERS,
        directory=Path(__file__).parent,
        env={"TMPDIR": str(folder), "PERINVOKE_ROOT": str(folder / "root")},
        isolate=isolate,
        queue=True,  # a worker that has answered needs a moment until it asks for more
    )


async def _rate(environment: LocalEnvironment, requests: int) -> float:
    report = await drive(environment, [b"{}"], requests=requests, concurrency=environment.config.workers)
    if report.failed:
        raise RuntimeError(f"{report.failed} of {requests} invocations failed: {report.errors} {report.samples}")
    return report.per_second


def _measured(rates: Sequence[float]) -> Measured:
    return Measured(tuple(rates), tuple(rates))
