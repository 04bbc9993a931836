"""The promise itself, on the real runtime: sixteen workers, a thousand invocations, nothing foreign, nothing left."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import trash_is_empty
from perinvoke.local import LocalConfig, LocalEnvironment

FUNCTIONS = Path(__file__).parent / "functions"
INVOCATIONS = 1_000
WORKERS = 16


def files_below(root: Path) -> list[Path]:
    # Not rglob, which fails on 3.11 when a directory is removed under it.
    return [Path(folder, name) for folder, _, names in os.walk(root) for name in names]


def directories_with_something(root: Path) -> list[Path]:
    """Scratch and trash directories that hold anything; what is prepared for the next invocation is empty."""
    return [
        Path(folder)
        for folder, folders, names in os.walk(root)
        if (folders or names) and Path(folder).parent.parent == root and Path(folder).name != "trash"
    ]


async def invoke_all(environment: LocalEnvironment) -> list[dict[str, Any]]:
    numbers = iter(range(INVOCATIONS))
    answers: list[dict[str, Any]] = []

    async def caller() -> None:
        for number in numbers:
            outcome = await environment.invoke(json.dumps({"number": number}).encode())
            assert outcome.ok, outcome
            answers.append(json.loads(outcome.payload))

    async with asyncio.TaskGroup() as callers:
        for _ in range(WORKERS):
            callers.create_task(caller())
    return answers


def wait_until_empty(root: Path, seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while (files_below(root) or directories_with_something(root)) and time.monotonic() < until:
        time.sleep(0.05)
    assert files_below(root) == []
    assert directories_with_something(root) == []


@pytest.mark.slow
@pytest.mark.parametrize("route", ["decorator", "entry point"])
def test_sixteen_processes(route, root):
    """Both routes: the decorated handler, and the same function named by PERINVOKE_HANDLER."""

    async def scenario() -> None:
        handler = "files.handler"
        config = LocalConfig(
            handler=handler,
            workers=WORKERS,
            timeout_seconds=60,
            directory=FUNCTIONS,
            isolate=route == "entry point",
            env={"PERINVOKE_ROOT": str(root)},
        )
        async with LocalEnvironment(config) as environment:
            answers = await invoke_all(environment)
            assert_nothing_foreign(answers)
            assert {answer["leaked_variable"] for answer in answers} == {""}
            assert all(answer["exported"] for answer in answers)
            assert len({answer["pid"] for answer in answers}) == WORKERS
            wait_until_empty(root)

    asyncio.run(asyncio.wait_for(scenario(), 100))


def assert_nothing_foreign(answers: list[dict[str, Any]]) -> None:
    assert len(answers) == INVOCATIONS
    assert sum(answer["foreign_bytes"] for answer in answers) == 0
    assert [name for answer in answers for name in answer["foreign_names"]] == []
    assert {answer["leaked_state"] for answer in answers} == {""}
    assert all(answer["request_id_matches"] for answer in answers)
    assert all(answer["same_directory"] for answer in answers)
    assert len({answer["directory"] for answer in answers}) == INVOCATIONS


@pytest.mark.slow
def test_sixteen_threads_of_one_process(root, monkeypatch):
    """The coming thread mode: the handler's module is loaded once. Environment variables are shared there, and so not asked."""
    monkeypatch.setenv("AWS_LAMBDA_CONCURRENCY_MODE", "thread")
    monkeypatch.syspath_prepend(str(FUNCTIONS))
    handler = importlib.import_module("files").handler
    numbers = iter(range(INVOCATIONS))
    lock = threading.Lock()
    answers: list[dict[str, Any]] = []

    def next_number() -> int | None:
        with lock:
            return next(numbers, None)

    def worker() -> None:
        while (number := next_number()) is not None:
            answers.append(handler({"number": number}, SimpleNamespace(aws_request_id=f"request-{number}")))

    threads = [threading.Thread(target=worker) for _ in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.environ.pop("LEAK", None)
    assert_nothing_foreign(answers)
    assert trash_is_empty(root)
    wait_until_empty(root)
