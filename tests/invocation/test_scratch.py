from __future__ import annotations

import os
import threading
from itertools import product
from pathlib import Path

import pytest

from perinvoke.errors import NotInInvocation, ScratchFull
from perinvoke.invocation.scratch import Scratch, Shelf, Verdict, _verdict
from perinvoke.invocation.trash import Trash


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "trash").mkdir()
    return tmp_path


@pytest.fixture
def trash(home: Path, monkeypatch: pytest.MonkeyPatch) -> Trash:
    others = set(threading.enumerate()) - {threading.current_thread()}  # what earlier tests have left is no company here
    monkeypatch.setattr(threading, "active_count", lambda: len(set(threading.enumerate()) - others))
    return Trash(lambda: str(home / "trash"))


class NoSpace:
    """A disk that is never short of space by itself; making room empties the trash."""

    def __init__(self, trash: Trash) -> None:
        self.trash = trash
        self.watched = 0

    def watch(self) -> None:
        self.watched += 1

    def make_room(self) -> bool:
        self.trash.empty()
        return True

    def full(self, what: str) -> ScratchFull:
        return ScratchFull(f"{what}: full", path="/", free_bytes=0, total_bytes=0, largest=[])


@pytest.fixture
def shelf(home: Path, trash: Trash) -> Shelf:
    return Shelf(lambda: str(home), trash, NoSpace(trash))


def directories(home: Path) -> set[str]:
    return {entry.name for entry in home.iterdir()} - {"trash"}


@pytest.mark.parametrize(("sound", "left_nobody", "known", "alone"), list(product([True, False], repeat=4)))
def test_a_directory_is_used_again_only_where_nobody_can_reach_it(sound, left_nobody, known, alone):
    verdict = _verdict(sound=sound, left_nobody=left_nobody, known=known, alone=alone)
    if not sound or not left_nobody or (known and not alone):
        assert verdict is Verdict.TRASH
    elif known or not alone:
        assert verdict is Verdict.EMPTY_AND_RENAME
    else:
        assert verdict is Verdict.KEEP


def test_untouched_and_unknown_it_is_kept_under_its_name(shelf, home):
    path = shelf.take()
    shelf.give_back(path, handed_out=False, left_nobody=True)
    assert shelf.take() == path
    assert directories(home) == {Path(path).name}


def test_handed_out_it_gets_a_new_name(shelf, home):
    path = shelf.take()
    shelf.give_back(path, handed_out=True, left_nobody=True)
    again = shelf.take()
    assert again != path
    assert not Path(path).exists()
    assert os.listdir(again) == []


@pytest.mark.parametrize("touch", ["file", "directory", "made and removed", "symlink", "renamed in"])
def test_whatever_was_done_in_the_tick_of_its_making_is_seen(touch, shelf, home, tmp_path):
    """The kernel's clock for files stands still for milliseconds: a fresh mtime would look untouched."""
    for turn in range(50):
        path = Path(shelf.make())
        match touch:
            case "file":
                (path / "a").touch()
            case "directory":
                (path / "a").mkdir()
            case "made and removed":
                (path / "a").touch()
                (path / "a").unlink()
            case "symlink":
                (path / "a").symlink_to("b")
            case "renamed in":
                (tmp_path / f"trash/other{turn}").touch()
                (tmp_path / f"trash/other{turn}").rename(path / "a")
        shelf.give_back(str(path), handed_out=False, left_nobody=True)
        assert not path.exists()
        assert os.listdir(shelf.take()) == []


@pytest.mark.parametrize("mode", [0o777, 0o000, 0o1700, 0o2700])
def test_with_another_mode_it_is_not_used_again(mode, shelf, trash):
    path = shelf.take()
    os.chmod(path, mode)
    shelf.give_back(path, handed_out=False, left_nobody=True)
    assert trash.wait_empty(30)
    assert not Path(path).exists()
    assert os.stat(shelf.take()).st_mode & 0o7777 == 0o700


@pytest.mark.parametrize("umask", [0o777, 0o077, 0o000])
def test_its_mode_does_not_depend_on_the_umask(umask, shelf):
    before = os.umask(umask)
    try:
        path = shelf.make()
    finally:
        os.umask(before)
    assert os.stat(path).st_mode & 0o7777 == 0o700


def test_one_that_the_handler_removed_or_replaced_is_no_trouble(shelf, trash, tmp_path):
    removed = Path(shelf.take())
    removed.rmdir()
    shelf.give_back(str(removed), handed_out=True, left_nobody=True)
    replaced = Path(shelf.make())
    replaced.rmdir()
    outside = tmp_path / "trash" / "outside"
    outside.mkdir()
    (outside / "data").write_text("data")
    replaced.symlink_to(outside)
    shelf.give_back(str(replaced), handed_out=True, left_nobody=True)
    assert trash.wait_empty(30)
    assert not replaced.is_symlink()
    assert (outside / "data").read_text() == "data"


def test_one_that_an_unasked_handler_moved_away_is_not_used_again(shelf, tmp_path):
    """The handler knows the path from TMPDIR; a look through a kept descriptor wouldn't see that it is gone."""
    path = shelf.take()
    shelf.give_back(path, handed_out=False, left_nobody=True)
    os.rename(shelf.take(), tmp_path / "trash" / "moved")
    shelf.give_back(path, handed_out=False, left_nobody=True)
    assert os.path.isdir(shelf.take())


@pytest.mark.parametrize("many", [4, 5, 1000])
def test_few_files_are_unlinked_and_many_thrown_away(many, shelf, trash, home):
    path = Path(shelf.take())
    for number in range(many):
        (path / str(number)).touch()
    shelf.give_back(str(path), handed_out=True, left_nobody=True)
    assert not path.exists()
    assert trash.wait_empty(30)
    assert os.listdir(home / "trash") == []
    assert os.listdir(shelf.take()) == []


def test_a_large_file_is_not_unlinked_while_the_caller_waits(shelf, monkeypatch):
    path = Path(shelf.take())
    (path / "large").write_bytes(b"x" * 300_000)
    unlinked: list[str] = []
    monkeypatch.setattr(os, "unlink", unlinked.append)
    taken: list[str] = []
    monkeypatch.setattr(shelf._trash, "take", taken.append)
    shelf.give_back(str(path), handed_out=True, left_nobody=True)
    assert (taken, unlinked) == ([str(path)], [])


def test_a_full_disk_gets_the_trash_emptied_before_it_is_an_error(shelf, trash, tmp_path, monkeypatch):
    emptied: list[bool] = []
    monkeypatch.setattr(trash, "empty", lambda: emptied.append(True))
    real = os.mkdir

    def full_until_emptied(path, *args, **kwargs):
        if not emptied:
            raise OSError(28, "No space left on device", path)
        real(path, *args, **kwargs)

    monkeypatch.setattr(os, "mkdir", full_until_emptied)
    assert Path(shelf.make()).is_dir()

    def full(path, *args, **kwargs):
        raise OSError(28, "No space left on device", path)

    monkeypatch.setattr(os, "mkdir", full)
    with pytest.raises(ScratchFull, match="no scratch directory can be made at .*: full"):
        shelf.make()


def test_threads_that_ask_first_at_the_same_time_get_one_directory(shelf):
    for _ in range(50):
        scratch = Scratch(shelf)
        barrier = threading.Barrier(4)
        paths: list[str] = []

        def ask(barrier=barrier, paths=paths, scratch=scratch) -> None:
            barrier.wait()
            paths.append(scratch.path())

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(paths)) == 1


def test_a_directory_swept_away_is_made_again_when_asked_for(shelf):
    scratch = Scratch(shelf)
    scratch.prepare()
    assert scratch.directory is not None
    os.rmdir(scratch.directory)
    assert Path(scratch.path()).is_dir()


def test_after_its_end_it_is_given_to_nobody(shelf):
    """A thread that outlived its invocation would get the next one's directory, or one that nobody removes."""
    scratch = Scratch(shelf)
    scratch.prepare()
    scratch.close(left_nobody=True)
    with pytest.raises(NotInInvocation):
        scratch.path()


def test_given_back_twice_it_is_ready_once(shelf):
    scratch = Scratch(shelf)
    path = scratch.prepare()
    shelf.give_back(path, handed_out=False, left_nobody=True)
    scratch.close(left_nobody=True)
    assert shelf.take() == path
    assert shelf.take() != path
