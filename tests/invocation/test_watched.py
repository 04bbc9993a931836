from __future__ import annotations

import asyncio
import inspect
from types import SimpleNamespace
from typing import Any

import pytest

from perinvoke.clock import Deadline
from perinvoke.invocation.watched import (
    GRACE_SECONDS,
    Look,
    Standing,
    Watched,
    decide,
    next_look_at,
    replaced_at,
    spare_seconds,
    standing_of,
    told,
)

AT = 1000.0  # when its time is up
FRAME: Any = object()
HERE = (FRAME, 10)
NOT_THERE = (FRAME, 12)


def watched(mode: str = "raise", *, task: Any = None, in_loop: bool = False, replaced: float = 0.0, **fields: Any) -> Watched:
    invocation: Any = SimpleNamespace(
        deadline=Deadline(10, monotonic=lambda: AT - 10),
        settings=SimpleNamespace(on_timeout=mode),
        task=task,
        in_loop=in_loop,
        replaced_at=replaced,
    )
    made = Watched(invocation)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def standing(
    module: str = "app", *, place: Any = HERE, unwinding: bool = False, task_runs: bool = False, untouchable: bool = False
) -> Standing:
    return Standing(module, place, unwinding, task_runs, untouchable)


@pytest.mark.parametrize(
    ("state", "where", "later", "look"),
    [
        ({}, standing(), -0.001, Look.TOO_EARLY),
        ({}, standing("threading"), -0.001, Look.TOO_EARLY),
        ({}, standing(), 0, Look.INTERRUPT),
        ({"mode": "replace"}, standing(), 0, Look.INTERRUPT),
        ({"mode": "report"}, standing(), 0, Look.REPORT),
        ({"mode": "report", "task": 1}, standing("logging"), 0, Look.REPORT),
        # Delicate places, and what is blocked there.
        ({}, standing("threading"), 0, Look.DELICATE),
        ({}, standing("asyncio.base_events"), 0, Look.DELICATE),
        ({}, standing("logging"), 0, Look.DELICATE),
        ({}, standing("perinvoke.environment.file_lock"), 0, Look.DELICATE),
        ({"place": HERE}, standing("threading"), 0.002, Look.INTERRUPT),
        ({"place": NOT_THERE}, standing("threading"), 0.002, Look.DELICATE),
        ({"place": (object(), 10)}, standing("threading"), 0.002, Look.DELICATE),
        ({}, standing("threading"), GRACE_SECONDS, Look.GIVE_UP),
        # perinvoke's bookkeeping is never interrupted; a user's module of a similar name is.
        ({"place": HERE}, standing("perinvoke.handler", untouchable=True), 0.002, Look.DELICATE),
        ({"place": HERE}, standing("threading", untouchable=True), GRACE_SECONDS, Look.GIVE_UP),
        ({"logged": True}, standing("app", untouchable=True), GRACE_SECONDS + 5, Look.DELICATE),  # until it leaves that place
        ({"logged": True}, standing("app"), GRACE_SECONDS + 5, Look.INTERRUPT),
        ({}, standing("perinvoke_app"), 0, Look.INTERRUPT),
        # On its way out.
        ({"struck": True}, standing(unwinding=True), 0.05, Look.UNWINDING),
        ({"struck": True}, standing("threading", unwinding=True), 0.05, Look.UNWINDING),
        ({"struck": True}, standing(unwinding=True), GRACE_SECONDS, Look.GIVE_UP),
        ({"struck": True}, standing(), 0.05, Look.INTERRUPT),  # somebody swallowed it
        ({"struck": True}, standing(), GRACE_SECONDS, Look.GIVE_UP),
        ({}, standing(), GRACE_SECONDS + 1, Look.INTERRUPT),  # a call of C has returned at last
        # An async handler.
        ({"task": 1}, standing(), 0, Look.CANCEL),
        ({"task": 1}, standing("asyncio.events"), 0, Look.CANCEL),
        ({"task": 1, "cancelled": True}, standing(task_runs=True), 0.05, Look.INTERRUPT),
        ({"task": 1, "cancelled": True}, standing("selectors"), 0.05, Look.UNWINDING),
        ({"task": 1, "cancelled": True, "delivered": True}, standing(task_runs=True), 0.05, Look.UNWINDING),
        ({"task": 1, "cancelled": True, "delivered": True}, standing("selectors"), 0.05, Look.CANCEL),  # it was swallowed
        ({"task": 1, "cancelled": True, "delivered": True}, standing("selectors", unwinding=True), 0.05, Look.UNWINDING),
        ({"task": 1, "cancelled": True, "delivered": True}, standing(), GRACE_SECONDS, Look.GIVE_UP),
    ],
)
def test_what_is_decided(state, where, later, look):
    assert decide(watched(**state), where, AT + later) is look


def standing_in(module: str, *functions: str) -> Standing:
    """Of code that has called these functions of a module, one from the other."""
    names: dict[str, Any] = {"__name__": module, "stand": lambda frame: standing_of(watched(), frame, None), "inspect": inspect}
    calls = "stand(inspect.currentframe())"
    for name in reversed(functions):
        exec(f"def {name}(): return {calls}", names)
        calls = f"{name}()"
    found: Standing = names[functions[0]]()
    return found


def test_bookkeeping_and_the_start_of_a_thread_are_never_interrupted():
    assert standing_in("threading", "start", "wait", "acquire").untouchable
    assert standing_in("perinvoke.invocation.scratch", "take").untouchable
    assert standing_in("perinvoke.handler", "_invoked").untouchable
    assert not standing_in("threading", "join", "wait").untouchable
    assert not standing_in("app", "start", "wait").untouchable
    assert not standing_in("perinvoke_app", "handler").untouchable
    assert not standing_in("perinvoke.environment.file_lock", "acquire").untouchable


def test_the_next_look_comes_soon_where_it_is_delicate_and_never_when_all_is_over():
    assert next_look_at(watched(), Look.TOO_EARLY, 5.0) == AT
    assert next_look_at(watched(), Look.DELICATE, AT) == AT + 0.002
    assert next_look_at(watched(logged=True), Look.DELICATE, AT) == AT + 0.05
    assert next_look_at(watched(), Look.INTERRUPT, AT) == AT + 0.05
    assert next_look_at(watched(over=True), Look.GIVE_UP, AT) == float("inf")


@pytest.mark.parametrize("margin", [0.0, 0.003, 0.3, 1.0, 4.0])
def test_a_worker_is_ended_after_the_interrupt_and_the_stacks_and_before_the_cut(margin):
    deadline = Deadline(10, margin_seconds=margin, platform_seconds=10, monotonic=lambda: AT)
    spare = spare_seconds(deadline)
    assert deadline.interrupt_at_monotonic <= replaced_at(deadline) - 3 * spare + 1e-9
    assert replaced_at(deadline) <= AT + 10
    assert spare <= 0.05


def chained(first: BaseException, *rest: BaseException) -> BaseException:
    for error in rest:
        error.__context__, first = first, error
    return first


def test_only_its_own_interrupt_is_recognised_however_deep_in_the_chain():
    ours, others = watched(), watched()
    assert ours.caused(ours.error_type())
    assert ours.caused(chained(ours.error_type(), ValueError(), OSError()))
    assert not ours.caused(chained(others.error_type(), ValueError()))
    assert not ours.caused(asyncio.CancelledError())
    assert watched(cancelled=True).caused(chained(asyncio.CancelledError(), ValueError()))
    assert not ours.caused(None)
    loop = ValueError()
    loop.__cause__ = chained(loop, OSError())
    assert not ours.caused(loop)


def test_it_is_recognised_as_cause_or_context_and_within_groups():
    ours = watched()
    error = KeyError()
    error.__cause__, error.__context__ = ValueError(), ours.error_type()
    assert ours.caused(error)
    error.__cause__, error.__context__ = ours.error_type(), ValueError()
    assert ours.caused(error)
    assert ours.caused(BaseExceptionGroup("g", [ValueError(), BaseExceptionGroup("g", [ours.error_type()])]))
    assert not ours.caused(BaseExceptionGroup("g", [ValueError(), watched().error_type()]))


def test_a_task_that_handles_its_cancellation_or_waits_for_one_that_does_is_unwinding():
    async def cleans_up() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(60)

    async def swallows() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass
        await asyncio.sleep(60)

    async def gathers() -> None:
        await asyncio.gather(cleans_up())

    async def unwinding(handler: Any) -> bool:
        task = asyncio.create_task(handler())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        for _ in range(3):
            await asyncio.sleep(0)
        late = watched(task=task, in_loop=True, cancelled=True, delivered=True)
        frame = inspect.currentframe()
        assert frame is not None
        found: bool = standing_of(late, frame, None).unwinding
        task.cancel()
        return found

    found = [asyncio.run(unwinding(handler)) for handler in (cleans_up, swallows, gathers)]
    assert found == [True, False, True]


def test_where_a_task_waits_is_told_innermost_first():
    async def inner() -> None:
        await asyncio.sleep(60)

    async def outer() -> None:
        await inner()

    async def main() -> list[str]:
        task = asyncio.create_task(outer())
        await asyncio.sleep(0)
        found = told(inspect.currentframe(), watched(task=task, in_loop=True).invocation)
        task.cancel()
        return found

    names = [text.rpartition(" in ")[2] for text in asyncio.run(main())]
    assert names == ["sleep", "inner", "outer"]


def test_a_frame_is_told_with_file_line_and_function():
    frame = inspect.currentframe()
    assert frame is not None
    found = told(frame, watched().invocation)
    assert found[0].startswith(f"{__file__}:")
    assert found[0].endswith(" in test_a_frame_is_told_with_file_line_and_function")
    assert len(found) == 5
    assert standing_of(watched(), frame, None).module == __name__
