"""On whose behalf something is shared: which invocation asks, how long it may wait, and what is given back when it ends."""

from __future__ import annotations

import functools
import math
import sys
import threading

from perinvoke.invocation.context import running
from perinvoke.settings import read_settings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from perinvoke.invocation.context import Invocation
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
        return math.inf if self._invocation is None else self._invocation.deadline.bound()

    def at_end(self, give_back: Callable[[Hashable], list[str]]) -> None:
        """Have ``give_back(key)`` called when the invocation ends."""
        if self._invocation is not None:
            self._invocation.held.setdefault(self.key, give_back)


def asker() -> Asker:
    """Who asks, here and now."""
    return Asker(running())


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
