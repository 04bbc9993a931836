"""An object of S3 as a shared file: which version it has now, and its download, whole or not at all."""

from __future__ import annotations

import hashlib
import os
import time

from perinvoke.environment.names import encoded_length
from perinvoke.environment.shared_file import Request
from perinvoke.errors import MissingExtra, SharedFileError

try:
    import boto3  # noqa: F401  # what gives a client its download_fileobj
    from botocore.exceptions import ClientError
    from s3transfer import exceptions as s3transfer_exceptions  # type: ignore[import-untyped]  # it ships no types
except ImportError as error:
    raise MissingExtra("shared_file.s3 needs boto3, which isn't installed: pip install 'perinvoke[aws]'", extra="aws") from error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MAX_NAME_BYTES = 255
_REFUSED = frozenset({301, 400, 401, 403, 404})  # HTTP status codes
# Objects whose version is remembered. Arbitrary; who has more asks S3 more often.
_MAX_REMEMBERED = 1_000

# Of this process.
_remembered: dict[tuple[str, str, str], tuple[float, str, int]] = {}


# What a download in parts ends with when the object is another one by then. Versions of s3transfer that don't look have no name
# for it.
_DownloadFailed: type[Exception] | tuple[()] = getattr(s3transfer_exceptions, "S3DownloadFailedError", ())


class ObjectChanged(SharedFileError):
    """The object was overwritten while it was downloaded; what came is thrown away."""


class ObjectRequest(Request):
    """One object in its present version, as a shared file; all versions have one key. Lives as long as one call.

    Making it asks S3 for the version, in one HEAD request, or in none when this process asked less than ``max_age_seconds`` ago.

    Raises:
        SharedFileError: there is no such object, or it isn't ours to read.
    """

    __slots__ = ("_bucket", "_client", "_etag", "_key")

    def __init__(self, bucket: str, key: str, *, max_age_seconds: float, client: Any) -> None:
        self._client, self._bucket, self._key = client, bucket, key
        super().__init__(f"s3-{_digest(f'{self._client.meta.endpoint_url} {bucket}/{key}')}", _file_name(key), self._download)
        self._take(_version(self._client, bucket, key, max_age_seconds))

    def renew(self) -> None:
        """Ask for the version again before it is downloaded: it may be another worker's that has newer news."""
        self._take(_version(self._client, self._bucket, self._key, 0.0))

    def _take(self, version: tuple[str, int]) -> None:
        self._etag, self.expected_bytes = version
        self.tag = _digest(self._etag)

    def _download(self, path: str) -> None:
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
            _raise_if_refused(self._bucket, self._key, error)
            raise
        except _DownloadFailed as error:
            _remembered.clear()
            told = _told(self._bucket, self._key)
            raise ObjectChanged(f"{told} changed while it was downloaded: {error}", key=told) from error
        size = os.stat(path).st_size
        if (etag, size) != (self._etag, self.expected_bytes):
            _remembered.clear()
            told = _told(self._bucket, self._key)
            raise ObjectChanged(
                f"{told} changed while it was downloaded: {size} bytes came, it had {self.expected_bytes}", key=told
            )


def _version(client: Any, bucket: str, key: str, max_age_seconds: float) -> tuple[str, int]:
    """The object's ETag and its size."""
    name = (client.meta.endpoint_url, bucket, key)
    at, etag, size = _remembered.get(name, (-float("inf"), "", 0))
    if time.monotonic() - at >= max_age_seconds:
        at = time.monotonic()
        try:
            etag, size = _head(client, bucket, key)
        except ClientError as error:
            _raise_if_refused(bucket, key, error)
            raise
        if len(_remembered) >= _MAX_REMEMBERED:
            _remembered.clear()
        _remembered[name] = (at, etag, size)
    return etag, size


def _file_name(key: str) -> str:
    last = key.rstrip("/").rpartition("/")[2]
    usable = last not in {"", ".", ".."} and "\0" not in last and encoded_length(last) <= _MAX_NAME_BYTES
    return last if usable else "object"


def _head(client: Any, bucket: str, key: str) -> tuple[str, int]:
    answer = client.head_object(Bucket=bucket, Key=key)
    return answer["ETag"], answer["ContentLength"]


def _raise_if_refused(bucket: str, key: str, error: ClientError) -> None:
    """What S3 refuses is the caller's to mend; what it can't do for now comes through as boto3 tells it."""
    if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in _REFUSED:
        told = _told(bucket, key)
        raise SharedFileError(
            f"{told} can't be had: {error}. Check bucket, key, region and the function's role.", key=told
        ) from error


def _told(bucket: str, key: str) -> str:
    return f"s3://{bucket}/{key}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
