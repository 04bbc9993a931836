"""The versions of a layer in one region: which of them has these bytes already, and what a new one says of itself."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from perinvoke.layer.errors import AwsRefused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from perinvoke.layer.account import Service
    from perinvoke.layer.zips import LayerZip

_MARK = "sha256 "
_MARKED = re.compile(_MARK + r"([0-9a-f]{64})")
_DESCRIPTION_CHARACTERS = 256  # Lambda's limit
_LICENCE = "MIT"  # perinvoke's, and that of all that the core brings
_LICENCES = "MIT; of the packages in it: python/*.dist-info; of PgBouncer: perinvoke/licenses"
_ONLY_MIT = {"core", "compiled"}
_MISSING = "ResourceNotFoundException"


def description_of(layer_zip: LayerZip) -> str:
    """What the console shows beside a version. The hash in it spares later runs a look at each version."""
    mark = f"; {_MARK}{layer_zip.sha256}"
    text = f"perinvoke {layer_zip.perinvoke}: {', '.join(layer_zip.parts)}"
    return text[: _DESCRIPTION_CHARACTERS - len(mark)] + mark


def facts_of(layer_zip: LayerZip) -> dict[str, Any]:
    """What PublishLayerVersion is told besides the name and the bytes."""
    return {
        "Description": description_of(layer_zip),
        "CompatibleRuntimes": list(layer_zip.runtimes),
        "CompatibleArchitectures": list(layer_zip.architectures),
        "LicenseInfo": _LICENCE if _ONLY_MIT.issuperset(layer_zip.parts) else _LICENCES,
    }


def could_be(version: dict[str, Any], layer_zip: LayerZip) -> bool:
    """Whether this item of ListLayerVersions, which has no hash, may be these bytes for these runtimes and architectures."""
    marked = _MARKED.search(version.get("Description", ""))
    if marked is not None:
        return marked[1] == layer_zip.sha256  # whose layer.json says what they are for
    return set(layer_zip.runtimes) <= set(version.get("CompatibleRuntimes", ())) and set(layer_zip.architectures) <= set(
        version.get("CompatibleArchitectures", ())
    )


def find_version(service: Service, layer: str, layer_zip: LayerZip) -> str | None:
    """The ARN of the newest version with these bytes, for these runtimes and architectures at least; None: there is none.

    One request for each fifty versions, and one for each that could be it.

    Raises:
        AwsRefused, AwsUnavailable: as ``Service.ask`` has it.
    """
    for version in _versions(service, layer):
        if could_be(version, layer_zip) and _code_sha256(service, layer, version["Version"]) == layer_zip.code_sha256:
            return str(version["LayerVersionArn"])
    return None


def _versions(service: Service, layer: str) -> Iterator[dict[str, Any]]:
    """Newest first, as Lambda lists them; none where the layer has never been."""
    marker: dict[str, str] = {}
    while True:
        try:
            page = service.ask(
                "list_layer_versions", about=f"layer {layer!r}", expects="LayerVersions", LayerName=layer, **marker
            )
        except AwsRefused as error:
            if error.code == _MISSING:
                return
            raise
        yield from page["LayerVersions"]
        if not page.get("NextMarker"):
            return
        marker = {"Marker": page["NextMarker"]}


def _code_sha256(service: Service, layer: str, number: int) -> str | None:
    """What Lambda has of a version; None when it was deleted meanwhile."""
    about = f"layer {layer!r}, version {number}"
    try:
        found = service.ask("get_layer_version", about=about, expects="Content", LayerName=layer, VersionNumber=number)
    except AwsRefused as error:
        if error.code == _MISSING:
            return None
        raise
    return str(found["Content"]["CodeSha256"])
