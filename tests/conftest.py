"""What every test may use: a root of its own, and a Lambda context like the runtime's."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest
from awslambdaric.lambda_context import LambdaContext

from perinvoke import worker
from perinvoke.settings import read_settings

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _quiet() -> None:
    """No test begins while a thread of the last one's worker still runs: some count threads and descriptors, some fork."""
    worker.process.watches.close()
    for thread in threading.enumerate():
        if thread.name == "perinvoke-trash":
            thread.join(30)


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
    return worker.process.worker(read_settings({"PERINVOKE_ROOT": str(root)})).trash.wait_empty(10)
