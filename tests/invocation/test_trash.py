from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from perinvoke.errors import RootError
from perinvoke.invocation.trash import MAX_BACKLOG, Trash

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")


@pytest.fixture
def bin_path(tmp_path: Path) -> Path:
    path = tmp_path / "trash"
    path.mkdir()
    return path


@pytest.fixture
def trash(bin_path: Path) -> Trash:
    return Trash(lambda: str(bin_path))


def tree(tmp_path: Path, name: str = "used") -> Path:
    path = tmp_path / name
    path.mkdir()
    (path / "file").write_text("x")
    return path


def test_what_is_taken_is_gone_at_once_and_removed_soon(trash, tmp_path, bin_path):
    used = tree(tmp_path)
    trash.take(str(used))
    assert not used.exists()
    assert trash.wait_empty(30)
    assert list(bin_path.iterdir()) == []


def test_anything_a_handler_can_leave_is_removed_and_nothing_outside_is_touched(trash, tmp_path, bin_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("data")
    used = tree(tmp_path)
    (used / "link-to-directory").symlink_to(outside)
    (used / "link-to-file").symlink_to(outside / "precious")
    (used / "dangling").symlink_to("/nowhere")
    (used / "loop").symlink_to(".")
    os.mkfifo(used / "fifo")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(used / "socket"))
    listener.close()
    os.link(outside / "precious", used / "hard-link")
    (used / b"\xff\xfe not utf-8".decode("utf-8", "surrogateescape")).touch()
    (used / ("n" * 255)).touch()
    for mode in (0o000, 0o100, 0o444, 0o555):
        directory = used / f"mode-{mode:o}"
        directory.mkdir()
        (directory / "file").touch()
        (directory / "sub").mkdir()
        directory.chmod(mode)
    used.chmod(0o500)
    trash.take(str(used))
    assert trash.wait_empty(30)
    assert list(bin_path.iterdir()) == []
    assert (outside / "precious").read_text() == "data"


@pytest.mark.skipif(os.geteuid() != 0, reason="the test above ran as an ordinary user already")
def test_an_ordinary_user_too_removes_unreadable_directories():
    """Root may read anything, so this one gives up its rights first."""
    script = """
import os, pathlib, tempfile
from perinvoke.invocation.trash import Trash
os.setgid(65534); os.setuid(65534)
base = pathlib.Path(tempfile.mkdtemp(dir="/tmp"))
(base / "trash").mkdir()
used = base / "used"
for mode in (0o000, 0o100, 0o444, 0o555):
    directory = used / f"mode-{mode:o}"
    (directory / "sub").mkdir(parents=True)
    (directory / "file").touch()
    (directory / "sub").chmod(0)
    directory.chmod(mode)
used.chmod(0)
trash = Trash(lambda: str(base / "trash"))
trash.take(str(used))
assert trash.wait_empty(30)
assert os.listdir(base / "trash") == [], os.listdir(base / "trash")
assert not used.exists()
(base / "trash").rmdir()
base.rmdir()
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_ten_thousand_files_do_not_delay_the_one_who_leaves_them(trash, tmp_path, bin_path):
    used = tree(tmp_path)
    for number in range(10_000):
        (used / str(number)).touch()
    trash.take(str(used))
    assert not used.exists()
    assert trash.removing or list(bin_path.iterdir()) == []
    assert trash.wait_empty(30)
    assert list(bin_path.iterdir()) == []


def test_no_depth_is_too_deep(trash, tmp_path, bin_path):
    used = tree(tmp_path)
    fd = os.open(used, os.O_RDONLY)
    for _ in range(3000):  # deeper than the recursion limit, and longer than PATH_MAX
        os.mkdir("deeper", dir_fd=fd)
        below = os.open("deeper", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    trash.take(str(used))
    assert trash.wait_empty(30)
    assert list(bin_path.iterdir()) == []


def test_a_thread_that_keeps_writing_does_not_keep_the_directory(trash, tmp_path, bin_path):
    used = tree(tmp_path)
    stop = threading.Event()

    def write() -> None:
        with open(used / "growing", "w", encoding="utf-8") as growing:
            while not stop.wait(0.001):
                growing.write("x" * 1000)
                growing.flush()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while not (used / "growing").exists():
            time.sleep(0.001)
        trash.take(str(used))
        assert trash.wait_empty(30)
        assert list(bin_path.iterdir()) == []
    finally:
        stop.set()
        writer.join()


@root_only
@pytest.mark.parametrize("kind", ["tmpfs", "bind", "the directory itself"])
def test_a_mount_point_is_never_entered(kind, trash, tmp_path, bin_path, caplog):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "data").write_text("data")
    used = tree(tmp_path)
    target = used if kind == "the directory itself" else used / "mounted"
    target.mkdir(exist_ok=True)
    what = ["-t", "tmpfs", "none"] if kind == "tmpfs" else ["--bind", str(precious)]
    mounted = subprocess.run(["mount", *what, str(target)], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"this machine doesn't let us mount: {mounted.stderr}")
    (target / "inside").write_text("x")
    (used / "beside").mkdir(exist_ok=True) if kind != "the directory itself" else None
    try:
        trash.take(str(used))
        assert trash.wait_empty(30)
        where = next(line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if str(tmp_path) in line)
        assert kind == "the directory itself" or (Path(where) / "inside").read_text() == "x"
        assert (precious / "data").read_text() == "data"
        assert "could not remove" in caplog.text
    finally:
        where = next(line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if str(tmp_path) in line)
        subprocess.run(["umount", where], check=True)
    trash.take(str(tree(tmp_path, "another")))  # what was stuck is tried again
    assert trash.wait_empty(30)
    assert list(bin_path.iterdir()) == []


def test_what_resists_is_reported_once_and_tried_again(trash, tmp_path, bin_path, caplog, monkeypatch):
    real = os.rmdir

    def refuses(path, **kwargs):
        raise OSError(16, "Device or resource busy", path)

    monkeypatch.setattr(os, "rmdir", refuses)
    trash.take(str(tree(tmp_path, "a")))
    assert trash.wait_empty(30)
    assert len(trash._stuck) == 1
    monkeypatch.setattr(os, "rmdir", real)
    trash.take(str(tree(tmp_path, "b")))
    assert trash.wait_empty(30)
    assert list(bin_path.iterdir()) == []
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert trash._stuck == []


def test_what_piles_up_is_bounded(trash, tmp_path, monkeypatch):
    monkeypatch.setattr(trash, "_start_removing", lambda: None)  # a remover that never gets a turn
    for number in range(3 * MAX_BACKLOG):
        trash.take(str(tree(tmp_path, str(number))))
    assert len(trash._pending) == MAX_BACKLOG


def test_where_no_thread_can_be_had_the_caller_removes(trash, tmp_path, bin_path, monkeypatch):
    def no_thread(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    trash.take(str(tree(tmp_path)))
    assert list(bin_path.iterdir()) == []


def test_no_thread_stays_when_there_is_nothing_to_remove(trash, tmp_path):
    before = set(threading.enumerate())  # what an invocation of an earlier test left may be about to remove things
    for number in range(20):
        trash.take(str(tree(tmp_path, str(number))))
    assert trash.wait_empty(30)
    own = [thread for thread in set(threading.enumerate()) - before if thread.name == "perinvoke-trash"]
    for thread in own:
        thread.join(30)
    assert not any(thread.is_alive() for thread in own)


def test_many_takers_lose_nothing(trash, tmp_path, bin_path):
    """take() and the remover's decision to end meet again and again."""

    def take(worker: int) -> None:
        for number in range(100):
            trash.take(str(tree(tmp_path, f"{worker}-{number}")))
            time.sleep(0.0003 * (number % 5))

    takers = [threading.Thread(target=take, args=(worker,)) for worker in range(8)]
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join()
    assert trash.wait_empty(10)
    assert list(bin_path.iterdir()) == []
    assert list(tmp_path.iterdir()) == [bin_path]


def test_a_root_that_is_gone_for_good_does_not_stop_the_remover(tmp_path, caplog):
    def no_root() -> str:
        raise RootError("somebody put a file in its place")

    trash = Trash(no_root)
    trash.take(str(tree(tmp_path)))
    assert trash.wait_empty(30)
    assert "could not remove" in caplog.text
    trash._directory = lambda: str(tmp_path)  # it is back
    trash.take(str(tree(tmp_path, "another")))
    assert trash.wait_empty(30)
    assert list(tmp_path.iterdir()) == []


@root_only
def test_at_exit_too_a_mount_point_is_never_entered(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "data").write_text("data")
    script = """
import os, subprocess, sys
from perinvoke import isolated, scratch

@isolated
def handler(event, context):
    (scratch() / "mounted").mkdir()
    return subprocess.run(["mount", "--bind", sys.argv[1], scratch() / "mounted"]).returncode

print(handler({}, None))
"""
    environment = {**os.environ, "PERINVOKE_ROOT": str(tmp_path / "root")}
    run = subprocess.run(
        [sys.executable, "-c", script, str(precious)], env=environment, capture_output=True, text=True, check=False
    )
    for line in Path("/proc/mounts").read_text().splitlines():
        if str(tmp_path) in line:
            subprocess.run(["umount", line.split()[1]], check=True)
    if run.stdout != "0\n":
        pytest.skip(f"this machine doesn't let us mount: {run.stderr}")
    assert (precious / "data").read_text() == "data"


def test_what_dead_workers_left_is_no_backlog(trash, tmp_path, monkeypatch):
    monkeypatch.setattr(trash, "_start_removing", lambda: None)
    for number in range(2 * MAX_BACKLOG):
        trash.adopt(str(tree(tmp_path, str(number))))
    assert len(trash._pending) == 2 * MAX_BACKLOG
