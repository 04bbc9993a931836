"""Every example of the README does what the README says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from perinvoke.cli import build_parser
from perinvoke.settings import KNOWN

README = Path(__file__).parents[1] / "README.md"
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
COMMANDS = re.findall(r"^\$ perinvoke (.*?)(?:\s+#.*)?$", README.read_text(encoding="utf-8"), re.MULTILINE)


def test_the_example_works_as_written(root):
    (example,) = PYTHON_BLOCKS
    script = f"{example}\nprint(handler({{'user': 'ann'}}, None))\nprint(handler({{'user': 'bob'}}, None))"
    output = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert output.splitlines() == ["done with ann", "['ann', True]", "done with bob", "['bob', True]"]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_are_understood(command):
    assert build_parser().parse_args(command.split()).command


def test_there_are_commands_to_check():
    assert len(COMMANDS) == 3


def test_every_setting_is_explained():
    assert set(re.findall(r"^\| `(PERINVOKE_\w+)`", README.read_text(encoding="utf-8"), re.MULTILINE)) == KNOWN
