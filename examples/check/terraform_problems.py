"""Finds what is wrong in Terraform files: names, shapes, references. `terraform validate` would need the provider itself."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import hcl2
from terraform_schema import META, Argument, Schema

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_OF_THE_PARSER = {"__is_block__", "__comments__", "__inline_comments__"}
_DECLARED_AS = {"var": "variable", "local": "locals"}


def problems(folder: Path, schema: Schema) -> list[str]:
    """What is wrong in the folder's ``*.tf`` files; empty: nothing that could be seen."""
    files: list[dict[str, Any]] = [hcl2.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.tf"))]
    found = [problem for kind, name, body in _resources(files) for problem in _in_resource(schema, kind, name, body)]
    return found + list(_in_references(files, schema))


def _resources(files: list[dict[str, Any]]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for section, prefix in (("resource", ""), ("data", "data_")):
        for block in (block for file in files for block in file.get(section, [])):
            for kind, named in block.items():
                for name, body in named.items():
                    yield prefix + kind.strip('"'), name.strip('"'), body


def _in_resource(schema: Schema, kind: str, name: str, body: dict[str, Any]) -> Iterator[str]:
    where = f"{kind}.{name}"
    if not schema.knows(kind):
        yield f"{where}: there is no {kind}"
        return
    yield from _in_block(schema, kind, schema.root(kind), {key: value for key, value in body.items() if key not in META}, where)


def _in_block(schema: Schema, kind: str, of: str, body: dict[str, Any], where: str) -> Iterator[str]:
    known = schema.arguments(kind, of)
    given = {key: value for key, value in body.items() if key not in _OF_THE_PARSER}
    yield from (f"{where}: {name} is missing" for name, argument in known.items() if argument.required and name not in given)
    for name, value in given.items():
        if name not in known:
            yield f"{where}: there is no {name}; there are {', '.join(known)}"
            continue
        blocks = isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "__is_block__" in value[0]
        inner = known[name].inner
        if blocks and inner:
            for each in value:
                yield from _in_block(schema, kind, inner, each, f"{where}.{name}")
        elif blocks or known[name].only_block:
            yield f"{where}: {name} is {'an argument, not a block' if blocks else 'a block, not an argument'}"
        elif not _fits(value, known[name]):
            yield f"{where}: {name} is a {known[name].shape}, not {value!r}"


def _fits(value: Any, argument: Argument) -> bool:
    if isinstance(value, str) and value.startswith("${"):
        return True  # an expression, which only Terraform can evaluate
    if isinstance(value, list):
        return argument.shape == "list"
    if isinstance(value, dict):
        return argument.shape in {"map", "object"}
    if argument.shape == "bool":
        return isinstance(value, bool)
    if argument.shape == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    return argument.shape == "string"


def _in_references(files: list[dict[str, Any]], schema: Schema) -> Iterator[str]:
    text = json.dumps(files)
    for word, section in _DECLARED_AS.items():
        declared = {name.strip('"') for file in files for block in file.get(section, []) for name in block}
        for name in sorted(set(re.findall(rf"\b{word}\.(\w+)", text)) - declared):
            yield f"{word}.{name} isn't declared"
    resources = {(kind, name) for kind, name, _ in _resources(files)}
    for data, kind, name, attribute in sorted(set(re.findall(r"\b(data\.)?(aws_\w+)\.(\w+)(?:\.(\w+))?", text))):
        its = f"data_{kind}" if data else kind
        if (its, name) not in resources:
            yield f"{data}{kind}.{name} isn't declared"
        elif attribute and attribute not in schema.attributes(its):
            yield f"{data}{kind}.{name} has no {attribute}"
