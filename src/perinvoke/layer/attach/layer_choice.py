"""Which layer version is attached: the one that is named, or the newest that fits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from perinvoke.layer.attach.fitness import check_fits
from perinvoke.layer.attach.names import parse_layer_version
from perinvoke.layer.errors import AwsForbidden, AwsRefused, LayerError
from perinvoke.layer.zips import DEFAULT_LAYER

if TYPE_CHECKING:
    from perinvoke.layer.account import Service
    from perinvoke.layer.attach.configuration import Configuration

_ARN, _NOT_FOUND = "LayerVersionArn", "ResourceNotFoundException"


def layer_version(service: Service, function: Configuration, arn: str | None, current: str | None) -> str:
    """The ARN of the layer version to attach.

    Args:
        service: Lambda in the function's region.
        function: what it has to fit.
        arn: what was asked for.
        current: the layer that the function has, of which a newer version is looked for; None for the default layer.

    Raises:
        LayerError: there is none, or it is for others.
    """
    return newest(service, function, current or DEFAULT_LAYER) if arn is None else _named(service, function, arn)


def newest(service: Service, function: Configuration, layer: str) -> str:
    """The newest version that is for the function's runtime and architecture."""
    versions = sorted(_versions(service, function, layer), key=lambda version: int(version["Version"]), reverse=True)
    for version in versions:
        if function.runtime in version.get("CompatibleRuntimes", ()) and function.architecture in (
            version.get("CompatibleArchitectures") or [function.architecture]
        ):
            return str(version["LayerVersionArn"])
    how = (
        f"perinvoke layer build --python {function.runtime.removeprefix('python')} --arch {function.architecture}, then "
        f"perinvoke layer publish --region {service.region}; or name another with --version-arn"
    )
    if not versions:
        raise LayerError(
            f"there is no layer {layer!r} in {service.region}, in the account of these credentials. Publish it: {how}"
        )
    last = versions[0]
    offered = [*last.get("CompatibleRuntimes", ()), *last.get("CompatibleArchitectures", ())]
    raise LayerError(
        f"no version of layer {layer!r} in {service.region} is for {function.runtime} on {function.architecture}; the newest, "
        f"{last['Version']}, is for {', '.join(offered) or 'nothing in particular'}. Publish one: {how}"
    )


def _named(service: Service, function: Configuration, arn: str) -> str:
    wanted = parse_layer_version(arn, service.region)
    try:
        name, about = _asked(wanted.layer, function), f"layer version {arn!r}"
        if name == wanted.name:
            found = service.ask("get_layer_version", about=about, expects=_ARN, LayerName=name, VersionNumber=wanted.version)
        else:
            found = service.ask("get_layer_version_by_arn", about=about, expects=_ARN, Arn=arn)
    except AwsRefused as error:
        if error.code != _NOT_FOUND:
            raise
        raise LayerError(
            f"there is no layer version {arn}. See which there are: aws lambda list-layer-versions --layer-name {wanted.name} "
            f"--region {service.region}"
        ) from error
    check_fits(function, arn, found.get("CompatibleRuntimes", ()), found.get("CompatibleArchitectures", ()))
    return arn


def _asked(layer: str, function: Configuration) -> str:
    """The layer as it is asked for: of one's own account by its name, which not only AWS itself understands."""
    parts = layer.split(":")
    return parts[-1] if parts[:-2] == function.arn.split(":")[:5] else layer


def _versions(service: Service, function: Configuration, layer: str) -> list[dict[str, Any]]:
    """All of them, whatever the pages; none where there is no such layer. Unfiltered: emulators ignore the filters."""
    found: list[dict[str, Any]] = []
    more: dict[str, str] = {}
    while True:
        try:
            answer = service.ask(
                "list_layer_versions",
                about=f"layer {layer!r}",
                expects="LayerVersions",
                LayerName=_asked(layer, function),
                **more,
            )
        except AwsForbidden as error:  # the layers of another account can be used, and not listed
            raise AwsForbidden(f"{error} Or name the version: --version-arn", **vars(error)) from error
        except AwsRefused as error:
            if error.code != _NOT_FOUND:
                raise
            return []
        found += answer["LayerVersions"]
        if not answer.get("NextMarker"):
            return found
        more = {"Marker": answer["NextMarker"]}
