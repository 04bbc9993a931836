"""Has pip fetch the locked wheels for each target, all targets at once, and kills what is still at work when one fails.

pip goes by its own configuration: whatever index, mirror, proxy or folder it is told of, the hashes decide.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from perinvoke.layer.build.complaints import error_from
from perinvoke.layer.errors import LayerUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from perinvoke.layer.build.locks import Locked
    from perinvoke.layer.build.targets import Target

_RETRIES = "2"  # pip's default of 5 has people wait for a quarter of a minute to learn that they are offline
# What pip's configuration may say of installations, and means nothing to a layer.
_OVERRULED = {"PIP_CONSTRAINT": os.devnull, "PIP_REQUIREMENT": os.devnull, "PIP_REQUIRE_VIRTUALENV": "0", "PIP_QUIET": "0"}


class Download:
    """pip at work for one target; lives until it is waited for, or killed."""

    def __init__(self, target: Target, packages: list[Locked], directory: Path) -> None:
        self.target = target
        self._wheels = directory / "wheels"
        self._errors = directory / "errors"
        directory.mkdir()
        requirements = directory / "requirements.txt"
        requirements.write_text("".join(f"{package}\n" for package in packages), encoding="ascii")
        options = [
            "--require-hashes",
            "--no-deps",
            "--no-input",
            "--no-color",
            "--disable-pip-version-check",
            "--progress-bar=off",
        ]
        options += ["--retries", _RETRIES, *target.pip_options, "--dest", str(self._wheels), "--requirement", str(requirements)]
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(  # noqa: S603 - pip
                # It runs where the command is typed, for that is where relative paths begin that its configuration may have. -P:
                # a folder called pip may lie there, too.
                [sys.executable, "-P", "-m", "pip", "download", *options],
                # Its temporary files lie beside its wheels: one that is killed leaves them, and they go with the directory.
                env=os.environ | _OVERRULED | {"TMPDIR": str(directory)},
                stdin=subprocess.DEVNULL,
                stdout=errors,  # where it says what it doesn't understand of its configuration
                stderr=errors,
            )

    def wait(self) -> list[Path]:
        """Wait until pip ends, as long as that takes; the wheels.

        Raises:
            LayerError: there is no pip, the index has no such wheel or another one, or asks who we are.
            LayerUnavailable: no index answers, or the disk is full.
        """
        code = self._process.wait()
        if code != 0:
            raise error_from(self.target, self._errors.read_text(encoding="utf-8", errors="replace"), code)
        return sorted(self._wheels.iterdir())

    def kill(self) -> None:
        """End it if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def downloaded(packages: dict[Target, list[Locked]], done: Callable[[], None]) -> Iterator[dict[Target, list[Path]]]:
    """The wheels of each target, which are there as long as the block. ``done`` is called after each target."""
    downloads: list[Download] = []
    with _temporary_directory() as directory:
        try:
            for number, (target, locked) in enumerate(packages.items()):
                downloads.append(Download(target, locked, directory / str(number)))
            wheels = {}
            for download in downloads:
                wheels[download.target] = download.wait()
                done()
        finally:
            for download in downloads:
                download.kill()
        yield wheels


@contextlib.contextmanager
def _temporary_directory() -> Iterator[Path]:
    try:
        directory = tempfile.TemporaryDirectory(prefix="perinvoke-layer-", ignore_cleanup_errors=True)
    except OSError as error:
        raise LayerUnavailable(f"no temporary directory can be made for wheels: {error}. Set TMPDIR") from error
    with directory as name:
        yield Path(name)
