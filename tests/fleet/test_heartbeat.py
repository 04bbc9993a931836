"""Leases that are renewed: by one thread, through lost answers and outages, until they are lost or given back; and over forks."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from perinvoke.fleet.dynamodb import LeaseLock, lease_holds
from perinvoke.sharing.aws import deadline_bound
from processes import wait_until
from stalls import repeated_after_a_stall

pytestmark = pytest.mark.usefixtures("root")
SECONDS = 2.0  # that a lease lasts: many times what a renewal takes, also on a busy machine, which stands still for a second
LONGER = 1.25 * SECONDS


@pytest.fixture(scope="module")
def table(dynamodb):
    return dynamodb.table()


@pytest.fixture(scope="module")
def client(dynamodb):
    return deadline_bound(dynamodb.client())


@pytest.fixture
def faults(dynamodb, monkeypatch):
    return lambda decide: monkeypatch.setattr(dynamodb, "faults", decide)


@pytest.fixture(autouse=True)
def _nothing_is_left():
    yield
    assert not lease_holds.holds
    wait_until(lambda: not hearts())


def hearts() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "perinvoke-lease"]


def record_of(dynamodb, table, key):
    return next(item for item in dynamodb.items(table) if item["id"] == {"S": f"lease#{key}"})


def renewals(dynamodb, table, key) -> int:
    return int(record_of(dynamodb, table, key)["renewals"]["N"])


def is_renewal(operation: str, body: dict[str, Any]) -> bool:
    return operation == "UpdateItem" and ":renewal" in body.get("ExpressionAttributeValues", {})


@repeated_after_a_stall
def test_one_thread_renews_them_all_as_long_as_they_are_held_and_ends_with_the_last(dynamodb, client, table):
    with contextlib.ExitStack() as stack:
        locks = [LeaseLock(table, f"b{number}", lease_seconds=SECONDS, heartbeat=True, client=client) for number in range(3)]
        for lock in locks:
            stack.enter_context(lock)
        assert len(hearts()) == 1
        time.sleep(LONGER)
        assert [lock.lost for lock in locks] == [None, None, None]
        assert renewals(dynamodb, table, "b0") >= 2
    wait_until(lambda: not hearts())
    with dynamodb.counted() as operations:
        time.sleep(SECONDS / 2)
    assert operations == []


def test_a_lease_without_a_heartbeat_starts_no_thread(client, table):
    with LeaseLock(table, "c", client=client):
        assert hearts() == []


def test_it_lasts_half_a_minute_unless_told_otherwise(dynamodb, client, table):
    with LeaseLock(table, "d", heartbeat=True, client=client):
        assert 30_000 <= int(record_of(dynamodb, table, "d")["lease_ms"]["N"]) <= 30_100
    with LeaseLock(table, "d", heartbeat=True, lease_seconds=3600, client=client):
        pass


@repeated_after_a_stall
def test_trouble_that_passes_costs_nothing(client, table, faults):
    """Of each lease every second renewal meets it."""
    kinds = ["lost", "dropped", "ThrottlingException", "ReplicatedWriteConflictException"]
    counts = {kind: itertools.count() for kind in kinds}

    def decide(operation: str, body: dict[str, Any]) -> str | None:
        kind = body["Key"]["id"]["S"].removeprefix("lease#")
        return kind if is_renewal(operation, body) and next(counts[kind]) % 2 == 0 else None

    faults(decide)
    with contextlib.ExitStack() as stack:
        locks = [LeaseLock(table, kind, lease_seconds=SECONDS, heartbeat=True, client=client) for kind in kinds]
        for lock in locks:
            stack.enter_context(lock)
        time.sleep(LONGER)
        assert [lock.lost for lock in locks] == [None] * len(kinds)
    assert all(next(count) >= 3 for count in counts.values())


def test_an_outage_that_lasts_as_long_as_the_lease_loses_it(client, table, faults, caplog):
    with LeaseLock(table, "e", lease_seconds=SECONDS, heartbeat=True, client=client) as lock:
        faults(lambda operation, body: "dropped" if is_renewal(operation, body) else None)
        wait_until(lambda: lock.lost)
        assert lock.lost == "outage"
        wait_until(lambda: not hearts())
        faults(lambda operation, body: None)
    assert lock.lost == "outage"
    [record] = caplog.records
    assert "(outage)" in record.getMessage()


@repeated_after_a_stall
def test_a_server_that_does_not_answer_one_lease_does_not_cost_another(dynamodb, client, table, faults):
    def decide(operation: str, body: dict[str, Any]) -> str | None:
        if is_renewal(operation, body) and body["Key"]["id"]["S"] == "lease#silent":
            time.sleep(3)
            return "dropped"
        return None

    faults(decide)
    silent = LeaseLock(table, "silent", lease_seconds=SECONDS, heartbeat=True, client=client)
    other = LeaseLock(table, "other", lease_seconds=SECONDS, heartbeat=True, client=client)
    with silent, other:
        wait_until(lambda: silent.lost)
        assert silent.lost == "outage"
        assert other.lost is None


def test_what_another_has_taken_is_lost_at_once(dynamodb, client, table, caplog):
    with LeaseLock(table, "f", lease_seconds=SECONDS, heartbeat=True, client=client) as lock:
        client.update_item(
            TableName=table,
            Key={"id": {"S": "lease#f"}},
            UpdateExpression="SET #owner = :them",
            ExpressionAttributeNames={"#owner": "owner"},
            ExpressionAttributeValues={":them": {"S": "them"}},
        )
        wait_until(lambda: lock.lost)
        assert lock.lost == "stolen"
    assert record_of(dynamodb, table, "f")["owner"] == {"S": "them"}
    assert "(stolen)" in caplog.text


@repeated_after_a_stall
def test_it_is_not_renewed_beyond_its_invocation_even_if_that_goes_on(client, table):
    with LeaseLock(table, "g", lease_seconds=SECONDS, heartbeat=True, client=client) as lock:
        [hold] = lease_holds.holds.of_group(("leases", None))
        hold.ends_monotonic = time.monotonic() + SECONDS  # as if its invocation had so much time
        wait_until(lambda: not hearts())
        assert lock.lost is None
        assert hold.until_monotonic <= hold.ends_monotonic + 0.1


# In processes of their own, which fork and stand still.

_PRELUDE = """
import os, sys, time, boto3, threading
from perinvoke.fleet.dynamodb import LeaseLock, LeaseNotHeld
client = boto3.client("dynamodb")
def lease(**options):
    return LeaseLock(os.environ["TABLE"], os.environ["KEY"], client=client, lease_seconds=2.0, heartbeat=True, **options)
"""


def script(dynamodb, table, key, code: str) -> subprocess.Popen[str]:
    env = {**os.environ, **dynamodb.variables(), "TABLE": table, "KEY": key}
    command = [sys.executable, "-Wignore", "-c", _PRELUDE + code]
    return subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@repeated_after_a_stall
def test_a_forked_child_holds_renews_and_releases_nothing_and_its_parent_goes_on(dynamodb, table):
    code = """
lock = lease()
with lock:
    pid = os.fork()
    if pid == 0:
        told = [lock.count(), [thread.name for thread in threading.enumerate()]]
        for use in (lambda: lock.token, lock.release, lock.raise_if_lost):
            try:
                use()
            except LeaseNotHeld as error:
                told.append("forked from" in str(error))
        print(told, lock.try_acquire(), flush=True)
    else:
        assert os.waitpid(pid, 0)[1] == 0
        time.sleep(2.5)
        assert lock.lost is None
if pid == 0:
    os._exit(0)  # left its parent's with block without an error
print("given back", lock.lost)
with lease() as lock:
    print("again", lock.count())
"""
    process = script(dynamodb, table, "forked", code)
    output, _ = process.communicate(timeout=30)
    lines = output.splitlines()
    assert process.returncode == 0
    assert lines == ["[0, ['MainThread'], True, True, True] False", "given back None", "again 1"]


@repeated_after_a_stall
def test_a_forked_child_takes_leases_of_its_own_and_renews_them(dynamodb, table):
    code = """
with lease():
    pid = os.fork()
    if pid == 0:
        own = LeaseLock(os.environ["TABLE"], "child", client=boto3.client("dynamodb"), lease_seconds=2.0, heartbeat=True)
        with own:
            time.sleep(2.5)
            print(own.lost, flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
"""
    process = script(dynamodb, table, "parent", code)
    assert process.communicate(timeout=30)[0] == "None\n"


def test_a_process_that_stood_still_knows_that_its_lease_expired_and_its_token_is_refused(dynamodb, client, table):
    code = """
with lease(max_clock_skew_seconds=0.1) as lock:
    write = lock.guard(dict(TableName=os.environ["TABLE"], Key={"id": {"S": "item"}}))
    print("held", flush=True)
    sys.stdin.readline()  # stopped meanwhile
    print(lock.lost, flush=True)
    try:
        client.update_item(**write)
    except client.exceptions.ConditionalCheckFailedException:
        print("refused", flush=True)
"""
    process = script(dynamodb, table, "stopped", code)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    process.send_signal(signal.SIGSTOP)
    with LeaseLock(table, "stopped", client=client, max_clock_skew_seconds=0.1, timeout=20) as lock:
        client.update_item(**lock.guard({"TableName": table, "Key": {"id": {"S": "item"}}}))
        process.send_signal(signal.SIGCONT)
        assert process.communicate("go on\n", timeout=30)[0].splitlines() in (["expired", "refused"], ["stolen", "refused"])
        assert lock.lost is None


@repeated_after_a_stall
def test_a_killed_holders_lease_is_taken_over_after_it_was_not_renewed(dynamodb, client, table):
    lock = LeaseLock(table, "killed", client=client, max_clock_skew_seconds=0.2, timeout=20)
    with script(dynamodb, table, "killed", "lease().acquire(); print('held', flush=True); time.sleep(60)") as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            time.sleep(LONGER)  # it is renewed, so that nobody can have it
            was_free = lock.try_acquire()
        finally:
            process.kill()
    if was_free:
        lock.release()
    assert was_free is False
    with lock:
        assert lock.lost is None
