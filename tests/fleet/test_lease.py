"""LeaseLock on DynamoDB: who holds it, for how long, what it costs, and what is left of it when something goes wrong."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import math
import os
import random
import signal
import threading
import time
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.config import Config

from perinvoke import current, isolated
from perinvoke.environment import lock_table
from perinvoke.errors import NotInInvocation
from perinvoke.fleet.dynamodb import LeaseError, LeaseLock, LeaseLost, LeaseNotHeld, LeaseTimeout, lease_holds
from perinvoke.fleet.errors import TableMissing, TableUnavailable
from processes import wait_until
from stalls import repeated_after_a_stall

pytestmark = pytest.mark.usefixtures("root")


@pytest.fixture(scope="module")
def table(dynamodb):
    return dynamodb.table()


@pytest.fixture(scope="module")
def client(dynamodb):
    return dynamodb.client()


_keys = itertools.count()


@pytest.fixture
def key():
    return f"key-{next(_keys)}"


@pytest.fixture
def faults(dynamodb, monkeypatch):
    return lambda decide: monkeypatch.setattr(dynamodb, "faults", decide)


@pytest.fixture(autouse=True)
def _nothing_is_left():
    yield
    assert not lease_holds.holds
    assert not lock_table.table.holds


@pytest.fixture
def another(client, table, key):
    """Somebody else's lease of the same key: of another thread, which is another owner."""

    class Another:
        def __init__(self) -> None:
            self.wanted, self.done = threading.Event(), threading.Event()
            self.token = 0

        def __enter__(self):
            self.thread = threading.Thread(target=self.hold)
            self.thread.start()
            assert self.wanted.wait(10)
            return self

        def hold(self):
            with LeaseLock(table, key, client=client) as lock:
                self.token = lock.token
                self.wanted.set()
                self.done.wait(20)

        def give_back(self):
            self.done.set()
            self.thread.join(10)

        def __exit__(self, *_):
            self.give_back()

    return Another


def record_of(dynamodb, table, key):
    [record] = [item for item in dynamodb.items(table) if item["id"] == {"S": f"lease#{key}"}]
    return record


def write_record(client, table, key, **values):
    item = {"id": "lease#" + key, **values}
    client.put_item(TableName=table, Item={name: {"S" if isinstance(v, str) else "N": str(v)} for name, v in item.items()})


def dead(client, table, key, *, lease_ms: int, ends_in: float, token: int = 7) -> None:
    """A lease whose holder has died."""
    write_record(
        client,
        table,
        key,
        owner="dead",
        holder="request-of-the-dead",
        token=token,
        renewals=0,
        lease_ms=lease_ms,
        deadline_ms=int((time.time() + ends_in) * 1000),
    )


def context(seconds: float) -> Any:
    return SimpleNamespace(aws_request_id="r-1", get_remaining_time_in_millis=lambda: seconds * 1000)


def silent(operation: str, body: dict[str, Any]) -> str:
    """No answer, for longer than anybody should wait for one."""
    time.sleep(3)
    return "dropped"


def first(count: int, fault: str, operation: str = "UpdateItem"):
    numbers = itertools.count()
    return lambda its, body: fault if its == operation and next(numbers) < count else None


def test_one_write_takes_it_and_one_gives_it_back(dynamodb, client, table, key):
    with dynamodb.counted() as operations, LeaseLock(table, key, client=client):
        pass
    assert operations == ["UpdateItem", "UpdateItem"]


def test_tokens_grow_with_every_acquisition_also_when_the_record_was_removed(client, table, key):
    tokens = []
    for removed in (False, False, True, False):
        if removed:
            client.delete_item(TableName=table, Key={"id": {"S": "lease#" + key}})
        with LeaseLock(table, key, client=client) as lock:
            tokens.append(lock.token)
    assert tokens == sorted(set(tokens))
    assert tokens[1] == tokens[0] + 1


def test_another_owner_waits_and_is_told_who_holds_it(client, table, key, another):
    with another():
        assert LeaseLock(table, key, client=client).try_acquire() is False
        with pytest.raises(LeaseTimeout, match=f"lease '{key}' in table '{table}' was not to be had in ") as caught:
            LeaseLock(table, key, client=client, timeout=0.2).acquire()
        assert caught.value.holder == os.uname().nodename
        assert 0.2 <= caught.value.waited_seconds < 20
        with pytest.raises(LeaseTimeout):
            LeaseLock(table, key, client=client).acquire(timeout=0)


def test_a_waiter_gets_it_when_it_is_given_back_with_a_greater_token(client, table, key, another):
    with another() as other:
        threading.Timer(0.2, other.give_back).start()
        with LeaseLock(table, key, client=client, timeout=10) as lock:
            assert lock.token == other.token + 1


def test_waiters_of_one_environment_cost_the_reads_of_one(dynamodb, client, table, key):
    dead(client, table, key, lease_ms=60_000, ends_in=1.0)
    turns = []

    def wait() -> None:
        with LeaseLock(table, key, client=client, max_clock_skew_seconds=0.1, timeout=20) as lock:
            turns.append(lock.token)

    threads = [threading.Thread(target=wait) for _ in range(8)]
    with dynamodb.counted() as operations:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert turns == list(range(8, 16))
    # One is refused, and polls with pauses of up to a second for one second; then each takes and gives back.
    assert operations.count("UpdateItem") == 1 + 2 * 8
    assert operations.count("GetItem") < 30


def test_a_dead_holder_is_followed_after_its_published_end_and_the_skew(client, table, key):
    started = time.monotonic()
    dead(client, table, key, lease_ms=60_000, ends_in=-0.5)
    with LeaseLock(table, key, client=client, max_clock_skew_seconds=1.0) as lock:
        assert lock.token == 8
    assert 0.4 < time.monotonic() - started < 20


def test_a_dead_holder_with_a_clock_that_is_ahead_is_followed_after_its_lease_on_our_clock(client, table, key):
    dead(client, table, key, lease_ms=700, ends_in=3600)
    started = time.monotonic()
    with LeaseLock(table, key, client=client, timeout=10) as lock:
        assert lock.token == 8
    assert 0.7 <= time.monotonic() - started < 20


def test_the_timeout_names_the_request_of_a_holder_in_another_environment(client, table, key):
    dead(client, table, key, lease_ms=60_000, ends_in=60)
    with pytest.raises(LeaseTimeout, match="held by request-of-the-dead"):
        LeaseLock(table, key, client=client).acquire(timeout=0.1)


def test_the_same_owner_may_take_it_again_through_another_object_and_gives_it_back_as_often(dynamodb, client, table, key):
    lock, same = LeaseLock(table, key, client=client), LeaseLock(table, key, client=client)
    with dynamodb.counted() as operations, lock:
        with same:
            assert (lock.count(), same.count()) == (2, 2)
            assert lock.token == same.token
            assert same.try_acquire()
            same.release()
        assert lock.count() == 1
    assert len(operations) == 2
    assert lock.count() == 0
    with pytest.raises(LeaseNotHeld, match="take it first"):
        lock.release()


def test_other_keys_tables_and_threads_are_others(dynamodb, client, table, key):
    with LeaseLock(table, key, client=client), LeaseLock(table, key + "!", client=client):
        with LeaseLock(dynamodb.table(), key, client=client):
            pass
        counts = []
        thread = threading.Thread(target=lambda: counts.append(LeaseLock(table, key, client=client).count()))
        thread.start()
        thread.join()
        assert counts == [0]


def test_without_it_nothing_of_a_holder_can_be_had(client, table, key):
    lock = LeaseLock(table, key, client=client)
    assert lock.lost is None
    for use in (lambda: lock.token, lock.release, lock.raise_if_lost, lambda: lock.guard({}), lock.condition_check):
        with pytest.raises(LeaseNotHeld):
            use()
    assert "not held here" in repr(lock)


def test_another_task_of_the_same_thread_is_refused_instead_of_waited_for(client, table, key):
    async def holder(taken: asyncio.Event, done: asyncio.Event) -> None:
        with LeaseLock(table, key, client=client):
            taken.set()
            await done.wait()

    async def scenario() -> None:
        taken, done = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(holder(taken, done))
        await taken.wait()
        with pytest.raises(LeaseError, match="another task or invocation of this very thread"):
            LeaseLock(table, key, client=client).acquire()
        assert LeaseLock(table, key, client=client).try_acquire() is False
        done.set()
        await task

    asyncio.run(scenario())


def test_it_decorates_functions_but_none_that_would_run_later(client, table, key):
    lock = LeaseLock(table, key, client=client)

    @lock
    def work(number: int) -> tuple[int, int]:
        """Does it."""
        return number, lock.count()

    assert work(3) == (3, 1)
    assert work.__doc__ == "Does it."

    async def coroutine() -> None: ...

    def generator():
        yield

    for later in (coroutine, generator):
        with pytest.raises(LeaseError, match="would run after the lease was given back"):
            lock(later)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"key": ""}, "key must be a string"),
        ({"key": None}, "key must be a string"),
        ({"key": 7}, "key must be a string"),
        ({"key": "ä" * 1022}, "the key has 2,044 bytes in UTF-8; DynamoDB allows 2,042"),
        ({"key": "\ud800"}, "can't be written in UTF-8"),
        ({"table": ""}, "the table is ''"),
        ({"table": None}, "the table is None"),
        ({"lease_seconds": 0}, "lease_seconds is 0"),
        ({"lease_seconds": -1}, "lease_seconds is -1"),
        ({"lease_seconds": math.nan}, "lease_seconds is nan"),
        ({"lease_seconds": True}, "lease_seconds is True"),
        ({"lease_seconds": "5"}, "lease_seconds is '5'"),
        ({"lease_seconds": 900.5}, "heartbeat=True"),
        ({"lease_seconds": math.inf, "heartbeat": True}, "lease_seconds is inf"),
        ({"timeout": -1}, "timeout is -1"),
        ({"timeout": math.nan}, "timeout is nan"),
        ({"timeout": False}, "timeout is False"),
        ({"max_clock_skew_seconds": -0.1}, "max_clock_skew_seconds is -0.1"),
        ({"max_clock_skew_seconds": "1"}, "max_clock_skew_seconds is '1'"),
    ],
)
def test_what_cannot_work_is_refused_at_once(arguments, message):
    with pytest.raises(LeaseError) as caught:
        LeaseLock(**{"table": "t", "key": "k", **arguments})
    assert message in str(caught.value)


def test_the_longest_key_and_lease_are_taken(dynamodb, client, table):
    key = "k" * 2042
    with LeaseLock(table, key, lease_seconds=900, client=client):
        assert record_of(dynamodb, table, key)["lease_ms"] == {"N": "901800"}  # a little longer for others


def test_a_missing_table_says_so(client):
    with pytest.raises(TableMissing, match="perinvoke table create nowhere"):
        LeaseLock("nowhere", "k", client=client).acquire()


@repeated_after_a_stall
def test_a_lease_that_is_over_is_lost_and_said_so_when_it_is_given_back(client, table, key, caplog):
    with LeaseLock(table, key, client=client, lease_seconds=0.5) as lock:
        time.sleep(0.55)
        assert lock.lost == "expired"
        with pytest.raises(LeaseLost, match="expired"):
            lock.raise_if_lost()
        with pytest.raises(LeaseLost):
            lock.acquire()
        assert "lost: expired" in repr(lock)
    assert lock.lost == "expired"
    [record] = caplog.records
    assert f"lease '{key}' in table '{table}' was lost (expired) while it was held, which was for " in record.getMessage()
    with lock:
        lock.raise_if_lost()
    lock.raise_if_lost()


def test_who_is_late_does_not_give_back_what_is_the_successors(dynamodb, client, table, key, caplog):
    late = LeaseLock(table, key, client=client, lease_seconds=0.5)
    late.acquire()
    time.sleep(0.55)
    dead(client, table, key, lease_ms=60_000, ends_in=60, token=late.token + 1)
    late.release()
    assert record_of(dynamodb, table, key)["owner"] == {"S": "dead"}
    assert late.lost == "expired"
    assert len(caplog.records) == 1


def test_what_was_stolen_is_noticed_at_the_release(client, table, key, caplog):
    with LeaseLock(table, key, client=client) as lock:
        client.delete_item(TableName=table, Key={"id": {"S": "lease#" + key}})
    assert lock.lost == "stolen"
    assert "(stolen)" in caplog.text


def test_the_bodys_error_comes_through_whatever_becomes_of_the_release(client, table, key, faults, caplog):
    lock = LeaseLock(table, key, client=client)

    def use() -> None:
        with lock:
            faults(lambda operation, body: "dropped")
            raise KeyError

    with pytest.raises(KeyError):
        use()
    assert "could not be given back, and ends by itself in 900" in caplog.text or "in 89" in caplog.text
    assert lock.lost is None


@pytest.mark.parametrize("lost", [1, 2])
def test_an_acquisition_whose_answer_is_lost_is_recognised_as_ours(  # noqa: PLR0917  # fixtures
    dynamodb, client, table, key, faults, lost
):
    faults(first(lost, "lost"))
    with dynamodb.counted() as operations, LeaseLock(table, key, client=client) as lock:
        assert record_of(dynamodb, table, key)["token"] == {"N": str(lock.token)}
    assert operations == ["UpdateItem"] * (lost + 2)  # none to look whose it is: the refusal says it


def test_an_acquisition_is_recognised_where_botocore_gave_up_before_we_did(dynamodb, client, table, key, faults):
    faults(first(4, "lost"))
    with LeaseLock(table, key, client=client) as lock:
        assert lock.lost is None
        assert record_of(dynamodb, table, key)["token"] == {"N": str(lock.token)}


def test_a_release_whose_answer_is_lost_is_none_that_was_stolen(client, table, key, faults, caplog):
    with LeaseLock(table, key, client=client) as lock:
        faults(first(1, "lost"))
    assert lock.lost is None
    assert not caplog.records


def test_an_acquisition_that_nobody_answers_leaves_nothing_behind(dynamodb, client, table, key, faults):
    faults(first(3, "lost"))  # all of botocore's attempts; the first was carried out
    with pytest.raises(TableUnavailable) as caught:
        LeaseLock(table, key, client=client).acquire(timeout=0)
    assert caught.value.carried_out is None
    assert "owner" not in record_of(dynamodb, table, key)


def test_throttling_until_there_is_no_time_is_told_and_nothing_is_left_to_give_back(dynamodb, table, key, faults):
    once = boto3.client("dynamodb", config=Config(retries={"total_max_attempts": 1}), **dynamodb.account())
    faults(lambda operation, body: "ThrottlingException")
    with dynamodb.counted() as operations, pytest.raises(TableUnavailable, match="throttled in") as caught:
        LeaseLock(table, key, client=once).acquire(timeout=0.3)
    assert caught.value.carried_out is False  # botocore, where it repeats, doesn't tell what came of its earlier attempts
    assert len(operations) == caught.value.attempts


def test_conflicts_with_another_region_are_repeated_and_given_up_in_time(dynamodb, client, table, key, faults):
    faults(first(3, "ReplicatedWriteConflictException"))
    with LeaseLock(table, key, client=client):
        pass
    faults(lambda operation, body: "ReplicatedWriteConflictException")
    with dynamodb.counted() as operations, pytest.raises(TableUnavailable) as caught:
        LeaseLock(table, key, client=client, timeout=60).acquire()
    assert 8 <= caught.value.attempts <= 10  # botocore's are among them
    assert len(operations) <= caught.value.attempts + 3  # one call more, to give back what may have been taken


def test_only_writes_and_reads_of_one_item_are_used(dynamodb, client, table, key):
    """Nothing that tables with multi-region strong consistency lack."""
    dead(client, table, key, lease_ms=300, ends_in=100)
    with dynamodb.counted() as operations, LeaseLock(table, key, client=client, heartbeat=True):
        pass
    assert set(operations) <= {"UpdateItem", "GetItem"}


def test_without_a_root_it_works_and_says_so_once(  # noqa: PLR0917  # fixtures
    client, table, key, another, monkeypatch, tmp_path, caplog
):
    from perinvoke.sharing import turns

    monkeypatch.setattr(turns, "_told", [])
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PERINVOKE_ROOT", str(tmp_path / "file"))
    with another(), pytest.raises(LeaseTimeout):
        LeaseLock(table, key, client=client, timeout=0.1).acquire()
    [record] = caplog.records
    assert "without a file lock" in record.getMessage()


# In an invocation.


@pytest.fixture
def _here(dynamodb, monkeypatch):
    """``boto3_client("dynamodb")`` comes to the tests' server."""
    for name, value in dynamodb.variables().items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("_here")
def test_it_lasts_until_the_deadline_and_a_second(dynamodb, table, key):
    @isolated
    def handler(event, context):
        at_most = current().deadline.remaining_seconds()
        with LeaseLock(table, key):
            return at_most, current().deadline.remaining_seconds(), time.time(), record_of(dynamodb, table, key)

    at_most, at_least, now, record = handler({}, context(20))
    assert 1000 * (at_least + 1) - 1 <= int(record["lease_ms"]["N"]) <= 1000 * (at_most + 1) + 1
    assert abs(int(record["deadline_ms"]["N"]) - 1000 * (now + at_least + 1)) < 1000 * (at_most - at_least) + 5000
    assert record["holder"] == {"S": "r-1"}


@pytest.mark.usefixtures("_here")
def test_a_forgotten_release_is_given_back_at_the_end_and_reported_without_its_file_lock(dynamodb, table, key, caplog):
    @isolated
    def handler(event, context):
        LeaseLock(table, key).acquire()

    handler({}, context(10))
    assert "owner" not in record_of(dynamodb, table, key)
    [record] = caplog.records
    assert record.getMessage().count("given back") == 1
    assert f"given back: lease '{key}' in table '{table}', still held at the end" in record.getMessage()


@pytest.mark.usefixtures("_here")
def test_all_threads_leases_are_left_in_bounded_time_if_nobody_answers(dynamodb, table, key, faults, caplog):
    @isolated
    def handler(event, context):
        def take(number: int) -> None:
            LeaseLock(table, f"{key}-{number}").acquire()

        threads = [threading.Thread(target=take, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        faults(silent)
        return time.monotonic()

    ended = handler({}, context(60))
    assert time.monotonic() - ended < 20
    # Of one the thread may tell a second time, when it hears of the call's end.
    told = {record.getMessage().partition(" could not be given back, and ends")[0] for record in caplog.records}
    assert told == {f"lease '{key}-{number}' in table '{table}'" for number in range(3)}
    assert "still held at the end" not in caplog.text
    wait_until(lambda: not any(thread.name == "perinvoke-lease-end" for thread in threading.enumerate()), 20)


@pytest.mark.usefixtures("_here")
def test_a_thread_that_outlives_its_invocation_gets_no_lease(dynamodb, client, table, key, faults):
    raised: list[BaseException] = []
    go_on, threads, before = threading.Event(), [], len(dynamodb.operations)

    @isolated
    def handler(event, context):
        faults(lambda operation, body: go_on.wait(5) and None)

        def take() -> None:
            try:
                LeaseLock(table, key).acquire()
            except BaseException as error:
                raised.append(error)

        threads.append(threading.Thread(target=take))
        threads[0].start()
        wait_until(lambda: len(dynamodb.operations) > before)

    handler({}, context(60))
    go_on.set()
    threads[0].join(10)
    [error] = raised
    assert isinstance(error, NotInInvocation)
    wait_until(lambda: "owner" not in record_of(dynamodb, table, key))
    wait_until(lambda: not any(thread.name == "perinvoke-lease-end" for thread in threading.enumerate()), 20)


@pytest.mark.usefixtures("_here")
@repeated_after_a_stall
def test_waiting_ends_before_the_deadline(client, table, key):
    dead(client, table, key, lease_ms=60_000, ends_in=60)

    @isolated
    def handler(event, context):
        with pytest.raises(LeaseTimeout):
            LeaseLock(table, key).acquire()
        return context.get_remaining_time_in_millis()

    started = time.monotonic()
    handler({}, context(1.0))
    assert time.monotonic() - started < 1.0


def striking(exception: type[BaseException], function: Any) -> Any:
    """A signal's handler that raises while the function runs; when that is over, it would be the test that is interrupted."""

    def strike(_: int, frame: Any) -> None:
        while frame is not None and frame.f_code is not function.__code__:
            frame = frame.f_back
        if frame is not None:
            raise exception

    return strike


@pytest.mark.usefixtures("_here")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # sockets that botocore didn't get to close
@pytest.mark.parametrize("exception", [KeyboardInterrupt, TimeoutError])
def test_however_it_is_interrupted_nobody_holds_it_afterwards(  # noqa: PLR0917  # fixtures
    dynamodb, client, table, key, exception, caplog, faults
):
    """Between any two bytecodes, of the acquisition, the body and the release.

    But for a request to take it that was on its way, and that the server carries out after the release: until it ends, it blocks.
    """
    caplog.set_level(logging.ERROR)
    released: set[str] = set()

    def note(_: str, body: dict[str, Any]) -> None:
        if "REMOVE #owner" in body.get("UpdateExpression", ""):
            released.add(body["ExpressionAttributeValues"][":us"]["S"])

    faults(note)
    dice, outcomes = random.Random(7), []

    def called() -> None:
        handler({}, context(30))

    def cycle(event, context):
        with LeaseLock(table, key):
            outcomes.append("held")

    handler = isolated(cycle)
    handler({}, context(30))
    started = time.monotonic()
    for _ in range(5):
        handler({}, context(30))
    seconds = (time.monotonic() - started) / 5
    before = signal.signal(signal.SIGALRM, striking(exception, called))
    try:
        for number in range(100):
            signal.setitimer(signal.ITIMER_REAL, dice.uniform(0.0001, 1.3 * seconds))
            try:
                called()
                outcomes.append("done")
            except BaseException as error:
                outcomes.append(type(error).__name__)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            record = record_of(dynamodb, table, key)
            if "owner" in record:
                assert record["owner"]["S"] in released, (number, outcomes[-3:])
                names = {"#owner": "owner"}
                client.update_item(
                    TableName=table, Key={"id": record["id"]}, UpdateExpression="REMOVE #owner", ExpressionAttributeNames=names
                )
            assert not lease_holds.holds, outcomes[-3:]
            assert not lock_table.table.holds
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.collect()  # those sockets now, not in a later test, which they would fail
    assert len(set(outcomes)) >= 2
