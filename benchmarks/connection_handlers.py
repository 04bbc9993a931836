"""The handlers of the benchmark of connections: one short transaction each, over connections that come from different places.

Preloaded: the engine is made before the fork, and connects after it, in each worker for itself.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

import perinvoke

if TYPE_CHECKING:
    from collections.abc import Callable

ACCOUNTS = 1_000  # the rows of the table
BUDGET = 4  # connections
DATABASE = "BENCHMARK_DATABASE_URL"  # the variable that tells it

_READ = sa.text("SELECT balance FROM account WHERE id = :id")
_WRITE = sa.text("UPDATE account SET balance = balance + 1 WHERE id = :id")

_CONTENDERS: dict[str, Callable[[str], sa.Engine]] = {
    "anew": lambda url: sa.create_engine(url, poolclass=sa.NullPool),
    "pool_per_worker": sa.create_engine,  # with SQLAlchemy's own pool, of up to five connections and ten more
    "budget": lambda url: perinvoke.engine(url, max_connections=BUDGET),
    "pgbouncer": lambda _: perinvoke.engine("pgbouncer://default"),
}


def _handler(engine: sa.Engine) -> Callable[[Any, Any], int]:
    def handler(event: Any, context: Any) -> int:
        """One transaction, and outside of it, if asked for, a wait for another service."""
        row = {"id": os.getpid() % ACCOUNTS}  # the worker's own: nobody waits for a lock
        with engine.begin() as connection:
            balance: int = connection.execute(_READ, row).scalar_one()
            connection.execute(_WRITE, row)
        if "wait_seconds" in event:
            time.sleep(event["wait_seconds"])
        return balance

    return handler


def __getattr__(name: str) -> Callable[[Any, Any], int]:
    """The handler of a contender; only the one that is asked for makes an engine."""
    if name not in _CONTENDERS:
        raise AttributeError(name)
    handler = globals()[name] = _handler(_CONTENDERS[name](os.environ[DATABASE]))
    return handler
