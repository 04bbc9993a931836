"""``perinvoke demo``, once for real; and what it says of figures that it should never see."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("awslambdaric")

from typing import TYPE_CHECKING

from perinvoke import demo
from perinvoke.demo import experiment, show
from perinvoke.demo.experiment import HAZARDS, Figure, Finding, Hazard
from perinvoke.demo.verdict import problems
from perinvoke.errors import LocalError

if TYPE_CHECKING:
    from perinvoke.local import LocalEnvironment

COMMAND = [sys.executable, "-m", "perinvoke.cli", "demo"]


def findings(*, bare: int = 5, isolated: int = 0) -> list[Finding]:
    """All as it should be, but for the first hazard's figures."""
    right = [Finding(hazard, bare=Figure(7, 10), isolated=Figure(0, 10)) for hazard in HAZARDS[1:]]
    return [Finding(HAZARDS[0], bare=Figure(bare, 10), isolated=Figure(isolated, 10)), *right]


def environment(temp_directory: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(temp_directory), "PYTHONUNBUFFERED": "1"}


class TestOnTheRealRuntime:
    def test_every_hazard_hits_bare_and_none_isolated(self, tmp_path: Path) -> None:
        done = subprocess.run(COMMAND, capture_output=True, text=True, timeout=100, check=False, env=environment(tmp_path))
        assert done.returncode == 0, done.stdout + done.stderr
        for hazard in HAZARDS:
            row = re.search(rf"\| {re.escape(hazard.what)}[ *]*\| +(\d+) of (\d+) \| +(\d+) of \d+ \|", done.stdout)
            assert row, hazard.what
            bare, out_of, isolated = map(int, row.groups())
            assert 0 < bare <= out_of
            assert isolated == 0
        assert "none hit an isolated one" in done.stdout
        assert "\x1b" not in done.stdout
        assert done.stderr == ""
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_a_signal_leaves_no_file_and_no_process(self, tmp_path: Path, number: signal.Signals) -> None:
        with subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(tmp_path)) as process:
            until = time.monotonic() + 30
            while not list(tmp_path.glob("perinvoke-demo-*/*/journal.txt")) and time.monotonic() < until:
                time.sleep(0.05)  # until the first environment serves
            process.send_signal(number)
            _, errors = process.communicate(timeout=30)
        assert process.returncode == 128 + number, errors
        assert errors == b""
        assert list(tmp_path.iterdir()) == []
        assert running_with(str(tmp_path)) == []

    def test_a_failing_invocation_is_an_error_and_no_figure(self, tmp_path: Path) -> None:
        async def figure(environment: LocalEnvironment) -> Figure:
            return Figure(0, len(await experiment.results(environment, [{"wrong": "event"}] * 3)))

        with pytest.raises(LocalError, match=r"an invocation of the demo failed.*'seconds'"):
            asyncio.run(experiment.find([Hazard("never", "journal", figure)], tmp_path))


def test_files_are_counted_while_directories_are_being_removed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    enough = threading.Event()

    def make_and_remove() -> None:
        while not enough.is_set():
            for name in range(20):
                (tmp_path / f"{name}" / "below").mkdir(parents=True)
            for name in range(20):
                (tmp_path / f"{name}" / "below").rmdir()
                (tmp_path / f"{name}").rmdir()

    maker = threading.Thread(target=make_and_remove)
    maker.start()
    try:
        for _ in range(500):
            assert experiment._count_files(tmp_path) == 1
    finally:
        enough.set()
        maker.join()


class TestVerdict:
    def test_all_as_it_should_be(self) -> None:
        assert problems(findings()) == []

    def test_a_leak_names_the_hazard_and_the_figure(self) -> None:
        (problem,) = problems(findings(isolated=3))
        assert HAZARDS[0].what in problem
        assert "3 of 10" in problem
        assert "Isolation failed" in problem

    def test_a_bare_zero_proves_nothing(self) -> None:
        (problem,) = problems(findings(bare=0))
        assert HAZARDS[0].what in problem
        assert "Nothing proven" in problem

    def test_both_are_told(self) -> None:
        assert len(problems(findings(bare=0, isolated=1))) == 2


class TestShowing:
    @pytest.mark.parametrize(("wrong", "code"), [({}, 0), ({"isolated": 1}, 1), ({"bare": 0}, 1)])
    def test_exit_code_follows_the_figures(
        self, wrong: dict[str, int], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        async def found(*_: object, **__: object) -> list[Finding]:
            return findings(**wrong)

        monkeypatch.setattr(show, "find", found)
        assert demo.main() == code
        out = capsys.readouterr().out
        assert ("none hit an isolated one" in out) == (code == 0)

    @pytest.mark.parametrize("colour", [True, False])
    def test_colour_only_where_it_is_wanted(self, *, colour: bool, capsys: pytest.CaptureFixture[str]) -> None:
        show.print_findings(findings(isolated=3), show.console(colour=colour))
        out = capsys.readouterr().out
        assert ("\x1b[" in out) == colour
        assert "3 of 10" in out
        assert "Isolation failed" in out

    def test_plain_rows_are_never_folded(self, capsys: pytest.CaptureFixture[str]) -> None:
        show.print_findings(findings(), show.console(colour=False))
        out = capsys.readouterr().out
        assert all(any(line.startswith(f"| {hazard.what}") for line in out.splitlines()) for hazard in HAZARDS)
        out.encode("ascii")

    def test_only_declared_state_is_marked(self, capsys: pytest.CaptureFixture[str]) -> None:
        show.print_findings(findings(), show.console(colour=False))
        rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
        assert [line for line in rows if " * " in line] == [line for line in rows if "module state" in line]


def running_with(text: str) -> list[int]:
    """Processes that have ``text`` in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int(entry.name) != os.getpid() and text.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            pass  # gone, or another user's
    return found
