"""What is decided without processes: when PgBouncer is started again, what of its log is told, what the platform has answered."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perinvoke.pgbouncer.extension_api import parse_answer
from perinvoke.pgbouncer.log import Lines, Log, is_routine, parse_line
from perinvoke.pgbouncer.restarts import Restarts


def test_the_first_death_costs_no_time_and_more_in_a_row_cost_ever_more():
    restarts = Restarts()
    delays = []
    while not restarts.are_too_many():
        restarts.died(0.0)
        delays.append(restarts.delay_seconds())
    assert delays == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2]


def test_one_that_has_lived_begins_the_count_anew():
    restarts = Restarts()
    for lived in [0.0] * 6 + [1.0]:
        restarts.died(lived)
    assert (restarts.delay_seconds(), restarts.are_too_many()) == (0, False)


@pytest.mark.parametrize(
    ("line", "parsed", "routine"),
    [
        (
            "2026-11-25 07:50:38.441 UTC [10760] WARNING C-0x55ae3faa1230: d/u@unix(1):6432 pooler error: query_wait_timeout",
            ("WARN", "client: pooler error: query_wait_timeout"),
            False,
        ),
        (
            "2026-11-25 07:50:38.4 UTC [1] LOG S-0x55ae3faa1230: d/u@127.0.0.1:5432 closing because: connect failed (age=0s)",
            ("INFO", "server: closing because: connect failed (age=0s)"),
            False,
        ),
        (
            "2026-11-25 07:50:38.4 UTC [1] LOG S-0x55ae: d/u@127.0.0.1:5432 closing because: server idle timeout (age=61s)",
            ("INFO", "server: closing because: server idle timeout (age=61s)"),
            True,
        ),
        (
            "2026-11-25 07:50:38.4 UTC [1] LOG C-0x55ae: d/u@unix(1):6432 closing because: client close request (age=0s)",
            ("INFO", "client: closing because: client close request (age=0s)"),
            True,
        ),
        ("2026-11-25 07:50:38.432 UTC [1] LOG process up: PgBouncer 1.18.0", ("INFO", "process up: PgBouncer 1.18.0"), True),
        ("2026-11-25 07:50:18.469 UTC [1] FATAL cannot load config file", ("ERROR", "cannot load config file"), False),
        ("FATAL /x can't be started: no", ("ERROR", "/x can't be started: no"), False),
        ("something else", ("INFO", "something else"), True),
    ],
)
def test_a_line_of_pgbouncers(line, parsed, routine):
    assert parse_line(line) == parsed
    assert is_routine(*parsed) is routine


class Written:
    """What a log has written."""

    def __init__(self, **options: object) -> None:
        self._reading, writing = os.pipe()
        os.set_blocking(writing, False)
        os.set_blocking(self._reading, False)
        self.log = Log(**{"as_json": True, "level": "", **options}, fd=writing)  # type: ignore[arg-type]

    def messages(self) -> list[str]:
        lines = Lines(self._reading)
        return [json.loads(line)["message"] for line in lines.read()]


def test_no_password_is_written_whoever_writes_it():
    written = Written()
    written.log.hide('pass"word')
    written.log.write("WARN", 'it is pass"word')
    written.log.take('x y UTC [1] ERROR invalid value "pass"word" for parameter')
    assert written.messages() == ["it is ***", 'invalid value "***" for parameter']
    assert 'pass"word' not in written.log.last_lines()


def test_the_same_is_told_once_and_then_how_often_it_was_left_out(monkeypatch):
    written = Written()
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    for age in range(50):
        written.log.take(f"LOG S-0x{age:x}: d/u@h:1 closing because: connect failed (age={age}s)")
    now = 111.0
    written.log.take("LOG S-0x1: d/u@h:1 closing because: connect failed (age=0s)")
    first, second = written.messages()
    assert first == "server: closing because: connect failed (age=0s)"
    assert second == "server: closing because: connect failed (age=0s) (49 times more since it was last told)"


def test_it_says_when_the_server_refuses_the_login():
    log = Written().log
    assert log.take('WARNING server login failed: FATAL password authentication failed for user "app"')
    assert log.take('ERROR S: login failed: FATAL: password authentication failed for user "app"')
    assert not log.take("LOG S-0x1: d/u@h:1 closing because: connect failed (age=0s)")


def test_the_functions_log_level_counts_and_a_log_that_nobody_reads_is_lost():
    written = Written(level="WARN")
    written.log.write("INFO", "not this")
    for _ in range(1_000):
        written.log.write("WARN", "x" * 1_000)  # more than a pipe takes
    assert "not this" not in written.messages()


@given(st.lists(st.binary(max_size=50), max_size=20))
def test_lines_are_read_as_they_were_written_however_they_come(chunks):
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    lines = Lines(reading)
    found = []
    for chunk in chunks:
        os.write(writing, chunk)
        found += lines.read()
    os.close(writing)
    while not lines.ended:
        found += lines.read()
    os.close(reading)
    assert found == [line.decode(errors="replace") for line in b"".join(chunks).split(b"\n") if line.strip()]


@pytest.mark.parametrize(
    ("received", "parsed"),
    [
        (b"HTTP/1.1 200 OK\r\nLambda-Extension-Identifier: x:y\r\n\r\n{}", (200, {"lambda-extension-identifier": "x:y"}, b"{}")),
        (b"HTTP/1.0 403 Forbidden\r\n\r\n", (403, {}, b"")),
        (b"", None),
        (b"HTTP/1.0 200 OK\r\n", None),
        (b"nonsense\r\n\r\n", None),
        (b"HTTP/1.0 x\r\n\r\n", None),
    ],
)
def test_an_answer_of_the_platform(received, parsed):
    assert parse_answer(received) == parsed


@given(st.binary())
def test_any_bytes_are_an_answer_or_none(received):
    parse_answer(received)
