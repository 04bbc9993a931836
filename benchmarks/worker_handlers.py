"""The handlers of the workers benchmark: boto3 with two clients made at import, as most functions have them.

Nothing goes over a network: what a client is about to send is answered in its place. Everything before that (to validate, build
and sign it) and after (to parse the answer) is botocore's own.
"""

from __future__ import annotations

import io
import os
import signal
import time
from pathlib import Path
from typing import Any

import boto3
from botocore.awsrequest import AWSRequest, AWSResponse

_ITEM = b'{"Item":{"id":{"S":"8f5c0d3e"},"count":{"N":"3"}}}'


class _Raw(io.BytesIO):
    """The body of an answer, as urllib3 would give it."""

    def stream(self, *_: object, **__: object) -> Any:
        """In one piece."""
        yield self.read()


def _answer(request: AWSRequest, **_: object) -> AWSResponse:
    """In place of the service."""
    body, kind = (_ITEM, "application/x-amz-json-1.0") if "dynamodb" in request.url else (b"a,b\n1,2\n", "text/csv")
    return AWSResponse(request.url, 200, {"content-type": kind, "content-length": str(len(body))}, _Raw(body))


_S3 = boto3.client("s3")
_DYNAMODB = boto3.client("dynamodb")
for _client in (_S3, _DYNAMODB):
    _client.meta.events.register("before-send", _answer)


def use_both(event: Any, context: Any) -> int:
    """One item read, one object read, one URL signed."""
    item = _DYNAMODB.get_item(TableName="benchmark", Key={"id": {"S": "8f5c0d3e"}})["Item"]
    body = _S3.get_object(Bucket="benchmark", Key=item["id"]["S"])["Body"].read()
    url = _S3.generate_presigned_url("get_object", Params={"Bucket": "benchmark", "Key": "work.csv"})
    return len(body) + len(url)


def die(event: Any, context: Any) -> None:
    """End as a worker ends that the kernel kills for want of memory; writes down when."""
    Path(event["note"]).write_text(repr(time.monotonic()), encoding="ascii")
    os.kill(os.getpid(), signal.SIGKILL)
