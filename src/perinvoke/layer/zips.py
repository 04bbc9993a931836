"""What a built zip says of itself: the one reader of ``perinvoke/layer.json``, for whoever publishes, attaches or tests it."""

from __future__ import annotations

import base64
import hashlib
import json
import zipfile
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perinvoke.layer.errors import LayerError

if TYPE_CHECKING:
    from pathlib import Path

# Where it lies below /opt.
# What build calls the layer that has nothing but perinvoke; one with more in it begins so.
DEFAULT_LAYER = "perinvoke"
LAYER_JSON = "perinvoke/layer.json"
# Of what `perinvoke layer build` puts into its directory; those of other versions match too, so look into them.
ZIP_PATTERN = "perinvoke-*.zip"

_MAX_LAYER_JSON_BYTES = 1_000_000  # a thousand times what one has; nobody's memory is filled by a stranger's zip
_READ_BYTES = 1024 * 1024
_AGAIN = "Build one: perinvoke layer build"


@dataclass(frozen=True, kw_only=True)
class LayerZip:
    """A layer's zip, as it was when it was read.

    Attributes:
        path: where it is.
        name: what the layer is called unless somebody says otherwise.
        perinvoke: the version of perinvoke in it.
        pythons: the versions of Python it is for, such as ``"3.13"``.
        architectures: what Lambda calls them: ``"x86_64"``, ``"arm64"``.
        parts: ``"core"``, and what else was asked for: ``"boto3"``, ``"sql"``, ``"pgbouncer"``, ``"compiled"``.
        packages: names and versions of the packages in it.
        sha256: of the zip's bytes, in hex.
        code_sha256: the same in base64, as Lambda tells it (``CodeSha256``).
        packed_bytes: the zip's size.
        unpacked_bytes: what counts against Lambda's 250 MB.
    """

    path: Path
    name: str
    perinvoke: str
    pythons: tuple[str, ...]
    architectures: tuple[str, ...]
    parts: tuple[str, ...]
    packages: dict[str, str]
    sha256: str
    code_sha256: str
    packed_bytes: int
    unpacked_bytes: int

    @property
    def runtimes(self) -> tuple[str, ...]:
        """The versions of Python as Lambda calls them: ``"python3.13"``."""
        return tuple(f"python{version}" for version in self.pythons)


def read_layer_zip(path: Path) -> LayerZip:
    """Read what ``perinvoke layer build`` made; blocks as long as it takes to read the file twice.

    Raises:
        LayerError: there is no such file, it is no zip or a damaged one, or no layer of perinvoke.
    """
    digest, packed_bytes = _digest(path)
    told, unpacked_bytes = _told(path)
    try:
        return LayerZip(
            path=path,
            name=_text(told["name"]),
            perinvoke=_text(told["perinvoke"]),
            pythons=_texts(told["pythons"]),
            architectures=_texts(told["architectures"]),
            parts=_texts(told["parts"]),
            packages={_text(name): _text(version) for name, version in told["packages"].items()},
            sha256=digest.hex(),
            code_sha256=base64.b64encode(digest).decode(),
            packed_bytes=packed_bytes,
            unpacked_bytes=unpacked_bytes,
        )
    except (KeyError, TypeError, AttributeError) as error:
        message = f"{path}: its {LAYER_JSON} isn't what this version of perinvoke writes ({error!r}). {_AGAIN}"
        raise LayerError(message, path=str(path)) from error


def _digest(path: Path) -> tuple[bytes, int]:
    """SHA-256 and size of the file."""
    sha256, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(_READ_BYTES):
                sha256.update(chunk)
                size += len(chunk)
    except OSError as error:
        hint = f" {_AGAIN}" if isinstance(error, FileNotFoundError) else ""
        raise LayerError(f"{path} can't be read: {error.strerror or error}.{hint}", path=str(path)) from error
    return sha256.digest(), size


def _told(path: Path) -> tuple[dict[str, Any], int]:
    """What ``layer.json`` holds, and the size of all files unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked_bytes = sum(info.file_size for info in archive.infolist())
            info = archive.getinfo(LAYER_JSON)
            content = archive.read(info) if info.file_size <= _MAX_LAYER_JSON_BYTES else b""
    except KeyError as error:
        raise LayerError(f"{path} is no layer of perinvoke: there is no {LAYER_JSON} in it. {_AGAIN}", path=str(path)) from error
    # Of zipfile: NotImplementedError for a compression that it doesn't know, RuntimeError for one with a password.
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise LayerError(f"{path} is no zip, or a damaged one ({error}). {_AGAIN}", path=str(path)) from error
    except OSError as error:
        raise LayerError(f"{path} can't be read: {error.strerror or error}", path=str(path)) from error
    try:
        told = json.loads(content)
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise LayerError(f"{path} is no layer of perinvoke: its {LAYER_JSON} holds no JSON object. {_AGAIN}", path=str(path))
    return told, unpacked_bytes


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(value)
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise TypeError(value)
    return tuple(map(_text, value))
