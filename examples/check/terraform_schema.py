"""The arguments of Terraform's AWS provider, read from the sources that CDK Terrain generates of its schema; they aren't run."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from zipfile import Path as ZipPath

# What Terraform itself knows in every resource.
META = {"count", "depends_on", "for_each", "lifecycle", "provider"}
_NOT_THE_PROVIDERS = META | {"connection", "provisioners"}


@dataclass(frozen=True)
class Argument:
    """What a resource or block takes under one name.

    Attributes:
        shape: "list", "map", "number", "bool", "string" or "object".
        inner: the class of the arguments inside, if it has any.
        only_block: whether it can't be written as an argument. Of those with arguments inside the others are lists of objects,
            which Terraform lets one write as blocks, too.
    """

    required: bool
    shape: str
    inner: str | None
    only_block: bool


class Schema:
    """What the wheel at ``path`` knows; lives as long as the checks."""

    def __init__(self, path: str) -> None:
        (package,) = (entry for entry in ZipPath(path).iterdir() if entry.name.endswith("provider_aws"))
        self._package = package
        self.classes = cache(self._classes)

    def root(self, kind: str) -> str:
        """The class that tells the arguments of ``aws_lambda_function``, or ``data_aws_…``."""
        return f"{self._class_name(kind)}Config"

    def knows(self, kind: str) -> bool:
        """Whether there is such a resource, or data source."""
        return (self._package / kind.removeprefix("aws_") / "__init__.py").exists()

    def arguments(self, kind: str, of: str) -> dict[str, Argument]:
        """The arguments of one class of a resource."""
        constructor = _method(self.classes(kind)[of], "__init__")
        told = ast.get_docstring(constructor) or ""
        blocks = set(re.findall(r"^:param (\w+): \1 block\.", told, re.MULTILINE))
        named = zip(constructor.args.kwonlyargs, constructor.args.kw_defaults, strict=True)
        return {
            argument.arg: _argument(
                ast.unparse(argument.annotation or ast.Constant("")),
                self._class_name(kind),
                is_block=argument.arg in blocks,
                required=default is None,
            )
            for argument, default in named
            if argument.arg not in _NOT_THE_PROVIDERS
        }

    def attributes(self, kind: str) -> set[str]:
        """What can be read of a resource."""
        body = self.classes(kind)[self._class_name(kind)].body
        return {method.name for method in body if isinstance(method, ast.FunctionDef) and method.decorator_list}

    def _classes(self, kind: str) -> dict[str, ast.ClassDef]:
        source = (self._package / kind.removeprefix("aws_") / "__init__.py").read_text(encoding="utf-8")
        return {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}

    @staticmethod
    def _class_name(kind: str) -> str:
        return "".join(word.capitalize() for word in kind.removeprefix("aws_").split("_"))


def _method(of: ast.ClassDef, name: str) -> ast.FunctionDef:
    return next(node for node in of.body if isinstance(node, ast.FunctionDef) and node.name == name)


def _argument(annotation: str, prefix: str, *, is_block: bool, required: bool) -> Argument:
    nested = re.search(rf"\b{prefix}\w+", annotation)
    for text, shape in (("Sequence[", "list"), ("Mapping[", "map"), ("Number", "number"), ("bool", "bool"), ("str]", "string")):
        if text in annotation and not (nested and shape in {"map", "string"}):
            break
    else:
        shape = "object" if nested else "string"
    return Argument(required, shape, nested[0] if nested else None, is_block)
