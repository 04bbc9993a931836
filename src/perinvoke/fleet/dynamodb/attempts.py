"""What becomes of a call's attempts: botocore repeats what failed, and tells how often, but not how.

An attempt that was throttled, or never sent, has done nothing. One that got no answer may have been carried out, and then the
next one meets what it has done. So botocore's retry handlers, which hear of every attempt, have one of ours in front. It counts
those without an answer; and where a call must not be done twice (adding twice is not adding once), it answers for the others that
there is no repetition.
"""

from __future__ import annotations

import contextvars
import weakref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

_ID = "perinvoke-attempts"
_SERVER_ERRORS = 500
_NO_ANSWER = frozenset({"RequestTimeout", "RequestTimeoutException"})
# Errors of connecting; AwsConnectTimeout is perinvoke's own. Not SSLError: it may come later.
_NEVER_SENT = frozenset({"EndpointConnectionError", "ConnectTimeoutError", "AwsConnectTimeout", "ProxyConnectionError"})


class Attempts:
    """Of one call; lives as long as it.

    Args:
        once: botocore must not repeat it.

    Attributes:
        listens: whether the client tells; a stand-in for one may not.
        heard: whether any attempt was heard of.
        unanswered: of how many nobody knows what became.
    """

    __slots__ = ("heard", "listens", "once", "unanswered")

    def __init__(self, *, once: bool) -> None:
        self.once = once
        self.listens = self.heard = False
        self.unanswered = 0

    def made_by(self, client: Any, method: Callable[..., Any], parameters: Mapping[str, Any]) -> Any:
        """Call ``method(**parameters)``, of the client's, and hear of its attempts. Calls of other threads are left alone."""
        events = getattr(getattr(client, "meta", None), "events", None)
        self.listens = events is not None
        if events is not None and events not in _listening:
            events.register_first("needs-retry.dynamodb", _on_attempt, unique_id=_ID)
            _listening.add(events)
        token = _running.set(self)
        try:
            return method(**parameters)
        finally:
            _running.reset(token)

    def lost(self, error: Exception | None = None) -> bool | None:
        """Whether nobody knows what became of an attempt, of a call that ended with this error; None: it wasn't told."""
        if self.unanswered:
            return True
        # Where there is no time for a repetition nobody is asked about one, and the last attempt isn't heard of. It wasn't sent?
        return False if self.heard or (self.listens and error is not None and never_sent(error)) else None


_listening: weakref.WeakSet[Any] = weakref.WeakSet()  # the events of clients; registering takes ten microseconds
_running: contextvars.ContextVar[Attempts | None] = contextvars.ContextVar("perinvoke.attempts", default=None)


def _on_attempt(response: Any = None, caught_exception: Exception | None = None, **_: Any) -> bool | None:
    """The first one to hear that an attempt is over; False: it is the last one. None: that is for the others to say."""
    attempts = _running.get()
    if attempts is None:
        return None
    attempts.heard = True
    if caught_exception is not None:
        attempts.unanswered += not never_sent(caught_exception)
    elif response is not None:
        attempts.unanswered += is_no_answer(response[1])
    return False if attempts.once else None


def never_sent(error: Exception) -> bool:
    """Whether it failed before anything was sent: while connecting."""
    return type(error).__name__ in _NEVER_SENT


def is_no_answer(response: Mapping[str, Any]) -> bool:
    """Whether a parsed response doesn't tell what became of the request."""
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status >= _SERVER_ERRORS or response.get("Error", {}).get("Code", "") in _NO_ANSWER
