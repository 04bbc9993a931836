"""What can be learned of an async handler's task from outside: where it waits, whether it runs, and what it is handling."""

from __future__ import annotations

import gc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import Task
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

    from perinvoke.invocation.context import Invocation

_MAX_CHAIN = 100  # awaitables; more in one chain is a loop


def frames_of(task: Task[Any]) -> list[tuple[FrameType, int]]:
    """The frames that a task waits in, innermost first, and their lines."""
    frames: list[tuple[FrameType, int]] = []
    awaited: Any = task.get_coro()
    while awaited is not None and len(frames) < _MAX_CHAIN:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is not None:
            frames.insert(0, (frame, frame.f_lineno))
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
    return frames


def is_handling(task: Task[Any] | None, caused: Callable[[BaseException], bool]) -> bool:
    """Whether the task, or what it waits for, is handling an error that its cancellation ``caused``."""
    waiting: list[Any] = [task]
    for _ in range(_MAX_CHAIN):
        if not waiting:
            return False
        awaited: Any = waiting.pop()
        children = getattr(awaited, "_children", None)  # of asyncio.gather
        waiting += children if isinstance(children, list) else []
        if not hasattr(awaited, "get_coro") or awaited.done():
            continue
        waiting.append(getattr(awaited, "_fut_waiter", None))
        awaited = awaited.get_coro()
        while awaited is not None:
            # The only way to what a suspended coroutine is handling: Python tells that of running code alone.
            if any(caused(found) for found in gc.get_referents(awaited) if isinstance(found, BaseException)):
                return True
            awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
    return False


def task_runs(invocation: Invocation) -> bool:
    """Whether its loop is running a step of a task now: of any task in a loop of ours, of its own in somebody else's."""
    task = invocation.task
    if task is None:
        return False
    import asyncio  # noqa: PLC0415  # cold start: there is a task, so it is loaded

    try:
        current = asyncio.current_task(task.get_loop())
    except RuntimeError:
        return False
    return current is task or (current is not None and not invocation.in_loop)
