"""What a caller gets: the outcome of one invocation, and the payloads that the platform writes itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum

# The limits Lambda documents and enforces: 6 MB each way, and 100 bytes of slack on the way out.
MAX_RESPONSE_BYTES = 6_291_556
MAX_REQUEST_BYTES = 6_291_456
MAX_ASYNC_REQUEST_BYTES = 1_048_576  # of an invocation of type Event
LOG_TAIL_BYTES = 4_096  # what LogType=Tail gives back


class Status(Enum):
    """How an invocation ended for its caller."""

    OK = "ok"
    FUNCTION_ERROR = "function error"
    TIMED_OUT = "timed out"
    REJECTED = "rejected"
    UNAVAILABLE = "environment gone"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one invocation came to.

    ``duration_seconds`` runs from the hand-over to a worker to the answer, ``waited_seconds`` is the time before that.
    ``worker_pid`` is None where no worker took the invocation, or its process couldn't be told.
    """

    request_id: str
    status: Status
    payload: bytes
    error_type: str | None = None
    duration_seconds: float = 0.0
    waited_seconds: float = 0.0
    log_tail: str = ""
    worker_pid: int | None = None
    content_type: str = "application/json"

    @property
    def ok(self) -> bool:
        """Whether the handler returned a result in time."""
        return self.status is Status.OK

    @property
    def error_message(self) -> str:
        """The message of the error in the payload; empty after a success."""
        return "" if self.ok else error_fields(self.payload)[1]


def error_fields(payload: bytes) -> tuple[str, str]:
    """Type and message of an error payload; what isn't there is empty."""
    try:
        fields = json.loads(payload)
    except ValueError:
        return "", ""
    if not isinstance(fields, dict):
        return "", ""
    return str(fields.get("errorType") or ""), str(fields.get("errorMessage") or "")


def error_payload(error_type: str, message: str) -> bytes:
    """An error as Lambda writes it for what the handler didn't report itself."""
    return json.dumps({"errorType": error_type, "errorMessage": message}, separators=(",", ":")).encode()


def timed_out_payload(request_id: str, timeout_seconds: float) -> bytes:
    """What Lambda answers at the deadline."""
    message = f"RequestId: {request_id} Error: Task timed out after {timeout_seconds:.2f} seconds"
    return error_payload("Sandbox.Timedout", message)


def too_large_payload(size_bytes: int) -> bytes:
    """What Lambda answers in place of a response over the limit."""
    message = f"Response payload size ({size_bytes} bytes) exceeded maximum allowed payload size ({MAX_RESPONSE_BYTES} bytes)."
    return error_payload("Function.ResponseSizeTooLarge", message)
