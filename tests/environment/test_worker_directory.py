from __future__ import annotations

import fcntl
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from perinvoke.environment.kernel_lock import open_directory, try_lock
from perinvoke.environment.orphans import reclaim
from perinvoke.environment.worker_directory import WorkerDirectory
from perinvoke.errors import RootError
from processes import descriptors_below


def is_held(path: str | Path) -> bool:
    fd = open_directory(str(path))
    try:
        return not try_lock(fd)
    finally:
        os.close(fd)


@pytest.fixture
def trash(tmp_path: Path) -> Path:
    path = tmp_path / "found"
    path.mkdir()
    return path


def taker(trash: Path):
    def take(path: str) -> bool:
        os.rename(path, trash / Path(path).name)
        return True

    return take


def test_it_is_private_locked_and_stays_the_same(tmp_path):
    directory = WorkerDirectory(str(tmp_path / "root"))
    path = directory.ensure()
    assert directory.ensure() == path
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
    assert is_held(path)


def test_swept_away_it_is_made_anew(tmp_path):
    directory = WorkerDirectory(str(tmp_path / "root"))
    first = directory.ensure()
    os.rmdir(first)
    second = directory.ensure()
    assert second != first
    assert is_held(second)


def test_an_executed_child_does_not_hold_the_lock_and_a_forked_one_does(tmp_path):
    directory = WorkerDirectory(str(tmp_path / "root"))
    path = directory.ensure()
    fd = directory._fd
    with subprocess.Popen(
        [sys.executable, "-c", "import os, sys; os.fstat(int(sys.argv[1]))", str(fd)], close_fds=False, stderr=subprocess.PIPE
    ) as child:
        _, error = child.communicate()
    assert b"Bad file descriptor" in error
    pid = os.fork()
    if pid == 0:
        time.sleep(30)
        os._exit(0)
    os.close(fd)
    directory._fd = -1
    assert is_held(path)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert not is_held(path)


def test_what_a_killed_worker_left_is_found_and_what_the_living_have_is_not(tmp_path, trash):
    root = tmp_path / "root"
    reader, writer = os.pipe()
    pids = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            path = WorkerDirectory(str(root)).ensure()
            Path(path, "left").write_text("x")
            os.write(writer, f"{os.getpid()} {path}\n".encode())
            signal.pause()
        pids.append(pid)
    reports = b""
    while reports.count(b"\n") < 4:
        reports += os.read(reader, 4096)
    paths = {int(line.split()[0]): line.split()[1].decode() for line in reports.splitlines()}
    for pid in pids[:2]:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    own = WorkerDirectory(str(root))
    own_path = own.ensure()
    assert reclaim(str(root), taker(trash)) == 2
    assert {path.name for path in trash.iterdir()} == {Path(paths[pid]).name for pid in pids[:2]}
    assert {str(path) for path in root.iterdir()} == {own_path, *(paths[pid] for pid in pids[2:])}
    assert reclaim(str(root), taker(trash)) == 0
    for pid in pids[2:]:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_what_is_not_a_workers_directory_is_left_alone(tmp_path, trash):
    root = tmp_path / "root"
    root.mkdir(mode=0o700)
    (root / "other").mkdir()
    (root / "worker-file").touch()
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / "worker-link").symlink_to(outside)
    assert reclaim(str(root), taker(trash)) == 0
    assert sorted(path.name for path in root.iterdir()) == ["other", "worker-file", "worker-link"]


def test_a_missing_root_has_nothing_to_reclaim(tmp_path):
    assert reclaim(str(tmp_path / "missing"), lambda path: False) == 0


def test_makers_and_finders_at_the_same_time_never_take_a_live_directory(tmp_path, trash):
    """A finder may come between a maker's mkdir and its flock: the maker must notice."""
    root = tmp_path / "root"
    stop = threading.Event()

    def find() -> None:
        while not stop.is_set():
            reclaim(str(root), taker(trash))

    finders = [threading.Thread(target=find) for _ in range(4)]
    for finder in finders:
        finder.start()
    made = [WorkerDirectory(str(root)) for _ in range(300)]
    try:
        for directory in made:
            path = directory.ensure()
            assert is_held(path)
        assert all(os.path.isdir(directory._path or "") for directory in made)
    finally:
        stop.set()
        for finder in finders:
            finder.join()
        for directory in made:
            os.close(directory._fd)


def test_a_directory_renamed_between_mkdir_and_flock_is_not_taken_for_ours(tmp_path, monkeypatch):
    """The finder's moment, forced: it wins once, then the maker gets through with another name."""
    stolen: list[Path] = []
    real = fcntl.flock

    def flock(fd, operation):
        if not stolen:
            (victim,) = (tmp_path / "root").iterdir()
            stolen.append(victim.rename(tmp_path / "stolen"))
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    path = WorkerDirectory(str(tmp_path / "root")).ensure()
    assert Path(path).is_dir()
    assert Path(path).parent == tmp_path / "root"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_a_root_that_is_not_writable_is_named(tmp_path):
    script = """
import os, sys
from perinvoke.environment.worker_directory import WorkerDirectory
from perinvoke.errors import RootError
os.setuid(65534)
try:
    WorkerDirectory(sys.argv[1]).ensure()
except RootError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", script, "/sys/perinvoke"], capture_output=True, text=True, check=False)
    assert "can't keep its files below /sys/perinvoke: Permission denied" in run.stdout, run.stderr


def test_a_read_only_file_system_is_named(tmp_path):
    with pytest.raises(RootError, match="can't keep its files below /proc/perinvoke"):
        WorkerDirectory("/proc/perinvoke").ensure()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_full_file_system_is_an_error_that_says_so(tmp_path):
    from perinvoke.errors import ScratchFull

    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=3", "none", small], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"this machine doesn't let us mount: {mounted.stderr.decode()}")
    try:
        small.chmod(0o700)
        for number in range(2):
            (small / str(number)).touch()
        with pytest.raises(ScratchFull, match="no space left on device.*PERINVOKE_ROOT"):
            WorkerDirectory(str(small)).ensure()
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_handler_that_closed_every_descriptor_does_not_get_its_own_closed(tmp_path):
    """os.closerange(3, …), then the number is given to another file."""
    directory = WorkerDirectory(str(tmp_path / "root"))
    path = directory.ensure()
    fd = directory._fd
    os.close(fd)
    other = os.open(tmp_path, os.O_RDONLY)
    assert other == fd
    os.rmdir(path)
    directory.ensure()
    os.fstat(other)
    os.close(other)


def test_a_lock_that_cannot_be_had_leaves_neither_descriptor_nor_directory(tmp_path, monkeypatch):
    from perinvoke.errors import ScratchUnavailable

    real = fcntl.flock

    def no_lock(fd, operation):
        if threading.current_thread() is threading.main_thread():  # others are threads that earlier tests have left
            raise OSError(37, "No locks available")
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", no_lock)
    for _ in range(5):
        with pytest.raises(ScratchUnavailable, match="No locks available"):
            WorkerDirectory(str(tmp_path / "root")).ensure()
    assert descriptors_below(tmp_path) == []
    assert list((tmp_path / "root").iterdir()) == []


def test_a_directory_that_everybody_uses_is_not_to_be_closed_to_them(tmp_path):
    tmp_path.chmod(0o1777)
    with pytest.raises(RootError, match="Name a folder of your own below it"):
        WorkerDirectory(str(tmp_path)).ensure()
