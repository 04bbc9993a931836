"""Threads and pooled calls that an invocation starts carry its context, and are known to it.

asyncio does this by itself. ``threading.Thread`` starts with an empty context (on Python 3.14, depending on a flag, with a copy
of its starter's), and ``ThreadPoolExecutor`` runs a call in whatever context its thread was born with: on 3.14 that may be an
invocation that ended long ago. So both are taught here:

* a thread started in an invocation runs in a copy of its context;
* a call submitted in an invocation runs in a copy of its context, in whatever thread;
* a pool's own thread is born without an invocation: it outlives the one that caused its start.

Outside an invocation both do what they always did.
"""

from __future__ import annotations

import contextvars
import threading

from perinvoke.invocation.context import running

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future, ThreadPoolExecutor
    from typing import Any

_installed = False


def install() -> None:
    """Teach ``Thread.start`` and ``ThreadPoolExecutor.submit``, once in a process; idempotent."""
    global _installed  # noqa: PLW0603  # a process has one threading module
    if _installed:
        return
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415  # the runtime has it loaded, a unit test may not

    threading.Thread.start = _carrying_start(threading.Thread.start)  # type: ignore[method-assign, assignment]
    ThreadPoolExecutor.submit = _carrying_submit(ThreadPoolExecutor.submit)  # type: ignore[method-assign]
    _installed = True


def _carrying_start(original: Callable[[threading.Thread], None]) -> Callable[[threading.Thread], None]:
    def start(self: threading.Thread) -> None:
        invocation = running()
        if invocation is None:
            original(self)
            return
        invocation.threads.append(self)
        carried = (
            getattr(self, "_context", None) is None and not self.ident
        )  # 3.14: Thread(context=…) is the handler's own choice
        if carried:
            _run_in(contextvars.copy_context(), self)
        try:
            original(self)
        except BaseException:
            invocation.threads.remove(self)
            if carried:
                self.__dict__.pop("run", None)  # it may be started again
            raise

    start.__doc__ = original.__doc__
    return start


def _run_in(context: contextvars.Context, thread: threading.Thread) -> None:
    run = thread.run

    def run_in_context() -> None:
        thread.__dict__.pop("run", None)
        context.run(run)

    thread.run = run_in_context  # type: ignore[method-assign]


def _carrying_submit(original: Callable[..., Future[Any]]) -> Callable[..., Future[Any]]:
    def submit(self: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        invocation = running()
        if invocation is None:
            return original(self, fn, *args, **kwargs)
        # The pool may start a thread inside this call: from an empty context, so that the thread has no invocation.
        context = contextvars.copy_context()
        future = contextvars.Context().run(original, self, context.run, fn, *args, **kwargs)
        invocation.work[future] = getattr(fn, "__qualname__", None) or repr(fn)
        future.add_done_callback(lambda done: invocation.work.pop(done, None))
        return future

    submit.__doc__ = original.__doc__
    return submit
