"""Ordered cleanup: what was deferred runs at the end, last in first out, and one failure stops nothing."""

from __future__ import annotations

import threading

from perinvoke.errors import NotInInvocation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Scope:
    """The deferred cleanups of one invocation; lives as long as it.

    Thread-safe: a cleanup handed in by another thread is either run or refused, never lost. The lock guards the hand-over between
    ``defer`` and ``_next``; cleanups themselves run outside it.
    """

    __slots__ = ("_cleanups", "_closed", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cleanups: list[Callable[[], object]] = []
        self._closed = False

    def defer(self, cleanup: Callable[[], object]) -> None:
        """Keep ``cleanup`` for the end.

        Raises:
            NotInInvocation: the invocation's cleanups have all run; this one never would.
        """
        with self._lock:
            if self._closed:
                raise NotInInvocation("the invocation has ended: what is deferred now would never run")
            self._cleanups.append(cleanup)

    def count(self) -> int:
        """How many there are up to now."""
        return len(self._cleanups)

    def close(self) -> list[BaseException]:
        """Run what was deferred, also what the cleanups defer themselves. Returns the failures; raises nothing."""
        failures: list[BaseException] = []
        while (cleanup := self._next()) is not None:
            try:
                _refuse_awaitable(cleanup())
            except BaseException as error:  # noqa: BLE001  # SystemExit in one cleanup must not stop the next
                failures.append(error)
        return failures

    async def aclose(self) -> list[BaseException]:
        """``close`` for an async handler: a cleanup that returns an awaitable is awaited.

        Cancelled from outside, it runs the rest and then lets the cancellation go on.
        """
        failures: list[BaseException] = []
        while (cleanup := self._next()) is not None:
            try:
                result = cleanup()
                if hasattr(result, "__await__"):
                    awaitable: Awaitable[object] = result
                    await awaitable
            except BaseException as error:  # noqa: BLE001  # the same
                failures.append(error)
        return failures

    def _next(self) -> Callable[[], object] | None:
        with self._lock:
            if self._cleanups:
                return self._cleanups.pop()
            self._closed = True
            return None


def _refuse_awaitable(result: object) -> None:
    if hasattr(result, "__await__"):
        if hasattr(result, "close"):
            result.close()  # a coroutine that never runs would only warn, later and elsewhere
        raise TypeError("a deferred cleanup returned an awaitable; only an async handler's cleanups are awaited")
