"""The watch outside the main thread."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import pytest

from perinvoke import current, isolated, worker
from perinvoke.errors import DeadlineReached, InvocationTimeout
from timing_out import STORM, run

pytestmark = pytest.mark.usefixtures("root")


class Context:
    aws_request_id = "r-1"

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds

    def get_remaining_time_in_millis(self) -> float:
        return (self._until - time.monotonic()) * 1000


def in_thread(handler: Any, seconds: float = 1.6) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(handler, {}, Context(seconds)).result(30)


def loops(event: Any, context: Any) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        pass


def test_a_loop_in_python_is_interrupted_and_its_finally_block_runs():
    ended: list[str] = []

    @isolated
    def handler(event, context):
        current().defer(ended.append, "deferred")
        try:
            loops(event, context)
        finally:
            ended.append("finally")

    with pytest.raises(InvocationTimeout, match=r"it stood at \S+test_thread_watch.py:\d+ in loops") as caught:
        in_thread(handler)
    assert ended == ["finally", "deferred"]
    assert isinstance(caught.value.__cause__, DeadlineReached)


def test_a_wait_is_interrupted_when_it_returns():
    @isolated
    def handler(event, context):
        time.sleep(2.2)
        loops(event, context)

    with pytest.raises(InvocationTimeout):
        in_thread(handler)


def test_an_async_handler_is_cancelled():
    @isolated
    async def handler(event, context):
        await asyncio.sleep(30)

    with pytest.raises(InvocationTimeout, match=r"in sleep, called from"):
        in_thread(handler)


def test_many_threads_each_get_their_own():
    @isolated
    def handler(event, context):
        time.sleep(event["seconds"])
        if event["loops"]:
            loops(event, context)
        return "done"

    def called(event: dict[str, Any]) -> Any:
        return handler(event, Context(0.3 if event["loops"] else 60))

    events = [{"seconds": number % 5 / 100, "loops": number % 2} for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(called, event) for event in events]
    for event, future in zip(events, futures, strict=True):
        error = future.exception()
        assert isinstance(error, InvocationTimeout) if event["loops"] else future.result() == "done"


class Hears(logging.Handler):
    """Hears of the first record when all other handlers have had it."""

    def __init__(self) -> None:
        super().__init__()
        self._unheard = threading.Lock()
        self._unheard.acquire()
        self.others_were_locked: list[bool] = []

    def __enter__(self) -> Self:
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        others = worker.process.watches._others
        self.others_were_locked.append(others is None or others._lock._is_owned())  # type: ignore[attr-defined]
        if len(self.others_were_locked) == 1:
            self._unheard.release()

    def wait(self) -> None:
        """In C, where no interrupt reaches."""
        self._unheard.acquire(timeout=30)


def test_the_stacks_are_logged_when_it_does_not_give_way(caplog):
    with Hears() as hears:

        @isolated
        def handler(event, context):
            hears.wait()

        try:
            in_thread(handler, 0.4)
        except InvocationTimeout:
            pass  # where the wait's return is not the handler's last instruction
    assert "invocation r-1 doesn't give way though its time is up. Stacks" in caplog.text
    (record,) = [record for record in caplog.records if hasattr(record, "perinvoke")]
    fields = record.perinvoke
    assert fields["request_id"] == "r-1"
    assert any("in wait" in stack[0] for stack in fields["stacks"].values())
    json.dumps(fields)


def test_what_is_logged_keeps_no_other_thread_waiting(caplog):
    with Hears() as hears:
        in_thread(isolated(on_timeout="report")(lambda event, context: hears.wait()), 0.2)
    assert hears.others_were_locked == [False]
    assert "is still running though its time is up" in caplog.text


def test_its_thread_ends_when_it_has_nothing_to_do():
    in_thread(isolated(lambda event, context: None), 30)
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("perinvoke-deadlines") == 1
    worker.process.watches.close()
    assert "perinvoke-deadlines" not in [thread.name for thread in threading.enumerate()]


def test_thousands_of_time_outs_at_random_moments_leave_nothing_undone_and_nothing_held():
    run(
        STORM.replace("jobs.get()\n    return", "for _ in iter(int, 1):\n            pass\n    return")
        + """
failed = []
def body():
    try:
        storm(600)
    except BaseException as error:
        failed.append(error)
        raise
thread = threading.Thread(target=body)
thread.start()
thread.join()
assert not failed
"""
    )
