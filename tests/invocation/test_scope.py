from __future__ import annotations

import threading

import pytest

from perinvoke.errors import NotInInvocation
from perinvoke.invocation.scope import Scope


def test_closing_twice_runs_nothing_twice():
    ran: list[int] = []
    scope = Scope()
    scope.defer(lambda: ran.append(1))
    assert scope.close() == []
    assert scope.close() == []
    assert ran == [1]


def test_what_another_thread_hands_in_while_it_closes_is_run_or_refused_never_lost():
    for _ in range(200):
        scope = Scope()
        ran: list[int] = []
        outcome: list[str] = []

        def hand_in(scope=scope, ran=ran, outcome=outcome) -> None:
            try:
                scope.defer(lambda: ran.append(1))
                outcome.append("taken")
            except NotInInvocation:
                outcome.append("refused")

        thread = threading.Thread(target=hand_in)
        thread.start()
        scope.close()
        thread.join()
        assert (outcome, ran) in ((["taken"], [1]), (["refused"], []))


def test_failures_are_returned_in_the_order_they_came():
    scope = Scope()
    for error in (ValueError("1"), SystemExit("2")):

        def fail(error: BaseException = error) -> None:
            raise error

        scope.defer(fail)
    assert [str(error) for error in scope.close()] == ["2", "1"]
    with pytest.raises(NotInInvocation):
        scope.defer(print)
