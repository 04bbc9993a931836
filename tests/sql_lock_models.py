"""Models for tests of SQL locks: a key of one column, one of two, relationships that are read along, and classes that inherit."""

from __future__ import annotations

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "lock_account"
    id: Mapped[int] = mapped_column(primary_key=True)
    balance: Mapped[int] = mapped_column(default=0)


class Seat(Base):
    __tablename__ = "lock_seat"
    hall: Mapped[str] = mapped_column(String(20), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    taken_by: Mapped[str | None] = mapped_column(String(20))


class Customer(Base):
    __tablename__ = "lock_customer"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(20))


class Order(Base):
    __tablename__ = "lock_order"
    id: Mapped[int] = mapped_column(primary_key=True)
    total: Mapped[int] = mapped_column(default=0)
    customer_id: Mapped[int | None] = mapped_column(ForeignKey(Customer.id))
    customer: Mapped[Customer | None] = relationship(lazy="joined")
    items: Mapped[list[Item]] = relationship(lazy="joined")
    notes: Mapped[list[Note]] = relationship()


class Item(Base):
    __tablename__ = "lock_item"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey(Order.id))


class Note(Base):
    __tablename__ = "lock_note"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey(Order.id))


class Vehicle(Base):
    """With a table of its own for cars, which are read along; and none for bicycles."""

    __tablename__ = "lock_vehicle"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(10))
    owner: Mapped[str | None] = mapped_column(String(20))
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "vehicle", "with_polymorphic": "*"}  # noqa: RUF012


class Car(Vehicle):
    __tablename__ = "lock_car"
    id: Mapped[int] = mapped_column(ForeignKey(Vehicle.id), primary_key=True)
    doors: Mapped[int] = mapped_column(default=4)
    owner_car: Mapped[Customer | None] = relationship(lazy="joined")
    customer_id: Mapped[int | None] = mapped_column(ForeignKey(Customer.id))
    __mapper_args__ = {"polymorphic_identity": "car"}  # noqa: RUF012


class Bicycle(Vehicle):
    gears: Mapped[int | None]
    __mapper_args__ = {"polymorphic_identity": "bicycle"}  # noqa: RUF012
