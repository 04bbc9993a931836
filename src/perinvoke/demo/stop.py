"""Ends what runs when a signal asks for it, and lets it clean up."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from types import FrameType
    from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
T = TypeVar("T")


class Stop:
    """Lives while there is something to clean up: a signal is noted, and cancels what is ``bound``. In the main thread only.

    What is not bound goes on to its end; so clean-up needs no guard of its own. A second signal cancels once more.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._bound: asyncio.Task[Any] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a job in the background of a script
                self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    async def bound(self, work: Coroutine[Any, Any, T]) -> T | None:
        """The result of ``work``, or None when a signal has ended it."""
        task = asyncio.ensure_future(work)
        self._bound = task
        if self.signal_number is not None:  # it came before
            task.cancel()
        try:
            return await task
        except asyncio.CancelledError:
            if self.signal_number is None:
                raise
            return None
        finally:
            self._bound = None

    def _take(self, number: int, _: FrameType | None) -> None:
        self.signal_number = self.signal_number or number
        task = self._bound
        if task is not None:
            task.get_loop().call_soon_threadsafe(task.cancel)  # a handler runs anywhere in the loop's own code
