"""Finds the CPython that compiles for a target: the one that runs this, one in the PATH, or one that pyenv or uv installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from packaging.version import InvalidVersion, Version

from perinvoke.layer.errors import LayerError

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROBE_SECONDS = 20.0  # a start takes 20 ms; through pyenv's shims ten times that
# abiflags: a debug build or one without the GIL writes other bytecode under the same name.
_PROBE = (
    "import sys; v = sys.version_info; print(sys.implementation.name, '%d.%d.%d' % v[:3], v.releaselevel, "
    "'plain' if not sys.abiflags else sys.abiflags, sys.executable)"
)


class Interpreter(NamedTuple):
    """An interpreter that was asked what it is."""

    path: str
    version: str


def find_interpreter(python: str) -> Interpreter:
    """A released CPython of that version, such as 3.13. Runs each candidate once.

    Raises:
        LayerError: there is none; the message says how to get one.
    """
    tried: set[str] = set()
    for candidate in _candidates(python):
        path = os.path.realpath(candidate) if Path(candidate).name != "python3" else candidate
        if path not in tried and (found := _ask(candidate, python)):
            return found
        tried.add(path)
    raise LayerError(
        f"--compile needs Python {python} itself, and there is none: not the one that runs this ({sys.version.split()[0]}), nor "
        f"python{python} in the PATH, nor one of pyenv's or uv's. Install it (pyenv install {python}, "
        f"uv python install {python}), or leave out --compile, or {python} from --python"
    )


def _candidates(python: str) -> Iterator[str]:
    if sys.version_info[:2] == tuple(map(int, python.split("."))):
        yield sys.executable
    for name in (f"python{python}", "python3", "python"):
        if path := shutil.which(name):
            yield path
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 - pathlib's raises where a user has none
    installed = (
        (Path(os.environ.get("PYENV_ROOT") or home / ".pyenv") / "versions", f"{python}.*"),
        (Path(os.environ.get("UV_PYTHON_INSTALL_DIR") or home / ".local/share/uv/python"), f"cpython-{python}.*"),
    )
    for folder, pattern in installed:
        for version in sorted(folder.glob(pattern), key=_order, reverse=True):
            yield str(version / "bin" / f"python{python}")


def _order(folder: Path) -> Version:
    try:
        return Version(folder.name.removeprefix("cpython-").split("-")[0])
    except InvalidVersion:
        return Version("0")


def _ask(candidate: str, python: str) -> Interpreter | None:
    try:
        done = subprocess.run(  # noqa: S603 - it is what is going to be run
            [candidate, "-I", "-S", "-c", _PROBE],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    words = done.stdout.rstrip("\n").split(" ", 4)
    if done.returncode != 0 or len(words) != 5:  # noqa: PLR2004 - as the probe prints
        return None
    name, version, level, abi, path = words
    fits = (name, level, abi) == ("cpython", "final", "plain") and version.startswith(f"{python}.")
    return Interpreter(path, version) if fits else None
