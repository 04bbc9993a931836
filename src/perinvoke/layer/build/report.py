"""What was built, for people: a table where stdout is a terminal, lines else. Sizes stand beside Lambda's limits."""

from __future__ import annotations

import shlex
import sys
import zipfile
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from perinvoke.layer.build.archive import has_usual_zlib
from perinvoke.layer.build.plan import largest_packages
from perinvoke.layer.limits import DIRECT_UPLOAD_BYTES, MIB, UNPACKED_BYTES
from perinvoke.layer.zips import ZIP_PATTERN, LayerZip

if TYPE_CHECKING:
    from pathlib import Path

    from perinvoke.layer.build.entries import Entry

_LARGEST = 5
_PUBLISH = "perinvoke layer publish"


class Built(NamedTuple):
    """A zip, and how large each package in it is: name, bytes packed, bytes unpacked; largest first."""

    layer: LayerZip
    largest: list[tuple[str, int, int]]


def built(layer: LayerZip, entries: list[Entry]) -> Built:
    """Look into the zip at ``layer.path`` for what each package takes."""
    packages = {entry.name: entry.package for entry in entries}
    packed: dict[str, int] = {}
    with zipfile.ZipFile(layer.path) as archive:
        for info in archive.infolist():
            package = packages[info.filename]
            packed[package] = packed.get(package, 0) + info.compress_size
    return Built(layer, [(name, packed[name], size) for name, size in largest_packages(entries)[:_LARGEST]])


def facts_of(item: Built) -> list[tuple[str, str]]:
    """What is said of one zip: a word and a text each. Pure."""
    layer = item.layer
    largest = ", ".join(f"{name} {_size(size)}" for name, _, size in item.largest)
    return [
        ("for", f"Python {', '.join(layer.pythons)} on {', '.join(layer.architectures)}"),
        ("packed", f"{_size(layer.packed_bytes)} of {_size(DIRECT_UPLOAD_BYTES)} for a direct upload"),
        ("unpacked", f"{_size(layer.unpacked_bytes)} of {_size(UNPACKED_BYTES)} for a function and its layers"),
        ("largest", f"{largest} (unpacked)"),
        ("sha256", layer.sha256),
    ]


def notes_of(items: list[Built], directory: Path, *, usual_zlib: bool) -> list[str]:
    """What to know besides: limits, other compressors, zips of an earlier build. Looks into the directory."""
    notes = [
        f"{item.layer.path.name} is over {_size(DIRECT_UPLOAD_BYTES)}, so it goes through S3: publish it with --bucket B"
        for item in items
        if item.layer.packed_bytes > DIRECT_UPLOAD_BYTES
    ]
    made = {item.layer.path.name for item in items}
    version = items[0].layer.perinvoke
    if others := sorted(path.name for path in directory.glob(ZIP_PATTERN) if path.name not in made):
        notes.append(f"also in {directory}, from earlier builds: {', '.join(others)}. {_PUBLISH} takes those of {version} too")
    if not usual_zlib:
        notes.append("this Python compresses with zlib-ng: its sha256 is equal wherever zlib-ng is used, but not to zlib's")
    return notes


def next_command(items: list[Built], directory: Path) -> str:
    """What to type now. Pure."""
    words = [] if str(directory) == "dist" else [str(item.layer.path) for item in items]
    bucket = " --bucket BUCKET" if any(item.layer.packed_bytes > DIRECT_UPLOAD_BYTES for item in items) else ""
    return " ".join([_PUBLISH, *map(shlex.quote, words)]) + bucket


def show(items: list[Built], directory: Path, doubts: list[str]) -> None:
    """Print the report to stdout."""
    notes = [*doubts, *notes_of(items, directory, usual_zlib=has_usual_zlib())]
    command = next_command(items, directory)
    if not sys.stdout.isatty():
        sys.stdout.write("\n".join(_lines(items, notes, command)) + "\n")
        return
    console = Console(highlight=False)  # goes by NO_COLOR and TERM itself
    for item in items:
        console.print(_table(item))
    # Not folded, so that what is copied is whole: the first half of the command would publish something else.
    for note in notes:
        console.print(Text.assemble(("note: ", "yellow"), note), soft_wrap=True)
    console.print(Text.assemble("next: ", (command, "bold")), soft_wrap=True)


def _lines(items: list[Built], notes: list[str], command: str) -> list[str]:
    lines = []
    for item in items:
        lines.append(str(item.layer.path))
        lines += [f"  {word:<9} {text}" for word, text in facts_of(item)]
    return [*lines, *(f"note: {note}" for note in notes), f"next: {command}"]


def _table(item: Built) -> Table:
    table = Table(title=Text(str(item.layer.path), "bold"), title_justify="left", show_header=False)
    table.add_column(style="cyan")
    table.add_column(overflow="fold")
    for word, text in facts_of(item):
        if word != "largest":
            table.add_row(word, text)
    table.add_row("largest", _largest(item.largest))
    return table


def _largest(largest: list[tuple[str, int, int]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("package", "packed", "unpacked"):
        table.add_column(heading, justify="left" if heading == "package" else "right")
    for name, packed, unpacked in largest:
        table.add_row(name, _size(packed), _size(unpacked))
    return table


def _size(size: int) -> str:
    """In Lambda's megabytes, which are of 1,048,576 bytes."""
    return f"{size // MIB} MB" if size % MIB == 0 and size else f"{size / MIB:.2f} MB"
