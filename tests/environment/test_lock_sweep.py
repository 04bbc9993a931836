from __future__ import annotations

import fcntl
import os
import threading
import time
from typing import TYPE_CHECKING

import filelock
import pytest

from perinvoke import file_lock
from perinvoke.environment import lock_sweep
from perinvoke.environment.lock_sweep import NoSweep, sweep

if TYPE_CHECKING:
    from pathlib import Path

HOUR = 3600


@pytest.fixture
def locks(root: Path) -> Path:
    path = root / "locks"
    path.mkdir(parents=True)
    root.chmod(0o700)
    return path


def old(path: Path) -> Path:
    path.touch()
    os.utime(path, (time.time() - HOUR, time.time() - HOUR))
    return path


def test_an_idle_old_lock_file_goes_and_others_stay(locks):
    idle = old(locks / "idle.lock")
    stay = [old(locks / "readme.txt"), locks / "young.lock", locks / "directory.lock"]
    stay[1].touch()
    stay[2].mkdir()
    (locks / "link.lock").symlink_to(stay[0])
    assert sweep(str(locks)) == 1
    assert not idle.exists()
    assert all(path.exists() for path in stay)


def test_a_held_lock_stays_whoever_holds_it(locks):
    old(locks / "ours.lock")
    old(locks / "theirs.lock")
    with file_lock("ours"), filelock.FileLock(locks / "theirs.lock"):
        os.utime(locks / "ours.lock", (0, 0))
        os.utime(locks / "theirs.lock", (0, 0))
        assert sweep(str(locks)) == 0
    os.utime(locks / "ours.lock", (0, 0))
    os.utime(locks / "theirs.lock", (0, 0))
    assert sweep(str(locks)) == 2


def test_one_sweep_takes_a_bounded_time_and_all_come_to_their_turn(locks, monkeypatch):
    for number in range(250):
        old(locks / f"{number}.lock")
    monkeypatch.setattr(lock_sweep, "_MAX_SWEEP_SECONDS", 0.0)
    assert sweep(str(locks)) == lock_sweep._BATCH
    monkeypatch.undo()
    assert sweep(str(locks)) == 150
    assert list(locks.iterdir()) == []


def test_a_missing_directory_has_nothing_to_sweep(tmp_path):
    assert sweep(str(tmp_path / "missing")) == 0


def test_while_a_try_is_repeated_nothing_is_swept(locks):
    old(locks / "idle.lock")
    with NoSweep(str(locks)) as no_sweep:
        assert no_sweep.holds
        assert sweep(str(locks)) == 0


def test_a_sweep_that_stands_still_holds_up_no_try(locks):
    fd = os.open(locks, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    started = time.monotonic()
    with NoSweep(str(locks)) as no_sweep:
        assert not no_sweep.holds
    assert time.monotonic() - started < 5
    os.close(fd)


def test_a_free_lock_is_never_told_to_be_taken_and_never_split_while_sweeps_go_on(locks, monkeypatch):
    """A lock that nobody else wants must be had at every try; one that four wait for must never be held by two."""
    monkeypatch.setattr(lock_sweep, "_MIN_AGE_SECONDS", -1.0)
    stop = threading.Event()
    swept: list[int] = []
    counter = locks.parent / "counter"
    counter.write_text("0")

    def sweep_on() -> None:
        while not stop.is_set():
            swept.append(sweep(str(locks)))

    def count() -> None:
        for _ in range(100):
            with file_lock("counted", timeout=30):
                counter.write_text(str(int(counter.read_text()) + 1))

    threads = [threading.Thread(target=sweep_on) for _ in range(2)]
    counters = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads + counters:
        thread.start()
    got = 0
    for _ in range(500):
        lock = file_lock("tried")
        if lock.try_acquire():
            got += 1
            lock.release()
        with file_lock("tried", timeout=0):
            got += 1
    for thread in counters:
        thread.join()
    stop.set()
    for thread in threads:
        thread.join()
    assert got == 1000
    assert counter.read_text() == "400"
    assert sum(swept) > 0  # how often depends on how busy the machine is
