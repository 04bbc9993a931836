"""What a model says is unique, and which of that a database's error is about. Pure.

Unique is what the model declares: its primary key, ``unique=True``, ``UniqueConstraint``, ``Index(unique=True)``. An index over
some rows only (``postgresql_where``) or over expressions says nothing of the others, and a constraint that is checked at the
commit (``INITIALLY DEFERRED``) doesn't stop an INSERT.
"""

from __future__ import annotations

import re
import sqlite3

from sqlalchemy import Column, UniqueConstraint, inspect
from sqlalchemy.orm.exc import UnmappedColumnError

from perinvoke.fleet.errors import SqlUseError
from perinvoke.fleet.sql.conflicts import mysql_number_of, sqlstate_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from sqlalchemy import Table
    from sqlalchemy.exc import IntegrityError
    from sqlalchemy.orm import Mapper

_UNIQUE_STATE = "23505"  # https://www.postgresql.org/docs/current/errcodes-appendix.html
_DUPLICATE_NUMBERS = (1062, 1586)  # ER_DUP_ENTRY, ER_DUP_ENTRY_WITH_KEY_NAME
_SQLITE_CODES = (2067, 1555, 2579)  # of https://www.sqlite.org/rescode.html: UNIQUE, PRIMARYKEY, ROWID
_DETAIL = re.compile(r"\((?P<columns>.*?)\)=\(")  # of PostgreSQL's, in all languages: Key (a, b)=(1, 2)
_SQLITE_COLUMNS = re.compile(r"constraint failed: (?P<columns>.+)")
_COMMA = re.compile(r",\s*")


class UniqueKey:
    """One set of columns that no two rows have alike; lives as long as a call.

    Attributes:
        attributes: the model's names for the columns.
        columns: the table's.
        name: the constraint's or index's; None where the database chooses it.
    """

    __slots__ = ("attributes", "columns", "name")

    def __init__(self, attributes: frozenset[str], columns: frozenset[str], name: str | None) -> None:
        self.attributes = attributes
        self.columns = columns
        self.name = name


def unique_keys_of(mapper: Mapper[Any]) -> list[UniqueKey]:
    """All that the model's tables declare."""
    found = []
    for table in mapper.tables:
        for name, columns in _unique_in(table):  # type: ignore[arg-type]  # what a subquery has declares nothing
            try:
                attributes = frozenset(mapper.get_property_by_column(column).key for column in columns)
            except UnmappedColumnError:
                continue
            found.append(UniqueKey(attributes, frozenset(column.name for column in columns), name))
    return found


def checked_key(mapper: Mapper[Any], key: dict[str, Any], what: str) -> list[UniqueKey]:
    """The declared keys that ``key`` is.

    Raises:
        SqlUseError: it is none; or it has names that aren't columns, or None, which is never equal to anything.
    """
    name = mapper.class_.__name__
    known = unique_keys_of(mapper)
    unknown = [one for one in key if one not in mapper.column_attrs]
    if unknown:
        raise SqlUseError(
            f"{what}: {', '.join(unknown)} of {name} is no column; the key is columns by the model's names: {_told(known)}"
        )
    found = [one for one in known if one.attributes == key.keys()]
    if not found:
        given = ", ".join(key) or "nothing"
        raise SqlUseError(
            f"{what} needs a key of which {name} has one row at most, and nothing in the model says that of {given}. Unique are: "
            f"{_told(known)}. Add unique=True or a UniqueConstraint, to the model and to the database, or name one of those; "
            f"what is only "
            "to be set in a new row goes into defaults."
        )
    empty = [one for one, value in key.items() if value is None]
    if empty:
        raise SqlUseError(
            f"{what}: {', '.join(empty)} of {name} is None, and any number of rows may have that in a unique column"
        )
    return found


def is_unique_violation(error: IntegrityError) -> bool:
    """Whether it tells that there is such a row already; not a foreign key, NOT NULL or CHECK."""
    if isinstance(error.orig, sqlite3.Error):
        return getattr(error.orig, "sqlite_errorcode", None) in _SQLITE_CODES
    number = mysql_number_of(error)
    return number in _DUPLICATE_NUMBERS if number is not None else sqlstate_of(error) == _UNIQUE_STATE


def is_about(error: IntegrityError, keys: Iterable[UniqueKey]) -> bool | None:
    """Whether a unique key's violation is of one of these; None where the error doesn't tell."""
    name, columns = _violated(error)
    if name is not None and any(key.name == name for key in keys):
        return True
    return None if columns is None else any(key.columns == columns for key in keys)


def _violated(error: IntegrityError) -> tuple[str | None, frozenset[str] | None]:
    """The constraint's name and columns, as far as they are told. MySQL's and MariaDB's words aren't read."""
    told: Any = error.orig
    if isinstance(told, sqlite3.Error):
        found = _SQLITE_COLUMNS.search(str(told))
        parts = [] if found is None else [part.rpartition(".")[2] for part in _COMMA.split(found["columns"])]
        return None, frozenset(parts) or None
    diagnostics = getattr(told, "diag", None)  # psycopg, psycopg2
    fields = told.args[0] if told is not None and told.args and isinstance(told.args[0], dict) else {}  # pg8000
    name = getattr(diagnostics, "constraint_name", None) or fields.get("n")
    found = _DETAIL.search(getattr(diagnostics, "message_detail", None) or fields.get("D") or "")
    columns = None if found is None else frozenset(part.strip('"') for part in _COMMA.split(found["columns"]))
    return name, columns


def _unique_in(table: Table) -> Iterator[tuple[str | None, list[Column[Any]]]]:
    primary = list(getattr(table, "primary_key", ()))
    if primary:
        yield _name(table.primary_key), primary
    for constraint in getattr(table, "constraints", ()):
        if isinstance(constraint, UniqueConstraint) and (constraint.initially or "").upper() != "DEFERRED":
            yield _name(constraint), list(constraint.columns)
    for index in getattr(table, "indexes", ()):
        partial = any(options.get("where") is not None for options in index.dialect_options.values())
        if index.unique and not partial and all(isinstance(one, Column) for one in index.expressions):
            yield _name(index), list(index.columns)


def _name(constraint: Any) -> str | None:
    return str(constraint.name) if isinstance(constraint.name, str) else None


def _told(keys: Iterable[UniqueKey]) -> str:
    return "; ".join(sorted({", ".join(sorted(key.attributes)) for key in keys})) or "none"


def mapper_of(model: object, what: str) -> Mapper[Any]:
    """The mapper of a model.

    Raises:
        SqlUseError: it is none.
    """
    found: Any = inspect(model, raiseerr=False) if isinstance(model, type) else None
    if found is None or not getattr(found, "is_mapper", False):
        raise SqlUseError(f"{what} takes a mapped class, such as class Account(Base), not {model!r}")
    mapper: Mapper[Any] = found
    return mapper
