"""What a call is known by: found by an expression or a function, canonical, within limits; and what isn't there, named."""

from __future__ import annotations

import datetime as dt
import functools
import json
import math
from decimal import Decimal
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perinvoke.errors import FixConfiguration
from perinvoke.fleet.dynamodb.called import FirstArgument, is_async, is_generator
from perinvoke.fleet.dynamodb.idempotency_key import (
    MAX_BYTES,
    NO_PAYLOAD,
    Source,
    canonical,
    checked_name,
    digest_of,
    key_of,
    record_id,
)
from perinvoke.fleet.errors import IdempotencyKeyError

EVENT = {
    "id": "order-1",
    "number": 7,
    "nothing": None,
    "empty": "",
    "list": [],
    "body": '{"user": {"id": "u1"}, "missing": null}',
    "broken": "{",
    "detail": {"a": 1, "b": None},
    "records": [{"id": "x"}, {"id": "y"}],
}


def handler(event, context=None): ...


def source(given, argument="key", function=handler):
    return Source(argument, given, FirstArgument(function))


def key(expression, event=EVENT):
    return key_of(source(expression), (event,), {})


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("id", "order-1"),
        ("number", "7"),
        ("[id, number]", '["order-1",7]'),
        ("{n: number, i: id}", '{"i":"order-1","n":7}'),
        ("detail", '{"a":1,"b":null}'),  # an object as a whole may hold nulls
        ("records[].id", '["x","y"]'),
        ("records[0:1].id", '["x"]'),
        ("records[?id == 'y'] | [0].id", "y"),
        ("parse_json(body).user.id", "u1"),
        ("join('#', [id, to_string(number)])", "order-1#7"),
        ("`false`", "false"),
        ("`0`", "0"),
        ("`1.0`", "1"),
    ],
)
def test_a_key_is_a_string_as_it_is_and_canonical_json_of_anything_else(expression, expected):
    assert key(expression) == expected


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("missing", "a key that is null: None"),
        ("nothing", "null"),
        ("empty", "a key that is empty: ''"),
        ("list", r"empty: \[\]"),
        ("records[].other", "empty"),
        ("[id, nothing]", r"in part null: \['order-1', None\]"),
        ("[id, [number, nothing]]", "in part null"),
        ("{i: id, n: nothing}", "in part null"),
        ("@ | {i: id, n: nothing}", "in part null"),
        ("detail.{a: a, b: b}", "in part null"),
        ("parse_json(body).missing", "null"),
        ("parse_json(nothing)", "null"),
        ("parse_json(broken)", "failed with JSONDecodeError"),
        ("parse_json(number)", "can't be applied to the call's first argument: .*parse_json"),
        ("abs(id)", "can't be applied"),
    ],
)
def test_a_key_that_is_not_there_is_an_error_that_names_the_expression_and_what_was_found(expression, told):
    with pytest.raises(IdempotencyKeyError, match=told) as caught:
        key(expression)
    assert repr(expression) in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_function_gets_all_arguments():
    of_both = source(lambda event, context: (event["id"], context))
    assert key_of(of_both, (EVENT, "c"), {}) == '["order-1","c"]'
    assert key_of(of_both, (EVENT,), {"context": "c"}) == '["order-1","c"]'


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda event: event["none such"], "failed with KeyError: 'none such'"),
        (lambda: "order", "0 positional arguments but 1 was given. It is called with the same arguments as the call"),
        (lambda event: None, "null"),
        (lambda event: (event["id"], None), "in part null"),
        (lambda event: {"id": None}, "in part null"),
        (lambda event: dt.date(2026, 1, 1), "a value of type date, which JSON has no form for"),
        (lambda event: {1: 2}, "a dictionary whose keys are not all strings"),
        (lambda event: math.nan, "which JSON has no form for"),
        (lambda event: Decimal("Infinity"), "no number of JSON's"),
        (lambda event: b"order", "a value of type bytes"),
        (lambda event: "\ud800", "no valid Unicode"),
    ],
)
def test_a_function_that_makes_no_key_is_named(made, told):
    with pytest.raises(IdempotencyKeyError, match=told) as caught:
        key_of(source(made), (EVENT,), {})
    assert "<lambda>" in str(caught.value)


def test_an_async_function_makes_no_key():
    async def made(event):
        return event["id"]

    with pytest.raises(IdempotencyKeyError, match="type coroutine"):
        key_of(source(made), (EVENT,), {})


def test_what_holds_itself_is_no_key():
    own: list[object] = []
    own.append(own)
    with pytest.raises(IdempotencyKeyError, match="nested too deep"):
        key_of(source(lambda event: {"a": own}), (EVENT,), {})


def test_a_key_may_have_2048_bytes_and_not_one_more():
    assert key("id", {"id": "é" * (MAX_BYTES // 2)})
    with pytest.raises(IdempotencyKeyError, match="a key of 2,049 bytes.*takes 2,048"):
        key("id", {"id": "é" * (MAX_BYTES // 2) + "x"})


def test_a_record_id_is_readable_as_long_as_it_fits_and_then_holds_a_digest():
    assert record_id("app.pay", "order-1") == "idempotency#app.pay#order-1"
    room = MAX_BYTES - len("idempotency#app.pay#")
    assert record_id("app.pay", "k" * room).endswith("#" + "k" * room)
    ids = {record_id("app.pay", "k" * room + more) for more in ("a", "b")}
    assert len(ids) == 2
    assert all(each.startswith("idempotency#app.pay#sha256:") and len(each) < MAX_BYTES for each in ids)


def test_no_key_can_be_chosen_to_have_the_record_of_another():
    long = "k" * MAX_BYTES
    digest = record_id("app.pay", long).rpartition("#")[2]
    assert record_id("app.pay", digest) != record_id("app.pay", long)


@given(st.tuples(st.text(), st.text(min_size=1)), st.tuples(st.text(), st.text(min_size=1)))
def test_two_records_never_have_one_id(one, other):
    """Names without #, keys of any kind."""
    (name, its_key), (other_name, other_key) = one, other
    clean, other_clean = "n" + name.replace("#", ""), "n" + other_name.replace("#", "")
    same = (clean, its_key) == (other_clean, other_key)
    assert (record_id(clean, its_key) == record_id(other_clean, other_key)) is same


@pytest.mark.parametrize("name", ["", "a#b", "n" * 2_000, 7, b"name"])
def test_a_name_that_records_can_not_be_told_apart_by_is_refused(name):
    with pytest.raises(FixConfiguration, match=r"idempotent's name is .*; allowed is text of 1 to 1,\d\d\d bytes without '#'"):
        checked_name(name)


def test_the_longest_name_leaves_room_for_any_key():
    name = checked_name("n" * 1_964)
    assert len(record_id(name, "k" * MAX_BYTES)) == MAX_BYTES


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(JSON)
def test_canonical_json_is_the_same_however_it_was_written(value):
    reordered = json.loads(json.dumps(value), object_pairs_hook=lambda pairs: dict(reversed(pairs)))
    assert canonical(reordered) == canonical(value)
    as_decimals = json.loads(json.dumps(value), parse_float=Decimal)
    assert canonical(as_decimals) == canonical(value)


@given(JSON, JSON)
def test_canonical_json_differs_where_json_differs(one, other):
    def exact(value):
        return json.loads(canonical(value))

    if canonical(one) == canonical(other):
        assert exact(one) == exact(other)
    assert exact(one) == one


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (1, 1.0, True),
        (1, Decimal("1.00"), True),
        (0.1, Decimal("0.10"), True),
        (1, "1", False),
        (1, True, False),
        ((1, 2), [1, 2], True),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        (2**53, 2**53 + 1, False),
        (Decimal("0.12345678901234567890"), Decimal("0.12345678901234567891"), False),
        (-0.0, 0, True),
    ],
)
def test_payloads_are_the_same_or_not(one, other, same):
    def digest(value):
        return digest_of(source(lambda event: event, "payload"), (value,), {})

    assert (digest(one) == digest(other)) is same
    assert len(digest(one)) == 64


def test_no_payload_is_told_apart_from_every_digest():
    assert digest_of(None, (EVENT,), {}) == NO_PAYLOAD


def test_a_payload_that_json_does_not_know_is_an_error():
    with pytest.raises(IdempotencyKeyError, match="payload=.*a value of type set"):
        digest_of(source(lambda event: {1}, "payload"), (EVENT,), {})


@pytest.mark.parametrize(
    ("given_key", "told"),
    [
        ("a..b", r"idempotent's key is 'a\.\.b', which is no JMESPath expression"),
        ("", "no JMESPath expression"),
        ("parse_jsn(body)", r"there is no parse_jsn\(\)"),
        ("a[?starts(b, 'x')]", r"there is no starts\(\)"),
        ("headers.['X-Request-Id']", r"headers.\['X-Request-Id'\]\", which is the same for every call"),
        ("['user', 'order']", "the same for every call"),
        ("detail | {user: 'user', order: `1`}", "the same for every call"),
        (7, "idempotent's key is 7; allowed are a JMESPath expression and a function"),
        (None, "idempotent's key is None"),
    ],
)
def test_what_is_no_expression_is_told_when_the_function_is_decorated(given_key, told):
    with pytest.raises(FixConfiguration, match=told):
        source(given_key)


class Shop:
    def sell(self, order): ...

    @classmethod
    def rent(cls, order): ...

    def __call__(self, order): ...


def traced(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize(
    ("function", "args", "kwargs"),
    [
        (traced(handler), (), {"context": "c", "event": "e"}),
        (traced(Shop.sell), (Shop(), "e"), {}),
        (traced(traced(Shop.sell)), (Shop(),), {"order": "e"}),
        (traced(Shop().sell), ("e",), {}),
        (functools.cache(handler), (), {"event": "e"}),
        (handler, ("e", "c"), {}),
        (handler, (), {"context": "c", "event": "e"}),
        (Shop.sell, (Shop(), "e"), {}),
        (Shop.sell, (Shop(),), {"order": "e"}),
        (Shop().sell, ("e",), {}),
        (Shop().sell, (), {"order": "e"}),
        (Shop.rent, ("e",), {}),
        (Shop(), ("e",), {}),
        (Shop(), (), {"order": "e"}),
        (functools.partial(handler, context="c"), ("e",), {}),
        (max, ("e",), {}),
        (lambda *, order: order, (), {"order": "e"}),
    ],
)
def test_the_first_argument_is_found_after_self_and_by_its_name(function, args, kwargs):
    assert FirstArgument(function).of(args, kwargs) == "e"


class Order(NamedTuple):
    id: str
    amount: int


@pytest.mark.parametrize("argument", [Order("a", 1), object(), "order-1", 7, None])
@pytest.mark.parametrize("expression", ["amount", "[id, amount]", "{amount: amount}", "detail.amount"])
def test_what_has_no_members_for_jmespath_has_neither_key_nor_payload(argument, expression):
    for find, name in ((key_of, "key"), (digest_of, "payload")):
        with pytest.raises(IdempotencyKeyError, match=f"{name}=.*no members in one of type {type(argument).__name__}"):
            find(source(expression, name), (argument,), {})


def test_what_has_no_members_may_be_taken_as_a_whole():
    assert key("@", "order-1") == "order-1"
    assert key("@", ("a", 1)) == '["a",1]'
    assert digest_of(source("length(@)", "payload"), ("order-1",), {}) == digest_of(source("`7`", "payload"), ({},), {})


def test_a_member_that_is_missing_is_a_payload_too():
    assert digest_of(source("missing", "payload"), (EVENT,), {}) == digest_of(source("nothing", "payload"), (EVENT,), {})


def test_a_call_without_arguments_has_no_key():
    with pytest.raises(IdempotencyKeyError, match="called without arguments"):
        key_of(source("id"), (), {})


def test_async_functions_and_generators_are_told_by_their_code():
    async def coroutine(): ...

    class Called:
        async def __call__(self): ...

    def generator():
        yield

    async def async_generator():
        yield

    assert [is_async(each) for each in (coroutine, Called(), functools.partial(coroutine), handler, max, Called)] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]
    assert [is_generator(each) for each in (generator, async_generator, coroutine, max)] == [True, True, False, False]
