"""What every test may use: a root of its own, and a Lambda context like the runtime's."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from awslambdaric.lambda_context import LambdaContext

from perinvoke import worker

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """PERINVOKE_ROOT of this test."""
    path = tmp_path / "root"
    monkeypatch.setenv("PERINVOKE_ROOT", str(path))
    return path


@pytest.fixture
def lambda_context() -> LambdaContext:
    """What the real runtime hands to a handler, three seconds before its deadline."""
    return LambdaContext("8476a536-e9f4-11e8-9739-2dfe598c3fcd", None, None, int(time.time() * 1000) + 3000, "arn", "tenant-1")


def trash_is_empty(root: Path) -> bool:
    """Wait until what was thrown away below ``root`` is gone."""
    return worker.process.worker(str(root)).trash.wait_empty(10)
