"""``perinvoke layer publish`` as tests run it, in this process, against a server of theirs, with zips that hold little."""

from __future__ import annotations

import itertools
import json
import os
import sys
import zipfile
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

from lambda_server import Asked, LambdaServer, hasten
from lambda_server import _asked as asked_of
from lambda_server import _refusal as refusal
from perinvoke.cli import main
from perinvoke.layer.publish import publication

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    import pytest

REGIONS = ("eu-west-1", "us-east-1", "ap-southeast-2")
PUBLISH = "PublishLayerVersion"
# What only reads; all else changes something.
READS = {"ListLayerVersions", "GetLayerVersion", "s3 HEAD"}
_names = itertools.count(1)


class LayerServer(LambdaServer):
    """One that refuses a statement which a layer version's policy has already, as Lambda does; moto would take it again.

    Attributes:
        before: called with each request before all else; other requests are served meanwhile.
    """

    def __init__(self) -> None:
        super().__init__()
        self._statements: set[tuple[str, str, str]] = set()
        self.before: Callable[[Asked], object] = lambda asked: None

    def reply_to(self, line: str, headers: dict[str, str], body: bytes) -> bytes | Iterable[bytes] | None:
        self.before(asked_of(line, headers, body))
        return super().reply_to(line, headers, body)

    def _served(self, asked: Asked, line: str, headers: dict[str, str], body: bytes) -> bytes:
        if asked.operation == "AddLayerVersionPermission":
            statement = (asked.region, line.split()[1], asked.body["StatementId"])
            if statement in self._statements:
                return refusal("ResourceConflictException", f"The statement id ({statement[2]}) provided already exists.")
            self._statements.add(statement)
        return super()._served(asked, line, headers, body)


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str

    def rows(self) -> list[list[str]]:
        """The table's: region, layer, result, version."""
        lines = self.stdout.splitlines()
        starts = [lines[0].index(name) for name in ("region", "layer", "result", "version")]
        ends = [*starts[1:], None]
        return [[line[start:end].strip() for start, end in zip(starts, ends, strict=True)] for line in lines[1:]]

    def results(self) -> dict[str, str]:
        """By region."""
        return {row[0]: row[2] for row in self.rows()}


class Publisher(NamedTuple):
    """Somebody with credentials and nothing else, in a directory of theirs; lives as long as a test."""

    server: LayerServer
    directory: Path
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def prepare(self) -> None:
        """No variables but the account's, no pauses, no faults."""
        self.server.reset()
        for variable in [name for name in os.environ if name.startswith("AWS_")]:
            self.monkeypatch.delenv(variable)
        for variable, value in self.variables().items():
            self.monkeypatch.setenv(variable, value)
        self.monkeypatch.chdir(self.directory)
        hasten(self.monkeypatch)
        self.monkeypatch.setattr(publication, "_BASE_SECONDS", 0.01)
        self.monkeypatch.setattr(publication, "_SETTLING_SECONDS", 0.01)

    def variables(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            **self.server.variables(),
            "HOME": str(self.directory),
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def zip(self, path: str = "dist/perinvoke-0.zip", content: str | bytes = "", **facts: Any) -> str:
        """A zip as build makes it, of a layer that nobody else has; the layer's name."""
        told = {
            "name": f"layer-{next(_names)}",
            "perinvoke": version("perinvoke"),
            "pythons": ["3.13", "3.14"],
            "architectures": ["x86_64", "arm64"],
            "parts": ["core"],
            "packages": {"filelock": "3.20.0"},
        } | facts
        where = self.directory / path
        where.parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(where, "w") as archive:
            archive.writestr("perinvoke/layer.json", json.dumps(told))
            archive.writestr("python/x", content)
        return str(told["name"])

    def command(self, *arguments: str, regions: str = ",".join(REGIONS)) -> list[str]:
        """The same for a process of its own."""
        return [sys.executable, "-m", "perinvoke", "layer", "publish", "--region", regions, *arguments]

    def run(self, *arguments: str, regions: str | None = ",".join(REGIONS), **changes: str | None) -> Done:
        where = () if regions is None else ("--region", regions)
        self.server.asked.clear()
        with self.monkeypatch.context() as patch:
            for variable, value in changes.items():
                patch.delenv(variable) if value is None else patch.setenv(variable, value)
            return Done(main(["layer", "publish", *arguments, *where]), *self.capsys.readouterr())

    def versions(self, layer: str, region: str = REGIONS[0]) -> list[dict[str, Any]]:
        with self.server.undisturbed():
            found: list[dict[str, Any]] = self.server.client(region=region).list_layer_versions(LayerName=layer)["LayerVersions"]
        return found

    def policy(self, layer: str, region: str = REGIONS[0]) -> list[dict[str, Any]]:
        """The statements of version 1."""
        with self.server.undisturbed():
            told = self.server.client(region=region).get_layer_version_policy(LayerName=layer, VersionNumber=1)["Policy"]
        found: list[dict[str, Any]] = json.loads(told)["Statement"]
        return found

    def writes(self) -> list[str]:
        """What was asked for in the last run and isn't only a look."""
        return [each for each in self.server.operations() if each not in READS]
