"""What people who typed a command are told when AWS says no, or says nothing. Decides, and asks nobody.

For commands only, never for a handler: who typed it is asked for credentials, not a function's role. A text names what to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,  # noqa: A004  # botocore's own
    HTTPClientError,
    IncompleteReadError,
    NoRegionError,
    ParamValidationError,
    ProfileNotFound,
    SSLError,
)
from botocore.parsers import ResponseParserError

if TYPE_CHECKING:
    from collections.abc import Mapping

_FORBIDDEN = frozenset({"AccessDeniedException", "AccessDenied", "UnauthorizedOperation", "403"})  # 403: S3's HEAD has no body
_CREDENTIALS = frozenset(
    {
        "UnrecognizedClientException",
        "InvalidClientTokenId",
        "InvalidAccessKeyId",
        "ExpiredToken",
        "ExpiredTokenException",
        "RequestExpired",
        "RequestTimeTooSkewed",
        "InvalidToken",
        "InvalidSignatureException",
        "SignatureDoesNotMatch",
        "IncompleteSignatureException",
        "MissingAuthenticationTokenException",
        "MissingAuthenticationToken",
    }
)
_BUSY = frozenset(
    {
        "ThrottlingException",
        "Throttling",
        "TooManyRequestsException",
        "RequestLimitExceeded",
        "LimitExceededException",
        "SlowDown",
    }
)
_TOO_MANY_REQUESTS, _SERVER_ERROR = 429, 500
_MOST_CHARACTERS = 500  # of a reason: longer than AWS's own, and not the whole page of a proxy. Arbitrary.
_CHECK = "Check the network, --region and --endpoint-url."

_LOG_IN_AGAIN = "Log in again (aws login, aws sso login), or give --profile."
# What a region answers, too, that the account hasn't enabled.
_UNKNOWN_LOGIN = frozenset({"UnrecognizedClientException", "InvalidClientTokenId"})
_ENABLE = " If they are good elsewhere, have the region enabled for the account."
_LOG_IN = "Log in (aws login, aws sso login), set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give --profile."
_NO_REGION = "no region is set: give --region, or set AWS_DEFAULT_REGION or the profile's"


class Kind(Enum):
    """What can be done about a refusal."""

    FORBIDDEN = "have the action allowed"
    CREDENTIALS = "log in"
    BUSY = "try again later: throttled, or AWS's own mistake"
    UNREACHABLE = "check the network, the region and the endpoint"
    REFUSED = "what was asked for is wrong, or isn't there: by the code"


@dataclass(frozen=True)
class Refusal:
    """Why there is no answer that was hoped for.

    Attributes:
        kind: what can be done about it.
        code: AWS's name for it; empty where AWS has not answered.
        text: for people, without the name of the action and of what it was about.
        attempts: how many requests there were; 0 when it isn't known.
        carried_out: False, or None when nobody knows.
    """

    kind: Kind
    code: str
    text: str
    attempts: int = 0
    carried_out: bool | None = False


# What a request of a client raises: no BotoCoreError is what comes of an answer that isn't AWS's, such as a proxy's page.
ERRORS = (BotoCoreError, ClientError, ResponseParserError)


def refusal_of(error: BotoCoreError | ClientError | ResponseParserError) -> Refusal:
    """What botocore's error, one of ``ERRORS``, means for a request of a client."""
    if isinstance(error, ClientError):
        return _answered(error.response)
    if isinstance(error, (ConnectionError, HTTPClientError, IncompleteReadError, ResponseParserError)):
        # Only what failed while connecting certainly never came to AWS. TLS may fail at any time.
        never_came = isinstance(error, ConnectionError) and not isinstance(error, SSLError)
        text = f"{_said(error)}. {_CHECK}"
        return Refusal(Kind.UNREACHABLE, "", text, carried_out=False if never_came else None)
    if isinstance(error, ParamValidationError):
        return Refusal(Kind.REFUSED, "", " ".join(_said(error).split()))
    return Refusal(Kind.CREDENTIALS, "", f"{_said(error)}. {_LOG_IN}")  # none, half of them, a login that is over


def not_from_aws(missing: str) -> Refusal:
    """What an answer means in which a member isn't that AWS always sends: botocore takes any page for an answer."""
    text = f"there was an answer, but none of AWS: it has no {missing}. {_CHECK}"
    return Refusal(Kind.UNREACHABLE, "", text, carried_out=None)


def why_no_client(error: BotoCoreError | ValueError) -> str:
    """What is told when a session or a client can't be made; ValueError: an endpoint that is no URL."""
    if isinstance(error, ProfileNotFound):
        return f"{error}. See: aws configure list-profiles"
    return _NO_REGION if isinstance(error, NoRegionError) else str(error)


def not_allowed(action: str, about: str, region: str, refusal: Refusal) -> str:
    """The whole message for ``Kind.FORBIDDEN``."""
    return f"your credentials don't allow {action} on {about} in {region} ({refusal.text}). Have it allowed, or give --profile."


def _answered(response: Mapping[str, Any]) -> Refusal:
    told, meta = response.get("Error", {}), response.get("ResponseMetadata", {})
    code, status = str(told.get("Code", "")), int(meta.get("HTTPStatusCode", 0))
    message = " ".join(str(told.get("Message") or "no reason given").split())  # of a proxy's page too, one line
    if len(message) > _MOST_CHARACTERS:
        message = f"{message[:_MOST_CHARACTERS]}..."
    attempts = 1 + int(meta.get("RetryAttempts", 0))
    if code in _FORBIDDEN:
        return Refusal(Kind.FORBIDDEN, code, message, attempts)
    if code in _CREDENTIALS:
        enable = _ENABLE if code in _UNKNOWN_LOGIN else ""
        return Refusal(Kind.CREDENTIALS, code, f"{code}, {message.rstrip('.')}. {_LOG_IN_AGAIN}{enable}", attempts)
    if code in _BUSY or status == _TOO_MANY_REQUESTS or status >= _SERVER_ERROR:
        throttled = code in _BUSY or status == _TOO_MANY_REQUESTS
        text = f"{code}, {message.rstrip('.')}. Try again later."
        return Refusal(Kind.BUSY, code, text, attempts, carried_out=False if throttled else None)
    return Refusal(Kind.REFUSED, code, f"{code}, {message}", attempts)


def _said(error: Exception) -> str:
    return str(error).rstrip(".")
