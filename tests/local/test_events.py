from __future__ import annotations

from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

from perinvoke.errors import EventsFileError
from perinvoke.local.events import read_events
from perinvoke.local.outcome import MAX_REQUEST_BYTES


def test_each_line_is_an_event_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n  \n"\xc3\xa4"\n[1, 2]')
    assert read_events(path) == [b'{"a": 1}', b'"\xc3\xa4"', b"[1, 2]"]


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        (b'{"a": 1}\n\n{"b": 2\n', 3, "line 3 is not JSON"),
        (b"{\n  1\n}\n", 1, "one whole event on each line"),
        (b'1\n"\xff"\n', 2, "line 2 is not UTF-8: byte 0xff at column 2"),
        (b"1\n" + b"[" * 100_000 + b"\n", 2, "line 2"),
        (b'1\n"' + b"x" * MAX_REQUEST_BYTES + b'"\n', 2, "line 2 has 6291458 bytes; Lambda allows 6291456"),
        (b"1\n" + b"9" * 5_000 + b"\n", 2, "line 2 holds a whole number with too many digits"),
        (b'1\n{"a": NaN}\n', 2, "line 2 is not JSON: NaN"),
        (b"1\n-Infinity\n", 2, "line 2 is not JSON: -Infinity"),
        ('{"a": 1}'.encode("utf-16"), 1, "line 1 is not UTF-8"),
        (b"", 0, "holds no event"),
        (b"\n \n", 0, "holds no event"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, content: bytes, line: int, message: str) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(content)
    with pytest.raises(EventsFileError, match=message) as caught:
        read_events(path)
    assert (caught.value.path, caught.value.line) == (str(path), line)
    assert str(path) in str(caught.value)


def test_a_dash_is_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(b"1\n2\n")))
    assert read_events(Path("-")) == [b"1", b"2"]
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(b"1\n{\n")))
    with pytest.raises(EventsFileError, match="stdin, line 2 is not JSON"):
        read_events(Path("-"))
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(EventsFileError, match="stdin holds no event"):
        read_events(Path("-"))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(EventsFileError, match="No such file"):
        read_events(tmp_path / "none")
    with pytest.raises(EventsFileError, match="Is a directory"):
        read_events(tmp_path)
