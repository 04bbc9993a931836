"""``perinvoke layer build``, from its options to its exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perinvoke.errors import MissingExtra

try:
    import packaging as _packaging  # noqa: F401  # what all of this needs; the others import it without a check
    import rich as _rich  # noqa: F401
except ModuleNotFoundError as error:
    raise MissingExtra(
        f"perinvoke layer build needs {error.name}, which isn't installed: pip install 'perinvoke[layer]'", extra="layer"
    ) from error

from dataclasses import replace
from importlib.metadata import version

from perinvoke.layer.build.archive import check_directory, written
from perinvoke.layer.build.contents import contents_of, with_pgbouncer, with_pyc
from perinvoke.layer.build.downloads import downloaded
from perinvoke.layer.build.interpreters import find_interpreter
from perinvoke.layer.build.locks import read_locks
from perinvoke.layer.build.pgbouncer import doubts, read_binaries
from perinvoke.layer.build.plan import plan
from perinvoke.layer.build.progress import stages
from perinvoke.layer.build.report import built, show
from perinvoke.layer.build.targets import parse_targets
from perinvoke.layer.zips import read_layer_zip

if TYPE_CHECKING:
    from argparse import Namespace


def build(options: Namespace) -> int:
    """Build the zips into ``--out``, and print what they are. The exit code."""
    targets = parse_targets(options.python, options.arch)
    binaries = read_binaries(options.with_pgbouncer, targets)
    pythons = dict.fromkeys(target.python for target in targets)
    interpreters = {python: find_interpreter(python) for python in pythons} if options.compile else {}
    check_directory(options.out)
    parts = _parts(options)
    locked = {target: read_locks(parts, target.python) for target in targets}
    with stages() as stage:
        stage.begin("fetching what goes into the layer", len(targets))
        with downloaded(locked, stage.done) as wheels:
            contents = with_pgbouncer(contents_of(wheels, locked), binaries)
        if interpreters:
            stage.begin("compiling", len(targets))
            contents = with_pyc(contents, interpreters, stage.done)
        zips = plan(contents, parts, version("perinvoke"))
        stage.begin("writing", len(zips))
        with written(options.out, zips, stage.done) as made:
            items = [built(read_layer_zip(made[planned.file_name]), planned.entries) for planned in zips]
    items = [
        item._replace(layer=replace(item.layer, path=options.out / planned.file_name))
        for item, planned in zip(items, zips, strict=True)
    ]
    show(items, options.out, [doubt for files in binaries.values() for doubt in doubts(files, targets)])
    return 0


def _parts(options: Namespace) -> list[str]:
    chosen = {
        "boto3": options.with_boto3,
        "sql": options.with_sql,
        "pgbouncer": bool(options.with_pgbouncer),
        "compiled": options.compile,
    }
    return ["core", *(name for name, is_asked in chosen.items() if is_asked)]
