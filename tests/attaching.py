"""``perinvoke layer attach`` and ``detach`` as tests run them, against a Lambda of their own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from lambda_server import hasten
from perinvoke.cli import main
from perinvoke.layer.attach import pauses

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

    from lambda_server import Asked, LambdaServer

UPDATE, PUBLISH, READ = "UpdateFunctionConfiguration", "PublishVersion", "GetFunctionConfiguration"
WRAPPER = "/opt/perinvoke/exec"
HANDLER = "perinvoke.handler.handler"


class Done(NamedTuple):
    """What came of a command."""

    returncode: int
    stdout: str
    stderr: str


class Commands:
    """Runs the commands in this process, where boto3 is loaded already; lives as long as a test."""

    def __init__(
        self, server: LambdaServer, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.server, self._capsys = server, capsys
        server.reset()
        for variable in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(variable)
        for variable, value in variables(server, home).items():
            monkeypatch.setenv(variable, value)
        hasten(monkeypatch)
        # What comes of the pauses doesn't depend on how long they are.
        monkeypatch.setattr(pauses, "FIRST_SECONDS", 0.005)
        monkeypatch.setattr(pauses, "LONGEST_SECONDS", 0.02)

    def __call__(self, verb: str, function: str, *arguments: str, yes: bool = True) -> Done:
        """Run it; the requests that it makes are all that ``server.asked`` holds afterwards."""
        self.server.asked.clear()
        self._capsys.readouterr()
        return Done(main(["layer", verb, function, *arguments, *(["--yes"] if yes else [])]), *self._capsys.readouterr())

    def done(self, verb: str, function: str, *arguments: str) -> Done:
        """Run it, and it succeeds."""
        done = self(verb, function, *arguments)
        assert done.returncode == 0, done.stderr
        return done


def variables(server: LambdaServer, home: Path) -> dict[str, str]:
    """The environment of somebody who has credentials, and of whom nothing else is known."""
    known = {"PATH": os.environ["PATH"], "HOME": str(home), "AWS_EC2_METADATA_DISABLED": "true", "NO_COLOR": ""}
    return known | server.variables()


def script(operation: str, *steps: str | Callable[[], object] | None) -> Callable[[Asked], str | None]:
    """``LambdaServer.faults``: what befalls the first request of an operation, the second …; nothing those after them."""
    left = list(steps)

    def faults(asked: Asked) -> str | None:
        if asked.operation != operation or not left:
            return None
        step = left.pop(0)
        if callable(step):
            step()
            return None
        return step

    return faults
