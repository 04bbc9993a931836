from __future__ import annotations

import os
import signal
import socket
import time

import pytest

from perinvoke.runtime.seat import Estate, Seat, estate_of, taken_bytes
from perinvoke.runtime.worker_record import Stage
from processes import wait_until


@pytest.mark.parametrize(
    ("stage", "estate"),
    [
        (Stage.STARTING, Estate.NOTHING),
        (Stage.ASKING, Estate.NOTHING),
        (Stage.POLLING, Estate.IN_CONNECTION),
        (Stage.SERVING, Estate.ANSWER),
        (Stage.ANSWERED, Estate.NOTHING),
    ],
)
def test_what_a_dead_worker_leaves_is_told_by_its_stage(stage, estate):
    assert estate_of(stage, was_sent=False) is estate


def test_a_worker_that_died_while_it_asked_has_asked_if_the_connection_took_the_request():
    assert estate_of(Stage.ASKING, was_sent=True) is Estate.IN_CONNECTION


def test_the_kernel_tells_what_a_connection_has_taken():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as connection:
        assert taken_bytes(connection) == 0
        for count in (1, 2, 3):
            connection.sendall(b"x" * 100)
            assert taken_bytes(connection) == 100 * count
        with server.accept()[0] as accepted:
            accepted.sendall(b"y" * 5000)
        assert taken_bytes(connection) == 300


def test_also_what_could_not_be_sent_yet():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as connection:
        connection.setblocking(False)
        sent = 0
        try:
            while True:
                sent += connection.send(b"x" * 100_000)
        except BlockingIOError:
            pass
        assert taken_bytes(connection) == sent


@pytest.fixture
def worker():
    """A seat with a process that sleeps."""
    seat = Seat(lambda: None)
    theirs = seat.prepare()
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    theirs.close()
    seat.fill(pid)
    yield seat
    if seat.pid:
        os.kill(seat.pid, signal.SIGKILL)
        seat.reap()


def test_an_overdue_worker_is_killed(worker):
    worker.record.serve("id", "")
    worker.record.replace_at(time.monotonic() - 0.001, 2.5)
    worker.kill_if_overdue()
    assert worker.timed_out_seconds == 2.5
    assert worker.reap() == -signal.SIGKILL


@pytest.mark.parametrize("how", ["not yet", "taken back", "already answered"])
def test_one_that_is_not_overdue_lives_on(worker, how):
    worker.record.serve("id", "")
    worker.record.replace_at({"not yet": time.monotonic() + 60, "taken back": 0.0}.get(how, time.monotonic() - 1), 2.5)
    if how == "already answered":
        worker.record.stage = Stage.ANSWERED
    worker.kill_if_overdue()
    assert worker.timed_out_seconds is None
    wait_until(lambda: stat_of(worker.pid) == "S")


def stat_of(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def test_a_record_keeps_ids_of_any_length_lambda_gives_and_forgets_longer_ones():
    seat = Seat(lambda: None)
    for request_id, invocation_id in (("a" * 36, "b" * 36), ("ä", ""), ("", "")):
        seat.record.serve(request_id, invocation_id)
        assert seat.record.served == (request_id, invocation_id)
    seat.record.serve("a" * 5000, "b")
    assert seat.record.served == ("", "")
    assert seat.record.stage is Stage.SERVING
