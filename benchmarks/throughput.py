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
        found = asyncio.run(_taking_turns(folder, (bare, ours), rounds=rounds, requests=requests))
        rows.append(
            Row(f"throughput of {WORKERS} workers, {what}, isolated", Unit.PER_SECOND, found[1], "bare", found[0], _TARGET)
        )
    return rows


async def _taking_turns(folder: Path, handlers: tuple[str, str], *, rounds: int, requests: int) -> tuple[Measured, Measured]:
    """Rates of the bare handler and of the isolated one, in the order bare, isolated, isolated, bare, and so on."""
    rates: tuple[list[float], list[float]] = ([], [])
    async with contextlib.AsyncExitStack() as stack:
        environments = [
            await stack.enter_async_context(_environment(folder, handler, isolate=bool(number)))
            for number, handler in enumerate(handlers)
        ]
        for number in range(-2, rounds):
            for which in (0, 1) if number % 2 else (1, 0):
                rate = await _rate(environments[which], requests)
                if number >= 0:
                    rates[which].append(rate)
    return _measured(rates[0]), _measured(rates[1])


def _environment(folder: Path, handler: str, *, isolate: bool) -> LocalEnvironment:
    config = LocalConfig(
        handler=f"throughput_handlers.{handler}",
        workers=WORKERS,
        directory=Path(__file__).parent,
        env={"TMPDIR": str(folder), "PERINVOKE_ROOT": str(folder / "root")},
        isolate=isolate,
        queue=True,  # a worker that has answered needs a moment until it asks for more
    )
    return LocalEnvironment(config)


async def _rate(environment: LocalEnvironment, requests: int) -> float:
    report = await drive(environment, [b"{}"], requests=requests, concurrency=WORKERS)
    if report.failed:
        raise RuntimeError(f"{report.failed} of {requests} invocations failed: {report.errors} {report.samples}")
    return report.per_second


def _measured(rates: Sequence[float]) -> Measured:
    return Measured(tuple(rates), tuple(rates))
