"""How every benchmark measures: many short rounds, in each of which all contenders take their turn.

A machine that others use too gets slower and faster while one looks. So contenders are never measured one after the other: a
round measures each for a few milliseconds, the next round begins with the other end, and what is compared is the ratio *within*
a round. The median of those ratios doesn't care that one round was disturbed.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Block = Callable[[], Sequence[float]]  # one contender's turn in a round: the seconds of each call


@dataclass(frozen=True)
class Measured:
    """What one contender took: in each round on average, and in each call. Seconds, or another unit that a block gives."""

    rounds: tuple[float, ...]
    calls: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median of the rounds' means: a mean, so that work put off from one call to a later one is counted."""
        return statistics.median(self.rounds)

    @property
    def p95(self) -> float:
        """What 95 of 100 calls didn't exceed."""
        return percentile(self.calls, 0.95)

    def ratio_to(self, other: Measured) -> float:
        """The median of ``self / other``, each taken within one round."""
        return statistics.median(ours / theirs for ours, theirs in zip(self.rounds, other.rounds, strict=True))

    def above(self, other: Measured) -> Measured:
        """What this took more than ``other`` in the same round; its calls are compared with the other's mean in all rounds."""
        base = other.median
        return Measured(
            rounds=tuple(ours - theirs for ours, theirs in zip(self.rounds, other.rounds, strict=True)),
            calls=tuple(call - base for call in self.calls),
        )


def interleaved(blocks: Mapping[str, Block], *, rounds: int, warm_up: int = 1) -> dict[str, Measured]:
    """Measure all ``blocks`` side by side: ``warm_up`` rounds that don't count, then ``rounds`` that do.

    The order turns round from one round to the next, so that nobody always runs into what another left behind.
    """
    taken: dict[str, list[Sequence[float]]] = {name: [] for name in blocks}
    order = list(blocks)
    for number in range(-warm_up, rounds):
        for name in order if number % 2 else reversed(order):
            calls = blocks[name]()
            if number >= 0:
                taken[name].append(calls)
    return {
        name: Measured(
            rounds=tuple(statistics.fmean(calls) for calls in turns),
            calls=tuple(call for calls in turns for call in calls),
        )
        for name, turns in taken.items()
    }


def timed(call: Callable[[], object], times: int) -> list[float]:
    """The seconds of each of ``times`` calls. The clock itself adds about 0.1 µs to each."""
    clock = time.perf_counter
    seconds = []
    for _ in range(times):
        began = clock()
        call()
        seconds.append(clock() - began)
    return seconds


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of them don't exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]
