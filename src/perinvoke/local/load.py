"""Drives a load through an environment and measures it."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from perinvoke.local.outcome import Outcome, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from perinvoke.local.environment import LocalEnvironment


INVOCATION_TIMEOUT = "InvocationTimeout"  # the error type by which perinvoke tells of it
# What a worker that died near the load's end gets to be replaced before the workers are counted; enough for a slow import.
_REPLACEMENT_SECONDS = 5.0


@dataclass(frozen=True)
class LoadReport:
    """What a load came to. Latencies are what callers saw, in seconds, of the invocations that reached a worker."""

    seconds: float
    latencies: tuple[float, ...]
    outcomes: dict[Status, int]
    errors: dict[str, int] = field(default_factory=dict)  # by error type
    samples: dict[str, str] = field(default_factory=dict)  # one message for each error type
    workers: int = 0
    workers_left: int = 0
    supervised: bool = False
    replaced: int = 0  # worker processes that came during the load in the place of others
    gone: str | None = None

    @property
    def requests(self) -> int:
        """How many invocations were sent."""
        return sum(self.outcomes.values())

    @property
    def failed(self) -> int:
        """Everything that wasn't answered by the handler's result."""
        return self.requests - self.outcomes.get(Status.OK, 0)

    @property
    def interrupted(self) -> int:
        """Of the function errors, those by which perinvoke told of a handler that was still running when its time was over."""
        return self.errors.get(INVOCATION_TIMEOUT, 0)

    @property
    def per_second(self) -> float:
        """Invocations that were answered, by whatever, per second."""
        return self.requests / self.seconds if self.seconds > 0 else 0.0

    def latency(self, share: float) -> float:
        """The latency that ``share`` of the invocations didn't exceed; nan without any."""
        return percentile(self.latencies, share)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the sorted ``values`` that at least ``share`` of them don't exceed; nan without any."""
    if not values:
        return float("nan")
    return values[max(0, -int(-share * len(values) // 1) - 1)]


class _Tally:
    """Counts outcomes while a load runs."""

    def __init__(self) -> None:
        self.latencies: list[float] = []
        self.outcomes: Counter[Status] = Counter()
        self.errors: Counter[str] = Counter()
        self.samples: dict[str, str] = {}

    def add(self, outcome: Outcome, latency_seconds: float) -> None:
        self.outcomes[outcome.status] += 1
        if outcome.status not in (Status.REJECTED, Status.UNAVAILABLE):
            self.latencies.append(latency_seconds)
        if outcome.error_type is not None:
            self.errors[outcome.error_type] += 1
            if outcome.error_type not in self.samples:
                self.samples[outcome.error_type] = outcome.error_message


async def drive(
    environment: LocalEnvironment,
    events: Sequence[bytes],
    *,
    requests: int | None = None,
    concurrency: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> LoadReport:
    """Send ``requests`` invocations, ``concurrency`` at a time, and report. Stops early when the environment has ended.

    Args:
        environment: the environment, entered.
        events: taken in turn, over and over.
        requests: how many; one for each event if None.
        concurrency: callers that each wait for an answer before they call again; as many as workers if None.
        on_progress: called after every answer with the number of answers so far.
    """
    total = len(events) if requests is None else requests
    callers = min(total, environment.config.workers if concurrency is None else concurrency)
    source = zip(range(total), itertools.cycle(events), strict=False)
    tally = _Tally()

    async def call() -> None:
        for _, event in source:
            began = time.perf_counter()
            outcome = await environment.invoke(event)
            tally.add(outcome, time.perf_counter() - began)
            if on_progress is not None:
                on_progress(tally.outcomes.total())
            if environment.gone is not None:
                return  # all that would follow are unavailable
            if outcome.status is Status.REJECTED:
                await asyncio.sleep(0)  # a rejection comes without a wait; let the workers' answers in

    replaced_before = environment.workers_replaced
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(call())
    seconds = time.perf_counter() - began
    if environment.config.supervise:
        await environment.wait_complete(_REPLACEMENT_SECONDS)
    return LoadReport(
        seconds=seconds,
        latencies=tuple(sorted(tally.latencies)),
        outcomes=dict(tally.outcomes),
        errors=dict(tally.errors.most_common()),
        samples=tally.samples,
        workers=environment.config.workers,
        workers_left=environment.workers_left,
        supervised=environment.config.supervise,
        replaced=environment.workers_replaced - replaced_before,
        gone=environment.gone,
    )
