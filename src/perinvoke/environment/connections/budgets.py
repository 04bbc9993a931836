"""All budgets of this process, by the directory that their files lie in; and what a fork does to them.

In a forked child everything is the parent's: the slots, the threads, the connections. It forgets them, without a word to anybody.
"""

from __future__ import annotations

import logging
import os
import threading

from perinvoke.environment.connections.budget import Budget
from perinvoke.environment.names import CONNECTIONS
from perinvoke.errors import PoolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from perinvoke.environment.connections.holdings import Holdings
    from perinvoke.environment.file_lock import Home

# More than any database server allows, and little enough that a look at every slot takes a moment.
MAX_CONNECTIONS = 1_000


# Engines or pools of one budget. Arbitrary: more than anybody makes on purpose.
_MANY = 10

logger = logging.getLogger("perinvoke")


class Budgets:
    """The budgets that one process has a share of; lives as long as the process, and its forked children take over the list."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._budgets: dict[str, Budget] = {}
        self._holdings: dict[str, list[Holdings]] = {}
        self._forgotten: list[object] = []
        self._paused: list[Any] = []  # the locks that a fork has taken

    def share(self, name: str, count: int, home: Home, *, told: str) -> Callable[[], Budget]:
        """A function that gives the budget as this process has it; the same for everybody who names the same one.

        ``told`` is what messages call it.

        Raises:
            PoolError: another pool of this process wants the same budget to be another number.
        """
        path = f"{home.root}/{CONNECTIONS}/{name}"
        other = self._budgets.get(path)
        if other is not None and other.count != count and not self._given_up(other):
            raise PoolError(
                f"{told} is to have max_connections={count}, and another engine or pool of the same name has {other.count}. A "
                "budget is one number: give both the same, or one of them a name of its own (name=…).",
                name=told,
            )

        def budget() -> Budget:
            found = self._budgets.get(path)
            if found is None:
                with self._lock:
                    found = self._budgets.setdefault(path, Budget(told, count, home, path, self._holdings.setdefault(path, [])))
            return found

        budget()
        return budget

    def _given_up(self, budget: Budget) -> bool:
        """Whether all that used the budget were disposed of, and have no connection any more; then it is forgotten."""
        with self._lock, budget.lock:
            if budget.slots or not all(holdings.is_at_rest() for holdings in self._holdings.get(budget.path, ())):
                return False
            self._budgets.pop(budget.path, None)
            self._holdings.pop(budget.path, None)
        budget.close()
        return True

    def add(self, holdings: Holdings) -> None:
        """Have the budget's keeper look after them."""
        of_one = self._holdings[holdings.budget().path]
        of_one.append(holdings)
        if len(of_one) == _MANY:
            logger.warning(
                "%s is the %dth engine or pool of its budget in this process: make it once, at init, and not in the handler",
                holdings.name,
                _MANY,
            )

    def remove(self, holdings: Holdings) -> None:
        """Undo ``add``, for an engine that could not be made."""
        self._holdings[holdings.budget().path].remove(holdings)
        self._given_up(holdings.budget())

    def pause(self) -> None:
        """Before a fork: wait for what is just being opened, so that the child knows what to close."""
        self._lock.acquire()
        self._paused.append(self._lock)
        for budget in self._budgets.values():
            budget.lock.acquire()
            self._paused.append(budget.lock)

    def go_on(self) -> None:
        """After a fork, in the parent: give up what ``pause`` has taken, also where it was interrupted."""
        while self._paused:
            self._paused.pop().release()

    def forget(self) -> None:
        """After a fork, in the child: what is forgotten is kept: finalizers would act on what is the parent's."""
        self._lock, self._paused = threading.Lock(), []
        forgotten, self._budgets = self._budgets, {}
        self._forgotten.append(forgotten)
        for budget in forgotten.values():
            budget.forget()
        for of_one in self._holdings.values():
            for holdings in of_one:
                holdings.forget()


budgets = Budgets()
os.register_at_fork(before=budgets.pause, after_in_parent=budgets.go_on, after_in_child=budgets.forget)


def checked(count: object, name: str) -> int:
    """The number of connections that a caller allows.

    Raises:
        PoolError: it is no number, or none that makes sense.
    """
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_CONNECTIONS:
        raise PoolError(
            f"max_connections of {name} is {count!r}; allowed is a whole number from 1 to {MAX_CONNECTIONS}: how many "
            "connections all workers of an execution environment may have together",
            name=name,
        )
    return count
