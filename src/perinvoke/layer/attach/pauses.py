"""Waiting for AWS: growing pauses with chance in them, so that many who were refused together don't come back together."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Seconds. The first pause is for what ends at once; the longest for who watches a terminal. Arbitrary.
FIRST_SECONDS = 0.25
LONGEST_SECONDS = 5.0
_TELL_EVERY_SECONDS = 10.0


def pauses(seconds: float, tell: Callable[[str], object] | None = None) -> Iterator[float]:
    """Pause, and give how long it has been so far; ends when that is ``seconds``, with one last turn.

    Args:
        seconds: how long altogether.
        tell: takes a line now and then, so that nobody thinks that all has stopped.
    """
    began = told = time.monotonic()
    pause = FIRST_SECONDS
    while (waited := time.monotonic() - began) < seconds:
        time.sleep(min(random.uniform(pause / 2, pause), seconds - waited))  # noqa: S311  # no secret
        pause = min(2 * pause, LONGEST_SECONDS)
        now = time.monotonic()
        if tell is not None and now - told >= _TELL_EVERY_SECONDS:
            told = now
            tell(f"... {now - began:.0f} s")
        yield now - began
