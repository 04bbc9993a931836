"""What is to be published where, and whether that can be. Decides, and asks nobody but the disk."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from perinvoke.layer.errors import LayerError
from perinvoke.layer.limits import DIRECT_UPLOAD_BYTES, MIB, UNPACKED_BYTES
from perinvoke.layer.zips import ZIP_PATTERN, read_layer_zip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from perinvoke.layer.zips import LayerZip

DIST = Path("dist")
REGION = "{region}"
EVERYBODY = "*"
_ALL = "all"
_BUILD = "Build one: perinvoke layer build"

# Lambda's rules for a layer's name and for a bucket, and an account's id.
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,140}")
_BUCKET = re.compile(r"[0-9A-Za-z._-]{2,62}[0-9A-Za-z_-]")
_ACCOUNT = re.compile(r"[0-9]{12}")


@dataclass(frozen=True, eq=False)
class Target:
    """One zip in one region; made once, and equal to itself alone.

    Attributes:
        zip: what is published.
        layer: the layer's name.
        region: where.
        bucket: what it goes through, in that region; None for a direct upload.
        accounts: who else may use it: account ids, or ``EVERYBODY``.
    """

    zip: LayerZip
    layer: str
    region: str
    bucket: str | None = None
    accounts: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.layer} in {self.region}"


def zips_of(paths: Sequence[Path], tell: Callable[[str], object], *, dist: Path = DIST) -> list[LayerZip]:
    """What these files hold, each once; without any, what this version of perinvoke has built.

    Args:
        paths: of zips.
        tell: takes a line about what is left out.
        dist: where those lie that nobody has named.

    Raises:
        LayerError: there is none, or one that is no layer or too large.
    """
    found = [read_layer_zip(path) for path in paths] or _built(dist, tell)
    for each in found:
        if each.unpacked_bytes > UNPACKED_BYTES:
            text = f"{each.path} is {_mib(each.unpacked_bytes)} unpacked, and Lambda allows {_mib(UNPACKED_BYTES)}"
            raise LayerError(f"{text} for a function and its layers together. Leave parts out; perinvoke layer build lists them.")
    return list({each.sha256: each for each in found}.values())


def _built(dist: Path, tell: Callable[[str], object]) -> list[LayerZip]:
    ours = version("perinvoke")
    found = [read_layer_zip(path) for path in sorted(dist.glob(ZIP_PATTERN))]
    if not found:
        raise LayerError(f"there are no zips in {dist.absolute()}. {_BUILD}, or name one")
    wanted = [each for each in found if each.perinvoke == ours]
    others = [each for each in found if each.perinvoke != ours]
    if not wanted:
        text = f"of the zips in {dist.absolute()} none is of perinvoke {ours}, which is what runs here"
        raise LayerError(f"{text}. {_BUILD}, or name what you mean: {' '.join(str(each.path) for each in others)}")
    for each in others:
        tell(f"{each.path} is left out: it is of perinvoke {each.perinvoke}, and this is {ours}.")
    return wanted


def named(zips: Sequence[LayerZip], name: str | None) -> list[tuple[str, LayerZip]]:
    """The layer's name for each of them.

    Raises:
        LayerError: it can't be one, or two zips would be the same layer.
    """
    if name is not None and len(zips) > 1:
        paths = ", ".join(str(each.path) for each in zips)
        raise LayerError(f"--name {name} is for one zip, and there are {len(zips)}: {paths}. Name the one that you mean.")
    found: dict[str, LayerZip] = {}
    for each in zips:
        layer = each.name if name is None else name
        if not _NAME.fullmatch(layer):
            raise LayerError(
                f"{layer!r} is no name for a layer: 1 to 140 characters of a-z, A-Z, 0-9, '_' and '-' are. Give --name."
            )
        if layer in found:
            text = f"{found[layer].path} and {each.path} are both the layer {layer!r}, and differ"
            raise LayerError(f"{text}. Publish them one at a time, each with a --name of its own.")
        found[layer] = each
    return list(found.items())


def regions_of(text: str | None, default: str | None, is_name: Callable[[str], bool]) -> list[str]:
    """The regions that were asked for, each once.

    Args:
        text: with commas between them; None for the default.
        default: what the variable or the profile says.
        is_name: whether that can be a region.

    Raises:
        LayerError: there is none, or one that can't be.
    """
    found = list(dict.fromkeys(each for part in (text or default or "").split(",") if (each := part.strip())))
    if not found:
        raise LayerError("no region is set: give --region, or set AWS_DEFAULT_REGION or the profile's")
    wrong = [each for each in found if not is_name(each)]
    if wrong:
        raise LayerError(f"no region of AWS is called so: {', '.join(map(repr, wrong))}. eu-west-1 is one, eu-west-1a is not.")
    return found


def accounts_of(texts: Iterable[str]) -> tuple[str, ...]:
    """Principals of permissions, each once; everybody stands for all others.

    Raises:
        LayerError: it is neither an account's id nor ``all``.
    """
    found = dict.fromkeys(EVERYBODY if text == _ALL else text for text in texts)
    for each in found:
        if each != EVERYBODY and not _ACCOUNT.fullmatch(each):
            text = f"--account {each}: an account's id has 12 digits; '{_ALL}' means everybody"
            raise LayerError(f"{text}. For several, repeat the option.")
    return (EVERYBODY,) if EVERYBODY in found else tuple(found)


def targets_of(
    layers: Sequence[tuple[str, LayerZip]], regions: Sequence[str], bucket: str | None, accounts: tuple[str, ...]
) -> list[Target]:
    """Each zip in each region.

    Raises:
        LayerError: a zip needs a bucket and there is none, or not one for each region.
    """
    for layer, each in layers:
        if each.packed_bytes > DIRECT_UPLOAD_BYTES:
            _check_bucket(layer, each, regions, bucket)
    return [Target(each, layer, region, _bucket(each, region, bucket), accounts) for layer, each in layers for region in regions]


def _bucket(layer_zip: LayerZip, region: str, bucket: str | None) -> str | None:
    if bucket is None or layer_zip.packed_bytes <= DIRECT_UPLOAD_BYTES:
        return None
    return bucket.replace(REGION, region)


def _check_bucket(layer: str, layer_zip: LayerZip, regions: Sequence[str], bucket: str | None) -> None:
    if bucket is None:
        text = f"{layer_zip.path} has {_mib(layer_zip.packed_bytes)}; what is over {_mib(DIRECT_UPLOAD_BYTES)} goes through S3"
        raise LayerError(f"{text}. Give --bucket, a bucket in the layer's region; {REGION} in it stands for the region.")
    if len(regions) > 1 and REGION not in bucket:
        text = f"--bucket {bucket} is one bucket, and layer {layer!r} needs one in each of {', '.join(regions)}"
        raise LayerError(f"{text}. Put {REGION} into the name, such as {bucket}-{REGION}, or publish one region at a time.")
    name = bucket.replace(REGION, regions[0])
    if not _BUCKET.fullmatch(name):
        raise LayerError(f"--bucket {bucket}: {name!r} is no bucket's name. Give its name, without s3:// and without a folder.")


def _mib(size: int) -> str:
    return f"{size / MIB:.1f} MB"
