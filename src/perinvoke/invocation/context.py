"""The running invocation: what it knows of itself, and how code below the handler finds it.

The invocation stands in one ``ContextVar``. A thread, task or pooled call that an invocation starts carries its context along
(``carry.py``), so ``current()`` answers there too, until the invocation ends: from then on its context answers nothing, however
long a thread keeps it.
"""

from __future__ import annotations

import contextvars
import functools
import os
import threading
import time

from perinvoke.clock import deadline_of
from perinvoke.errors import NotInInvocation
from perinvoke.invocation.scope import Scope

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import Task
    from collections.abc import Callable, Hashable
    from concurrent.futures import Future
    from pathlib import Path
    from threading import Thread
    from typing import Any, ParamSpec, Protocol

    from perinvoke.invocation.process_state import ProcessState
    from perinvoke.invocation.scratch import Scratch
    from perinvoke.invocation.watched import Watched
    from perinvoke.invocation.watches import Watch
    from perinvoke.settings import Settings

    P = ParamSpec("P")

    class Pool(Protocol):
        """What lends connections to invocations."""

        def take_back_all(self, key: Hashable, wait_seconds: float) -> list[str]:
            """Take back what ``key`` did not return, and clean what it used; what there is to tell of it."""

        def figures(self) -> dict[str, object]:
            """Of all workers."""

        def tell_metrics(self, function_name: str) -> None:
            """Write them to stdout as CloudWatch's metrics, if that is due. Raises nothing."""


class Invocation:
    """One call of an isolated handler; lives from its entry to the end of its cleanup. ``current()`` returns it.

    May be used from every thread and task that the invocation starts. In a process forked from it it goes on answering, but the
    child never cleans up what is the parent's.

    Attributes:
        request_id: the platform's request id; made up where there is no Lambda context. Data, never part of a path.
        tenant_id: the tenant of a function in tenant isolation mode, or None.
        deadline: when this invocation has to be over.
        parent: the invocation whose handler called this one, or None.
    """

    __slots__ = (
        "cancelled_tasks",
        "claims_process",
        "deadline",
        "ended",
        "failed_cleanups",
        "had_children",
        "held",
        "in_loop",
        "met_full_disk",
        "notes",
        "parent",
        "pid",
        "pools",
        "process_state",
        "processes",
        "replaced_at",
        "request_id",
        "scope",
        "scratch_directory",
        "settings",
        "started_monotonic",
        "state_defaults",
        "task",
        "tenant_id",
        "thread_id",
        "threads",
        "uncancelled_tasks",
        "watch",
        "watched",
        "work",
    )

    def __init__(
        self, event: object, context: object, parent: Invocation | None, settings: Settings, scratch_directory: Scratch
    ) -> None:
        self.settings = settings
        self.request_id = _text(context, "aws_request_id") or _made_up_request_id()
        self.tenant_id = _text(context, "tenant_id")
        self.deadline = deadline_of(settings, event, context)
        self.parent = parent
        self.pid = os.getpid()
        self.thread_id = threading.get_ident()
        self.in_loop = False  # it runs in an event loop that its caller runs
        self.met_full_disk = False  # room is made at its end
        self.had_children = False  # a nested invocation had child processes
        self.started_monotonic = time.monotonic()
        self.ended = False
        self.scope = Scope()
        self.scratch_directory = scratch_directory
        self.threads: list[Thread] = []
        self.work: dict[Future[Any], str] = {}
        self.state_defaults: dict[object, object] = {}
        self.processes: list[int] = []
        self.cancelled_tasks: list[str] = []
        self.uncancelled_tasks: list[str] = []
        self.failed_cleanups: list[BaseException] = []
        self.held: dict[Hashable, Callable[[Hashable], list[str]]] = {}  # what gives back locks that are still held, by owner
        self.pools: dict[Pool, None] = {}  # of connections: those that have lent it one, in that order
        self.notes: dict[str, Any] = {}  # what others remember for as long as it lives, by whose it is
        self.process_state: ProcessState | None = None
        self.claims_process = False  # see occupancy.py
        self.task: Task[Any] | None = None  # of an async handler
        self.watch: Watch | None = None  # what watches over the deadline
        self.watched: Watched | None = None  # how far that has got, once the time is up
        self.replaced_at = 0.0  # when its worker is ended, if nothing else helps; 0: never

    @property
    def scratch(self) -> Path:
        """This invocation's private directory. See ``perinvoke.scratch``."""
        from pathlib import Path  # noqa: PLC0415  # cold start: 7 to 20 ms that a handler without files doesn't pay

        return Path(self.scratch_directory.path())

    def defer(self, cleanup: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Call ``cleanup(*args, **kwargs)`` when the invocation ends, however it ends; last in, first out.

        One cleanup's failure is logged and doesn't stop the next, nor change the handler's answer. The scratch directory is still
        there. In an async handler a cleanup may return an awaitable. Doesn't block; may be called from any thread.

        Raises:
            NotInInvocation: the invocation has ended.
        """
        self.scope.defer(functools.partial(cleanup, *args, **kwargs) if args or kwargs else cleanup)

    def __repr__(self) -> str:
        stage = "ended" if self.ended else "running"
        return f"<Invocation {self.request_id} {stage}, {self.deadline!r}>"


AWS_CALLS = "aws_calls"  # a note: how many calls of boto3's it has begun

entered: contextvars.ContextVar[Invocation | None] = contextvars.ContextVar("perinvoke.invocation", default=None)


def running() -> Invocation | None:
    """The invocation this context belongs to, or None outside one and after it has ended."""
    invocation = entered.get()
    return None if invocation is None or invocation.ended else invocation


def current() -> Invocation:
    """The running invocation, in the handler and in every thread and task it started.

    Raises:
        NotInInvocation: called outside an isolated handler, or by a thread that outlived its invocation.
    """
    invocation = entered.get()
    if invocation is None:
        raise NotInInvocation(
            "no invocation is running here: call this from a handler wrapped with perinvoke.isolated, "
            "or from a thread or task that such a handler started"
        )
    if invocation.ended:
        raise NotInInvocation(
            f"invocation {invocation.request_id} has ended and this thread or task of it still runs: "
            "wait for it before the handler returns"
        )
    return invocation


def scratch() -> Path:
    """The running invocation's private directory.

    Mode 0700, empty at the start, never seen by another invocation, gone when the invocation ends. ``tempfile`` and, for child
    processes, ``TMPDIR`` point to it too. Doesn't block beyond one ``mkdir``.

    Raises:
        NotInInvocation: outside an invocation.
        ScratchUnavailable: the disk is full or the directory can't be made for now.
        RootError: the folder below which perinvoke keeps its files can't be trusted.
    """
    return current().scratch


def _text(context: object, name: str) -> str | None:
    """An attribute if it is a non-empty string: a unit test's context may be None or a mock that answers anything."""
    value = getattr(context, name, None)
    return value if isinstance(value, str) and value else None


def _made_up_request_id() -> str:
    digits = os.urandom(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
