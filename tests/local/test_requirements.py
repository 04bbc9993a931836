from __future__ import annotations

import subprocess
import sys

import pytest

_IMPORT_WITHOUT = """
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = classmethod(lambda cls, name, *rest: None if name in sys.argv[1].split(",") else find(name, *rest))
from perinvoke.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("arguments", [["run", "app.handler"], ["demo"]])
@pytest.mark.parametrize(
    ("packages", "told"),
    [
        ("aiohttp", "aiohttp, which is not installed"),
        ("awslambdaric", "awslambdaric, which is not installed"),
        ("rich", "rich, which is not installed"),
        ("rich,aiohttp", "aiohttp, rich, which are not installed"),
    ],
)
def test_what_is_missing_is_named_with_the_extra_that_brings_it(packages: str, told: str, arguments: list[str]) -> None:
    command = [sys.executable, "-c", _IMPORT_WITHOUT, packages, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"perinvoke: running a handler locally needs {told}")
    assert "pip install 'perinvoke[local]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
