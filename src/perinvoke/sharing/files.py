"""``shared_file``: a file that one worker builds and all workers use."""

from __future__ import annotations

from pathlib import Path

from perinvoke import worker
from perinvoke.environment.names import encoded_length, is_text
from perinvoke.environment.shared_file import Request
from perinvoke.errors import SharedFileError
from perinvoke.sharing.asker import asker, audience, settings
from perinvoke.sharing.aws import boto3_client
from perinvoke.sharing.root import Root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_MAX_KEY_BYTES = 255  # of one part of a path, on every file system that Lambda has
# How often an object is downloaded that is overwritten meanwhile. Arbitrary.
_S3_ATTEMPTS = 3


class SharedFile:
    """The type of ``shared_file``, which is called like a function."""

    def __call__(self, key: str, build: Callable[[Path], object], *, max_age_seconds: float | None = None) -> Path:
        """The file or directory that ``build`` makes, built once for all workers of this execution environment.

        The first worker that asks calls ``build(path)``, which must write a file or make a directory at that very path. The
        others wait, fairly, at most until the deadline less a margin, and get the same finished file. It is published by one
        rename, so a half-built file is never seen; a build that raises leaves nothing, and the next waiter builds; one that is
        killed is replaced at once. A build that finds the disk full may be called once more, when room could be made.

        The path stays valid for the whole invocation, also when the file expires or is evicted meanwhile; asked for outside an
        invocation, as long as the process lives. Another content always has another path. It is everybody's file: don't write
        to it.

        Args:
            key: names the file, and is what it is called; a plain name.
            build: makes it; not called when it is there. An ordinary function.
            max_age_seconds: a file published longer ago is built anew. None: it is good for ever.

        Raises:
            SharedFileError: the key can't be a file's name, the age is no duration, or ``build`` made nothing at its path.
            SharedFileTooLarge: the file alone exceeds ``PERINVOKE_SHARED_MAX_BYTES``.
            LockTimeout: another worker was still building it when the invocation could wait no longer.
            ScratchFull: the disk is full.
            RootError: the root can't be used or trusted.

        What ``build`` raises comes through unchanged.
        """
        _check_key(key)
        _check_age(key, max_age_seconds)
        if not callable(build):
            raise SharedFileError(f"the build of shared file {key!r} is {build!r}; it must be a function of a path", key=key)
        return _get(Request(key, key, lambda path: build(Path(path)), max_age_seconds=max_age_seconds))

    def s3(self, bucket: str, key: str, *, max_age_seconds: float = 0.0, client: Any = None) -> Path:
        """An object of S3, downloaded once for each of its ETags and for all workers. Needs the extra ``aws``.

        The object is asked for its ETag (one HEAD request) at every call, or at most every ``max_age_seconds`` in each worker.
        The file keeps the last part of the object's key as its name. A download that ends early or whose object changes
        meanwhile is thrown away as a whole. Otherwise as ``shared_file``.

        Args:
            bucket: the bucket's name.
            key: the object's key.
            max_age_seconds: how long an ETag is trusted.
            client: a boto3 S3 client; None: ``boto3_client("s3")``.

        Raises:
            MissingExtra: boto3 isn't installed.
            SharedFileError: there is no such object, or it isn't ours to read; or it kept changing.
        """
        from perinvoke.environment import s3_object  # noqa: PLC0415  # optional dependency: boto3

        _check_age(key, max_age_seconds)
        client = client or boto3_client("s3")
        for attempt in range(_S3_ATTEMPTS):
            try:
                return _get(s3_object.ObjectRequest(bucket, key, max_age_seconds=max_age_seconds, client=client))
            except s3_object.ObjectChanged:
                if attempt == _S3_ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")

    def __repr__(self) -> str:
        return "<shared_file>"


shared_file = SharedFile()


def _get(request: Request) -> Path:
    current = settings()
    return Path(worker.process.worker(current).shared_files().get(request, Root(current), asker, audience()))


def _check_key(key: str) -> None:
    if not is_text(key) or key in {".", ".."} or "/" in key or "\0" in key:
        raise SharedFileError(
            f"a shared file's key is {key!r}; allowed is a plain name without '/', for example 'model.bin'", key=key
        )
    length = encoded_length(key)
    if length > _MAX_KEY_BYTES:
        raise SharedFileError(f"the shared file's key {key[:40]!r}… has {length} bytes; {_MAX_KEY_BYTES} are allowed", key=key)


def _check_age(key: str, max_age_seconds: object) -> None:
    if max_age_seconds is not None and not (isinstance(max_age_seconds, int | float) and max_age_seconds >= 0):  # nan too
        raise SharedFileError(
            f"max_age_seconds of shared file {key!r} is {max_age_seconds!r}; allowed are seconds from 0 on, or None for no limit",
            key=key,
        )
