"""What each target gets: wheels, perinvoke's own files, and what else was asked for."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING

from perinvoke.layer.build.compiled import compiled
from perinvoke.layer.build.entries import contents_sha256
from perinvoke.layer.build.own_files import entries_of_perinvoke, extension_entry
from perinvoke.layer.build.plan import Content
from perinvoke.layer.build.wheels import entries_of, is_for_one_architecture, is_for_one_python

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from perinvoke.layer.build.entries import Entry
    from perinvoke.layer.build.interpreters import Interpreter
    from perinvoke.layer.build.locks import Locked
    from perinvoke.layer.build.pgbouncer import PgBouncerFiles
    from perinvoke.layer.build.targets import Target


def contents_of(wheels: dict[Target, list[Path]], locked: dict[Target, list[Locked]]) -> dict[Target, Content]:
    """Every target's packages, and perinvoke. Wheels that several targets share are read once."""
    own_version = version("perinvoke")
    own = entries_of_perinvoke(own_version)
    read: dict[str, list[Entry]] = {}
    contents = {}
    for target, paths in wheels.items():
        for path in paths:
            if path.name not in read:
                read[path.name] = entries_of(path)
        contents[target] = Content(
            entries=own + [entry for path in paths for entry in read[path.name]],
            packages={"perinvoke": own_version} | {package.name: package.version for package in locked[target]},
            own_python=any(map(is_for_one_python, paths)),
            own_architecture=any(map(is_for_one_architecture, paths)),
        )
    return contents


def with_pgbouncer(contents: dict[Target, Content], binaries: dict[str, PgBouncerFiles]) -> dict[Target, Content]:
    """The same with each architecture's binary, and the extension that runs it."""
    if not binaries:
        return contents
    extension = extension_entry(version("perinvoke"))
    return {
        target: replace(
            content,
            entries=[*content.entries, extension, *binaries[target.architecture].entries],
            own_architecture=True,
        )
        for target, content in contents.items()
    }


def with_pyc(
    contents: dict[Target, Content], interpreters: dict[str, Interpreter], done: Callable[[], None]
) -> dict[Target, Content]:
    """The same with .pyc files. ``done`` is called after each target."""
    if not interpreters:
        return contents
    made: dict[tuple[str, str], list[Entry]] = {}
    compiled_contents = {}
    for target, content in contents.items():
        interpreter = interpreters[target.python]
        key = (target.python, contents_sha256(content.entries))
        if key not in made:
            made[key] = compiled(content.entries, interpreter)
        compiled_contents[target] = replace(
            content, entries=content.entries + made[key], own_python=True, compiled_by=interpreter.version
        )
        done()
    return compiled_contents
