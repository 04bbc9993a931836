"""The transactions of the benchmark of conflicts, and the processes that do nothing else: each runs until its stdin ends.

A transaction reads a row, takes some time, and writes the row with one more.
"""

from __future__ import annotations

import json
import random
import sys
import time
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.orm.exc import StaleDataError

from perinvoke.fleet.sql import Versioned, advisory_lock, locked, retry_conflicts

if TYPE_CHECKING:
    from collections.abc import Callable

OPTIMISTIC, PESSIMISTIC, ADVISORY, BY_HAND = "optimistic", "pessimistic", "advisory", "by_hand"
# Seconds between reading and writing: a handler's own work, and the network's round trips, which are for nothing here.
WORK_SECONDS = 0.002
# Seconds: what a loop by hand pauses at most before it tries again.
PAUSE_SECONDS = 0.05


class Base(DeclarativeBase):
    """The tables of the benchmark."""


class Row(Base):
    """For those who lock."""

    __tablename__ = "row"
    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int] = mapped_column(default=0)


class VersionedRow(Versioned, Base):
    """For ``retry_conflicts``."""

    __tablename__ = "versioned_row"
    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int] = mapped_column(default=0)


class HandRow(Base):
    """With a version, as SQLAlchemy's manual has it."""

    __tablename__ = "hand_row"
    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int] = mapped_column(default=0)
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012  # SQLAlchemy's way


MODELS: dict[str, type[Row | VersionedRow | HandRow]] = {
    OPTIMISTIC: VersionedRow,
    PESSIMISTIC: Row,
    ADVISORY: Row,
    BY_HAND: HandRow,
}


def _add(row: Row | VersionedRow | HandRow) -> None:
    time.sleep(WORK_SECONDS)
    row.value += 1


def _optimistic(engine: sa.Engine, number: int) -> None:
    retry_conflicts(lambda session: _add(session.get_one(VersionedRow, number)), engine=engine)


def _pessimistic(engine: sa.Engine, number: int) -> None:
    with Session(engine) as session, session.begin():
        row = locked(session, Row, number)
        assert row is not None
        _add(row)


def _advisory(engine: sa.Engine, number: int) -> None:
    with Session(engine) as session, session.begin():
        advisory_lock(session, number)
        _add(session.get_one(Row, number))


def _by_hand(engine: sa.Engine, number: int) -> None:
    while True:
        try:
            with Session(engine) as session, session.begin():
                _add(session.get_one(HandRow, number))
        except (StaleDataError, OperationalError):
            time.sleep(random.uniform(0, PAUSE_SECONDS))
        else:
            return


WAYS: dict[str, Callable[[sa.Engine, int], None]] = {
    OPTIMISTIC: _optimistic,
    PESSIMISTIC: _pessimistic,
    ADVISORY: _advisory,
    BY_HAND: _by_hand,
}


def work(url: str) -> None:
    """Take orders, each a line of JSON: a way, how many hot rows, and for how long. Answer with how long each write took."""
    engine = sa.create_engine(url, pool_size=1, max_overflow=0)
    with engine.connect():
        pass
    _answer([])  # it is ready
    for order in sys.stdin:
        way, rows, seconds = json.loads(order)
        _answer(_timed(WAYS[way], engine, rows, seconds))


def _answer(taken: list[float]) -> None:
    sys.stdout.write(json.dumps(taken) + "\n")
    sys.stdout.flush()


def _timed(way: Callable[[sa.Engine, int], None], engine: sa.Engine, rows: int, seconds: float) -> list[float]:
    clock = time.perf_counter
    taken = []
    end = clock() + seconds
    while (began := clock()) < end:
        way(engine, random.randint(1, rows))
        taken.append(clock() - began)
    return taken


if __name__ == "__main__":
    work(sys.argv[1])
