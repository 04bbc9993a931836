"""What came of each zip in each region. Facts only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from perinvoke.layer.publish.plan import Target


class Outcome(Enum):
    """How far it came, in the words of the table."""

    PUBLISHED = "published"
    THERE = "there already"
    FAILED = "failed"
    WOULD_PUBLISH = "would be published"
    NOT_PUBLISHED = "not published"
    NOT_KNOWN = "not known"


DONE = frozenset({Outcome.PUBLISHED, Outcome.THERE})


@dataclass(frozen=True)
class Result:
    """What came of one target.

    Attributes:
        target: which.
        outcome: how far it came.
        arn: of the layer version, where there is one.
        note: why it failed, or what else there is to know; one line.
        error: what it failed of.
    """

    target: Target
    outcome: Outcome
    arn: str | None = None
    note: str = ""
    error: Exception | None = None

    @property
    def told(self) -> str:
        """The ARN and the note, for people."""
        return ": ".join(each for each in (self.arn, self.note) if each)


def are_all_done(results: Iterable[Result]) -> bool:
    """Whether nothing is left to do."""
    return all(each.outcome in DONE for each in results)
