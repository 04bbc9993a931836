"""An object of S3 as a shared file: which version it has now, and its download, whole or not at all."""

from __future__ import annotations

import hashlib
import os
import time

from perinvoke.errors import MissingExtra, SharedFileError

try:
    from boto3.session import Session
    from botocore.config import Config
    from botocore.exceptions import ClientError
except ImportError as error:
    raise MissingExtra("shared_file.s3 needs boto3, which isn't installed: pip install 'perinvoke[aws]'", extra="aws") from error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MAX_NAME_BYTES = 255
# Objects whose version is remembered. Arbitrary; who has more asks S3 more often.
_MAX_REMEMBERED = 1_000

# Of this process; a forked child makes its own client, because a connection belongs to one process.
_clients: dict[int, Any] = {}
_remembered: dict[tuple[str, str, str], tuple[float, str, int]] = {}


class ObjectChanged(SharedFileError):
    """The object was overwritten while it was downloaded; what came is thrown away."""


class S3Object:
    """One version of an object; lives as long as one call.

    Attributes:
        entry: names the shared file: the same for all versions of the object.
        file_name: what the file is called.
        tag: the version, in hexadecimal digits.
    """

    def __init__(self, client: Any, bucket: str, key: str, *, etag: str, size: int) -> None:
        self._client, self._bucket, self._key, self._etag, self._size = client, bucket, key, etag, size
        self.entry = f"s3-{_digest(f'{client.meta.endpoint_url} {bucket}/{key}')}"
        self.tag = _digest(etag)
        last = key.rstrip("/").rpartition("/")[2]
        usable = last not in {"", ".", ".."} and "\0" not in last and len(os.fsencode(last)) <= _MAX_NAME_BYTES
        self.file_name = last if usable else "object"

    def download(self, path: str) -> None:
        """Write the object to ``path``; blocks. In parallel parts where it is large, as boto3 does.

        Raises:
            ObjectChanged: it isn't this version any more, or fewer bytes came than it has.
            SharedFileError: it can't be read.
        """
        try:
            with open(path, "wb") as file:
                self._client.download_fileobj(self._bucket, self._key, file)
            etag, _ = _head(self._client, self._bucket, self._key)
        except ClientError as error:
            raise _unavailable(self._bucket, self._key, error) from error
        size = os.stat(path).st_size
        if (etag, size) != (self._etag, self._size):
            _remembered.clear()
            told = _told(self._bucket, self._key)
            raise ObjectChanged(f"{told} changed while it was downloaded: {size} bytes came, it had {self._size}", key=told)


def look(bucket: str, key: str, *, max_age_seconds: float, client: Any) -> S3Object:
    """The object's present version: one HEAD request, or none when this process asked less than ``max_age_seconds`` ago. Blocks.

    Raises:
        SharedFileError: there is no such object, or it isn't ours to read.
    """
    client = client or _own_client()
    name = (client.meta.endpoint_url, bucket, key)
    at, etag, size = _remembered.get(name, (-float("inf"), "", 0))
    if time.monotonic() - at >= max_age_seconds:
        at = time.monotonic()
        try:
            etag, size = _head(client, bucket, key)
        except ClientError as error:
            raise _unavailable(bucket, key, error) from error
        if max_age_seconds > 0:
            if len(_remembered) >= _MAX_REMEMBERED:
                _remembered.clear()
            _remembered[name] = (at, etag, size)
    return S3Object(client, bucket, key, etag=etag, size=size)


def _own_client() -> Any:
    client = _clients.get(os.getpid())
    if client is None:  # two threads may each make one; each with a session of its own, because those are not thread-safe
        client = _clients[os.getpid()] = Session().client("s3", config=Config(retries={"mode": "standard"}))
    return client


def _head(client: Any, bucket: str, key: str) -> tuple[str, int]:
    answer = client.head_object(Bucket=bucket, Key=key)
    return answer["ETag"], answer["ContentLength"]


def _unavailable(bucket: str, key: str, error: ClientError) -> SharedFileError:
    told = _told(bucket, key)
    return SharedFileError(f"{told} can't be had: {error}. Check bucket, key, region and the function's role.", key=told)


def _told(bucket: str, key: str) -> str:
    return f"s3://{bucket}/{key}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
