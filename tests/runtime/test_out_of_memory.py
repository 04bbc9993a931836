from __future__ import annotations

import pytest

from perinvoke.runtime.out_of_memory import OutOfMemory


@pytest.fixture
def counters(tmp_path):
    files = [tmp_path / "vmstat", tmp_path / "events"]
    return files, OutOfMemory(files)


def test_a_worker_was_out_of_memory_if_either_counter_went_up(counters):
    (machine, group), memory = counters
    assert not memory.killed(-9)
    group.write_text("low 0\noom 4\noom_kill 1\n")
    assert memory.killed(-9)
    assert not memory.killed(-9)
    machine.write_text("pgfault 5\noom_kill 2\n")
    assert [memory.killed(-9) for _ in range(3)] == [True, True, False]


def test_only_sigkill_is_a_memory_kill(counters):
    (machine, _), memory = counters
    machine.write_text("oom_kill 1\n")
    assert not memory.killed(-11)
    assert not memory.killed(137)
    assert memory.killed(-9)


def test_what_was_counted_two_ticks_ago_was_no_worker(counters):
    (machine, _), memory = counters
    machine.write_text("oom_kill 1\n")
    memory.tick()
    memory.tick()
    assert not memory.killed(-9)
    machine.write_text("oom_kill 2\n")
    memory.tick()
    assert memory.killed(-9)
