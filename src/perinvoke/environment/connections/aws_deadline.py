"""Binds a boto3 client to the deadlines of those who call it: no call takes longer than its invocation has time.

A client lives longer than an invocation, so nothing of it can be set once. Through botocore's own events and the connections of
its pools:

* A call's time is told when it begins, and holds for all its attempts. Without any, it isn't started.
* A request's waits, whatever they are for, end with it (``aws_sockets.py``).
* A retry is made when the pause before it ends in time. Otherwise the call ends at once, with what the last attempt came to: the
  service's own error, or botocore's.
* A call that ends because its time is up raises ``AwsTimeout``, which is also what botocore raises for a time-out.

A call of nobody's invocation is left alone. Not bounded are a waiter's pauses between its calls, the adaptive retry mode's before
the first attempt, and fetching credentials from what isn't a client (a container's or instance's own address).
"""

from __future__ import annotations

import logging
import time

from botocore.client import BaseClient
from botocore.exceptions import ConnectionError, HTTPClientError  # noqa: A004  # botocore's own
from botocore.hooks import first_non_none_response
from botocore.httpsession import URLLib3Session

from perinvoke.environment.connections.aws_sockets import POOLS, call
from perinvoke.environment.connections.aws_timeouts import AwsConnectTimeout, AwsReadTimeout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from perinvoke.environment.connections.aws_sockets import Left
    from perinvoke.errors import AwsTimeout

    # Called when a call begins: tells what tells, now and later, how many seconds that call has left; or None: no limit.
    Begin = Callable[[], Left | None]

# Under which a call's time is kept in what botocore calls the request's context: one dictionary for all attempts of a call.
_KEY = "perinvoke"
_REQUEST_ID = "perinvoke-deadline-request"
_CLASS_ID = "perinvoke-deadline-class"  # another one: a client takes over the names that its session knows
# Seconds. Nothing comes of a request that has less; arbitrary.
_LEAST_SECONDS = 0.001
# Seconds. botocore waits a fixed second for a server that is asked whether it wants the body at all; then it sends it anyway.
_CONTINUE_SECONDS = 1.1
# How far the cause of an error is looked for; arbitrary, botocore's are three deep.
_MAX_CAUSES = 8

# What kinds of client a botocore makes that isn't known here; of this process, which is told of them once.
_unbounded: set[str] = set()

logger = logging.getLogger("perinvoke")


def bind(client: Any, begin: Begin) -> None:
    """Bind a client; idempotent. Connections that it has already are given up.

    Where botocore has changed so much that its connections or retries can't be bounded, there is one log record in a process, and
    only calls that have no time at all are refused.
    """
    client.meta.events.register_last("request-created", _Calls(begin).on_request, unique_id=_REQUEST_ID)
    endpoint = getattr(client, "_endpoint", None)
    events, session = getattr(endpoint, "_event_emitter", None), getattr(endpoint, "http_session", None)
    if isinstance(events, _EndpointEvents):
        return
    pools = getattr(session, "_pool_classes_by_scheme", None)
    is_known = events is not None and isinstance(pools, dict) and pools.keys() == POOLS.keys()
    if endpoint is None or not isinstance(session, URLLib3Session) or not is_known:
        if not _unbounded:
            logger.warning("perinvoke can't bound the waits of %r by the deadline: it doesn't know this botocore", type(client))
        _unbounded.add(type(client).__name__)
        return
    session._pool_classes_by_scheme.update(POOLS)  # noqa: SLF001  # the dictionary of all its pool managers, those of proxies too
    session.close()
    endpoint._event_emitter = _EndpointEvents(events)  # noqa: SLF001  # botocore has no other place


def bind_session(events: Any, begin: Begin) -> None:
    """Bind every client that is made from now on with a session, whose event emitter this is; idempotent."""

    class Bound:
        """A base class of every client, in front of botocore's own."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            bind(self, begin)

    def on_class(base_classes: list[type], **_: Any) -> None:
        base_classes.insert(0, Bound)

    events.register("creating-client-class", on_class, unique_id=_CLASS_ID)


def is_client(candidate: object) -> bool:
    """Whether it is a client of botocore's."""
    return isinstance(candidate, BaseClient)


class _Time:
    """One call's time; lives as long as the call, and the body of its response."""

    __slots__ = ("left", "outer", "started_at")

    def __init__(self, left: Left | None) -> None:
        self.left = left
        self.outer: Left | None = None  # of the call whose body this thread is sending, when the body is made by calls
        self.started_at = time.monotonic()


class _Calls:
    """What begins a client's calls; lives as long as the client."""

    def __init__(self, begin: Begin) -> None:
        self._begin = begin

    def on_request(self, request: Any, event_name: str, **_: Any) -> None:
        """The last one to hear of a request that was made and signed; it is sent next, by the same thread."""
        its = request.context.get(_KEY)
        if its is None:
            its = request.context[_KEY] = _Time(self._begin())
        its.outer, left = call.left, its.left
        call.left = left
        if left is None:
            return
        seconds = left()
        if seconds < _LEAST_SECONDS:
            call.left = its.outer
            raise AwsConnectTimeout(
                f"{_operation(event_name)} was not called: the invocation has no time left for it. "
                "Let it do less, or give it more time.",
                operation=_operation(event_name),
                waited_seconds=time.monotonic() - its.started_at,
                endpoint_url=request.url,
            )
        if seconds < _CONTINUE_SECONDS:
            del request.headers["Expect"]


class _EndpointEvents:
    """An endpoint's view of its client's events, in which a retry that would come too late is none; lives as long as both."""

    def __init__(self, events: Any) -> None:
        self._events = events

    def emit(self, event_name: str, **details: Any) -> Any:
        """As botocore's own.

        Raises:
            AwsTimeout: an attempt was given up because the call's time is up.
        """
        if not event_name.startswith("needs-retry."):
            return self._events.emit(event_name, **details)
        its = details["request_dict"]["context"].get(_KEY)
        call.left = its and its.outer  # the attempt is over
        if its is None or its.left is None:
            return self._events.emit(event_name, **details)
        if its.left() < _LEAST_SECONDS:
            # The client's own retry handlers aren't asked: they would charge the retry to its budget.
            error = _timeout(details["caught_exception"], event_name, its)
            if error is not None:
                raise error from details["caught_exception"]
            return []
        responses = self._events.emit(event_name, **details)
        pause = first_non_none_response(responses)
        return [] if pause and pause >= its.left() else responses

    def __getattr__(self, name: str) -> Any:
        return getattr(self._events, name)


def _timeout(error: Exception | None, event_name: str, its: _Time) -> AwsTimeout | None:
    """What to raise for an attempt that took all the time there was; None when it ended in another way."""
    if not isinstance(error, (ConnectionError, HTTPClientError)) or not _came_of_timeout(error):
        return None
    kind: type[AwsTimeout] = AwsConnectTimeout if isinstance(error, ConnectionError) else AwsReadTimeout
    waited = time.monotonic() - its.started_at
    what = "could not be reached" if kind is AwsConnectTimeout else "had not answered"
    return kind(
        f"{_operation(event_name)} {what} after {waited:.3f} s, which is all the time that the invocation had left "
        f"({str(error).rstrip('.')}). Let it do less before, or give it more time.",
        operation=_operation(event_name),
        waited_seconds=waited,
        endpoint_url=error.kwargs.get("endpoint_url"),
    )


def _came_of_timeout(error: BaseException) -> bool:
    """It has other names, too: a request that can't be sent in time looks like a connection that was closed."""
    cause: BaseException | None = error
    for _ in range(_MAX_CAUSES):
        if cause is None or isinstance(cause, TimeoutError):
            return cause is not None
        cause = cause.__cause__ or cause.__context__
    return False


def _operation(event_name: str) -> str:
    """``needs-retry.dynamodb.PutItem`` is about ``dynamodb.PutItem``."""
    return event_name.partition(".")[2]
