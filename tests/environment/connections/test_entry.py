from __future__ import annotations

import functools
import itertools

import pytest

from perinvoke.environment.connections.entry import FOLLOWS, Entry, Loan, Stage


@pytest.mark.parametrize(("before", "after"), list(itertools.product(Stage, Stage)))
def test_only_what_the_table_allows_follows(before, after):
    entry = Entry(slot=None)  # type: ignore[arg-type]  # nothing here touches it
    entry.stage = before
    if after in FOLLOWS[before]:
        entry.move(after)
        assert entry.stage is after
    else:
        with pytest.raises(AssertionError):
            entry.move(after)
        assert entry.stage is before


def test_every_stage_leads_to_the_end():
    reached, new = {Stage.CLOSED}, {Stage.CLOSED}
    while new:
        new = {stage for stage in Stage if FOLLOWS[stage] & reached} - reached
        reached |= new
    assert reached == set(Stage)


def test_a_loan_knows_the_line_that_asked():
    def ask() -> Loan:
        return Loan(None, None)

    assert ask().place() == f"{__file__}:{ask.__code__.co_firstlineno + 1} in ask"


@pytest.mark.parametrize("package", ["sqlalchemy", "sqlmodel", "flask_sqlalchemy"])
def test_a_library_that_asks_for_its_caller_is_not_told(package):
    between = {"__name__": f"{package}.session"}
    exec("def execute(ask): return ask()", between)  # a function of that library's

    def ask() -> Loan:
        return between["execute"](functools.partial(Loan, None, None))  # type: ignore[operator, no-any-return]  # that function

    assert ask().place() == f"{__file__}:{ask.__code__.co_firstlineno + 1} in ask"
