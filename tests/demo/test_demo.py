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

from typing import TYPE_CHECKING, Any

from perinvoke import demo
from perinvoke.demo import experiment, show
from perinvoke.demo.experiment import HAZARDS, Finding, Hazard
from perinvoke.demo.figures import Count, Memory
from perinvoke.demo.verdict import memory_share, problems
from perinvoke.errors import LocalError

if TYPE_CHECKING:
    from perinvoke.local import LocalEnvironment

COMMAND = [sys.executable, "-m", "perinvoke.cli", "demo"]


def findings(*, bare: int = 5, protected: int = 0, share: float = 0.25) -> list[Finding]:
    """All as it should be, but for the first hazard's figures and the share of memory."""
    first, *others, last = HAZARDS
    return [
        Finding(first, bare=Count(bare, 10), protected=Count(protected, 10)),
        *(Finding(hazard, bare=Count(7, 10), protected=Count(0, 10)) for hazard in others),
        Finding(last, bare=Memory(400 * 2**20), protected=Memory(int(400 * share) * 2**20)),
    ]


def environment(temp_directory: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(temp_directory), "PYTHONUNBUFFERED": "1"}


class TestOnTheRealRuntime:
    @pytest.mark.slow
    def test_every_hazard_hits_bare_and_none_with_perinvoke(self, tmp_path: Path) -> None:
        done = subprocess.run(COMMAND, capture_output=True, text=True, timeout=100, check=False, env=environment(tmp_path))
        assert done.returncode == 0, done.stdout + done.stderr
        for hazard in HAZARDS:
            row = re.search(
                rf"\| {re.escape(hazard.what)}[ *+]*\| +(\d+) (?:of (\d+)|MiB) \| +(\d+) (?:of \d+|MiB) \|", done.stdout
            )
            assert row, hazard.what
            bare, protected = int(row[1]), int(row[3])
            if row[2] is None:
                assert 10 < protected <= bare / 2
            else:
                assert 0 < bare <= int(row[2])
                assert protected == 0
        assert "none hit one with perinvoke" in done.stdout
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
        async def figure(environment: LocalEnvironment) -> Count:
            return Count(0, len(await experiment.results(environment, [{"wrong": "event"}] * 3)))

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


@pytest.mark.parametrize("has_rollup", [True, False])
def test_memory_is_the_sum_of_proportional_set_sizes(monkeypatch: pytest.MonkeyPatch, *, has_rollup: bool) -> None:
    if not has_rollup:
        monkeypatch.setattr("os.access", lambda *_: False)
    alone = Memory.of([os.getpid()])
    assert 5 * 2**20 < alone.byte_count < 2**31
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    try:
        assert Memory.of([os.getpid(), child]).byte_count < 1.5 * alone.byte_count  # what they share counts once
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


class TestVerdict:
    def test_all_as_it_should_be(self) -> None:
        assert problems(findings()) == []

    def test_a_leak_names_the_hazard_and_the_figure(self) -> None:
        (problem,) = problems(findings(protected=3))
        assert HAZARDS[0].what in problem
        assert "3 of 10" in problem
        assert "perinvoke failed" in problem

    def test_a_bare_zero_proves_nothing(self) -> None:
        (problem,) = problems(findings(bare=0))
        assert HAZARDS[0].what in problem
        assert "Nothing proven" in problem

    def test_memory_that_is_not_saved_is_told(self) -> None:
        (problem,) = problems(findings(share=0.75))
        assert HAZARDS[-1].what in problem
        assert "300 MiB, more than 50% of 400 MiB" in problem
        assert memory_share(findings()[-1]) == 0.25

    def test_both_are_told(self) -> None:
        assert len(problems(findings(bare=0, protected=1))) == 2


class TestShowing:
    @pytest.mark.parametrize(("wrong", "code"), [({}, 0), ({"protected": 1}, 1), ({"share": 0.9}, 1), ({"bare": 0}, 1)])
    def test_exit_code_follows_the_figures(
        self, wrong: dict[str, Any], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        async def found(*_: object, **__: object) -> list[Finding]:
            return findings(**wrong)

        monkeypatch.setattr(show, "find", found)
        assert demo.main() == code
        out = capsys.readouterr().out
        assert ("none hit one with perinvoke" in out) == (code == 0)

    @pytest.mark.parametrize("colour", [True, False])
    def test_colour_only_where_it_is_wanted(self, *, colour: bool, capsys: pytest.CaptureFixture[str]) -> None:
        show.print_findings(findings(protected=3), show.console(colour=colour))
        out = capsys.readouterr().out
        assert ("\x1b[" in out) == colour
        assert "3 of 10" in out
        assert "perinvoke failed" in out

    def test_plain_rows_are_never_folded(self, capsys: pytest.CaptureFixture[str]) -> None:
        show.print_findings(findings(), show.console(colour=False))
        out = capsys.readouterr().out
        assert all(any(line.startswith(f"| {hazard.what}") for line in out.splitlines()) for hazard in HAZARDS)
        out.encode("ascii")

    def test_declared_state_and_the_exec_wrapper_are_marked(self, capsys: pytest.CaptureFixture[str]) -> None:
        show.print_findings(findings(), show.console(colour=False))
        rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
        assert [line for line in rows if " * " in line] == [line for line in rows if "module state" in line]
        marked = [hazard.what in row for hazard in HAZARDS for row in rows if " + " in row]
        assert sum(marked) == sum(hazard.supervise for hazard in HAZARDS) == 3

    def test_the_memory_that_is_saved_is_told(self, capsys: pytest.CaptureFixture[str]) -> None:
        show.print_findings(findings(), show.console(colour=False))
        assert "Its workers take 25% of the memory." in capsys.readouterr().out


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
