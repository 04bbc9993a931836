"""SQL databases as what holds over all environments: row locks, advisory locks, transactions that are run again, versions.

The public names, each loaded when it is first used. They need SQLAlchemy: ``pip install 'perinvoke[sql]'``.
"""

from __future__ import annotations

from perinvoke.fleet.loading import load

TYPE_CHECKING = False  # what typing.TYPE_CHECKING is at run time; typing itself costs a worker 3 ms
if TYPE_CHECKING:
    from perinvoke.fleet.errors import CommitUnknown, RowLocked, SqlUseError, TokenInvalid, WriteConflict
    from perinvoke.fleet.sql.advisory import advisory_lock
    from perinvoke.fleet.sql.conflicts import Conflict, conflict_of
    from perinvoke.fleet.sql.creation import create_or_get
    from perinvoke.fleet.sql.retry import retry_conflicts
    from perinvoke.fleet.sql.row_lock import lock_row, locked
    from perinvoke.fleet.sql.versioned import Versioned, stale_as_conflict

__all__ = [
    "CommitUnknown",
    "Conflict",
    "RowLocked",
    "SqlUseError",
    "TokenInvalid",
    "Versioned",
    "WriteConflict",
    "advisory_lock",
    "conflict_of",
    "create_or_get",
    "lock_row",
    "locked",
    "retry_conflicts",
    "stale_as_conflict",
]

_NEEDS = {"sqlalchemy": "SQLAlchemy"}
_HERE = "perinvoke.fleet.sql"
_HOMES = {
    "Conflict": "conflicts",
    "Versioned": "versioned",
    "advisory_lock": "advisory",
    "conflict_of": "conflicts",
    "create_or_get": "creation",
    "lock_row": "row_lock",
    "locked": "row_lock",
    "retry_conflicts": "retry",
    "stale_as_conflict": "versioned",
}


def __getattr__(name: str) -> object:
    value = globals()[name] = load(_HERE, name, _HOMES, names=__all__, needs=_NEEDS, extra="sql")
    return value


def __dir__() -> list[str]:
    return __all__
