"""Room on the disk: what is removed when, and what the error tells."""

from __future__ import annotations

import os
import pickle
import sqlite3
from pathlib import Path

import pytest

from perinvoke.environment import disk_usage, space
from perinvoke.environment.disk_usage import Free, in_words, is_full, largest_users, scratch_full
from perinvoke.environment.generation import Moment, generations, new_name
from perinvoke.environment.space import Space
from perinvoke.errors import ScratchFull, TryAgain

MIB = 1024 * 1024


@pytest.fixture
def made(root: Path) -> Path:
    root.mkdir(mode=0o700)
    return root


class Disk:
    """Plays the free space: each thing removed frees a MiB."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
        self.free = free
        self.removed: list[str] = []
        monkeypatch.setattr(space, "free_space", lambda _: Free(self.free, 1000))
        self.space = Space(str(root), min_free_bytes=3 * MIB, shared_max_bytes=None, take=self.take, remove_taken=lambda _: None)

    def take(self, path: str) -> bool:
        os.rename(path, os.path.join(os.path.dirname(path), "gone"))
        self.removed.append(Path(path).parent.name)
        self.free += MIB
        return True


def shared(root: Path, key: str, *, used_at: int, sequence: int = 1) -> None:
    path = root / "shared" / key / new_name(sequence, Moment.now(), 10, "0")
    path.mkdir(parents=True)
    os.utime(path, (used_at, used_at))


def test_enough_space_costs_one_look(made, monkeypatch):
    disk = Disk(made, monkeypatch, free=3 * MIB)
    shared(made, "a", used_at=1)
    disk.space.watch()
    assert disk.removed == []


def test_what_goes_first_and_no_more_than_needed(made, monkeypatch):
    disk = Disk(made, monkeypatch, free=0)
    shared(made, "newest", used_at=9)
    shared(made, "oldest", used_at=1)
    shared(made, "superseded", used_at=8, sequence=1)
    shared(made, "superseded", used_at=9, sequence=2)
    shared(made, "middle", used_at=5)
    disk.space.watch()
    assert disk.removed == ["superseded", "oldest", "middle"]
    assert [len(generations(str(made / "shared" / key))) for key in ("newest", "superseded")] == [1, 1]


def test_a_full_disk_takes_all_that_nobody_uses(made, monkeypatch):
    disk = Disk(made, monkeypatch, free=0)
    for key in ("a", "b", "c", "d", "e"):
        shared(made, key, used_at=1)
    assert disk.space.make_room()
    assert sorted(disk.removed) == ["a", "b", "c", "d", "e"]
    assert not disk.space.make_room()


def test_a_root_that_is_not_there_is_short_of_nothing(root):
    watched = Space(str(root), min_free_bytes=1, shared_max_bytes=1, take=lambda _: False, remove_taken=lambda _: None)
    watched.watch()
    watched.look_after()
    assert not watched.make_room()


def test_the_error_names_the_largest_users_first(made):
    (made / "worker-123-abc").mkdir()
    (made / "worker-123-abc" / "large").write_bytes(b"x" * 3 * MIB)
    (made / f"worker-{os.getpid()}-abc").mkdir()
    (made / f"worker-{os.getpid()}-abc" / "small").write_bytes(b"x" * MIB)
    (made / "shared" / "model").mkdir(parents=True)
    (made / "shared" / "model" / "x").write_bytes(b"x" * 2 * MIB)
    (made.parent / "beside").write_bytes(b"x" * 5 * MIB)
    names = [name for name, _ in largest_users(str(made))]
    assert names[:4] == [str(made.parent / "beside"), "worker 123", "shared file model", f"worker {os.getpid()} (this one)"]
    error = scratch_full(str(made), "this test")
    assert f"this test: no space left on device. The file system of {made} has" in str(error)
    assert f"Largest users: {made.parent / 'beside'} 5.0 MiB, worker 123 3.0 MiB" in str(error)
    assert error.free_bytes > 0
    assert error.total_bytes > error.free_bytes


def test_the_look_at_the_users_is_bounded(made, monkeypatch):
    monkeypatch.setattr(disk_usage, "_MAX_ENTRIES", 10)
    (made / "worker-1-a").mkdir()
    for number in range(100):
        (made / "worker-1-a" / str(number)).mkdir()
    looked: list[str] = []
    real = os.scandir

    def counted(path: str) -> object:
        looked.append(path)
        return real(path)

    monkeypatch.setattr(os, "scandir", counted)
    largest_users(str(made))
    assert len(looked) < 20


def test_it_is_the_systems_error_too_and_survives_pickling():
    error = ScratchFull("no space", path="/tmp", free_bytes=1, total_bytes=2, largest=[("a", 1)])
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(error, OSError)
    assert isinstance(error, TryAgain)
    for one in (error, copy):
        assert (one.errno, str(one), one.largest) == (28, "no space", [("a", 1)])


@pytest.mark.parametrize(
    ("size", "words"), [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (3 * MIB, "3.0 MiB"), (2**50, "1024.0 TiB")]
)
def test_bytes_in_words(size, words):
    assert in_words(size) == words


def test_what_says_that_a_disk_is_full():
    assert is_full(OSError(28, "x"))
    assert is_full(OSError(122, "x"))
    assert not is_full(OSError("x"))
    assert not is_full(ValueError(28))
    database = sqlite3.connect(":memory:")
    database.execute("pragma max_page_count = 2")
    with pytest.raises(sqlite3.OperationalError) as caught:
        database.execute("create table t as select hex(randomblob(100000)) as x")
    database.close()
    assert is_full(caught.value)
