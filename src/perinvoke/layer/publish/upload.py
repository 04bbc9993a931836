"""A zip in S3, from where Lambda takes what is too large for a request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perinvoke.layer.errors import AwsForbidden, AwsRefused, LayerError

if TYPE_CHECKING:
    from perinvoke.layer.account import Service
    from perinvoke.layer.zips import LayerZip

_PREFIX = "perinvoke-layers"
_NOT_THERE = frozenset({"404", "NoSuchKey", "NotFound"})


def key_of(layer_zip: LayerZip) -> str:
    """Where it lies in its bucket: by its bytes, so that what is there is the same."""
    return f"{_PREFIX}/{layer_zip.sha256}.zip"


def have_uploaded(service: Service, bucket: str, layer_zip: LayerZip) -> bool:
    """Have it in the bucket, whole; whether it was uploaded now. Blocks as long as that takes.

    S3 keeps the SHA-256 that it has checked the bytes against, so what was uploaded before is known by it.

    Raises:
        AwsRefused, AwsUnavailable: as ``Service.ask`` has it.
        LayerError: the file can't be read any more.
    """
    if _is_there(service, bucket, layer_zip):
        return False
    try:
        with layer_zip.path.open("rb") as file:
            service.ask(
                "put_object",
                about=f"bucket {bucket!r}",
                Bucket=bucket,
                Key=key_of(layer_zip),
                Body=file,
                ChecksumAlgorithm="SHA256",
                ChecksumSHA256=layer_zip.code_sha256,
                ContentType="application/zip",
            )
    except OSError as error:
        raise LayerError(f"{layer_zip.path} can't be read any more: {error.strerror or error}") from error
    return True


def _is_there(service: Service, bucket: str, layer_zip: LayerZip) -> bool:
    try:
        found = service.ask(
            "head_object", about=f"bucket {bucket!r}", Bucket=bucket, Key=key_of(layer_zip), ChecksumMode="ENABLED"
        )
    except AwsForbidden:
        return False  # who may not list the bucket gets this for what isn't there; if it's more than that, the upload says it
    except AwsRefused as error:
        if error.code in _NOT_THERE:
            return False
        raise
    return bool(found.get("ChecksumSHA256") == layer_zip.code_sha256)
