"""perinvoke's own files in a layer, taken from the installed package: a wheel's or an editable one's."""

from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

import perinvoke
from perinvoke.layer.build.entries import Entry
from perinvoke.layer.errors import LayerError

# What a function has no use for: tools for whoever develops and ships it.
_LEFT_OUT = {"local", "check", "layer", "demo", "cli.py", "__main__.py", "aws_credentials.py", "aws_refusals.py"}
_LEFT_OUT_BELOW = {("fleet", "table")}
_WRAPPER = "exec"
_EXTENSION = "perinvoke-pgbouncer"


def entries_of_perinvoke(version: str) -> list[Entry]:
    """The package and its metadata below ``python/``, and the exec wrapper."""
    package = f"perinvoke {version}"
    root = Path(perinvoke.__file__).parent
    entries = []
    for path in root.rglob("*"):
        parts = path.relative_to(root).parts
        if path.suffix != ".py" and parts != ("py.typed",):
            continue
        if parts[0] not in _LEFT_OUT and parts[:2] not in _LEFT_OUT_BELOW and "__pycache__" not in parts:
            entries.append(Entry("/".join(("python", "perinvoke", *parts)), path.read_bytes(), executable=False, package=package))
    dist_info = f"python/perinvoke-{version}.dist-info"
    entries.append(Entry(f"{dist_info}/METADATA", _metadata(), executable=False, package=package))
    entries.append(Entry(f"{dist_info}/licenses/LICENSE", _licence(), executable=False, package=package))
    entries.append(script(_WRAPPER, f"perinvoke/{_WRAPPER}", package))
    return entries


def extension_entry(version: str) -> Entry:
    """What starts PgBouncer beside the runtime."""
    return script(_EXTENSION, f"extensions/{_EXTENSION}", f"perinvoke {version}")


def script(file_name: str, name: str, package: str) -> Entry:
    """One of the scripts in ``files/``."""
    return Entry(name, (Path(__file__).parent / "files" / file_name).read_bytes(), executable=True, package=package)


def _metadata() -> bytes:
    """As far as it is the same everywhere: each version of a build tool writes the whole of it differently."""
    told = distribution("perinvoke").metadata
    requirements = [Requirement(text) for text in told.get_all("Requires-Dist") or ()]
    needed = sorted(str(requirement) for requirement in requirements if requirement.marker is None)
    lines = ["Metadata-Version: 2.4", "Name: perinvoke", f"Version: {told['Version']}", f"Summary: {told['Summary']}"]
    lines += ["License-Expression: MIT", "License-File: LICENSE", f"Requires-Python: {told['Requires-Python']}"]
    return "\n".join([*lines, *(f"Requires-Dist: {text}" for text in needed), ""]).encode()


def _licence() -> bytes:
    text = distribution("perinvoke").read_text("licenses/LICENSE")
    if text is None:
        raise LayerError(
            "perinvoke's own licence isn't installed with it; install perinvoke again: pip install --force-reinstall perinvoke"
        )
    return text.encode()
