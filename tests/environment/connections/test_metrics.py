from __future__ import annotations

import json
import os
from typing import Any

import pytest

from perinvoke.environment.connections import board as states
from perinvoke.environment.connections.board import Board, open_board
from perinvoke.environment.connections.figures import Stats, read_stats
from perinvoke.environment.connections.metrics import METRICS, due_line


@pytest.fixture
def path(tmp_path):
    return str(tmp_path)


def stats_of(path: str, **counts: int) -> Stats:
    board = open_board(f"{path}/board", 2)
    assert isinstance(board, Board)
    board.add(0, **counts)
    board.add_wait(0, 0.02)
    board.write_state(0, states.IDLE)
    return read_stats(path, name="the-pool", max_connections=2)


def told(*args: Any, **options: Any) -> str:
    line = due_line(*args, **options)
    assert line is not None
    return line


def test_a_line_has_what_cloudwatch_needs(path):
    fields = json.loads(told(path, stats_of(path, connects=3), "orders"))
    (directive,) = fields["_aws"]["CloudWatchMetrics"]
    assert directive["Namespace"] == "perinvoke"
    assert directive["Dimensions"] == [["FunctionName", "Pool"]]
    assert (fields["FunctionName"], fields["Pool"]) == ("orders", "the-pool")
    assert fields["_aws"]["Timestamp"] > 1_700_000_000_000
    for metric in directive["Metrics"]:
        assert isinstance(fields[metric["Name"]], int | float)
        assert metric["Unit"] in {"Count", "Milliseconds"}
    assert (fields["Connects"], fields["MaxConnections"], fields["Waits"]) == (3, 2, 1)
    assert 20 <= fields["WaitP50"] <= 30


def test_counters_tell_what_has_happened_since_the_last_line(path):
    first = json.loads(told(path, stats_of(path, connects=3, leaks=1), "f", period_seconds=0))
    second = json.loads(told(path, stats_of(path, connects=2), "f", period_seconds=0))
    assert (first["Connects"], first["Leaks"], first["Waits"]) == (3, 1, 1)
    assert (second["Connects"], second["Leaks"], second["Waits"]) == (2, 0, 1)


def test_one_worker_tells_it_once_in_a_period(path):
    stats = stats_of(path, connects=1)
    assert due_line(path, stats, "f") is not None
    assert due_line(path, stats, "f") is None
    pid = os.fork()
    if not pid:
        os._exit(0 if due_line(path, stats, "f") is None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("noted", [b"", b"{", b"[]", b"null", b'{"at": 1}', b'{"at": "x", "waited": []}'])
def test_a_note_that_is_not_whole_is_none(path, noted):
    stats = stats_of(path, connects=4)
    with open(f"{path}/{METRICS}", "wb") as file:
        file.write(noted)
    assert json.loads(told(path, stats, "f"))["Connects"] == 4
