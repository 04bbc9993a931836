"""Functions that count in a row, create rows and lock two of them, in the ways that there are to do that at the same time.

The variable CONFLICTS_URL says in which database. Preloaded: the engine is made before the fork, and connects after it.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import perinvoke
from perinvoke.fleet.sql import Versioned, advisory_lock, create_or_get, locked, retry_conflicts

if TYPE_CHECKING:
    from collections.abc import Callable

CONNECTIONS = 16


class Base(DeclarativeBase):
    pass


class Plain(Base):
    __tablename__ = "race_plain"
    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int] = mapped_column(default=0)


class Counted(Versioned, Base):
    __tablename__ = "race_counted"
    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int] = mapped_column(default=0)


class Made(Base):
    __tablename__ = "race_made"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(40), unique=True)


def new_engine(url: str) -> sa.Engine:
    """SQLite's own five seconds are too short for sixteen workers that only write; and nothing has to survive a power cut."""
    if not url.startswith("sqlite"):
        return perinvoke.engine(url, max_connections=CONNECTIONS)
    engine = perinvoke.engine(url, max_connections=CONNECTIONS, connect_args={"timeout": 60})

    @sa.event.listens_for(engine, "connect")
    def hurry(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    return engine


_url = os.environ.get("CONFLICTS_URL")
engine = new_engine(_url) if _url else sa.create_engine("sqlite://")


# --- counting --------------------------------------------------------------------------------------------------------------


def _add(session: Session, model: Any = Plain) -> None:
    """Read, then write: what ``value = value + 1`` in SQL would spare."""
    row = session.get_one(model, 1)
    row.value += 1


def _add_locked(session: Session) -> None:
    row = locked(session, Plain, 1)
    assert row is not None
    row.value += 1


def _add_alone(session: Session) -> None:
    advisory_lock(session, "race_plain")
    _add(session)


def _in_one_transaction(function: Callable[[Session], None]) -> None:
    with Session(engine) as session, session.begin():
        function(session)


WAYS: dict[str, Callable[[], object]] = {
    "naive": lambda: _in_one_transaction(_add),
    "locked": lambda: _in_one_transaction(_add_locked),
    "serializable": lambda: retry_conflicts(_add, engine=engine, isolation="SERIALIZABLE"),
    "versioned": lambda: retry_conflicts(lambda session: _add(session, Counted), engine=engine),
    "advisory": lambda: _in_one_transaction(_add_alone),
}


def count(event: Any, context: Any) -> int:
    """Add one, so many times."""
    for _ in range(event["times"]):
        WAYS[event["how"]]()
    return int(event["times"])


# --- creating --------------------------------------------------------------------------------------------------------------


def create(event: Any, context: Any) -> int:
    """Have a row for each of the names; how many were made here."""

    @retry_conflicts(engine=engine)
    def made(session: Session, name: str) -> bool:
        return create_or_get(session, Made, name=name)[1]

    return sum(made(f"name {number}") for number in range(*event["numbers"]))


# --- locking two -----------------------------------------------------------------------------------------------------------


def both(event: Any, context: Any) -> int:
    """Change two rows, in the order that is asked for, with a pause between them; how often that took a transaction."""
    attempts = 0

    @retry_conflicts(engine=engine)
    def change(session: Session) -> None:
        nonlocal attempts
        attempts += 1
        for number in event["order"]:
            session.execute(sa.update(Plain).where(Plain.id == number).values(value=Plain.value + 1))
            time.sleep(event["seconds"] if attempts == 1 else 0)

    change()
    return attempts


def handler(event: Any, context: Any) -> Any:
    """What the event names."""
    return {"count": count, "create": create, "both": both}[event["what"]](event, context)
