"""Models for tests of conflicts: a counter without a version and one with, what inherits a version, and keys that are unique."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from sqlalchemy import BigInteger, ForeignKey, Index, String, UniqueConstraint, create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from perinvoke.fleet.sql import Versioned
from sql_lock_servers import SQLITE, do_not_sync, empty, url_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest
    from sqlalchemy import Engine


class Base(DeclarativeBase):
    pass


class Counter(Base):
    __tablename__ = "conflict_counter"
    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int] = mapped_column(default=0)


class Page(Versioned, Base):
    __tablename__ = "conflict_page"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(String(50), default="")


class Renamed(Versioned, Base):
    __tablename__ = "conflict_renamed"
    id: Mapped[int] = mapped_column(primary_key=True)
    lock_version: Mapped[int] = mapped_column("revision", BigInteger)


class Pet(Versioned, Base):
    __tablename__ = "conflict_pet"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(10))
    name: Mapped[str] = mapped_column(String(20), default="")
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "pet"}  # noqa: RUF012


class Dog(Pet):
    __tablename__ = "conflict_dog"
    id: Mapped[int] = mapped_column(ForeignKey(Pet.id), primary_key=True)
    tricks: Mapped[int] = mapped_column(default=0)
    __mapper_args__ = {"polymorphic_identity": "dog"}  # noqa: RUF012


class Team(Base):
    __tablename__ = "conflict_team"
    id: Mapped[int] = mapped_column(primary_key=True)
    members: Mapped[list[Member]] = relationship(back_populates="team")


class Member(Base):
    __tablename__ = "conflict_member"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(String(50), unique=True)
    nick: Mapped[str | None] = mapped_column(String(50), unique=True)
    plan: Mapped[str] = mapped_column(String(10), default="free")
    team_id: Mapped[int | None] = mapped_column(ForeignKey(Team.id))
    team: Mapped[Team | None] = relationship(back_populates="members")
    born: Mapped[int | None] = mapped_column()
    __table_args__ = (
        Index("conflict_member_born", born, unique=True, postgresql_where=text("born > 0"), sqlite_where=text("born > 0")),
    )


class Booking(Base):
    __tablename__ = "conflict_booking"
    hall: Mapped[str] = mapped_column(String(20), primary_key=True)
    seat: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    day: Mapped[str] = mapped_column(String(10))
    place: Mapped[str] = mapped_column("where_it_is", String(10), default="here")
    __table_args__ = (UniqueConstraint(day, place, name="conflict_one_a_day"),)


class Album(Base):
    __tablename__ = "conflict_album"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(20), unique=True)
    tracks: Mapped[list[Track]] = relationship(lazy="joined")


class Track(Base):
    __tablename__ = "conflict_track"
    id: Mapped[int] = mapped_column(primary_key=True)
    album_id: Mapped[int] = mapped_column(ForeignKey(Album.id))


_made: set[str] = set()  # URLs of servers that have the tables: making them takes MariaDB a second


@contextlib.contextmanager
def conflict_tables(which: str, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An engine of the test's own over the tables, empty; a server keeps them, and each test of SQLite has a file of its own."""
    engine = create_engine(url_of(which, request), pool_size=20)
    do_not_sync(engine)
    if str(engine.url) not in _made:
        Base.metadata.create_all(engine)
        if which != SQLITE:
            _made.add(str(engine.url))
    try:
        with engine.begin() as connection:
            empty(connection, Base.metadata)
        yield engine
    finally:
        engine.dispose()


def add_all(engine: Engine, *rows: Base) -> None:
    """Have these in the tables, too."""
    with Session(engine) as session, session.begin():
        session.add_all(rows)
