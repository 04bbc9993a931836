from __future__ import annotations

import asyncio
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import field
from typing import Any, ClassVar, Generic, TypeVar

import pytest

from perinvoke import InvocationState, NotInInvocation, isolated
from perinvoke.errors import StateError

pytestmark = pytest.mark.usefixtures("root")


class Audit(InvocationState):
    """Declared as a user would."""

    limit: ClassVar[int] = 3
    user: str = "nobody"
    entries: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    tenant: str
    plain: str = field(default="plain")

    def log(self, text: str) -> None:
        self.entries.append(f"{self.user}: {text}")


audit = Audit()


@isolated
def run(function, context):
    return function()


def test_every_invocation_starts_with_the_defaults():
    def handler():
        seen = (audit.user, list(audit.entries), dict(audit.tags), audit.plain)
        audit.user = "alice"
        audit.plain = "changed"
        audit.log("came")
        audit.tags["a"] = "b"
        return seen, audit.entries

    for _ in range(3):
        assert run(handler, None) == (("nobody", [], {}, "plain"), ["alice: came"])


def test_a_field_without_default_is_an_attribute_error_until_it_is_set():
    def handler():
        with pytest.raises(AttributeError, match="tenant"):
            _ = audit.tenant
        audit.tenant = "t"
        return audit.tenant

    assert run(handler, None) == "t"
    assert run(handler, None) == "t"


def test_a_misspelt_name_is_an_error():
    with pytest.raises(AttributeError):
        audit.usr = "x"


def test_class_variables_and_methods_stay_what_they_are():
    assert Audit.limit == audit.limit == 3


def test_the_registrys_own_ways_work():
    def handler():
        with audit(user="temporary"):
            assert audit.user == "temporary"
        assert audit.user == "nobody"
        audit.user = "x"
        assert dict(audit)["user"] == audit["user"] == "x"
        del audit.user
        with pytest.raises(AttributeError):
            _ = audit.user

    run(handler, None)
    run(handler, None)


@pytest.mark.parametrize("default", [[], {}, set(), bytearray()], ids=repr)
def test_a_default_that_all_would_share_is_refused(default):
    with pytest.raises(StateError, match="write dataclasses.field"):
        type("Shared", (InvocationState,), {"__annotations__": {"values": Any}, "values": default})


def test_a_state_class_is_not_subclassed_again():
    with pytest.raises(StateError, match="subclass InvocationState directly"):
        type("Again", (Audit,), {})


def test_values_set_outside_are_seen_by_no_invocation_and_survive_it():
    audit.user = "init code"
    try:
        assert run(lambda: audit.user, None) == "nobody"
        assert audit.user == "init code"
    finally:
        audit.user = "nobody"


def test_a_nested_invocation_starts_with_the_defaults_and_changes_nothing_of_the_outer_one():
    def inner():
        seen = audit.user, list(audit.entries)
        audit.user = "inner"
        audit.entries.append("inner")
        return seen

    def outer():
        audit.user = "outer"
        audit.entries.append("outer")
        return run(inner, None), audit.user, audit.entries

    assert run(outer, None) == (("nobody", []), "outer", ["outer"])


def in_thread(function):
    seen = []
    thread = threading.Thread(target=lambda: seen.append(function()))
    thread.start()
    thread.join()
    return seen[0]


def in_pool(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def in_task(function):
    async def call():
        return function()

    async def main():
        return await asyncio.create_task(call())

    return asyncio.run(main())


def in_to_thread(function):
    return asyncio.run(asyncio.to_thread(function))


@pytest.mark.parametrize("start", [in_thread, in_pool, in_task, in_to_thread])
def test_what_an_invocation_starts_sees_its_values_and_sets_its_own(start):
    def elsewhere():
        seen = audit.user, audit.entries
        audit.user = "elsewhere"
        audit.entries.append("elsewhere")
        return seen

    def handler():
        audit.user = "alice"
        seen_user, seen_entries = start(elsewhere)
        assert seen_entries is audit.entries  # one factory call an invocation, whoever reads first
        return seen_user, audit.user, audit.entries

    assert run(handler, None) == ("alice", "alice", ["elsewhere"])


def test_threads_that_read_first_at_the_same_time_get_one_factory_value():
    calls = []

    def slow() -> list[str]:
        calls.append(1)
        threading.Event().wait(0.01)
        return []

    class Slow(InvocationState):
        values: list[str] = field(default_factory=slow)

    state = Slow()

    def handler():
        with ThreadPoolExecutor(8) as pool:
            return [id(values) for values in pool.map(lambda _: state.values, range(8))]

    assert len(set(run(handler, None))) == 1
    assert calls


class HandMadePool:
    """A pool that perinvoke knows nothing of: its thread keeps the context of the invocation that started it."""

    def __init__(self) -> None:
        self.calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.thread: threading.Thread | None = None

    def call(self, function):
        if self.thread is None:
            self.thread = threading.Thread(target=self._serve, daemon=True)
            self.thread.start()
        answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.calls.put((function, answer))
        return answer.get(timeout=10)

    def _serve(self) -> None:
        while (call := self.calls.get()) is not None:
            function, answer = call
            try:
                answer.put(function())
            except Exception as error:
                answer.put(error)


def test_a_pooled_thread_never_shows_an_older_invocations_values():
    pool = HandMadePool()

    def set_user():
        audit.user = "older"
        audit.entries.append("older")
        return audit.user

    assert run(lambda: pool.call(set_user), None) == "older"
    assert run(lambda: pool.call(lambda: (audit.user, audit.entries)), None) == ("nobody", [])
    refused = run(lambda: pool.call(set_user), None)
    assert isinstance(refused, NotInInvocation)
    assert "has ended" in str(refused)
    pool.calls.put(None)
    assert pool.thread is not None
    pool.thread.join()


def test_a_library_pool_that_lives_on_shows_each_invocation_its_own_values():
    with ThreadPoolExecutor(1) as pool:

        def handler(user):
            audit.user = user
            return pool.submit(lambda: audit.user).result()

        assert [run(lambda user=user: handler(user), None) for user in "abc"] == ["a", "b", "c"]
        assert pool.submit(lambda: audit.user).result() == "nobody"


def test_concurrent_invocations_see_their_own_values():
    barrier = threading.Barrier(8)

    def handler(number):
        audit.user = str(number)
        audit.entries.append(str(number))
        barrier.wait()
        return audit.user, audit.entries

    results = []
    threads = [
        threading.Thread(target=lambda n=number: results.append((n, run(lambda: handler(n), None)))) for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [(n, (str(n), [str(n)])) for n in range(8)]


def test_a_factory_may_wait_for_a_thread_that_reads_another_field():
    class Linked(InvocationState):
        first: list[str] = field(default_factory=lambda: [in_thread(lambda: linked.second)[0]])
        second: list[str] = field(default_factory=lambda: ["second"])

    linked: Any = Linked()
    assert run(lambda: linked.first, None) == ["second"]


def test_a_field_set_on_the_class_is_refused():
    with pytest.raises(StateError, match="set it on an instance"):
        Audit.user = "everybody"


def test_a_generic_state_class_works():
    T = TypeVar("T")

    class Box(InvocationState, Generic[T]):
        content: int = 0

    box = Box[int]()
    assert run(lambda: box.content, None) == 0
