"""When PgBouncer dies: how long to wait before it is started again, and when to give up. Pure."""

from __future__ import annotations

# One that has lived for so long had nothing wrong with it when it was started.
_HEALTHY_SECONDS = 1.0
# How long the next waits, after deaths in a row that came sooner: 0, 0.1, 0.2, … 1.6 s.
_FIRST_DELAY_SECONDS = 0.1
# So many in a row, which take three seconds, and the environment had better be replaced: it can't serve without.
_TOO_MANY = 7


class Restarts:
    """The deaths in a row that came too soon; lives as long as the extension."""

    def __init__(self) -> None:
        self.early_deaths = 0

    def died(self, lived_seconds: float) -> None:
        """It has died, after it had lived for so long."""
        self.early_deaths = 0 if lived_seconds >= _HEALTHY_SECONDS else self.early_deaths + 1

    def delay_seconds(self) -> float:
        """How long the next one waits."""
        if self.early_deaths < 2:  # noqa: PLR2004 - the first is an accident
            return 0.0
        return _FIRST_DELAY_SECONDS * 2.0 ** (self.early_deaths - 2)

    def are_too_many(self) -> bool:
        """Whether it is no use."""
        return self.early_deaths >= _TOO_MANY
