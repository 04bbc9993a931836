"""A pool whose connections are counted over all workers: it lends them, and takes them back.

Guarantees:
* A connection is open only in a slot of the budget, which this process holds until the server has let go of the connection.
* It is lent to one borrower at a time. What one invocation leaves in it is removed before another gets it.
* No wait is longer than its borrower may wait; then ``PoolTimeout``. The end of an invocation takes back what it forgot, and is
  held up no longer than it may be.
* A forked child has none of them: it begins anew, and its copies of the sockets lead nowhere.

What is done with a connection, of whatever kind, is the ``Connector``'s to know.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import threading
import time

from perinvoke.environment.connections import board as states
from perinvoke.environment.connections import invocation_end
from perinvoke.environment.connections.entry import CLEAN, Entry, Loan, Stage
from perinvoke.environment.connections.figures import Stats, read_stats
from perinvoke.environment.connections.holdings import Holdings
from perinvoke.environment.connections.network_end import NetworkEnd
from perinvoke.errors import NotInInvocation, PoolError, PoolTimeout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from perinvoke.environment.connections.budget import Budget
    from perinvoke.environment.connections.connector import Borrower, Connector

# Seconds. A server that takes longer to answer a ping, or to reset a session, is given up: another connection may have more luck.
_MAX_ANSWER_SECONDS = 5.0
# Seconds. Connecting that failed later than this may still be going on at the server.
_HALF_OPEN_SECONDS = 1.0
# Seconds. How often one process looks whether metrics are due.
_METRICS_LOOK_SECONDS = 1.0

logger = logging.getLogger("perinvoke")


class ConnectionPool:
    """The connections of one kind that one process has; lives as long as the engine or pool it belongs to. Thread-safe.

    Args:
        connector: what is done with the connections.
        budget: the process's share of the budget, for each process its own.
        name: for messages; without a password.
        idle_seconds: a connection that nobody used for so long is closed.
        max_age_seconds: one that is older is replaced when it is lent next.
        check_after_seconds: one that was idle for longer is tried out before it is lent.
    """

    def __init__(
        self,
        connector: Connector,
        budget: Callable[[], Budget],
        *,
        name: str,
        idle_seconds: float,
        max_age_seconds: float,
        check_after_seconds: float,
    ) -> None:
        self.name = name
        self.holdings = Holdings(connector, budget, name=name, idle_seconds=idle_seconds)
        self._connector = connector
        self._budget = budget
        self._max_age_seconds = max_age_seconds
        self._check_after_seconds = check_after_seconds
        self._is_limit_known = False
        self._metrics_at = 0.0

    # --- lending -------------------------------------------------------------------------------------------------------

    def lend(self, borrower: Borrower) -> Entry:
        """A connection for ``borrower``; waits for one as long as it may.

        Raises:
            PoolTimeout: others had all of them for all that time.
            NotInInvocation: the borrower's invocation has ended meanwhile.
            PoolError: others go by another budget; or it is wanted by what is called while connections are cleaned or closed.
            RootError, ScratchFull: the files of the budget can't be kept.

        What opening a connection raises comes through unchanged.
        """
        budget = self._budget()
        if budget.keeper.is_here():  # what it waited for, it would have to do itself
            raise PoolError(
                f"{self.name} lends no connection to what is called while one is cleaned or closed, such as a session's listener "
                "of a rollback, or a pool's reset, check or close",
                name=self.name,
            )
        loan = Loan(self.holdings, borrower.key)
        with budget.lock:
            self.holdings.begin_loan(loan)
        try:
            borrower.at_end(self)
            self._fulfil(loan, borrower, budget)
            assert loan.entry is not None
            with budget.lock:  # its end has come before, and left what is being checked to us, or comes after, and finds it lent
                self._refuse_ended(borrower)
                loan.entry.move(Stage.IN_USE)
                return loan.entry
        except BaseException:
            self.holdings.undo(loan)
            raise

    def _refuse_ended(self, borrower: Borrower) -> None:
        if borrower.has_ended():
            raise NotInInvocation(
                f"the invocation that wanted a connection of {self.name} has ended meanwhile; wait for its threads before it "
                "returns",
            )

    def _fulfil(self, loan: Loan, borrower: Borrower, budget: Budget) -> None:
        while True:
            with budget.lock:
                if self.holdings.idle:
                    self.holdings.hand(self.holdings.idle.pop(), loan)  # the one used last: the others may be given up
            if loan.entry is None:
                self._wait(loan, borrower, budget)
            if loan.entry is None:
                self._open(loan, budget)
                return
            if self._is_fit(loan.entry, loan.key, borrower.wait_seconds()):
                return
            with budget.lock:  # its slot is lost: another one is needed
                entry, loan.entry = loan.entry, None
                entry.loan = None
                self.holdings.close_soon(entry)

    def _wait(self, loan: Loan, borrower: Borrower, budget: Budget) -> None:
        """Until the loan has a connection that another thread returned, or a slot to open one in."""
        loan.settled = threading.Event()
        started = time.monotonic()
        seconds = borrower.wait_seconds()
        budget.ask(loan)
        if not loan.settled.wait(None if seconds == math.inf else seconds):
            budget.withdraw(loan)
        loan.settled = None
        if loan.error is not None:
            raise loan.error
        if loan.entry is None and loan.slot is None:
            raise self._timed_out(time.monotonic() - started, budget)

    def _open(self, loan: Loan, budget: Budget) -> None:
        with budget.lock:
            assert loan.slot is not None
            loan.entry = entry = Entry(loan.slot)
            loan.slot = None
            entry.loan = loan
            self.holdings.entries.add(entry)
        with self._opening(entry):
            entry.connection = self._connector.open()
        self._opened(entry, connects=1)

    @contextlib.contextmanager
    def _opening(self, entry: Entry) -> Iterator[None]:
        """Note where connecting fails in a way that the server may not have noticed."""
        entry.opened_at = time.monotonic()
        try:
            yield
        except BaseException as error:
            entry.is_half_open = not isinstance(error, Exception) or time.monotonic() - entry.opened_at > _HALF_OPEN_SECONDS
            raise

    def _opened(self, entry: Entry, *, connects: int = 0, reconnects: int = 0) -> None:
        entry.end = NetworkEnd.of(self._connector.fileno(entry.connection))
        entry.connect_seconds = time.monotonic() - entry.opened_at
        entry.note(states.IN_USE)
        entry.slot.directory.board.add(entry.slot.number, connects=connects, reconnects=reconnects)

    def _is_fit(self, entry: Entry, key: Hashable, wait_seconds: float) -> bool:
        """Whether it can be lent; made so where it isn't alive, too old, or not clean. False: its slot is lost."""
        if entry.slot.is_lost():
            return False
        seconds = min(wait_seconds, _MAX_ANSWER_SECONDS)
        if (
            not self.holdings.is_clean(entry, seconds)
            or not self._is_good(entry, seconds)
            or not self._is_fresh(entry, key, seconds)
        ):
            self._reopen(entry)
        return True

    def _is_good(self, entry: Entry, seconds: float) -> bool:
        """Whether it is young and alive, as far as can be told."""
        now = time.monotonic()
        doubtful = now - entry.idle_since > self._check_after_seconds or (entry.end is not None and entry.end.has_news())
        if now - entry.opened_at > self._max_age_seconds:
            return False
        if not doubtful:
            return True
        with self.holdings.cut_after(entry, seconds):
            return self._connector.is_alive(entry.connection)

    def _is_fresh(self, entry: Entry, key: Hashable, seconds: float) -> bool:
        """Whether nothing of another borrower is left in it; sees to that, where it was lent on without an end between."""
        if entry.used_for is CLEAN or entry.used_for == key:
            return True
        with self.holdings.cut_after(entry, seconds):
            return self.holdings.cleaned(entry) and self.holdings.is_clean(entry, seconds)

    def _reopen(self, entry: Entry) -> None:
        entry.used_for = CLEAN
        entry.is_being_cleaned = False
        with self._opening(entry):
            entry.connection = self._connector.reopen(entry.connection)
        self._opened(entry, reconnects=1)

    def _timed_out(self, waited_seconds: float, budget: Budget) -> PoolTimeout:
        directory = budget.directory()
        if directory is not None:
            directory.note_timeout()
        with budget.lock:
            budget.mend()  # for the next one
        stats = self.stats()
        return PoolTimeout(
            f"no connection of {self.name} was to be had in {waited_seconds:.3f} s: of {stats.max_connections} (max_connections) "
            f"{stats.open} are open, {stats.in_use} in use, and {stats.waiting} workers wait. Hold connections for a shorter "
            "time, allow more, or put PgBouncer between.",
            name=self.name,
            waited_seconds=waited_seconds,
            max_connections=stats.max_connections,
            open=stats.open,
            in_use=stats.in_use,
            waiting=stats.waiting,
        )

    # --- taking back ---------------------------------------------------------------------------------------------------

    def take_back(self, entry: Entry, *, dropped: bool = False) -> None:
        """Its user returns it. Doesn't block. Idempotent, also in a forked child, which has nothing to return.

        Args:
            entry: the connection.
            dropped: it wasn't returned: the garbage collector found it.
        """
        if entry.pid != self.holdings.pid:
            return
        with self._budget().lock:
            loan = entry.loan
            if loan is None:
                return
            entry.used_for = loan.key
            self.holdings.end_loan(loan, entry)
            if dropped and loan.key is not None:  # else there is no end that would tell it
                self.holdings.dropped.setdefault(loan.key, []).append(loan.place())
            self.holdings.settle(entry)

    def take_back_all(self, key: Hashable, wait_seconds: float) -> list[str]:
        """The end of who borrowed as ``key``: take back what it forgot, and clean what it used. What there is to tell of it.

        Blocks for ``wait_seconds`` at most: what isn't clean by then is cut, and closed.
        """
        lines = invocation_end.take_back_all(self.holdings, key, wait_seconds)
        self._connector.end_bereft(key)
        return lines

    def dispose(self) -> None:
        """Close what is idle, soon, and what is in use when it is returned. Doesn't block."""
        self.holdings.dispose()

    # --- the server's own limit ----------------------------------------------------------------------------------------

    def is_limit_known(self) -> bool:
        """Whether the server's limit has been asked for, in this process."""
        return self._is_limit_known

    def check_limit(self, limit: int | None) -> None:
        """See that the server allows as many connections as the budget; it may be None where it doesn't say.

        Raises:
            PoolError: it allows fewer.
        """
        count = self._budget().count
        if limit is not None and count > limit:
            raise PoolError(
                f"{self.name} has max_connections={count}, and the server allows this user {limit} at most. Others, such as more "
                f"execution environments, want some of those, too: set it well below {limit}.",
                name=self.name,
            )
        self._is_limit_known = True

    # --- figures --------------------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """The figures of all workers of the execution environment, of one moment or nearly so. Doesn't block."""
        budget = self._budget()
        return read_stats(budget.path, name=self.name, max_connections=budget.count)

    def figures(self) -> dict[str, object]:
        """The same by name."""
        return self.stats().as_dict()

    def tell_metrics(self, function_name: str) -> None:
        """Write a line of CloudWatch's metrics to stdout, if one is due for all workers. Raises nothing."""
        now = time.monotonic()
        if now < self._metrics_at:
            return
        self._metrics_at = now + _METRICS_LOOK_SECONDS
        from perinvoke.environment.connections.metrics import due_line  # noqa: PLC0415  # only who wants metrics pays for it

        try:
            line = due_line(self._budget().path, self.stats(), function_name)
            if line is not None:
                sys.stdout.write(line + "\n")
                sys.stdout.flush()
        except (OSError, ValueError) as error:  # a full disk, a closed stdout
            logger.debug("the metrics of %s could not be told: %s", self.name, error)

    def __repr__(self) -> str:
        return f"<ConnectionPool {self.name}: {len(self.holdings.entries)} open here, {len(self.holdings.idle)} idle>"
