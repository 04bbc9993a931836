from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perinvoke.environment.connections import board as states
from perinvoke.environment.connections.board import COLUMNS, Board, column, open_board, percentile
from perinvoke.environment.connections.figures import read_stats

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "board")


def opened(path: str, slots: int) -> Board:
    board = open_board(path, slots)
    assert isinstance(board, Board)
    return board


def test_what_a_holder_writes_everybody_reads(path):
    mine, other = opened(path, 3), opened(path, 3)
    mine.write_state(1, states.IN_USE, "0100007F:1538 0100007F:D2F0")
    mine.add(1, connects=1, leaks=2)
    mine.add(1, connects=1, resets=5)
    line = other.lines()[1]
    assert (line.state, line.pid, line.endpoints) == (states.IN_USE, os.getpid(), "0100007F:1538 0100007F:D2F0")
    assert (line.connects, line.reconnects, line.resets, line.leaks) == (2, 0, 5, 2)
    assert [line.state for line in other.lines()] == [states.FREE, states.IN_USE, states.FREE]


def test_the_longest_endpoints_fit(path):
    longest = f"{'F' * 32}:FFFF {'F' * 32}:FFFF"
    board = opened(path, 1)
    board.write_state(0, states.IDLE, longest)
    assert board.line(0).endpoints == longest


def in_another_process(work: Callable[[], object]) -> None:
    pid = os.fork()
    if not pid:
        work()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_it_is_wanted_while_another_process_says_so(path):
    board = opened(path, 1)
    assert not board.is_wanted_elsewhere()
    board.want()
    assert not board.is_wanted_elsewhere()
    in_another_process(lambda: opened(path, 1).want())
    assert board.is_wanted_elsewhere()
    in_another_process(lambda: opened(path, 1).want(now=False))
    assert not board.is_wanted_elsewhere()


def test_those_who_use_it_go_by_one_number(path):
    first = opened(path, 3)
    assert open_board(path, 4) == 3
    first.close()
    assert opened(path, 4).slots == 4  # nobody used it any more


def test_a_new_environment_counts_from_nought_but_knows_what_the_dead_have_left(path):
    board = opened(path, 2)
    board.write_state(1, states.IN_USE, "a b")
    board.add(1, connects=7)
    board.add_wait(1, 0.5)
    board.close()
    line = opened(path, 2).line(1)
    assert (line.connects, sum(line.waits)) == (0, 0)
    assert (line.state, line.endpoints) == (states.IN_USE, "a b")


def test_a_board_that_is_not_whole_is_written_anew(path):
    with open(path, "wb") as file:
        file.write(b"perinv01\x03")
    assert [line.state for line in opened(path, 3).lines()] == [states.FREE] * 3


def test_figures_of_a_board_that_is_just_being_written_are_nought(tmp_path):
    (tmp_path / "board").write_bytes(b"perinv01")
    stats = read_stats(str(tmp_path), name="x", max_connections=3)
    assert (stats.open, stats.waits, stats.wait_p99_seconds) == (0, 0, 0.0)


@given(st.floats(min_value=0, max_value=4_000))
def test_a_wait_is_counted_in_a_column_that_reaches_as_far(seconds):
    counts = [0] * COLUMNS
    counts[column(seconds)] = 1
    told = percentile(counts, 0.99)
    assert seconds <= told * 1.0001
    assert told <= max(1e-5, seconds * 1.5001)


def test_percentiles_are_those_of_all_waits(path):
    board = opened(path, 1)
    for _ in range(99):
        board.add_wait(0, 0.001)
    board.add_wait(0, 3.0)
    waits = board.line(0).waits
    assert sum(waits) == 100
    assert 0.001 <= percentile(waits, 0.5) <= 0.0015
    assert percentile(waits, 0.99) <= 0.0015
    assert 3 <= percentile(waits, 0.995) <= 4.5
    assert percentile([], 0.5) == 0.0
