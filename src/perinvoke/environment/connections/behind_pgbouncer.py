"""How an engine connects to the PgBouncer beside its worker: found when a connection is opened, not when the engine is made.

At init the extension that runs it starts at the same time as the workers; and one that was killed is started again within a
second. So who finds nobody listening waits for a moment.
"""

from __future__ import annotations

import socket
import time
import weakref

from perinvoke.environment.connections import server_side
from perinvoke.environment.connections.pgbouncer import SOCKET, Facts, check_name, find
from perinvoke.errors import PgBouncerError, PgBouncerNotRunning

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# Seconds. The extension brings a PgBouncer that died back within one.
_PATIENCE_SECONDS = 2.0
_LOOK_SECONDS = 0.02


class BehindPgBouncer:
    """The way through one PgBouncer; lives as long as the engine that takes it.

    Args:
        root: below which it runs.
        name: its own.
        database: the server's database that is expected behind it; None for whichever it is.
        driver: SQLAlchemy's name of the driver.
    """

    def __init__(self, root: str, name: str, database: str | None, driver: str) -> None:
        check_name(name)
        self.driver = driver
        self._root = root
        self._name = name
        self._database = database
        self._facts: Facts | None = None
        self._kept: weakref.WeakKeyDictionary[Any, tuple[Any, ...]] = weakref.WeakKeyDictionary()

    def connect(self, connect: Callable[..., Any], args: tuple[Any, ...], arguments: dict[str, Any], wait_seconds: float) -> Any:
        """Call ``connect``, a driver's, with what leads there. Waits for a PgBouncer that starts, for a moment.

        Raises:
            PgBouncerNotRunning: there is none.
            PgBouncerError: another database is behind it than the URL says.
        """
        until = time.monotonic() + min(_PATIENCE_SECONDS, wait_seconds)
        while True:
            try:
                facts = find(self._root, self._name)
                self._check(facts)
                return self._noted(connect(*args, **{**arguments, **self._ways(facts)}))
            except PgBouncerNotRunning:
                if time.monotonic() >= until:
                    raise
            except PgBouncerError:
                raise
            except Exception:
                if time.monotonic() >= until or _listens(facts):
                    raise
            time.sleep(_LOOK_SECONDS)

    def reset(self, connection: Any) -> None:
        """Remove what an invocation left in a session, where PgBouncer doesn't.

        Where it pools sessions, one is a worker's for as long as it is connected. Where it pools transactions it resets sessions
        itself, but for some settings that it keeps for its client, which is the worker: whether they were changed is known here.
        """
        if self._pools_sessions():
            server_side.clean_postgresql(connection)
        else:
            server_side.reset_kept_by_pooler(connection)

    def is_clean(self, connection: Any) -> bool:
        """Whether ``reset`` has nothing to do. Doesn't ask the server."""
        return not self._pools_sessions() and self._kept.get(connection) == server_side.kept_by_pooler(connection)

    def _pools_sessions(self) -> bool:
        return self._facts is not None and self._facts.pool_mode == "session"

    def _noted(self, connection: Any) -> Any:
        self._kept[connection] = server_side.kept_by_pooler(connection)
        return connection

    def _ways(self, facts: Facts) -> dict[str, Any]:
        ways: dict[str, Any] = dict(facts.client_arguments())
        can = facts.prepared_statements and (facts.pool_mode == "session" or _closes_by_message())
        if self.driver == "psycopg" and not can:
            ways["prepare_threshold"] = None  # what one transaction prepares, the next finds at another server connection, or not
        return ways

    def _check(self, facts: Facts) -> None:
        if self._database is not None and self._database != facts.database:
            raise PgBouncerError(
                f"pgbouncer://{self._name}/{self._database}: behind that PgBouncer is the database {facts.database!r}. "
                f"Name that one, or none: pgbouncer://{self._name}",
                name=self._name,
            )
        self._facts = facts


def _closes_by_message() -> bool:
    """Whether psycopg gives up a prepared statement by the protocol's message: from 3.2 on, with libpq 17.

    Else it sends DEALLOCATE with a name that PgBouncer doesn't know: statements have others at the server.
    """
    import psycopg  # noqa: PLC0415  # optional dependency, which is there when it is to connect

    ask = getattr(getattr(psycopg, "capabilities", None), "has_send_close_prepared", None)
    return ask is not None and bool(ask())


def _listens(facts: Facts) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as ours:
        try:
            ours.connect(f"{facts.socket_directory}/{SOCKET}")
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True
