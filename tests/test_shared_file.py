"""shared_file between real processes, with real kills, and within one."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from perinvoke import isolated, shared_file, worker
from perinvoke.environment import lock_table
from perinvoke.environment.generation import Moment, new_name
from perinvoke.errors import LockError, LockTimeout, NotInInvocation, PerinvokeError, SharedFileError, SharedFileTooLarge
from perinvoke.settings import read_settings
from processes import Process, descriptors_below, wait_until
from stalls import repeated_after_a_stall

pytestmark = pytest.mark.usefixtures("root")


def writes(text: str) -> Any:
    return lambda path: path.write_text(text)


def never(path: Path) -> None:
    raise AssertionError("built again")


def generations(root: Path, key: str = "k") -> list[Path]:
    entry = root / "shared" / key
    try:
        return sorted(path for path in entry.iterdir() if path.name != "lock")
    except FileNotFoundError:
        return []  # an entry without any is removed by who looks after the dead


def published(root: Path) -> list[Path]:
    """Files below shared, but for locks. Not by glob, which fails on 3.11 when a directory is removed under it."""
    return [Path(folder, name) for folder, _, names in os.walk(root / "shared") for name in names if name != "lock"]


def keys(root: Path) -> list[str]:
    return sorted(path.name for path in published(root))


def context(seconds: float) -> Any:
    return SimpleNamespace(aws_request_id="r", get_remaining_time_in_millis=lambda: seconds * 1000)


def ask(build: Any, key: str = "k", max_age_seconds: float | None = None) -> tuple[Path, str]:
    """An invocation that asks, and reads while it runs."""

    @isolated
    def handler(event, context):
        path = shared_file(key, build, max_age_seconds=max_age_seconds)
        return path, path.read_text()

    answer: tuple[Path, str] = handler({}, None)
    return answer


class TestBuilding:
    def test_it_is_built_once_and_keeps_its_name(self, root):
        path = shared_file("model.bin", writes("one"))
        assert (path.name, path.read_text()) == ("model.bin", "one")
        assert shared_file("model.bin", never) == path
        assert path.is_relative_to(root / "shared")

    def test_a_directory_is_built_like_a_file(self):
        def build(path: Path) -> None:
            (path / "sub").mkdir(parents=True)
            (path / "sub" / "a").write_text("a")

        path = shared_file("tree", build)
        assert (shared_file("tree", never) / "sub" / "a").read_text() == "a"
        assert path.is_dir()

    def test_files_beside_it_are_published_with_it(self):
        def build(path: Path) -> None:
            path.write_text("model")
            path.with_suffix(".index").write_text("index")

        assert shared_file("model.bin", build).with_suffix(".index").read_text() == "index"

    def test_a_half_built_file_is_never_seen(self, root):
        def build(path: Path) -> None:
            path.write_text("half")
            assert all(name.name.startswith("building-") for name in generations(root))
            path.write_text("whole")

        assert shared_file("k", build).read_text() == "whole"

    def test_what_a_build_raises_comes_through_and_leaves_nothing(self, root):
        error = ValueError("no luck")

        def build(path: Path) -> None:
            path.write_text("half")
            raise error

        with pytest.raises(ValueError, match="no luck") as caught:
            shared_file("k", build)
        assert caught.value is error
        assert generations(root) == []
        assert shared_file("k", writes("next")).read_text() == "next"

    @pytest.mark.parametrize("exit_with", [SystemExit, KeyboardInterrupt])
    def test_a_build_that_is_interrupted_leaves_nothing(self, root, exit_with):
        def build(path: Path) -> None:
            path.write_text("half")
            raise exit_with

        with pytest.raises(exit_with):
            shared_file("k", build)
        assert generations(root) == []

    def test_two_keys_are_two_files_and_may_be_built_inside_each_other(self):
        def build(path: Path) -> None:
            path.write_text("outer of " + shared_file("inner", writes("inner")).read_text())

        assert shared_file("outer", build).read_text() == "outer of inner"

    @pytest.mark.parametrize("mode", [0o000, 0o500])
    def test_a_build_directory_without_write_bit_is_removed_all_the_same(self, root, mode):
        def build(path: Path) -> None:
            path.mkdir()
            (path / "file").write_text("x")
            path.chmod(mode)
            raise ValueError("no luck")

        with pytest.raises(ValueError, match="no luck"):
            shared_file("k", build)
        assert generations(root) == []


class TestBadInput:
    @pytest.mark.parametrize("key", ["", ".", "..", "a/b", "/etc/passwd", "a\0b", "n" * 300, "é" * 130, 3, None, b"x"])
    def test_a_key_that_cannot_be_a_files_name_is_refused(self, key):
        with pytest.raises(SharedFileError, match="key"):
            shared_file(key, never)

    @pytest.mark.parametrize(
        "key", ["é", "日本", "with space", "-", "a.b", "n" * 250, "new\nline", "lock", "building-x", "1-1-1-1-0-a"]
    )
    def test_any_other_key_works(self, key):
        path = shared_file(key, writes("x"))
        assert (path.name, shared_file(key, never).read_text()) == (key, "x")

    @pytest.mark.parametrize("age", [-1, float("nan"), float("-inf")])
    def test_an_age_that_is_no_duration_is_refused(self, age):
        with pytest.raises(SharedFileError, match="max_age_seconds of shared file 'k' is"):
            shared_file("k", never, max_age_seconds=age)

    def test_a_build_that_cannot_be_called_is_refused(self):
        with pytest.raises(SharedFileError, match="must be a function of a path"):
            shared_file("k", "text")  # type: ignore[arg-type]

    def test_a_build_that_writes_nothing_is_told(self, root):
        with pytest.raises(SharedFileError, match="did not make .*/k: nothing is there. It must write to the very path"):
            shared_file("k", lambda path: None)
        assert generations(root) == []

    def test_a_build_that_writes_elsewhere_is_told_where(self):
        def build(path: Path) -> None:
            path.with_name("k.npy").write_text("numpy does so")

        with pytest.raises(SharedFileError, match="instead it wrote k.npy beside it"):
            shared_file("k", build)

    def test_a_build_that_deletes_its_target_or_all_is_told(self, root):
        def target(path: Path) -> None:
            path.write_text("x")
            path.unlink()

        def everything(path: Path) -> None:
            path.parent.rmdir()

        for build in (target, everything):
            with pytest.raises(SharedFileError, match="nothing is there"):
                shared_file("k", build)
        assert generations(root) == []

    def test_a_link_or_a_fifo_is_no_file(self, tmp_path):
        (tmp_path / "elsewhere").write_text("x")
        with pytest.raises(SharedFileError, match="a symbolic link, and what it points to may go"):
            shared_file("k", lambda path: path.symlink_to(tmp_path / "elsewhere"))
        with pytest.raises(SharedFileError, match="no regular file and no directory"):
            shared_file("k", os.mkfifo)

    def test_an_async_build_is_refused(self):
        async def build(path: Path) -> None:
            pass

        with pytest.raises(SharedFileError, match="returned an awaitable"):
            shared_file("k", build)

    def test_a_build_that_asks_for_itself_is_refused(self):
        with pytest.raises(SharedFileError, match="asks for that file itself"):
            shared_file("k", lambda path: shared_file("k", never))

    def test_a_file_larger_than_the_budget_is_refused_and_gone(self, root, monkeypatch):
        monkeypatch.setenv("PERINVOKE_SHARED_MAX_BYTES", "10")
        with pytest.raises(SharedFileTooLarge, match="has 11 bytes; PERINVOKE_SHARED_MAX_BYTES allows 10") as caught:
            shared_file("k", writes("x" * 11))
        assert (caught.value.bytes, caught.value.max_bytes, caught.value.key) == (11, 10, "k")
        assert generations(root) == []
        assert shared_file("k", writes("x" * 10)).exists()

    def test_a_child_that_a_build_forks_and_that_returns_does_no_harm(self, root):
        """Both parent and child come out of build; only the parent publishes, and the child removes nothing."""
        reader, writer = os.pipe()

        def build(path: Path) -> None:
            path.write_text("x")
            pid = os.fork()
            if pid:
                os.waitpid(pid, 0)

        parent = os.getpid()
        try:
            path = shared_file("k", build)
        except PerinvokeError as error:
            os.write(writer, repr(error).encode())
        finally:
            if os.getpid() != parent:
                os.write(writer, b".")
                os._exit(1)
        assert len(os.read(reader, 1000)) > 1
        assert path.read_text() == "x"
        os.close(reader)
        os.close(writer)


class TestAge:
    def test_an_old_file_is_built_anew_under_another_path(self):
        first = shared_file("k", writes("one"))
        time.sleep(0.05)
        assert shared_file("k", never, max_age_seconds=60) == first
        assert shared_file("k", never) == first
        second = shared_file("k", writes("two"), max_age_seconds=0.01)
        assert second != first
        assert second.read_text() == "two"
        assert shared_file("k", never) == second

    @pytest.mark.parametrize("jump_seconds", [-3600, 3600])
    def test_a_jump_of_the_wall_clock_makes_no_file_younger(self, monkeypatch, jump_seconds):
        shared_file("k", writes("one"))
        real = time.time_ns
        monkeypatch.setattr(time, "time_ns", lambda: real() + jump_seconds * 10**9)
        time.sleep(0.05)
        assert shared_file("k", writes("two"), max_age_seconds=0.01).read_text() == "two"

    def test_a_superseded_file_stays_until_its_last_user_ends(self, root):
        expired, go_on = threading.Event(), threading.Event()
        seen: list[str] = []

        @isolated
        def holds(event, context):
            path = shared_file("k", writes("one"))
            expired.set()
            assert go_on.wait(10)
            seen.append(path.read_text())

        thread = threading.Thread(target=holds, args=({}, None))
        thread.start()
        assert expired.wait(10)
        assert ask(writes("two"), max_age_seconds=0)[1] == "two"
        assert len(generations(root)) == 2
        go_on.set()
        thread.join()
        assert seen == ["one"]
        ask(writes("three"), max_age_seconds=0)
        assert [path.read_text() for path in published(root)] == ["three"]

    @repeated_after_a_stall
    def test_those_who_waited_for_a_build_take_it_however_old_they_want_it(self):
        builds: list[int] = []
        barrier = threading.Barrier(8)

        def build(path: Path) -> None:
            builds.append(1)
            time.sleep(0.1)
            path.write_text("x")

        def one() -> None:
            barrier.wait()
            ask(build, max_age_seconds=0)

        threads = [threading.Thread(target=one) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(builds) == 1


class TestBudget:
    @pytest.fixture(autouse=True)
    def budget(self, monkeypatch):
        monkeypatch.setenv("PERINVOKE_SHARED_MAX_BYTES", "100")

    def test_the_least_recently_used_goes_first(self, root):
        for key in ("a", "b", "c"):
            ask(writes("x" * 30), key)
            (generation,) = generations(root, key)
            os.utime(generation, (1000 + ord(key), 1000 + ord(key)))
        ask(never, "a")
        ask(writes("x" * 30), "d")
        assert keys(root) == ["a", "c", "d"]
        ask(writes("x" * 100), "e")
        assert keys(root) == ["e"]

    def test_one_in_use_never_goes(self):
        @isolated
        def handler(event, context):
            paths = [shared_file(key, writes("x" * 60)) for key in ("a", "b", "c")]
            return [path.read_text() == "x" * 60 for path in paths]

        assert handler({}, None) == [True, True, True]

    def test_the_budget_holds_again_when_nobody_uses_them(self, root):
        @isolated
        def handler(event, context):
            for key in ("a", "b", "c"):
                shared_file(key, writes("x" * 60))

        handler({}, None)
        ask(writes("x"), "d")
        assert sum(path.stat().st_size for path in published(root)) <= 100

    def test_another_path_for_another_content_also_after_an_eviction(self):
        first, _ = ask(writes("x" * 60))
        ask(writes("x" * 60), "other")
        assert not first.exists()
        second, text = ask(writes("y" * 60))
        assert text == "y" * 60
        assert second != first


class TestUse:
    def test_a_use_ends_with_its_invocation_and_leaves_no_descriptor(self, root):
        ask(writes("x"))
        before = len(descriptors_below(root))
        for _ in range(100):
            ask(never)
        assert len(descriptors_below(root)) < before + 10  # a thread that looks after the dead may have some open
        held = [key for key in lock_table.table.holds if key[0].startswith(str(root))]  # earlier tests' are theirs
        assert [key for key in held if key[1] != ("audience", None)] == []

    def test_nothing_is_reported_of_a_file_used_to_the_end(self, caplog):
        ask(writes("x"))
        assert caplog.text == ""

    def test_threads_of_an_invocation_use_it_together(self):
        @isolated
        def handler(event, context):
            paths: list[Path] = []
            threads = [threading.Thread(target=lambda: paths.append(shared_file("k", writes("x")))) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return paths

        assert len(set(handler({}, None))) == 1

    def test_an_async_handler_may_ask(self):
        @isolated
        async def handler(event, context):
            return await asyncio.to_thread(lambda: shared_file("k", writes("x")).read_text())

        assert handler({}, None) == "x"  # type: ignore[comparison-overlap]  # outside a loop it returns the result

    def test_outside_an_invocation_it_stays_as_long_as_the_process(self, root, monkeypatch):
        monkeypatch.setenv("PERINVOKE_SHARED_MAX_BYTES", "100")
        with Process(
            "print(shared_file('k', lambda path: path.write_text('x' * 60)), flush=True)\nsys.stdin.readline()"
        ) as other:
            path = Path(other.line())
            ask(writes("x" * 60), "other")
            assert path.exists()
        ask(writes("x" * 60), "third")
        assert not path.exists()

    def test_a_file_that_somebody_removed_is_built_again(self):
        ask(writes("x"))[0].unlink()
        assert ask(writes("y"))[1] == "y"

    def test_a_swept_root_is_made_anew(self, root):
        ask(writes("x"))
        root.rename(root.with_name("swept"))
        assert ask(writes("y"))[1] == "y"

    def test_a_database_built_in_place_is_usable(self):
        def build(path: Path) -> None:
            with sqlite3.connect(path) as database:
                database.execute("create table t as select 1 as one")
            database.close()

        database = sqlite3.connect(f"file:{shared_file('db.sqlite', build)}?mode=ro", uri=True)
        assert database.execute("select one from t").fetchall() == [(1,)]
        database.close()


BUILDS_SLOWLY = "shared_file('k', lambda path: (path.write_text('half'), print('building', flush=True), time.sleep(60)))"
READS = "print(shared_file('k', lambda path: path.write_text('mine')).read_text(), flush=True)\nsys.stdin.readline()"


class TestBetweenProcesses:
    def test_the_others_wait_and_get_what_was_built(self):
        code = "shared_file('k', lambda path: (print('building', flush=True), sys.stdin.readline(), path.write_text('first')))"
        with Process(code) as builder:
            assert builder.line() == "building"
            waiters = [Process(READS) for _ in range(3)]
            time.sleep(0.3)
            assert builder.popen.stdin is not None
            builder.popen.stdin.write("\n")
            builder.popen.stdin.flush()
            assert [waiter.line() for waiter in waiters] == ["first"] * 3
            for waiter in waiters:
                waiter.__exit__()

    def test_a_killed_builder_is_replaced_at_once_and_leaves_nothing(self, root):
        with Process(BUILDS_SLOWLY) as builder:
            assert builder.line() == "building"
            with Process(READS) as waiter:
                time.sleep(0.2)
                builder.popen.kill()
                assert waiter.line() == "mine"
        ask(never)
        assert len(generations(root)) == 1

    def test_a_killed_build_that_nobody_repeats_is_reclaimed(self, root):
        with Process(BUILDS_SLOWLY) as builder:
            assert builder.line() == "building"
            (building,) = generations(root)
            builder.popen.kill()
            builder.popen.wait()
        assert building.exists()
        ask(writes("x"), "another")  # a process that starts looks at once
        wait_until(lambda: ask(never, "another")[0].exists() and not building.exists())
        wait_until(lambda: ask(never, "another")[0].exists() and not building.parent.exists())

    def test_the_wait_ends_before_the_deadline(self):
        @isolated
        def handler(event, context):
            return shared_file("k", never)

        with Process(BUILDS_SLOWLY) as builder:
            assert builder.line() == "building"
            with pytest.raises(LockTimeout, match=r"shared/k/lock was not to be had in \d\.\d+ s; held by python.* \(pid"):
                handler({}, context(0.5))

    def test_two_invocations_of_one_thread_do_not_wait_for_each_other(self):
        @isolated
        def inner(event, context):
            return shared_file("k", never)

        with pytest.raises(LockError, match="held by another task or invocation of this very thread"):
            shared_file("k", lambda path: inner({}, None))

    @pytest.mark.slow
    def test_sixteen_workers_get_one_large_file_however_often_its_builder_is_killed(self, tmp_path):
        """200 MB, and at ten random moments SIGKILL for who builds: at most one build more for each kill, never a short file."""
        log = tmp_path / "builds"
        code = f"""
import hashlib
def build(path):
    with open({str(log)!r}, "a") as log:
        log.write(f"{{os.getpid()}}\\n")
    with open(path, "wb") as file:
        for number in range(200):
            file.write(bytes([number]) * 1_000_000)
            time.sleep(0.01)
@isolated
def handler(event, context):
    path = shared_file("large", build)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
print(handler({{}}, None), flush=True)
"""
        expected = hashlib.md5(b"".join(bytes([number]) * 1_000_000 for number in range(200))).hexdigest()
        processes = [Process(code) for _ in range(16)]
        kills: set[int] = set()
        for _ in range(10):  # a build takes ten times as long as it is let alone here
            wait_until(lambda: set(built_by(log)) - kills, 30)
            time.sleep(random.uniform(0, 0.15))
            (victim,) = set(built_by(log)) - kills
            kills.add(victim)
            os.kill(victim, signal.SIGKILL)
            processes.append(Process(code))
        answers = [(process.popen.pid, process.popen.communicate(timeout=60)[0].strip()) for process in processes]
        survivors = [answer for pid, answer in answers if pid not in kills]
        assert len(survivors) >= 16
        assert set(survivors) == {expected}
        assert len(built_by(log)) <= 1 + len(kills)
        assert len(kills) == 10


def built_by(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().splitlines()] if log.exists() else []


def test_sixteen_workers_that_ask_at_once_build_once(tmp_path):
    code = f"""
sys.stdin.readline()
def build(path):
    with open({str(tmp_path / "builds")!r}, "a") as log:
        log.write("built\\n")
    time.sleep(0.2)
    path.write_bytes(os.urandom(1_000_000))
import hashlib
print(hashlib.md5(shared_file("k", build).read_bytes()).hexdigest(), flush=True)
sys.stdin.readline()
"""
    processes = [Process(code) for _ in range(16)]
    for process in processes:
        assert process.popen.stdin is not None
        process.popen.stdin.write("\n")
        process.popen.stdin.flush()
    answers = [process.line() for process in processes]
    for process in processes:
        process.__exit__()
    assert len(set(answers)) == 1
    assert len(answers[0]) == 32
    assert (tmp_path / "builds").read_text() == "built\n"


def test_signals_at_random_moments_leave_nothing_held_half_built_or_in_use():
    script = """
import logging, os, random, signal
logging.disable()
from perinvoke import isolated, shared_file
from perinvoke.environment import lock_table

armed = False

def interrupts(signum, frame):
    if armed:
        raise KeyboardInterrupt

def build(path):
    path.write_text("x" * 100)

def was_interrupted():
    global armed
    try:
        try:
            armed = True
            text = handler({}, None)
        finally:
            armed = False
    except BaseException:
        return True
    assert text == "x" * 100
    return False

@isolated
def handler(event, context):
    signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 1.5e-3))
    return shared_file("k", build, max_age_seconds=0).read_text()

signal.signal(signal.SIGALRM, interrupts)
interrupted, descriptors = 0, len(os.listdir("/proc/self/fd"))
for _ in range(1000):
    interrupted += was_interrupted()
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert lock_table.table.holds == {}, lock_table.table.holds

@isolated
def undisturbed(event, context):
    return shared_file("k", build, max_age_seconds=0).read_text()

assert undisturbed({}, None) == "x" * 100
left = [name for name in os.listdir(os.environ["PERINVOKE_ROOT"] + "/shared/k") if name != "lock"]
assert len(left) == 1, left
assert len(os.listdir("/proc/self/fd")) - descriptors < 20
print(interrupted)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 30


def test_a_path_had_at_import_stays_in_a_forked_worker_whose_parent_is_gone(monkeypatch):
    """A parent that preloads and forks may die; its workers go on using what their modules got."""
    monkeypatch.setenv("PERINVOKE_SHARED_MAX_BYTES", "100")
    code = """
path = shared_file("k", lambda path: path.write_text("x" * 60))
if os.fork() == 0:
    print(path, os.getpid(), flush=True)
    time.sleep(60)
    os._exit(0)
sys.stdin.readline()
"""
    with Process(code) as parent:
        path, pid = parent.line().split()
        parent.popen.kill()
        parent.popen.wait()
        ask(writes("x" * 60), "other")
        assert Path(path).exists()
        os.kill(int(pid), signal.SIGKILL)
    wait_until(lambda: ask(writes("x" * 60), "third")[0].exists() and not Path(path).exists())


def test_what_cannot_be_moved_away_is_not_evicted(root, monkeypatch):
    """It would be removed later, without its lock, while somebody uses it again."""
    path, _ = ask(writes("x"))
    monkeypatch.setattr(os, "rename", full_disk)
    worker_files = worker.process.worker(read_settings())
    worker_files.space.make_room()
    monkeypatch.undo()
    assert worker_files.trash.wait_empty(10)
    ask(writes("y"), "other")
    assert worker_files.trash.wait_empty(10)
    assert path.read_text() == "x"


def full_disk(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_file_of_before_the_last_boot_is_no_fresher_for_it(root):
    entry = root / "shared" / "k"
    entry.mkdir(parents=True)
    root.chmod(0o700)
    now = Moment.now()
    days = 86_400 * 10**9
    generation = entry / new_name(1, Moment(now.wall_ns - 10 * days, now.boot_ns + 10 * days), 1, "0")
    generation.mkdir()
    (generation / "k").write_text("old")
    assert ask(writes("new"), max_age_seconds=60)[1] == "new"


def test_a_thread_that_outlives_its_invocation_keeps_no_build_to_itself():
    @isolated
    def handler(event, context):
        thread = threading.Thread(target=wait_for_it)
        thread.start()
        time.sleep(0.2)
        return thread

    def wait_for_it() -> None:
        with pytest.raises(NotInInvocation):
            shared_file("k", never)

    with Process(BUILDS_SLOWLY) as builder:
        assert builder.line() == "building"
        thread = handler({}, None)
        builder.popen.kill()
        thread.join(10)
    assert ask(writes("mine"))[1] == "mine"
