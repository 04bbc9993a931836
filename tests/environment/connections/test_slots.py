"""Slots between real processes: who holds one, what a dead holder leaves, and what somebody who sweeps does."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time

import pytest

from perinvoke.environment.connections import board as states
from perinvoke.environment.connections import slots
from perinvoke.environment.connections.network_end import NetworkEnd, open_at_server
from perinvoke.environment.connections.slots import NOTICE_SECONDS, OPENING_NOTICE_SECONDS, SlotDirectory, open_slots
from processes import Process, wait_until

HOLDS = """
from perinvoke.environment.connections import board, network_end, slots
import socket
directory = slots.open_slots({path!r}, {count})
held = [directory.try_take() for _ in range({take})]
{more}
print("holds", flush=True)
time.sleep(60)
"""


@pytest.fixture
def path(tmp_path):
    return str(tmp_path)


def opened(path: str, count: int) -> SlotDirectory:
    directory = open_slots(path, count)
    assert isinstance(directory, SlotDirectory)
    return directory


def test_a_slot_is_held_by_one(path):
    one, other = opened(path, 2), opened(path, 2)
    first, second = one.try_take(), other.try_take()
    assert first is not None
    assert second is not None
    assert first.number != second.number
    assert other.try_take() is None
    first.release()
    assert one.try_take() is not None


def test_a_slot_that_was_given_back_in_the_middle_of_connecting_is_free_a_while_later(path):
    directory = opened(path, 1)
    slot = directory.try_take()
    assert slot is not None
    started = time.monotonic()
    slot.release(half_open=True)
    wait_until(directory.try_take)
    assert time.monotonic() - started >= OPENING_NOTICE_SECONDS - 0.01


def test_the_slot_of_a_process_that_was_killed_without_a_connection_is_free_at_once(path):
    with Process(HOLDS.format(path=path, count=1, take=1, more="")) as other:
        assert other.line() == "holds"
        directory = opened(path, 1)
        assert directory.try_take() is None
        os.kill(other.popen.pid, signal.SIGKILL)
        other.popen.wait(10)
        assert directory.try_take() is not None


def test_one_that_was_killed_with_a_connection_that_nobody_can_see_is_free_a_moment_later(path):
    more = "directory.board.write_state(held[0].number, board.IN_USE)"
    with Process(HOLDS.format(path=path, count=1, take=1, more=more)) as other:
        assert other.line() == "holds"
        directory = opened(path, 1)
        os.kill(other.popen.pid, signal.SIGKILL)
        other.popen.wait(10)
        started = time.monotonic()
        assert directory.try_take() is None
        wait_until(directory.try_take)
        assert time.monotonic() - started >= NOTICE_SECONDS - 0.01


def test_one_that_was_killed_with_a_connection_is_free_when_the_server_has_closed_it(path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        more = f"c = socket.create_connection(('127.0.0.1', {listener.getsockname()[1]}))\n"
        more += "directory.board.write_state(held[0].number, board.IN_USE, network_end.NetworkEnd(c.fileno()).endpoints)"
        with Process(HOLDS.format(path=path, count=1, take=1, more=more)) as other:
            assert other.line() == "holds"
            ours, _ = listener.accept()
            directory = opened(path, 1)
            os.kill(other.popen.pid, signal.SIGKILL)
            other.popen.wait(10)
            until = time.monotonic() + 2 * NOTICE_SECONDS
            while time.monotonic() < until:
                assert directory.try_take() is None  # the server goes on with its end
                time.sleep(0.02)
            monkeypatch.setattr(slots, "NOTICE_SECONDS", 3600.0)  # nothing is waited for that the kernel tells
            ours.close()
            wait_until(directory.try_take)


def test_a_port_that_is_used_again_by_the_living_does_not_block_the_slot_of_the_dead(path):
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as living:
        endpoints = NetworkEnd(living.fileno()).endpoints
        assert open_at_server(endpoints) is True
        directory = opened(path, 2)
        mine = directory.try_take()
        assert mine is not None
        directory.board.write_state(mine.number, states.IN_USE, endpoints)
        directory.board.write_state(1 - mine.number, states.IN_USE, endpoints)  # what a dead one had written
        assert directory.try_take() is not None


def test_who_sweeps_takes_slots_away_and_their_holders_see_it(path):
    directory = opened(path, 1)
    slot = directory.try_take()
    assert slot is not None
    assert not slot.is_lost()
    assert not directory.is_swept()
    shutil.rmtree(path)
    assert slot.is_lost()
    assert directory.is_swept()
    slot.release()


def test_others_go_by_another_number(path):
    opened(path, 2)
    assert open_slots(path, 3) == 2


def test_a_forked_child_holds_nothing_of_its_parents(path):
    directory = opened(path, 1)
    slot = directory.try_take()
    assert slot is not None
    pid = os.fork()
    if not pid:
        slot.close()
        directory.close()
        time.sleep(30)
        os._exit(0)
    try:
        slot.release()
        assert opened(path, 1).try_take() is not None
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
