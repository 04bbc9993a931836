"""What a caller is told, and what the handler's own code sees of an interrupt; in this process, in the main thread."""

from __future__ import annotations

import asyncio
import gc
import importlib
import pickle
import sys
import time
import weakref
from types import SimpleNamespace
from typing import Any

import pytest

from perinvoke import current, file_lock, isolated, worker
from perinvoke.errors import DeadlineReached, HandlerExited, InvocationTimeout, LockTimeout, SettingError
from processes import Process
from stalls import repeated_after_a_stall

pytestmark = pytest.mark.usefixtures("root")


class Context:
    aws_request_id = "r-1"

    def __init__(self, seconds: float = 1.6) -> None:
        self._until = time.monotonic() + seconds

    def get_remaining_time_in_millis(self) -> float:
        return (self._until - time.monotonic()) * 1000


def test_the_error_has_its_facts_as_fields_and_pickles():
    @isolated
    def handler(event, context):
        time.sleep(30)

    with pytest.raises(InvocationTimeout) as caught:
        handler({}, SimpleNamespace(aws_request_id="r-1", get_remaining_time_in_millis=lambda: 500))
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.request_id, error.set_by) == ("r-1", "the platform")
    assert error.seconds == 0.5
    assert error.stack[0].endswith("in handler")
    assert isinstance(error, TimeoutError)


def test_except_exception_does_not_swallow_it_and_finally_blocks_and_context_managers_run():
    ended: list[str] = []

    @isolated
    def handler(event, context):
        current().defer(ended.append, "deferred")
        try:
            try:
                time.sleep(30)
            except Exception:
                ended.append("swallowed")
        except DeadlineReached:
            ended.append("seen")
            raise
        finally:
            time.sleep(0.1)  # a finally block is not interrupted
            ended.append("finally")

    with pytest.raises(InvocationTimeout):
        handler({}, Context())
    assert ended == ["seen", "finally", "deferred"]


def test_a_finally_block_that_fails_does_not_hide_the_time_out():
    @isolated
    def handler(event, context):
        try:
            time.sleep(30)
        finally:
            raise SystemExit(3)

    with pytest.raises(InvocationTimeout) as caught:
        handler({}, Context())
    assert isinstance(caught.value.__cause__, SystemExit)
    assert isinstance(caught.value.__cause__.__context__, DeadlineReached)


def test_what_a_handler_makes_of_the_interrupt_in_time_is_its_answer():
    @isolated
    def handler(event, context):
        try:
            time.sleep(30)
        except DeadlineReached:
            return "part of it"

    assert handler({}, Context()) == "part of it"

    @isolated
    def fails(event, context):
        try:
            time.sleep(30)
        except DeadlineReached:
            pass
        raise ValueError("its own")

    with pytest.raises(ValueError, match="its own"):
        fails({}, Context())


def test_other_base_exceptions_are_still_exits():
    @isolated
    def handler(event, context):
        raise KeyboardInterrupt

    with pytest.raises(HandlerExited):
        handler({}, Context())


@pytest.mark.parametrize(
    ("outer_seconds", "inner_seconds", "expected"), [(0.5, 30, "outer"), (30, 0.5, "inner"), (0.5, 0.5, "outer")]
)
def test_the_invocation_that_ran_out_of_time_is_the_one_that_fails(outer_seconds, inner_seconds, expected):
    failed: list[str] = []

    @isolated
    def inner(event, context):
        time.sleep(2)

    @isolated
    def outer(event, context):
        try:
            inner({}, Context(inner_seconds))
        except InvocationTimeout:
            failed.append("inner")

    try:
        outer({}, Context(outer_seconds))
    except InvocationTimeout:
        failed.append("outer")
    assert failed == [expected]


def test_an_outer_invocation_is_interrupted_also_while_it_handles_the_inner_ones_time_out():
    @isolated
    def inner(event, context):
        time.sleep(30)

    @isolated
    def outer(event, context):
        try:
            inner({}, Context(0.3))
        except InvocationTimeout:
            time.sleep(30)

    started = time.monotonic()
    with pytest.raises(InvocationTimeout):
        outer({}, Context(0.8))
    assert time.monotonic() - started < 20


@repeated_after_a_stall
def test_a_lock_that_is_not_to_be_had_is_told_before_the_interrupt():
    @isolated
    def handler(event, context):
        with file_lock("held"):
            pass

    with Process("file_lock('held').acquire(); print('held', flush=True); sys.stdin.read()") as other:
        assert other.line() == "held"
        with pytest.raises(LockTimeout):
            handler({}, Context(1.0))


def test_an_async_handlers_cleanup_is_not_cut_short():
    ended: list[str] = []

    async def cleanup() -> None:
        await asyncio.sleep(0.2)
        ended.append("cleanup")

    @isolated
    async def handler(event, context):
        current().defer(cleanup)
        try:
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.1)
            ended.append("finally")

    with pytest.raises(InvocationTimeout, match="in sleep, called from"):
        _ = handler({}, Context())
    assert ended == ["finally", "cleanup"]


def test_an_async_handler_that_swallows_its_cancellation_is_cancelled_again():
    @isolated
    async def handler(event, context):
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            pass
        await asyncio.sleep(30)

    with pytest.raises(InvocationTimeout):
        _ = handler({}, Context())


def test_the_cleanup_of_what_an_async_handler_waits_for_is_not_cut_short():
    ended: list[str] = []

    async def child() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.2)
            ended.append("finally")

    @isolated
    async def handler(event, context):
        await asyncio.create_task(child())

    with pytest.raises(InvocationTimeout):
        _ = handler({}, Context())
    assert ended == ["finally"]


def test_a_time_out_within_a_group_of_errors_is_told():
    @isolated
    async def handler(event, context):
        async def blocks() -> None:
            time.sleep(30)  # noqa: ASYNC251  # that it blocks is the point

        async with asyncio.TaskGroup() as group:
            group.create_task(blocks())

    with pytest.raises(InvocationTimeout):
        _ = handler({}, Context())


def test_a_handler_without_any_time_left_is_interrupted_at_once():
    @isolated
    def handler(event, context):
        time.sleep(30)

    with pytest.raises(InvocationTimeout, match=r"was interrupted when its 0 s were over"):
        handler({}, Context(-1))


def test_of_invocations_that_share_a_loop_only_the_late_one_is_cancelled():
    @isolated
    async def handler(event, context):
        await asyncio.sleep(event["seconds"])
        return "done"

    async def main() -> list[Any]:
        calls = (handler({"seconds": 30}, Context(0.4)), handler({"seconds": 0.8}, Context(30)))
        return list(await asyncio.gather(*calls, return_exceptions=True))

    late, in_time = asyncio.run(main())
    assert isinstance(late, InvocationTimeout)
    assert in_time == "done"


def test_a_cancellation_from_outside_stays_one():
    @isolated
    async def handler(event, context):
        await asyncio.sleep(30)

    async def main() -> None:
        async with asyncio.timeout(0.1):
            await handler({}, Context(20))

    with pytest.raises(TimeoutError) as caught:
        asyncio.run(main())
    assert not isinstance(caught.value, InvocationTimeout)


def test_report_logs_and_off_does_nothing(caplog):
    def handler(event, context):
        time.sleep(0.8)
        return "done"

    assert isolated(on_timeout="off")(handler)({}, Context(0.5)) == "done"
    assert caplog.text == ""
    assert isolated(handler, on_timeout="report")({}, Context(0.5)) == "done"
    assert caplog.text.count("is still running though its time is up") == 1


@pytest.mark.parametrize("wrong", ["", "stop", 1, True])
def test_an_on_timeout_that_there_is_not_is_an_error_at_init(wrong):
    with pytest.raises(SettingError, match="isolated's on_timeout is .*; allowed is one of raise, replace, report, off"):
        isolated(on_timeout=wrong)(lambda event, context: None)


def test_a_margin_larger_than_the_time_out_leaves_half_of_it(monkeypatch):
    monkeypatch.setenv("PERINVOKE_TIMEOUT_MARGIN_MS", "60000")

    @isolated
    def handler(event, context):
        time.sleep(30)

    started = time.monotonic()
    with pytest.raises(InvocationTimeout):
        handler({}, Context(1.0))
    assert time.monotonic() - started > 0.4


def test_where_nothing_can_watch_the_handler_works_and_that_is_told_once(caplog, monkeypatch):
    def fails(self: Any, settings: Any) -> Any:
        raise OSError("no more threads")

    monkeypatch.setattr("perinvoke.invocation.watches.Watches._new_main", fails)
    monkeypatch.setattr(worker.process, "watches", type(worker.process.watches)())
    handler = isolated(lambda event, context: "done")
    assert [handler({}, Context(20)), handler({}, Context(20))] == ["done", "done"]
    assert caplog.text.count("perinvoke can't watch over deadlines here: OSError: no more threads") == 1


def test_an_async_invocation_and_its_task_do_not_wait_for_the_garbage_collector():
    class Kept:
        """What the invocation holds, and nobody else."""

    ended: list[weakref.ref[Kept]] = []

    @isolated
    async def handler(event, context):
        kept = current().state_defaults["kept"] = Kept()
        ended.append(weakref.ref(kept))

    async def main() -> None:
        await handler({}, Context(20))

    gc.collect()
    gc.disable()
    try:
        _ = handler({}, Context(20))
        asyncio.run(main())
        assert [seen() for seen in ended] == [None, None]
    finally:
        gc.enable()


def test_what_timed_out_does_not_wait_for_the_garbage_collector():
    class Kept:
        """What the handler holds, and nobody else."""

    ended: list[weakref.ref[Kept]] = []

    @isolated
    def handler(event, context):
        kept = Kept()
        ended.append(weakref.ref(kept))
        time.sleep(30)

    gc.collect()
    gc.disable()
    try:
        try:
            handler({}, Context(1.6))
        except InvocationTimeout:
            pass
        assert [seen() for seen in ended] == [None]
    finally:
        gc.enable()


def test_an_import_is_never_cut_in_half(tmp_path, monkeypatch):
    package = tmp_path / "slow_package"
    package.mkdir()
    (package / "__init__.py").write_text("from slow_package.part import *\nimport time; time.sleep(0.8)\nprint(part)")
    (package / "part.py").write_text("import time; time.sleep(0.4); VALUE = 3")
    monkeypatch.syspath_prepend(str(tmp_path))

    @isolated
    def handler(event, context):
        importlib.import_module("slow_package")
        if event.get("sleeps"):
            time.sleep(30)
        return sys.modules["slow_package"].VALUE

    with pytest.raises(InvocationTimeout):
        handler({"sleeps": True}, Context(0.3))
    assert handler({}, Context(30)) == 3
