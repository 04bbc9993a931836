"""``boto3_client`` and ``boto3_resource``: kept by the worker, and bound to the deadline of whoever calls."""

from __future__ import annotations

import contextvars
import math
import os
import sys
import threading
import time

from perinvoke.errors import FixConfiguration, MissingExtra
from perinvoke.invocation.context import AWS_CALLS, running
from perinvoke.settings import is_shared_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from perinvoke.environment.connections.aws import Clients
    from perinvoke.invocation.context import Invocation

    Bound = TypeVar("Bound")
    Returned = TypeVar("Returned")

# Of the margin: what a call that cleans up leaves to the answer.
_ANSWERS_SHARE = 0.25


def boto3_client(service_name: str, **options: Any) -> Any:
    """A boto3 client that the worker keeps: the same one for the same arguments, in every invocation and thread.

    No call of it takes longer than its invocation has time: connecting, sending, waiting for the answer, retries and the pauses
    between them, and reading the body of the answer all end when the margin before the deadline begins. A call that cleans up
    when that has begun gets three quarters of it. Time-outs of your own count as far as they end earlier; outside an invocation
    they are all that counts. Retries follow botocore's standard mode, unless a ``Config``, ``AWS_RETRY_MODE`` or a profile
    says otherwise.

    Takes about a microsecond when the client is there; making one takes 10 to 300 ms. A forked child uses none of its parent's
    connections. Where the parent had other threads it makes clients of its own, so ask for a client where it is needed instead
    of keeping it over a fork.

    A configuration is the service, all arguments by their value, and the region, credentials, profile, role and endpoint that the
    environment variables name. At most 64 are kept. ``boto3.setup_default_session`` doesn't count; ``session=`` does.

    Args:
        service_name: such as ``"s3"``.
        options: what ``boto3.client`` takes, by name; and ``session``, a ``boto3.Session`` to make the client with.

    Raises:
        MissingExtra: boto3 isn't installed.
        FixConfiguration: ``config`` or ``session`` isn't what it should be.

    What boto3 raises comes through unchanged. Calls raise ``AwsTimeout``, which is botocore's ``ConnectTimeoutError`` or
    ``ReadTimeoutError`` too, when their time is up; reading a body raises ``ReadTimeoutError``.
    """
    return (_clients or _set_up("boto3_client")).client(service_name, options)


def boto3_resource(service_name: str, **options: Any) -> Any:
    """A boto3 resource, as ``boto3_client``; but one for each thread, because resources don't take two threads at once.

    All threads use the same connections.

    Args:
        service_name: such as ``"dynamodb"``.
        options: what ``boto3.resource`` takes, by name; and ``session``, a ``boto3.Session`` to make the resource with.

    Raises:
        MissingExtra: boto3 isn't installed.
        FixConfiguration: ``config`` or ``session`` isn't what it should be.
    """
    return (_clients or _set_up("boto3_resource")).resource(service_name, options)


def deadline_bound(target: Bound) -> Bound:
    """Bind a client of your own to the deadline of whoever calls, as if it came from ``boto3_client``; idempotent.

    Of what it is, only its time-outs change: not its retry mode, nor how many connections it keeps. Those that it has open are
    closed, because what is bound is a connection from its beginning.

    Args:
        target: a client; a resource; or a ``boto3.Session``, for all clients and resources that are made with it from now on.

    Returns:
        The same object.

    Raises:
        MissingExtra: boto3 isn't installed.
        FixConfiguration: it is something else.
    """
    _set_up("deadline_bound")
    from perinvoke.environment.connections import aws, aws_deadline  # noqa: PLC0415  # optional dependency: boto3

    client, events = aws.client_of(target), aws.events_of(target)
    if client is not None:
        aws_deadline.bind(client, _begin)
    elif events is not None:
        aws_deadline.bind_session(events, _begin)
    else:
        raise FixConfiguration(f"deadline_bound got {target!r}; it takes a client, a resource or a session of boto3")
    return target


def prepare_clients(service_name: str, prepare: Callable[[Any], object]) -> None:
    """Have ``prepare(client)`` called with every client of a service that ``boto3_client`` and ``boto3_resource`` keep.

    Also with those that they have made before, in this process. It should be idempotent and quick, and must not raise.
    """
    with _setting_up:
        _prepares.append((service_name, prepare))
        if _clients is not None:
            _clients.prepare(service_name, prepare)


def ending_within(seconds: float, function: Callable[..., Returned], *args: object) -> Returned:
    """Call ``function(*args)``. Every call that it makes of a bound client ends within so many seconds from now, at the latest.

    For what belongs to no invocation, or must be quicker than its invocation.
    """
    # In a copy of the context: an interrupt that comes between setting a variable and putting it back can't leave it set.
    return contextvars.copy_context().run(_ending_at, time.monotonic() + seconds, function, args)


def _ending_at(until_monotonic: float, function: Callable[..., Returned], args: tuple[object, ...]) -> Returned:
    _until.set(min(until_monotonic, _until.get()))
    return function(*args)


# On the monotonic clock: when calls that are made in this context have to end.
_until: contextvars.ContextVar[float] = contextvars.ContextVar("perinvoke.aws_until", default=math.inf)


class _Time:
    """What a call has left; lives as long as the call, and the body of its response.

    Args:
        invocation: whose call it is.
        seconds: what that invocation gives it, from now.
        latest_monotonic: when it has to end, whatever becomes of the invocation.
    """

    __slots__ = ("_invocation", "_latest_monotonic", "_until_monotonic")

    def __init__(self, invocation: Invocation | None, seconds: float, latest_monotonic: float) -> None:
        self._invocation = invocation
        self._until_monotonic = time.monotonic() + seconds
        self._latest_monotonic = latest_monotonic

    def __call__(self) -> float:
        """Seconds; the invocation sets no limit once it has ended: whoever still reads is nobody's, or another invocation."""
        now = time.monotonic()
        left = math.inf if self._invocation is None or self._invocation.ended else self._until_monotonic - now
        return min(left, self._latest_monotonic - now)


def _begin() -> Callable[[], float] | None:
    """The time of a call that begins now; None outside an invocation, and where there is no deadline."""
    invocation, latest = running(), _until.get()
    if invocation is not None:
        invocation.notes[AWS_CALLS] = invocation.notes.get(AWS_CALLS, 0) + 1
    seconds = math.inf if invocation is None else _seconds_of(invocation)
    return None if seconds == latest == math.inf else _Time(invocation, seconds, latest)


def _seconds_of(invocation: Invocation) -> float:
    deadline = invocation.deadline
    seconds = deadline.bound()
    if seconds <= 0:  # the margin has begun: it is there for what cleans up, but the answer needs some of it
        seconds = deadline.remaining_seconds() - _ANSWERS_SHARE * deadline.margin_seconds
    return seconds


_clients: Clients | None = None
_prepares: list[tuple[str, Callable[[Any], object]]] = []
_forgotten: list[Clients] = []
_forks_alone = True
_setting_up = threading.Lock()  # two threads' first calls make one set


def _set_up(asked: str) -> Clients:
    global _clients  # noqa: PLW0603  # a process has one set of clients, made when it is first needed
    try:
        from perinvoke.environment.connections import aws  # noqa: PLC0415  # optional dependency, and 200 ms
    except ImportError as error:
        raise MissingExtra(f"{asked} needs boto3, which isn't installed: pip install 'perinvoke[aws]'", extra="aws") from error
    with _setting_up:
        if _clients is None:
            kept = aws.kept_connections(shared_process=is_shared_process(os.environ), cpus=os.cpu_count() or 1)
            _clients = aws.Clients(_begin, kept_connections=kept, prepares=_prepares)
        return _clients


def _note_threads() -> None:
    """Before a fork."""
    global _forks_alone  # noqa: PLW0603  # told to the child
    _forks_alone = len(sys._current_frames()) == 1  # noqa: SLF001  # counts threads without taking a lock


def _forget() -> None:
    """In a forked child. Its connections are its own in any case: the pools see to that.

    The only thread of its parent held no lock of a client's. So the child goes on with the parent's clients, which is how workers
    share the memory of those made before they were forked. Of several threads one may have held a lock, which nobody will
    ever release here. What is forgotten is kept referenced: finalizers would act on what is the parent's.
    """
    global _clients, _setting_up  # noqa: PLW0603  # of this process
    if not _forks_alone:
        _setting_up = threading.Lock()
        if _clients is not None:
            _forgotten.append(_clients)
            _clients = None


os.register_at_fork(before=_note_threads, after_in_child=_forget)
