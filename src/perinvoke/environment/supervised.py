"""The runtime's parent, as far as a worker can ask something of it."""

from __future__ import annotations

from typing import Protocol


class Supervisor(Protocol):
    """Lives as long as the worker. Safe to call in signal handlers and from any thread."""

    def replace_at(self, at_monotonic: float, timeout_seconds: float) -> None:
        """End this worker at that second of CLOCK_MONOTONIC and answer its caller with InvocationTimeout; 0.0 takes it back."""


supervisor: Supervisor | None = None  # set in a worker that perinvoke's exec wrapper has forked
