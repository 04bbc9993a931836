"""Runs an async handler to its end, in a loop that its worker thread keeps.

The loop outlives the invocation, so that a client made for it (aiohttp, aioboto3) stays usable in the next one. Tasks don't: what
the handler started and did not wait for is cancelled, and reported.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import sys
import threading

from perinvoke.invocation.context import entered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any

    from perinvoke.invocation.context import Invocation

# Seconds. What a cancelled task may still do in its finally blocks before the answer goes without it; arbitrary, and short beside
# any time-out.
_CANCEL_SECONDS = 1.0
_LEAST_CANCEL_SECONDS = 0.05  # also when the deadline is that near: a task needs a turn of the loop


class EventLoops:
    """One event loop a worker thread; lives as long as the worker.

    A forked child forgets it without closing it: closing would take the parent's own wake-up descriptor out of the epoll set that
    both share.
    """

    def __init__(self) -> None:
        self._here = threading.local()

    def run(self, invocation: Invocation, result: Awaitable[Any]) -> Any:
        """Await ``result`` and the deferred cleanups in this thread's loop. Blocks until both are done.

        Tasks started meanwhile and still pending are cancelled, and noted in ``invocation.cancelled_tasks``.
        """
        loop = self._loop()
        before = asyncio.all_tasks(loop)
        main = loop.create_task(cleaned_up(invocation, result), context=contextvars.copy_context())
        invocation.task = main
        try:
            return loop.run_until_complete(main)
        finally:
            # SystemExit in any task ends run_until_complete at once, with the handler itself still pending.
            pending = asyncio.all_tasks(loop) - before
            if pending:
                loop.run_until_complete(_cancelled(invocation, pending, main))
            invocation.task = None  # else both would wait for the garbage collector: the task's context knows the invocation

    def _loop(self) -> asyncio.AbstractEventLoop:
        own: _OwnLoop | None = getattr(self._here, "own", None)
        if own is None or own.loop.is_closed():
            own = self._here.own = _OwnLoop()
        return own.loop


class _OwnLoop:
    """A loop that is closed when its thread ends; lives as long as the thread, and in no forked child."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._pid = os.getpid()

    def __del__(self, getpid: Callable[[], int] = os.getpid, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # The functions as defaults: at the interpreter's end this module's names may be gone.
        if getpid() == self._pid and not self.loop.is_running() and not is_finalizing():
            self.loop.close()


async def cleaned_up(invocation: Invocation, result: Awaitable[Any]) -> Any:
    """Await ``result`` and then, however it ended, the deferred cleanups."""
    try:
        return await result
    finally:
        if invocation.watch is not None:
            invocation.watch.disarm(invocation)  # nothing interrupts the cleanups
        task = asyncio.current_task()
        cancelled_before = task.cancelling() if task is not None else 0
        invocation.failed_cleanups += await invocation.scope.aclose()
        if task is not None and task.cancelling() > cancelled_before:
            raise asyncio.CancelledError  # a cleanup was interrupted by it; who cancelled, wants the task to end


async def tasks_cancelled(invocation: Invocation) -> None:
    """Cancel what ``invocation`` left pending in a loop that isn't ours. Before Python 3.12 a task doesn't tell whose it is."""
    pending = {task for task in asyncio.all_tasks() if _belongs_to(task, invocation) and task is not asyncio.current_task()}
    if pending:
        await _cancelled(invocation, pending)


def in_running_loop() -> bool:
    """Whether this thread is running an event loop now: then an async handler can only be awaited."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _belongs_to(task: asyncio.Task[Any], invocation: Invocation) -> bool:
    get_context = getattr(task, "get_context", None)
    return get_context is not None and get_context().get(entered) is invocation


async def _cancelled(invocation: Invocation, tasks: set[asyncio.Task[Any]], main: asyncio.Task[Any] | None = None) -> None:
    """Cancel and wait, for a bounded time: a task may refuse to be cancelled, and is then noted as left running."""
    for task in tasks:
        task.cancel()
    seconds = min(_CANCEL_SECONDS, max(_LEAST_CANCEL_SECONDS, invocation.deadline.remaining_seconds() / 2))
    done, refusing = await asyncio.wait(tasks, timeout=seconds)
    invocation.cancelled_tasks += sorted(task.get_name() for task in done if task is not main)
    invocation.uncancelled_tasks += sorted(f"task {task.get_name()}" for task in refusing)
