"""A pool for anything that isn't SQLAlchemy's: the caller's functions say how a connection is made, tried, reset and closed."""

from __future__ import annotations

import functools

from perinvoke.environment.connections import drivers
from perinvoke.environment.connections.entry import Cleaning
from perinvoke.environment.connections.network_end import closed_in_order
from perinvoke.errors import PoolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from types import TracebackType
    from typing import Any

    from perinvoke.environment.connections.connection_pool import ConnectionPool
    from perinvoke.environment.connections.connector import Borrower
    from perinvoke.environment.connections.entry import Entry
    from perinvoke.environment.connections.figures import Stats


class PlainPool:
    """A pool of connections of any kind, counted over all workers; lives as long as the process. Thread-safe."""

    def __init__(self, lender: ConnectionPool, borrower: Callable[[], Borrower]) -> None:
        self._lender = lender
        self._borrower = borrower

    def connection(self) -> Lent:
        """A connection for the ``with`` block: waits for one until the deadline less a margin at most.

        Raises:
            PoolTimeout: from ``with``: others had all of them for all that time.
            NotInInvocation: from ``with``: in a thread that outlived its invocation.

        What ``create`` raises comes through unchanged.
        """
        return Lent(self._lender, self._borrower)

    def stats(self) -> Stats:
        """The figures of all workers of the execution environment. Doesn't block."""
        return self._lender.stats()

    def dispose(self) -> None:
        """Close what is idle, soon, and what is in use when it is returned. Doesn't block."""
        self._lender.dispose()

    def __repr__(self) -> str:
        return f"<pool of {self._lender!r}>"


class Lent:
    """One loan; a context manager that gives the connection. Lives as long as its block, and may be entered once at a time."""

    __slots__ = ("_borrower", "_entry", "_lender")

    def __init__(self, lender: ConnectionPool, borrower: Callable[[], Borrower]) -> None:
        self._lender = lender
        self._borrower = borrower
        self._entry: Entry | None = None

    def __enter__(self) -> Any:
        if self._entry is not None:
            raise PoolError("this loan has been entered before; call connection() for each with", name=self._lender.name)
        self._entry = self._lender.lend(self._borrower())
        return self._entry.connection

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        entry, self._entry = self._entry, None
        if entry is not None:
            self._lender.take_back(entry)


class PlainConnector:
    """The caller's functions, as a pool uses them; lives as long as it."""

    def __init__(
        self,
        create: Callable[[], Any],
        *,
        name: str,
        close: Callable[[Any], object] | None,
        check: Callable[[Any], object] | None,
        reset: Callable[[Any], object] | None,
    ) -> None:
        self._create = create
        self._name = name
        self._close = close
        self._check = check
        self._reset = reset

    def open(self) -> Any:
        """Call the caller's ``create``.

        Raises:
            PoolError: it returned None.
        """
        connection = self._create()
        if connection is None:
            raise PoolError(f"create of pool {self._name} returned None in place of a connection", name=self._name)
        return connection

    def reopen(self, connection: Any) -> Any:
        """Close it, whatever that raises, and make another."""
        try:
            self.close(connection)
        except Exception:  # noqa: BLE001, S110  # it is replaced because it doesn't work
            pass
        return self.open()

    def close(self, connection: Any) -> None:
        """Close it with the caller's function, or its own method ``close``."""
        close = getattr(connection, "close", lambda: None) if self._close is None else functools.partial(self._close, connection)
        closed_in_order(self.fileno(connection), close)

    def is_open(self, connection: Any) -> bool:
        """Whether there is one."""
        return connection is not None

    def is_alive(self, connection: Any) -> bool:
        """What the caller's function says; without one nobody knows, and it is believed to be."""
        try:
            return self._check is None or self._check(connection) is not False
        except Exception:  # noqa: BLE001  # that is how a client says no
            return False

    def fileno(self, connection: Any) -> int | None:
        """Of the connection itself, if it has one."""
        return drivers.fileno(connection)

    def recover(self, connection: Any, *, is_cut: bool) -> None:
        """Nothing: whoever still refers to it can't be kept from using it, so it is closed."""
        del is_cut
        raise NotImplementedError(f"a forgotten {type(connection).__name__} is not lent again")

    def end_bereft(self, _key: Hashable) -> None:
        """Nothing: whoever had it knows."""

    def begin_cleaning(self, _connection: Any) -> Cleaning:
        """Whether there is anything to do: all of it blocks."""
        return Cleaning.NOTHING if self._reset is None else Cleaning.BLOCKS

    def end_cleaning(self, _connection: Any, _seconds: float) -> None:
        """Never called: nothing is sent."""

    def clean(self, connection: Any) -> None:
        """Call the caller's function."""
        assert self._reset is not None
        self._reset(connection)
