"""When workers can't start: how long to wait with a replacement, and when to give up. Pure."""

from __future__ import annotations

# How long a replacement waits when workers die, in a row, that had not asked for an invocation: 0, 0.1, 0.2, ... 5 s.
_FIRST_DELAY_SECONDS = 0.1
_LONGEST_DELAY_SECONDS = 5.0
# Before any worker was ready they may all be about to die: then none is replaced, as without a supervisor. Workers that were
# started together die within less.
_INIT_DELAY_SECONDS = 1.0
# So many in a row, and more than there are workers, end the environment. With one worker that takes about six seconds.
_TOO_MANY = 8


class EarlyDeaths:
    """The workers that died, in a row, before they asked for an invocation; lives as long as the parent.

    Attributes:
        count: of them.
        was_ready: some worker has asked for an invocation, ever: workers can start.
    """

    def __init__(self) -> None:
        self.count = 0
        self.was_ready = False

    def worker_ready(self) -> None:
        """A worker asks for its first invocation."""
        self.count, self.was_ready = 0, True

    def worker_died(self, *, ready: bool) -> None:
        """A worker died; ``ready``: it had asked for an invocation."""
        self.count += not ready

    def delay_seconds(self, *, ready: bool) -> float:
        """How long the replacement of a worker that died should wait."""
        if not self.was_ready:
            return _INIT_DELAY_SECONDS
        if ready or self.count < 2:  # noqa: PLR2004  # the first is an accident
            return 0.0
        return min(_FIRST_DELAY_SECONDS * 2.0 ** (self.count - 2), _LONGEST_DELAY_SECONDS)

    def is_crash_loop(self, *, workers: int, living: int) -> bool:
        """Whether the environment had better be replaced, where of so many workers so many live."""
        if not self.was_ready and not living:
            return True  # init has failed, as it does without a supervisor
        return self.count >= max(_TOO_MANY, workers + 1)
