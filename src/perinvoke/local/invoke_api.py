"""Lambda's Invoke API, 2015-03-31, as far as ``boto3.client("lambda").invoke`` and the AWS CLI use it.

There is one function in an execution environment; any name, ARN or qualifier stands for it, so that scripts run unchanged.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING
from uuid import uuid4

from aiohttp import web

from perinvoke.local import strict_json
from perinvoke.local.invocation import Request
from perinvoke.local.outcome import LOG_TAIL_BYTES, MAX_ASYNC_REQUEST_BYTES, MAX_REQUEST_BYTES, Outcome, Status
from perinvoke.local.reading import Oversized, read_body

if TYPE_CHECKING:
    from perinvoke.local.dispatcher import Dispatcher

_PATH = re.compile(r"/2015-03-31/functions/([^/]+)/invocations")
ACCOUNT = "123456789012"  # the account of AWS's own examples
VERSION = "$LATEST"


@dataclass(frozen=True, slots=True)
class Refusal(Exception):
    """A request that never becomes an invocation."""

    status: int
    error_type: str
    message: str


class InvokeApi:
    """Lives as long as its execution environment."""

    def __init__(self, dispatcher: Dispatcher, *, region: str) -> None:
        self._dispatcher = dispatcher
        self._region = region

    async def handle(self, request: web.BaseRequest) -> web.Response:
        """Answer a request that isn't the runtime's."""
        try:
            return await self._invoke(request)
        except Refusal as refusal:
            return _refused(refusal, str(uuid4()))

    async def _invoke(self, request: web.BaseRequest) -> web.Response:
        match = _PATH.fullmatch(request.path)
        if match is None or request.method != "POST":
            raise Refusal(404, "UnknownOperationException", f"no {request.method} {request.path} here; only Invoke is")
        kind = request.headers.get("X-Amz-Invocation-Type", "RequestResponse")
        limit = MAX_ASYNC_REQUEST_BYTES if kind == "Event" else MAX_REQUEST_BYTES
        event = check_event(await read_body(request, limit), limit)
        log_type = request.headers.get("X-Amz-Log-Type", "None")
        if log_type not in ("None", "Tail"):
            raise Refusal(400, "InvalidParameterValueException", f"log type {log_type!r} is unknown; None and Tail are allowed")
        arn = function_arn(match[1], request.query.get("Qualifier"), self._region)
        invocation = build_request(event, request, arn)
        if kind == "DryRun":
            return web.Response(status=204, headers={"x-amzn-RequestId": invocation.request_id})
        if kind == "Event":
            self._dispatcher.submit(invocation, patient=True)
            return web.Response(status=202, headers={"x-amzn-RequestId": invocation.request_id})
        if kind != "RequestResponse":
            raise Refusal(400, "InvalidParameterValueException", f"invocation type {kind!r} is unknown")
        outcome = await self._dispatcher.submit(invocation)
        return respond(outcome, tail=log_type == "Tail")


def check_event(body: bytes | Oversized, limit_bytes: int) -> bytes:
    """The event; an empty one counts as ``{}``. Refuses what is too large or isn't JSON."""
    if isinstance(body, Oversized):
        message = f"Request must be smaller than {limit_bytes} bytes for the InvokeFunction operation"
        raise Refusal(413, "RequestTooLargeException", message)
    if not body:
        return b"{}"
    try:
        strict_json.parse(body)
    except strict_json.NotJson as error:
        message = f"Could not parse request body into json: it {error}"
        raise Refusal(400, "InvalidRequestContentException", message) from None
    return body


def build_request(event: bytes, request: web.BaseRequest, arn: str) -> Request:
    """What the worker gets, from the caller's headers."""
    headers = request.headers
    return Request(
        event=event,
        client_context=decode_client_context(headers.get("X-Amz-Client-Context")),
        tenant_id=headers.get("X-Amz-Tenant-Id"),
        trace_id=headers.get("X-Amzn-Trace-Id"),
        invoked_function_arn=arn,
    )


def decode_client_context(header: str | None) -> str | None:
    """The JSON object behind the header's Base64, as text that is a header's value again."""
    if not header:
        return None
    try:
        context = strict_json.parse(base64.b64decode(header, validate=True))
        if isinstance(context, dict):
            return json.dumps(context)
        raise strict_json.NotJson("is not a JSON object")
    except (ValueError, RecursionError):  # NotJson too; nested as deeply as can just be read, it may be too deep to be written
        message = "Client context must be a valid Base64-encoded JSON object."
        raise Refusal(400, "InvalidRequestContentException", message) from None


def function_arn(name: str, qualifier: str | None, region: str) -> str:
    """The ARN that the caller meant with a name, a partial ARN or an ARN, and a qualifier."""
    if name.startswith("arn:"):
        arn = name
    else:
        account, _, function = f":{name}".rpartition(":function:")  # also "function:name", which Lambda takes too
        arn = f"arn:aws:lambda:{region}:{account.lstrip(':') or ACCOUNT}:function:{function.lstrip(':')}"
    return f"{arn}:{qualifier}" if qualifier and not arn.endswith(f":{qualifier}") else arn


def respond(outcome: Outcome, *, tail: bool) -> web.Response:
    """An outcome as the caller of Invoke sees it."""
    if outcome.status is Status.REJECTED:
        refusal = Refusal(429, "TooManyRequestsException", outcome.error_message)
        return _refused(refusal, outcome.request_id)
    if outcome.status is Status.UNAVAILABLE:
        return _refused(Refusal(502, "ServiceException", outcome.error_message), outcome.request_id)
    headers = {
        "Content-Type": outcome.content_type,
        "x-amzn-RequestId": outcome.request_id,
        "X-Amz-Executed-Version": VERSION,
    }
    if not outcome.ok:
        headers["X-Amz-Function-Error"] = "Unhandled"
    if tail:
        headers["X-Amz-Log-Result"] = base64.b64encode(outcome.log_tail.encode()[-LOG_TAIL_BYTES:]).decode()
    return web.Response(body=outcome.payload, headers=headers)


def _refused(refusal: Refusal, request_id: str) -> web.Response:
    fields = {"Type": "Service" if refusal.status >= HTTPStatus.INTERNAL_SERVER_ERROR else "User", "message": refusal.message}
    if refusal.status == HTTPStatus.TOO_MANY_REQUESTS:
        fields["Reason"] = "ConcurrentInvocationLimitExceeded"
    headers = {"x-amzn-ErrorType": refusal.error_type, "x-amzn-RequestId": request_id}
    return web.Response(status=refusal.status, body=json.dumps(fields).encode(), headers=headers, content_type="application/json")
