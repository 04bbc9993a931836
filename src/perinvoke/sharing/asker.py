"""On whose behalf something is shared: which invocation asks, how long it may wait, and what is given back when it ends."""

from __future__ import annotations

import functools
import math
import sys
import threading

from perinvoke import worker
from perinvoke.invocation.context import AWS_CALLS, running
from perinvoke.settings import read_settings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from typing import Any

    from perinvoke.invocation.context import Invocation, Pool
    from perinvoke.settings import Settings


def settings() -> Settings:
    """The running invocation's settings; outside one, what the environment variables say now."""
    invocation = running()
    return read_settings() if invocation is None else invocation.settings


class Asker:
    """The invocation, thread and task that asks; lives as long as one call."""

    __slots__ = ("_invocation", "key")

    def __init__(self, invocation: Invocation | None) -> None:
        self._invocation = invocation
        self.key: Hashable = (invocation, threading.get_ident(), _task())

    def has_ended(self) -> bool:
        """Whether the invocation has ended meanwhile, in another thread."""
        return self._invocation is not None and self._invocation.ended

    def wait_seconds(self) -> float:
        """Until the deadline less a margin, from now; outside an invocation for ever."""
        return wait_seconds(self._invocation)

    def remaining_seconds(self) -> float:
        """Until the deadline itself, from now; infinite outside an invocation, and where there is no deadline."""
        return math.inf if self._invocation is None else self._invocation.deadline.remaining_seconds()

    @property
    def request_id(self) -> str | None:
        """The invocation's; None outside one."""
        return None if self._invocation is None else self._invocation.request_id

    @property
    def notes(self) -> dict[str, Any] | None:
        """What is remembered for the length of the invocation, by whose it is; None outside one.

        All its threads and tasks have the same, and so have invocations that its handler makes of other isolated functions: they
        may have its request id.
        """
        outermost = self._outermost()
        return None if outermost is None else outermost.notes

    @property
    def outermost_request_id(self) -> str | None:
        """That of the invocation whose notes these are: the platform's, also in a handler that is called without a context."""
        outermost = self._outermost()
        return None if outermost is None else outermost.request_id

    def _outermost(self) -> Invocation | None:
        invocation = self._invocation
        while invocation is not None and invocation.parent is not None:
            invocation = invocation.parent
        return invocation

    def outside_effects(self) -> int:
        """How many boto3 calls it has begun and cleanups it has deferred up to now; 0 outside an invocation."""
        invocation = self._invocation
        return 0 if invocation is None else invocation.notes.get(AWS_CALLS, 0) + invocation.scope.count()

    def at_end(self, give_back: Callable[[Hashable], list[str]]) -> None:
        """Have ``give_back(key)`` called when the invocation ends."""
        if self._invocation is not None:
            self._invocation.held.setdefault(self.key, give_back)


def asker() -> Asker:
    """Who asks, here and now."""
    return Asker(running())


class Lessee(Asker):
    """The invocation, thread and task that asks for a lease, and for the file lock that goes with it; lives as long as its hold.

    A file lock of the same name that it takes for itself is another one's.

    Attributes:
        group: its invocation, whose leases are given back together.
    """

    __slots__ = ("group",)

    def __init__(self, invocation: Invocation | None) -> None:
        super().__init__(invocation)
        assert isinstance(self.key, tuple)
        self.key = (*self.key, "lease")
        self.group: Hashable = ("leases", invocation)

    def leases_at_end(self, give_back: Callable[[Hashable, float], list[str]]) -> None:
        """Have ``give_back(group, seconds)`` called when the invocation ends, before the file locks are given back."""
        invocation = self._invocation
        if invocation is not None and self.group not in invocation.held:
            invocation.held[self.group] = lambda group: give_back(group, worker.seconds_for_cleaning(invocation.deadline))


def lessee() -> Lessee:
    """Who asks for a lease, here and now."""
    return Lessee(running())


def _task() -> object:
    asyncio = sys.modules.get("asyncio")
    try:
        return None if asyncio is None else asyncio.current_task()
    except RuntimeError:
        return None  # no loop runs in this thread


class Audience:
    """All of an invocation, whatever thread or task asks; outside one, the process. Lives as long as one call."""

    __slots__ = ("_invocation", "key")

    def __init__(self, invocation: Invocation | None) -> None:
        self._invocation = invocation
        self.key: Hashable = ("audience", invocation)

    def has_ended(self) -> bool:
        """Whether the invocation has ended meanwhile, in another thread."""
        return self._invocation is not None and self._invocation.ended

    def at_end(self, give_back: Callable[[Hashable], list[str]]) -> None:
        """Have ``give_back(key)`` called when the invocation ends."""
        if self._invocation is not None:
            self._invocation.held.setdefault(self.key, functools.partial(_silently, give_back))


def audience() -> Audience:
    """Who uses what is asked for, here and now."""
    return Audience(running())


def _silently(give_back: Callable[[Hashable], list[str]], key: Hashable) -> list[str]:
    """Using something to the end is no fault, so nothing is told of it."""
    give_back(key)
    return []


class Borrower:
    """The invocation that asks for a connection, whatever its thread; outside one, the process. Lives as long as one call."""

    __slots__ = ("key",)

    def __init__(self, invocation: Invocation | None) -> None:
        self.key = invocation

    def has_ended(self) -> bool:
        """Whether the invocation has ended meanwhile, in another thread."""
        return self.key is not None and self.key.ended

    def wait_seconds(self) -> float:
        """Until the deadline less a margin, from now; outside an invocation half a minute."""
        return min(wait_seconds(self.key), _WAIT_FOR_CONNECTION_SECONDS if self.key is None else math.inf)

    def at_end(self, pool: Pool) -> None:
        """Have the pool take back everything when the invocation ends."""
        if self.key is not None:
            self.key.pools.setdefault(pool)


def borrower() -> Borrower:
    """Who asks for a connection, here and now."""
    return Borrower(running())


# Seconds. Outside an invocation, at init for example, nobody else sets a bound; SQLAlchemy's own pools wait as long.
_WAIT_FOR_CONNECTION_SECONDS = 30.0


def wait_seconds(invocation: Invocation | None) -> float:
    """How long what the invocation does may wait: until the deadline less a margin; outside an invocation for ever."""
    return math.inf if invocation is None else invocation.deadline.bound()
