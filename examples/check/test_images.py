"""The Dockerfiles, by hadolint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HADOLINT = Path(sys.executable).parent / "hadolint"
FILES = ["Dockerfile", "Dockerfile.managed"]
MISTAKES = [
    ("Dockerfile", "DL1000", "COPY function/app.py ./", "COPPY function/app.py ./"),
    ("Dockerfile", "DL3013", "'awslambdaric>=4.2.2,<5'", "awslambdaric"),
    ("Dockerfile", "DL3042", " --no-cache-dir", ""),
    ("Dockerfile", "DL3006", "python:3.13-slim", "python"),
    ("Dockerfile.managed", "DL3022", "--from=layer", "--from=layers"),
]


def lint(path: Path) -> set[str]:
    """The rules that the file breaks."""
    answer = subprocess.run([HADOLINT, "--format", "json", path], check=False, capture_output=True, text=True)
    return {problem["code"] for problem in json.loads(answer.stdout)}


@pytest.mark.parametrize("file", FILES)
def test_the_dockerfile_breaks_no_rule(examples, file):
    assert lint(examples / "image" / file) == set()


@pytest.mark.parametrize(("file", "rule", "right", "wrong"), MISTAKES)
def test_a_mistake_is_found(file, rule, right, wrong, with_mistake):
    assert rule in lint(with_mistake("image", file, right, wrong) / file)
