"""Every state of a record and every transition, as the tables in ``states.py`` have them, against what a DynamoDB does.

For each record there is, near every boundary, and each transition: it is carried out if and only if the record is in one of its
starting states; then it is in the end state, else it is as it was.
"""

from __future__ import annotations

import itertools
from decimal import Decimal
from functools import cache

import pytest
from botocore.exceptions import ClientError

from perinvoke.fleet.dynamodb.states import CONSTANTS, Idempotency, Lease
from perinvoke.fleet.dynamodb.values import plain, typed

NOW, OVERDUE = 1_700_000_001_000, 1_700_000_000_000

LEASE_VALUES = {
    **CONSTANTS,
    "us": "us",
    "token": 5,
    "renewal": 4,
    "overdue_ms": OVERDUE,
    "seen_owner": "silent",
    "seen_token": 7,
    "seen_renewals": 2,
    "holder": "request",
    "floor": 100,
    "lease_ms": 2000,
    "deadline_ms": NOW + 2000,
    "expiration": 1_700_086_403,
}
IDEMPOTENCY_VALUES = {
    **CONSTANTS,
    "us": "us",
    "overdue_ms": OVERDUE,
    "now_ms": NOW,
    "payload": "sha",
    "deadline_ms": NOW + 2000,
    "result": "1",
    "problem": None,
    "expires_ms": NOW + 3600_000,
    "expiration": 1_700_003_602,
}


def lease_records():
    """None, a free one, and held ones: by us, by whom we have seen silent, and by another; on both sides of each comparison."""
    yield {}
    yield {"token": 5, "displaced": "nobody", "expiration": 1}
    holders = [("us", 5, 3), ("us", 5, 4), ("us", 5, 5), ("us", 6, 4)]
    holders += [("silent", 7, 2), ("silent", 7, 3), ("silent", 8, 2), ("other", 7, 2)]
    for (owner, token, renewals), deadline_ms in itertools.product(holders, (OVERDUE - 1, OVERDUE)):
        yield {
            "owner": owner,
            "token": token,
            "renewals": renewals,
            "displaced": "nobody",
            "holder": "request",
            "lease_ms": 2000,
            "deadline_ms": deadline_ms,
            "expiration": 1,
        }


def idempotency_records():
    """None, running ones and done ones, of ours and another's, on both sides of each comparison."""
    yield {}
    for owner, deadline_ms in itertools.product(("us", "other"), (OVERDUE - 1, OVERDUE)):
        yield {"state": "running", "owner": owner, "payload": "sha", "deadline_ms": deadline_ms, "expiration": 1}
    for owner, expires_ms in itertools.product(("us", "other"), (NOW, NOW + 1)):
        done = {"state": "done", "owner": owner, "payload": "sha", "result": "2", "problem": None}
        yield {**done, "expires_ms": expires_ms, "expiration": 1}


KINDS = {
    "lease": (Lease.TABLE, LEASE_VALUES, tuple(lease_records())),
    "idempotency": (Idempotency.TABLE, IDEMPOTENCY_VALUES, tuple(idempotency_records())),
}
# Who knows what: a waiter has seen nobody at first; only a holder has a token, and only who renews says which renewal it is.
KNOWLEDGE = {
    "all": frozenset[str](),
    "nothing seen": frozenset({"seen_owner", "seen_token", "seen_renewals"}),
    "no token": frozenset({"token", "renewal"}),
    "neither": frozenset({"seen_owner", "seen_token", "seen_renewals", "token", "renewal"}),
}
# The owner is new for each acquisition and each run. So where it is found in a record, an attempt whose answer was lost has
# written it; and if that lease or that run is over, one may begin anew.
ANEW = {Lease.TAKE: {Lease.OURS, Lease.KEPT}, Idempotency.BEGIN: {Idempotency.OURS}}


def item_of(record):
    return typed({"id": "k", **record}) if record else None


def record_of(item):
    return plain(item) if item else {}


class Table:
    """One record on a DynamoDB, put there and looked at."""

    def __init__(self, dynamodb):
        self.name = dynamodb.table()
        self.client = dynamodb.client()

    def put(self, record):
        item = item_of(record)
        if item:
            self.client.put_item(TableName=self.name, Item=item)
        else:
            self.client.delete_item(TableName=self.name, Key={"id": {"S": "k"}})

    def item(self):
        return self.client.get_item(TableName=self.name, Key={"id": {"S": "k"}}).get("Item")

    def holds(self, state, values):
        """What DynamoDB says of the state's expression; nothing is written."""
        names = {term.attribute for term in state.terms}
        used = {term.value for term in state.terms if term.value}
        check = {
            "TableName": self.name,
            "Key": {"id": {"S": "k"}},
            "ConditionExpression": state.expression,
            "ExpressionAttributeNames": {f"#{name}": name for name in names},
            **({"ExpressionAttributeValues": typed({f":{name}": values[name] for name in used})} if used else {}),
        }
        try:
            self.client.transact_write_items(TransactItems=[{"ConditionCheck": check}])
        except ClientError as error:
            assert error.response["Error"]["Code"] == "TransactionCanceledException"
            return False
        return True

    def asked(self, call):
        """The refusal's item where it was refused; else None."""
        try:
            getattr(self.client, call.operation)(**call.parameters)
        except ClientError as error:
            assert error.response["Error"]["Code"] == "ConditionalCheckFailedException"
            return error.response.get("Item", {})
        return None


@pytest.fixture
def table(dynamodb):
    return Table(dynamodb)


CASES = [
    pytest.param(kind, record, id=f"{kind} {number}")
    for kind, (_, _, records) in KINDS.items()
    for number, record in enumerate(records)
]


@pytest.mark.parametrize(("kind", "record"), CASES)
def test_a_record_is_in_the_state_whose_expression_dynamodb_finds_true_first(table, kind, record):
    states, values, _ = KINDS[kind]
    table.put(record)
    said = [state for state in states.states if table.holds(state, values)]
    read = record_of(table.item())
    assert states.state_of(read, values) is said[0]
    assert said == [state for state in states.states if all(term.holds(read, values) for term in state.terms)]


@pytest.mark.parametrize(("kind", "record"), CASES)
def test_a_transition_is_carried_out_if_and_only_if_the_record_is_in_one_of_its_starting_states(table, kind, record):
    states, values, _ = KINDS[kind]
    for transition in states.transitions:
        table.put(record)
        before = table.item()
        state = states.state_of(record_of(before), values)
        refused = table.asked(transition.call(table.name, "k", values))
        after = table.item()
        if state in transition.starts or begins_anew(transition, state, record_of(before), values):
            assert refused is None
            assert states.state_of(record_of(after), values) is transition.end
        else:
            assert refused == (before or {})
            assert after == before


def begins_anew(transition, state, record, values):
    """Whether a record of one's own is over for others, too."""
    over = any(all(term.holds(record, values) for term in start.terms) for start in transition.starts)
    return state in ANEW.get(transition, ()) and over


@pytest.mark.parametrize("unknown", KNOWLEDGE.values(), ids=KNOWLEDGE)
def test_who_knows_less_than_a_state_says_can_not_tell_it_and_does_not_ask_for_it(table, unknown):
    values = {name: value for name, value in LEASE_VALUES.items() if name not in unknown}
    for record in lease_records():
        state = Lease.TABLE.state_of({"id": "k", **record} if record else {}, values)
        assert state is not None
        assert state.can_be_told(values)
        if state in {Lease.HELD, Lease.SILENT}:  # the two that differ by what is known
            table.put(record)
            taken = table.asked(Lease.TAKE.call(table.name, "k", values)) is None
            assert taken is (state is Lease.SILENT)


def test_a_take_adds_one_to_the_token_and_goes_on_from_the_floor_where_there_is_none(table):
    for record, token in (({}, 101), ({"token": 5}, 6), ({"token": 500}, 501)):
        table.put(record)
        assert table.asked(Lease.TAKE.call(table.name, "k", LEASE_VALUES)) is None
        assert record_of(table.item())["token"] == Decimal(token)


# What keeps the tests above whole.


@cache
def found_states(kind):
    states, values, records = KINDS[kind]
    return {states.state_of({"id": "k", **record} if record else {}, values) for record in records}


@pytest.mark.parametrize("kind", KINDS)
def test_there_is_a_record_in_every_state(kind):
    states, _, _ = KINDS[kind]
    assert found_states(kind) == set(states.states)


@pytest.mark.parametrize("kind", KINDS)
def test_what_transitions_lead_to_and_begin_in_is_in_the_table(kind):
    states, _, _ = KINDS[kind]
    assert {state for transition in states.transitions for state in (*transition.starts, transition.end)} <= set(states.states)
    assert len({state.name for state in states.states}) == len(states.states)


def test_what_is_no_record_of_that_kind_is_in_no_state():
    assert Idempotency.TABLE.state_of({"id": "k", "owner": "somebody"}, IDEMPOTENCY_VALUES) is None
