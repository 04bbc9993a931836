"""What people type to name a function or a layer version, parsed. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from perinvoke.layer.errors import LayerError

_NAME = r"[a-zA-Z0-9-_]{1,140}"
_REGION = r"[a-z]{2,4}(?:-[a-z]+)+-\d"
_FUNCTION = re.compile(
    rf"(?:(?:arn:(?P<partition>aws[a-z-]*):lambda:(?P<region>{_REGION}):)?(?P<account>\d{{12}}):)?(?:function:)?"
    rf"(?P<name>{_NAME})(?::(?P<qualifier>[^:]+))?"
)
_LAYER_VERSION = re.compile(
    rf"(?P<layer>arn:aws[a-z-]*:lambda:(?P<region>{_REGION}):\d{{12}}:layer:(?P<name>{_NAME})):(?P<version>[1-9]\d{{0,9}})"
)
# The only version that can be changed, which is what a name without a version means here.
_LATEST = "$LATEST"


@dataclass(frozen=True, kw_only=True)
class FunctionName:
    """A function, as somebody has named it.

    Attributes:
        name: its own name.
        asked: what AWS takes for it: the name, the ARN or a part of one, always without a qualifier.
        region: the ARN's; None where there was none.
    """

    name: str
    asked: str
    region: str | None


@dataclass(frozen=True, kw_only=True)
class LayerVersionArn:
    """A version of a layer.

    Attributes:
        arn: the whole of it.
        layer: the ARN of the layer, without the version.
        name: the layer's.
        region: where it is.
        version: its number.
    """

    arn: str
    layer: str
    name: str
    region: str
    version: int


def parse_function(text: str) -> FunctionName:
    """A function's name, ARN, or part of an ARN: ``123456789012:function:orders``.

    Raises:
        LayerError: it is none of these, or names a version or an alias.
    """
    found = _FUNCTION.fullmatch(text)
    if found is None:
        raise LayerError(f"{text!r} names no function: give its name, such as orders, or its ARN")
    qualifier = found["qualifier"]
    if qualifier not in {None, _LATEST}:
        raise LayerError(
            f"{text!r} names a version or an alias, and those can't be changed. Give {found['name']}, without {':' + qualifier!r}"
        )
    # "function:orders" isn't among the forms that AWS writes of, though its pattern takes it.
    whole = found["name"] if found["account"] is None else text
    asked = whole.removesuffix(f":{qualifier}") if qualifier else whole
    return FunctionName(name=found["name"], asked=asked, region=found["region"])


def try_parse_layer_version(arn: str) -> LayerVersionArn | None:
    """A layer version's ARN; None for what is none, such as one of AWS's own without a number."""
    found = _LAYER_VERSION.fullmatch(arn)
    if found is None:
        return None
    return LayerVersionArn(
        arn=arn, layer=found["layer"], name=found["name"], region=found["region"], version=int(found["version"])
    )


def parse_layer_version(arn: str, region: str) -> LayerVersionArn:
    """What ``--version-arn`` names.

    Raises:
        LayerError: it is no ARN of a layer version, or of one in another region than the function's.
    """
    found = try_parse_layer_version(arn)
    if found is None:
        raise LayerError(
            f"--version-arn {arn!r} is no ARN of a layer version, such as "
            f"arn:aws:lambda:{region}:123456789012:layer:perinvoke:1, with the version's number at its end"
        )
    if found.region != region:
        raise LayerError(
            f"--version-arn {arn!r} is in {found.region}, and the function in {region}: a function takes layers of its own "
            f"region only. Publish it there: perinvoke layer publish --region {region}"
        )
    return found


def layer_of(arn: str) -> str:
    """The layer that a version is of; of what isn't an ARN like that, itself."""
    found = try_parse_layer_version(arn)
    return arn if found is None else found.layer


def looks_like_ours(arn: str) -> bool:
    """Whether the layer is called as ``perinvoke layer build`` calls them."""
    found = try_parse_layer_version(arn)
    return found is not None and (found.name == "perinvoke" or found.name.startswith("perinvoke-"))
