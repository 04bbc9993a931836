"""Functions that lock a row or a key, and add one to the row; run as a script it has them until it is killed.

SQL_LOCKS_URL says where; SQL_LOCKS_ENGINE over which engine: perinvoke's, or SQLAlchemy's own.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import perinvoke
from perinvoke.fleet.sql import RowLocked, advisory_lock, locked


class Base(DeclarativeBase):
    pass


class Hot(Base):
    __tablename__ = "hot"
    id: Mapped[int] = mapped_column(primary_key=True)
    count: Mapped[int]


def _engine() -> sa.Engine:
    url = os.environ["SQL_LOCKS_URL"]
    if os.environ["SQL_LOCKS_ENGINE"] == "perinvoke":
        return perinvoke.engine(url, max_connections=20)  # for the workers, and for who has it locked
    return sa.create_engine(url, pool_size=1)


engine = _engine()


def add(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """What came of it, and how much time was left then. With ``warm`` it only has a connection made, and SQLAlchemy warmed up."""
    if event.get("warm"):
        with Session(engine) as session:
            return {"count": session.get_one(Hot, 1).count, "worker": os.getpid()}
    try:
        with Session(engine) as session, session.begin():
            if event["advisory"]:
                advisory_lock(session, "hot")
            row = locked(session, Hot, 1)
            assert row is not None
            row.count += 1
        came = "added"
    except RowLocked as error:
        came = f"{type(error).__name__} {error.what}"
    return {"came": came, "left": perinvoke.current().deadline.remaining_seconds(), "worker": os.getpid()}


if __name__ == "__main__":
    with Session(engine) as session:
        advisory_lock(session, "hot")
        locked(session, Hot, 1)
        sys.stdout.write("held\n")
        sys.stdout.flush()
        time.sleep(60)
