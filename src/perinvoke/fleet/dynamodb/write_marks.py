"""Who wrote an item, the last times: how a writer whose answer was lost finds out whether it was carried out.

botocore repeats a request that nobody answered. If the first one was carried out, the repetition is refused: its condition names
the version that was there before. So one's own write looks like somebody else's. And the other way round: somebody else's write
of the same content, with the same next version, looks like one's own. Therefore every write puts a mark of its own, random and
used once, in front of those that it found. The last eight are kept, in one short string beside the version.
"""

from __future__ import annotations

import base64
import enum
import os
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# How many are kept. Who looks for its mark after so many other writes finds it no more, and says that nobody knows. Arbitrary:
# a repetition follows within seconds.
KEPT = 8
_BYTES = 6  # 48 random bits: two of eight writers share a mark once in ten million million times
_MARK = re.compile(r"[\w-]{8}", re.ASCII)
_BETWEEN = "."


class Fate(enum.Enum):
    """What became of a write whose answer was lost."""

    CARRIED_OUT = "carried out"
    NOT_CARRIED_OUT = "not carried out, and never will be: its condition names a version that is past"
    UNKNOWN = "unknown"


class Version:
    """How often an item was written by those who count, and by whom the last times. Immutable; lives as long as a look at it.

    Args:
        number: the version; None where the item isn't there, or has none.
        marks: of the last writers, newest first.
        exists: whether the item is there.
    """

    __slots__ = ("exists", "marks", "number")

    def __init__(self, number: int | None, marks: Sequence[str] = (), *, exists: bool = True) -> None:
        self.number = number
        self.marks = tuple(marks)
        self.exists = exists

    def after(self, mark: str) -> Version:
        """What it is once it was written with that mark."""
        return Version((self.number or 0) + 1, (mark, *self.marks)[:KEPT])

    def _facts(self) -> tuple[object, ...]:
        return self.exists, self.number, self.marks

    def __eq__(self, other: object) -> bool:
        return self._facts() == other._facts() if isinstance(other, Version) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._facts())

    def __repr__(self) -> str:
        return f"<Version {self.number if self.exists else 'of nothing'} by {marks_text(self.marks) or 'nobody'}>"


def new_mark() -> str:
    """Eight random characters; no two writes have the same."""
    return base64.urlsafe_b64encode(os.urandom(_BYTES)).decode()


def marks_text(marks: Sequence[str]) -> str:
    """As they are written in the item."""
    return _BETWEEN.join(marks)


def parse_marks(text: object) -> tuple[str, ...]:
    """What ``marks_text`` wrote; none where it was something else."""
    if not isinstance(text, str):
        return ()
    marks = tuple(text.split(_BETWEEN))
    return marks if len(marks) <= KEPT and all(map(_MARK.fullmatch, marks)) else ()


def fate_of(mark: str, seen: Version, now: Version) -> Fate:
    """What became of a write with that mark, made on what was seen then, by what is seen now.

    Who writes without marks leaves those that are there, or removes them all: an item that is deleted and made anew has none of
    them either. So where the newest mark of then still stands, every later write of ours does too. Where there was none, all
    writes since must have left theirs.
    """
    if mark in now.marks:
        return Fate.CARRIED_OUT
    if now == seen:
        return Fate.UNKNOWN  # the request may still be under way
    if seen.marks:
        return Fate.NOT_CARRIED_OUT if seen.marks[0] in now.marks else Fate.UNKNOWN
    since = (now.number or 0) - (seen.number or 0)
    return Fate.NOT_CARRIED_OUT if since == len(now.marks) > 0 else Fate.UNKNOWN
