"""The checker of leases: histories made by hand, right ones and wrong ones."""

from __future__ import annotations

import pytest

from lease_checker import Granted, Held, Removed, Told, Wrote, violations

A1, B2 = Granted("k", "a", 1), Granted("k", "b", 2)


def rules(*history, exclusive=True):
    return [violation.rule for violation in violations(history, exclusive=exclusive)]


@pytest.mark.parametrize(
    "history",
    [
        [],
        [A1, B2, Held("k", "a", 1, 0.0, 1.0), Held("k", "b", 2, 1.0, 2.0)],
        [A1, Granted("other", "b", 1), Held("k", "a", 1, 0.0, 9.0), Held("other", "b", 1, 1.0, 2.0)],
        [A1, Removed("k"), Granted("k", "b", 5)],
        [Wrote("i", 1), Wrote("i", 1), Wrote("i", 3), Wrote("i", 2, carried_out=False), Wrote("j", 2), Wrote("i", 3)],
        [A1, Granted("k", "b", 2, displaced="a"), Told("k", "a", "robbed", 1), Told("k", "b", "given back", 2)],
        [A1, Removed("k", "a"), Told("k", "a", "robbed", 1)],
        [Granted("k", "b", 1), Told("k", "a", "others hold it", saw="b"), Told("k", "c", "others hold it")],
    ],
    ids=lambda history: f"{len(history)} events",
)
def test_nothing_is_said_against_a_right_history(history):
    assert rules(*history) == []


@pytest.mark.parametrize("second", [Granted("k", "b", 1), Granted("k", "b", 0), Granted("k", "a", 1)])
def test_a_token_that_does_not_grow_is_found(second):
    assert rules(A1, second) == ["tokens grow"]


def test_a_token_that_goes_back_after_the_record_was_removed_is_found():
    assert rules(Granted("k", "a", 7), Removed("k"), A1) == ["tokens grow"]


def test_two_that_hold_at_once_are_found_unless_their_clocks_broke_their_promise():
    history = [A1, B2, Held("k", "a", 1, 0.0, 2.0), Held("k", "b", 2, 1.9, 3.0)]
    assert rules(*history) == ["no two hold at once"]
    assert rules(*history, exclusive=False) == []


def test_who_holds_beside_two_others_is_found_although_the_second_of_them_has_ended():
    holds = [Held("k", "a", 1, 0.0, 9.0), Held("k", "a", 1, 1.0, 2.0), Held("k", "b", 2, 3.0, 4.0)]
    assert rules(A1, B2, *holds) == ["no two hold at once"]


def test_who_learned_of_its_lease_when_it_was_over_never_held_it():
    assert rules(A1, B2, Held("k", "a", 1, 5.0, 4.0), Held("k", "b", 2, 3.0, 6.0)) == []


def test_a_write_that_goes_back_is_found_and_is_not_what_the_next_one_is_compared_with():
    assert rules(Wrote("i", 2), Wrote("i", 1), Wrote("i", 1)) == ["writes don't go back"] * 2


@pytest.mark.parametrize("token", [2, 3])
def test_a_write_that_was_refused_though_nobody_later_has_written_is_found(token):
    assert rules(Wrote("i", 2), Wrote("i", token, carried_out=False)) == ["writes of the last holder are carried out"]


def test_a_token_that_nobody_gave_is_found():
    assert rules(A1, Held("k", "a", 2, 0.0, 1.0)) == ["a holder's token was given to it"]
    assert rules(A1, Held("k", "b", 1, 0.0, 1.0)) == ["a holder's token was given to it"]


def test_a_token_that_two_have_is_found():
    history = [A1, Granted("k", "b", 1), Held("k", "a", 1, 0.0, 1.0), Held("k", "b", 1, 1.0, 2.0)]
    assert rules(*history) == ["tokens grow", "a holder's token was given to nobody else"]


def test_who_is_told_of_a_theft_that_was_none_is_found():
    assert rules(A1, B2, Told("k", "a", "robbed", 1)) == ["who is told that it was robbed was"]


def test_who_is_not_told_of_a_theft_is_found_unless_an_answer_was_lost():
    robbed = [A1, Granted("k", "b", 2, displaced="a")]
    assert rules(*robbed, Told("k", "a", "given back", 1)) == ["who was robbed is told so"]
    assert rules(*robbed, Told("k", "a", "given back", 1, lost=True)) == []


def test_who_gave_up_before_its_own_lease_is_found():
    assert rules(A1, Told("k", "a", "others hold it", saw="a")) == ["who holds it isn't told that others do"]
