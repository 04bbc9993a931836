"""The end of the environment by the clock: handlers may end, are interrupted, are killed. Pure."""

from __future__ import annotations

from enum import IntEnum

_FOREVER = float("inf")


class StopStage(IntEnum):
    """How far the end has come."""

    RUNNING = 0
    ENDING = 1  # each worker ends after its invocation
    INTERRUPTED = 2  # handlers have been interrupted
    KILLED = 3  # workers have been killed


# When the stage after this one begins, as a share of the time there is. The rest is for answering.
_SHARES = {StopStage.ENDING: 0.4, StopStage.INTERRUPTED: 0.7}


class StopPlan:
    """Lives as long as the parent. ``seconds`` is what the platform gives between SIGTERM and SIGKILL."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.stage = StopStage.RUNNING
        self._began = _FOREVER

    @property
    def is_stopping(self) -> bool:
        """The end has begun."""
        return self.stage is not StopStage.RUNNING

    @property
    def next_at(self) -> float:
        """When the next stage begins, on the clock that ``begin`` was told; infinite if none will by itself."""
        share = _SHARES.get(self.stage)
        return _FOREVER if share is None else self._began + share * self.seconds

    def begin(self, now: float) -> bool:
        """The end begins; whether it hadn't before."""
        if self.is_stopping:
            return False
        self._began, self.stage = now, StopStage.ENDING
        return True

    def advance(self, now: float) -> StopStage | None:
        """The stage that begins now, if one does."""
        if now < self.next_at:
            return None
        self.stage = StopStage(self.stage + 1)
        return self.stage
