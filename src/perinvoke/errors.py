"""The one tree of errors: ``PerinvokeError`` and three families, named by what the caller should do.

* ``FixConfiguration``: a setting, a folder, a handler's name or the code that uses perinvoke is wrong. Retrying won't help.
* ``TryAgain``: something is short for the moment (disk, workers). The same call may succeed later.
* ``InvocationFailed``: this invocation is over; the next one is not affected.

Every error carries what its message says as fields too, and survives pickling. A message names the resource, the limit and the
next step.
"""

from __future__ import annotations

import errno as numbers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class PerinvokeError(Exception):
    """Root of everything perinvoke raises. ``fields`` become attributes; they and the message survive pickling."""

    def __init__(self, message: str = "", /, **fields: object) -> None:
        super().__init__(message)
        self.__dict__.update(fields)


class FixConfiguration(PerinvokeError):
    """A setting, a folder, a name or a use of perinvoke is wrong; the same call will fail again."""


class TryAgain(PerinvokeError):
    """Something is short for the moment; the same call may succeed later."""


class InvocationFailed(PerinvokeError):
    """This invocation is over; the worker and the next invocation are not affected."""


class SettingError(FixConfiguration, ValueError):
    """A ``PERINVOKE_*`` variable or an argument of ``isolated`` has a value that isn't allowed."""

    setting: str
    value: object
    allowed: str


class RootError(FixConfiguration):
    """The folder below which perinvoke keeps its files can't be used or can't be trusted."""

    path: str


class HandlerError(FixConfiguration):
    """The handler named by ``PERINVOKE_HANDLER`` or on the command line can't be found, imported or called."""

    handler: str


class MissingExtra(FixConfiguration, ImportError):
    """A feature needs a package that isn't installed; ``extra`` is the extra of perinvoke that brings it."""

    extra: str


class NotInInvocation(FixConfiguration, RuntimeError):
    """Something that exists only during an invocation was used outside one, or after its invocation had ended."""


class StateError(FixConfiguration, TypeError):
    """An ``InvocationState`` class is declared in a way that can't be isolated."""


class LockError(FixConfiguration):
    """A lock is used in a way that can't work: its name, its file, its time-out, or an upgrade from shared to exclusive."""

    path: str


class LockNotHeld(LockError, RuntimeError):
    """A lock was to be released by an owner that doesn't hold it."""


class LockTimeout(TryAgain, TimeoutError):
    """A lock was held by others for as long as its owner could wait."""

    path: str
    waited_seconds: float
    holder_pids: list[int]


class ScratchUnavailable(TryAgain, OSError):
    """A file or directory that perinvoke keeps could not be made for now: no descriptors, no memory, or no space."""

    path: str


class ScratchFull(ScratchUnavailable):
    """The file system of the root is full, for perinvoke itself or for what a handler or a ``build`` wrote.

    An ``OSError`` with the errno ENOSPC, so that code which knows those goes on to.

    Attributes:
        free_bytes: what was free a moment later; others may have ended meanwhile.
        total_bytes: the size of the file system.
        largest: who uses most of it, as far as a short look could tell: names and bytes, largest first.
    """

    free_bytes: int
    total_bytes: int
    largest: list[tuple[str, int]]

    def __init__(self, message: str = "", /, **fields: object) -> None:
        super().__init__(message, **fields)
        self.errno = numbers.ENOSPC


class SharedFileError(FixConfiguration):
    """A shared file can't be had as asked: its key, its age, or what its ``build`` did."""

    key: str


class SharedFileTooLarge(SharedFileError):
    """One shared file has more bytes than ``PERINVOKE_SHARED_MAX_BYTES`` allows for all of them."""

    bytes: int
    max_bytes: int


class PoolError(FixConfiguration):
    """A pool of connections is asked for in a way that can't work: its URL, its budget, its options."""

    name: str


class PoolTimeout(TryAgain, TimeoutError):
    """All connections of a budget were in use for as long as its borrower could wait.

    Attributes:
        name: the pool's.
        waited_seconds: how long.
        max_connections: the budget, over all workers of the execution environment.
        open: how many connections were open a moment later; ``in_use``: lent.
        waiting: workers that waited.
    """

    name: str
    waited_seconds: float
    max_connections: int
    open: int
    in_use: int
    waiting: int


class AwsTimeout(TryAgain, TimeoutError):
    """An AWS call had no more time before its invocation's deadline.

    Attributes:
        operation: what was called, such as ``DynamoDB.PutItem``.
        waited_seconds: since the call began, all attempts and pauses in between included; 0 when none was started.
    """

    operation: str
    waited_seconds: float

    def __init__(self, message: str = "", /, **fields: object) -> None:
        Exception.__init__(self, message)  # not botocore's __init__, which makes its message from a pattern
        self.kwargs = fields  # where botocore's errors keep what they tell
        self.__dict__.update(fields)

    def __reduce__(self) -> tuple[Callable[..., AwsTimeout], tuple[object, ...]]:
        return _again, (type(self), str(self), self.kwargs)


def _again(kind: type[AwsTimeout], message: str, fields: dict[str, object]) -> AwsTimeout:
    return kind(message, **fields)


class WorkerDied(InvocationFailed):
    """The worker's process ended while it ran this invocation. Never raised: the runtime's parent answers the caller with it."""


class DeadlineReached(BaseException):
    """What is raised inside a handler whose time is up; the caller gets ``InvocationTimeout``.

    Not of the tree, and no ``Exception``: a handler's ``except Exception`` must not swallow it. ``finally`` blocks and context
    managers run, and should be quick: the margin is all the time there is.
    """


class InvocationTimeout(InvocationFailed, TimeoutError):
    """The handler was still running when its time was up, and was interrupted.

    Attributes:
        request_id: of the invocation.
        seconds: how long it might have taken.
        set_by: who allowed no more: the platform or a variable.
        stack: where the code stood, innermost first.
    """

    request_id: str
    seconds: float
    set_by: str
    stack: list[str]


class HandlerExited(InvocationFailed):
    """The handler raised ``SystemExit``, ``KeyboardInterrupt`` or another ``BaseException``.

    Raised in its place, because the runtime catches only ``Exception``: anything else would end the worker, which the platform
    doesn't replace, and leave the caller waiting for the whole time-out.
    """

    exception: str


class PreloadRefused(FixConfiguration):
    """A module can't be imported before the fork: it isn't there, fails, or leaves what doesn't survive a fork."""


class LocalError(FixConfiguration):
    """The local environment can't be started or driven as asked."""


class PortInUse(LocalError):
    """Another process listens on the port asked for."""

    port: int


class EventsFileError(LocalError):
    """An events file can't be read; ``line`` counts from 1, or is 0 when the file as a whole is at fault."""

    path: str
    line: int


class InitFailed(LocalError):
    """The runtime reported an error while it was importing the handler, or ended before a worker was ready."""

    error_type: str
    error_message: str
    stack_trace: tuple[str, ...]
    log_lines: tuple[str, ...]


class PgBouncerError(FixConfiguration):
    """PgBouncer can't be run, or reached, as asked: its name, its binary, its settings, or what the database's URL says."""

    name: str


class PgBouncerNotRunning(PgBouncerError):
    """No PgBouncer of that name runs below the root."""

    root: str


class SecretError(FixConfiguration):
    """A secret isn't there, can't be read, or doesn't hold what is needed. Never tells what it holds.

    Attributes:
        secret: its name or ARN.
        field: what is missing or wrong in it, or None.
    """

    secret: str
    field: str | None
