from __future__ import annotations

import os
import time
from io import StringIO
from typing import TYPE_CHECKING, TextIO

import pytest

from perinvoke.local import printing
from perinvoke.local.printing import Printer
from processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def pipe() -> Iterator[tuple[TextIO, TextIO]]:
    reading, writing = os.pipe()
    with os.fdopen(reading) as reader, os.fdopen(writing, "w", encoding="utf-8") as writer:
        yield reader, writer


def test_lines_are_written_in_order_and_all_of_them_before_the_end(pipe: tuple[TextIO, TextIO]) -> None:
    reader, writer = pipe
    printer = Printer(lambda: writer)
    for number in range(1_000):
        printer.put(f"line {number}")
    printer.close()
    writer.close()
    assert reader.read() == "".join(f"line {number}\n" for number in range(1_000))


def test_without_a_reader_putting_and_closing_take_no_longer_than_their_bounds(
    pipe: tuple[TextIO, TextIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = pipe
    monkeypatch.setattr(printing, "MAX_WAITING_CHARACTERS", 100_000)
    printer = Printer(lambda: writer)
    began = time.monotonic()
    for _ in range(10_000):
        printer.put("x" * 100)
    printer.close(0.1)
    assert time.monotonic() - began < 5
    os.set_blocking(reader.fileno(), False)
    text = ""
    until = time.monotonic() + 10
    while not text.endswith("dropped\n") and time.monotonic() < until:
        try:
            text += os.read(reader.fileno(), 65_536).decode()
        except BlockingIOError:
            time.sleep(0.001)
    *lines, told = text.splitlines()
    assert set(lines) == {"x" * 100}
    assert told == f"-------- {10_000 - len(lines)} log lines dropped"
    assert len(lines) * 101 < 100_000 + 65_536 * 3


def test_a_pipe_that_another_process_made_non_blocking_loses_nothing(pipe: tuple[TextIO, TextIO]) -> None:
    reader, writer = pipe
    os.set_blocking(writer.fileno(), False)
    printer = Printer(lambda: writer)
    for number in range(20_000):
        printer.put(f"{number:09}")
    text = "".join(reader.readline() for _ in range(20_000))
    assert text == "".join(f"{number:09}\n" for number in range(20_000))
    printer.close()


def test_a_write_that_fails_is_told_once_and_ends_it() -> None:
    errors: list[OSError] = []
    with open("/dev/full", "w", encoding="utf-8") as full:
        printer = Printer(lambda: full, on_error=errors.append)
        printer.put("one")
        wait_until(lambda: errors)
        printer.put("two")
        printer.close()
    (error,) = errors
    assert error.strerror == "No space left on device"


def test_a_stream_without_a_descriptor_is_written_to_as_it_is() -> None:
    stream = StringIO()
    printer = Printer(lambda: stream)
    printer.put("line")
    printer.close()
    assert stream.getvalue() == "line\n"
