from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool

import pytest

from perinvoke import NotInInvocation, current, isolated

pytestmark = pytest.mark.usefixtures("root")


def request_id() -> str:
    return current().request_id


@isolated
def handler(event, context):
    return event(), current().request_id


def in_thread() -> str:
    seen = []
    thread = threading.Thread(target=lambda: seen.append(request_id()))
    thread.start()
    thread.join()
    return seen[0]


def in_subclass() -> str:
    class Asks(threading.Thread):
        def run(self) -> None:
            self.seen = request_id()

    thread = Asks()
    thread.start()
    thread.join()
    return thread.seen


def in_timer() -> str:
    seen = []
    timer = threading.Timer(0, lambda: seen.append(request_id()))
    timer.start()
    timer.join()
    return seen[0]


def in_pool() -> str:
    with ThreadPoolExecutor(2) as pool:
        assert len(set(pool.map(lambda _: request_id(), range(20)))) == 1
        return pool.submit(request_id).result()


def in_task() -> str:
    async def main() -> str:
        async def ask() -> str:
            return request_id()

        return await asyncio.create_task(ask())

    return asyncio.run(main())


def in_to_thread() -> str:
    return asyncio.run(asyncio.to_thread(request_id))


def in_executor() -> str:
    async def main() -> str:
        return await asyncio.get_running_loop().run_in_executor(None, request_id)

    return asyncio.run(main())


def in_thread_of_a_thread() -> str:
    seen = []
    thread = threading.Thread(target=lambda: seen.append(in_thread()))
    thread.start()
    thread.join()
    return seen[0]


def in_thread_pool_of_multiprocessing() -> str:
    with ThreadPool(1) as pool:
        return pool.apply(request_id)


@pytest.mark.parametrize(
    "ask",
    [
        in_thread,
        in_subclass,
        in_timer,
        in_pool,
        in_task,
        in_to_thread,
        in_executor,
        in_thread_of_a_thread,
        in_thread_pool_of_multiprocessing,
    ],
)
def test_what_an_invocation_starts_knows_the_invocation(ask):
    seen, own = handler(ask, None)
    assert seen == own


def test_a_pool_that_lives_on_serves_each_invocation_its_own():
    with ThreadPoolExecutor(1) as pool:
        for _ in range(5):
            seen, own = handler(lambda: pool.submit(request_id).result(), None)
            assert seen == own
        assert isinstance(pool.submit(request_id).exception(), NotInInvocation)


def test_a_thread_that_outlives_its_invocation_is_told_so():
    go_on = threading.Event()
    errors = []

    def outlive() -> None:
        assert go_on.wait(10)
        try:
            current()
        except NotInInvocation as error:
            errors.append(str(error))

    def start() -> threading.Thread:
        thread = threading.Thread(target=outlive)
        thread.start()
        return thread

    thread, own = handler(start, None)
    go_on.set()
    thread.join()
    assert f"invocation {own} has ended" in errors[0]


@pytest.mark.skipif(sys.version_info < (3, 14), reason="Thread(context=…) came with Python 3.14")
def test_a_context_chosen_by_the_handler_is_respected():
    variable = contextvars.ContextVar("variable", default="default")
    chosen = contextvars.Context()
    chosen.run(variable.set, "chosen")
    seen = []

    def start() -> None:
        thread = threading.Thread(target=lambda: seen.append(variable.get()), context=chosen)  # type: ignore[call-arg]
        thread.start()
        thread.join()

    handler(start, None)
    assert seen == ["chosen"]


def test_starting_a_thread_twice_is_the_error_it_always_was():
    def start() -> None:
        thread = threading.Thread(target=lambda: None)
        thread.start()
        with pytest.raises(RuntimeError, match="once"):
            thread.start()
        thread.join()

    handler(start, None)


def test_what_the_handler_sets_in_any_context_variable_is_gone_afterwards():
    variable = contextvars.ContextVar("variable", default="before")
    handler(lambda: variable.set("leaked"), None)
    assert variable.get() == "before"


def test_what_was_set_around_the_handler_is_seen_in_it():
    """A tracer's span, set by a wrapper around the isolated handler."""
    variable = contextvars.ContextVar("span", default="none")
    token = variable.set("outer span")
    try:
        assert handler(variable.get, None)[0] == "outer span"
    finally:
        variable.reset(token)


def test_threads_and_pools_outside_an_invocation_are_as_before():
    script = """
import threading
from perinvoke.invocation import carry
carry.install()
carry.install()
thread = threading.Thread(target=print, args=("ran",))
thread.start()
thread.join()
"""
    assert subprocess.check_output([sys.executable, "-c", script]) == b"ran\n"


def test_a_thread_whose_start_failed_may_be_started_again(monkeypatch):
    seen = []

    def start() -> None:
        thread = threading.Thread(target=lambda: seen.append(request_id()))
        with monkeypatch.context() as patched:
            patched.setattr(
                threading, "_start_new_thread" if hasattr(threading, "_start_new_thread") else "_start_joinable_thread", fails
            )
            with pytest.raises(RuntimeError, match="can't start"):
                thread.start()
        thread.start()
        thread.join()

    def fails(*args, **kwargs):
        raise RuntimeError("can't start new thread")

    _, own = handler(start, None)
    assert seen == [own]
