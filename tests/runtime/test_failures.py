"""Every end of an invocation on the real runtime: what the caller gets, and that worker and disk are ready for the next."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from perinvoke.errors import InitFailed
from perinvoke.local import LocalConfig, LocalEnvironment
from perinvoke.local.outcome import Status
from processes import wait_until

FUNCTIONS = Path(__file__).parent / "functions"


def environment(root: Path, handler: str = "fails.handler", **options: Any) -> LocalEnvironment:
    defaults = {"workers": 1, "timeout_seconds": 5.0, "directory": FUNCTIONS, "env": {"PERINVOKE_ROOT": str(root)}}
    return LocalEnvironment(LocalConfig(handler=handler, **{**defaults, **options}))


def files_below(root: Path) -> list[Path]:
    # Not rglob, which fails on 3.11 when a directory is removed under it.
    return [Path(folder, name) for folder, _, names in os.walk(root) for name in names]


def run(scenario: Any) -> Any:
    return asyncio.run(asyncio.wait_for(scenario, 60))


@pytest.mark.parametrize(
    ("how", "error_type", "message"),
    [
        ("raise", "ValueError", "as told"),
        ("exit", "HandlerExited", "the handler raised SystemExit: 3 in invocation"),
        ("interrupt", "HandlerExited", "the handler raised KeyboardInterrupt in invocation"),
        ("not json", "Runtime.MarshalError", "Unable to marshal response"),
        ("too large", "Function.ResponseSizeTooLarge", "7000002 bytes"),
    ],
)
def test_the_caller_gets_the_error_and_the_same_worker_serves_on(how, error_type, message, root):
    async def scenario() -> None:
        async with environment(root) as local:
            before = json.loads((await local.invoke(b"{}")).payload)
            outcome = await local.invoke(json.dumps({"how": how}).encode())
            assert (outcome.status, outcome.error_type) == (Status.FUNCTION_ERROR, error_type)
            assert message in outcome.error_message
            assert "cleaned up" in outcome.log_tail
            assert json.loads((await local.invoke(b"{}")).payload) == before
            wait_until(lambda: files_below(root) == [])

    run(scenario())


def test_an_async_handler_is_run_to_its_end(root):
    async def scenario() -> None:
        async with environment(root, "fails.async_handler") as local:
            first = await local.invoke(b"{}")
            second = await local.invoke(b"{}")
            assert json.loads(first.payload) == json.loads(second.payload)
            assert "cancelled: task left-pending" in first.log_tail
            wait_until(lambda: files_below(root) == [])

    run(scenario())


def test_what_was_left_running_is_in_the_platforms_log(root):
    async def scenario() -> None:
        async with environment(root) as local:
            outcome = await local.invoke(b'{"how": "leave thread"}')
            assert outcome.ok
            (line,) = [json.loads(line) for line in outcome.log_tail.splitlines() if "ended abnormally" in line]
            assert line["level"] == "WARNING"
            assert line["requestId"] == outcome.request_id
            assert line["perinvoke"]["left_running"] == ["thread left-running"]

    run(scenario())


def test_what_a_killed_worker_left_is_removed_by_the_next_one(root):
    async def killed() -> None:
        async with environment(root, workers=2, timeout_seconds=2) as local:
            await local.invoke(b"{}")
            outcome = await local.invoke(b'{"how": "kill"}')
            assert outcome.status is Status.TIMED_OUT
            assert len(files_below(root)) == 1

    async def next_one() -> None:
        async with environment(root) as local:
            assert (await local.invoke(b"{}")).ok
            wait_until(lambda: files_below(root) == [])
            assert len(list(root.iterdir())) == 1

    run(killed())
    run(next_one())


def test_ten_thousand_files_are_gone_a_moment_after_the_answer(root):
    async def scenario() -> None:
        async with environment(root, timeout_seconds=30) as local:
            assert (await local.invoke(b'{"how": "ten thousand files"}')).ok
            assert (await local.invoke(b"{}")).ok
            wait_until(lambda: files_below(root) == [], 20)

    run(scenario())


@pytest.mark.parametrize(
    ("env", "error_type", "message"),
    [
        ({"PERINVOKE_HANDLER": "fails.not_callable"}, "HandlerError", "which can't be called"),
        ({"PERINVOKE_HANDLER": "fails.nothing"}, "HandlerError", "module 'fails' has no 'nothing'"),
        ({"PERINVOKE_HANDLER": "nowhere.handler"}, "HandlerError", "No module named 'nowhere'"),
        ({"PERINVOKE_HANDLER": ""}, "HandlerError", "must look like module.function"),
        ({"PERINVOKE_ROOT": "relative"}, "SettingError", "PERINVOKE_ROOT is 'relative'; allowed is an absolute path"),
    ],
)
def test_a_wrong_setting_is_an_init_error_that_names_it(env, error_type, message, root):
    async def scenario() -> None:
        variables = {"PERINVOKE_ROOT": str(root), "PERINVOKE_HANDLER": "fails.handler", **env}
        with pytest.raises(InitFailed) as caught:
            async with environment(root, "perinvoke.handler.handler", env=variables):
                pass
        assert caught.value.error_type == error_type
        assert message in str(caught.value)

    run(scenario())


def test_a_root_that_cannot_be_used_is_told_to_every_caller(root):
    root.write_text("a file")

    async def scenario() -> None:
        async with environment(root) as local:
            for _ in range(2):
                outcome = await local.invoke(b"{}")
                assert outcome.error_type == "RootError"
                assert f"can't keep its files below {root}: it is not a directory" in outcome.error_message
            root.unlink()
            assert (await local.invoke(b"{}")).ok

    run(scenario())
