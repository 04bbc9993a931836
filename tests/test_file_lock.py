"""file_lock between real processes, with real kills; and beside filelock's own."""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import filelock
import pytest

from perinvoke import current, file_lock, isolated
from perinvoke.environment import lock_table
from perinvoke.errors import LockError, LockNotHeld, LockTimeout, NotInInvocation, RootError
from processes import Process, wait_until
from stalls import repeated_after_a_stall

pytestmark = pytest.mark.usefixtures("root")


def holder(how: str) -> Process:
    hold = f"with {how}:\n    print('held', flush=True)\n    sys.stdin.readline()\n"
    process = Process(hold + "print('given back', flush=True)\nsys.stdin.readline()")
    assert process.line() == "held"
    return process


def context(seconds: float) -> Any:
    return SimpleNamespace(aws_request_id="r", get_remaining_time_in_millis=lambda: seconds * 1000)


def test_one_holder_excludes_the_others_until_it_gives_back():
    with holder("file_lock('x')") as other:
        assert file_lock("x").try_acquire() is False
        started = time.monotonic()
        with pytest.raises(LockTimeout) as caught:
            file_lock("x", timeout=0.2).acquire()
        assert 0.2 <= time.monotonic() - started < 20
        assert caught.value.holder_pids == [other.popen.pid]
        assert f"(pid {other.popen.pid})" in str(caught.value)
        assert 0.2 <= caught.value.waited_seconds < 20
        assert other.popen.stdin is not None
        other.popen.stdin.write("go\n")
        other.popen.stdin.flush()
        with file_lock("x", timeout=10):
            assert other.line() == "given back"


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSEGV", "exit"])
def test_the_kernel_frees_it_when_its_holder_dies(how):
    with holder("file_lock('x')") as other:
        threading.Timer(0.1, lambda: other.popen.send_signal(getattr(signal, how, signal.SIGTERM))).start()
        with file_lock("x", timeout=10):
            pass


def test_it_excludes_filelocks_own_lock_and_the_other_way_round(tmp_path):
    protected = tmp_path / "file"
    with holder(f"filelock.FileLock({str(protected) + '.lock'!r})"):
        assert file_lock(protected).try_acquire() is False
    with holder(f"file_lock(Path({str(protected)!r}))"), pytest.raises(filelock.Timeout):
        filelock.FileLock(str(protected) + ".lock").acquire(timeout=0)
    with file_lock(protected), pytest.raises(filelock.Timeout):
        filelock.FileLock(str(protected) + ".lock").acquire(timeout=0)


def test_shared_holders_exclude_only_exclusive_ones():
    with holder("file_lock('x', shared=True)"):
        with file_lock("x", shared=True):
            pass
        assert file_lock("x").try_acquire() is False
    with holder("file_lock('x')"):
        assert file_lock("x", shared=True).try_acquire() is False


def test_the_same_owner_may_take_it_again_and_must_give_it_back_as_often():
    lock = file_lock("x")
    lock.acquire()
    with lock, file_lock("x"), file_lock("x", shared=True):
        pass
    assert lock.try_acquire()
    lock.release()
    with Process("print(file_lock('x').try_acquire(), flush=True)") as other:
        assert other.line() == "False"
    lock.release()
    with Process("print(file_lock('x').try_acquire(), flush=True)") as other:
        assert other.line() == "True"
    with pytest.raises(LockNotHeld, match="not held by this invocation, thread and task"):
        lock.release()


def test_an_upgrade_is_refused_with_a_way_out():
    with file_lock("x", shared=True), pytest.raises(LockError, match="take it exclusively from the start"):
        file_lock("x").acquire()


def test_a_decorated_function_runs_under_the_lock():
    @file_lock("x")
    def locked(value: int) -> tuple[int, bool]:
        return value, filelock_is_free("x")

    assert locked(3) == (3, False)
    assert locked.__name__ == "locked"


def filelock_is_free(name: str) -> bool:
    with Process(f"print(file_lock({name!r}).try_acquire(), flush=True)") as other:
        return other.line() == "True"


@repeated_after_a_stall
def test_it_waits_at_most_until_the_deadline_less_the_margin(monkeypatch):
    monkeypatch.setenv("PERINVOKE_TIMEOUT_MARGIN_MS", "500")

    @isolated
    def handler(event, context):
        started = time.monotonic()
        with pytest.raises(LockTimeout):
            file_lock("x", timeout=60).acquire()
        return time.monotonic() - started, current().deadline.remaining_seconds()

    with holder("file_lock('x')"):
        waited, left = handler({}, context(1.0))
    assert 0.3 < waited < 0.7
    assert left > 0.2


def test_what_is_still_held_at_the_end_is_given_back_and_reported(caplog):
    @isolated
    def handler(event, context):
        file_lock("x").acquire()
        thread = threading.Thread(target=file_lock("in thread").acquire)
        thread.start()
        thread.join()
        with file_lock("y"):
            pass

    handler({}, None)
    assert filelock_is_free("x")
    assert filelock_is_free("in thread")
    assert "lock" in caplog.text
    assert "x.lock, still held at the end" in caplog.text
    assert "y.lock" not in caplog.text


def test_threads_of_one_invocation_exclude_each_other():
    inside = []
    overlaps = []

    def work() -> None:
        for _ in range(50):
            with file_lock("x", timeout=20):
                inside.append(1)
                if len(inside) > 1:
                    overlaps.append(1)
                time.sleep(0.0005)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == []


def test_tasks_of_one_loop_are_told_instead_of_deadlocking():
    async def second() -> None:
        with pytest.raises(LockError, match="another task or invocation of this very thread"):
            file_lock("x", timeout=5).acquire()

    async def first() -> None:
        with file_lock("x"):
            await asyncio.create_task(second())

    asyncio.run(first())


def test_a_nested_invocation_is_told_instead_of_deadlocking():
    @isolated
    def inner(event, context):
        with file_lock("x"):
            pass

    @isolated
    def outer(event, context):
        with file_lock("x"):
            inner({}, None)

    with pytest.raises(LockError, match="another task or invocation of this very thread"):
        outer({}, None)


def test_a_forked_child_does_not_hold_it_and_cannot_keep_it():
    lock = file_lock("x")
    lock.acquire()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(writing)
            os.read(reading, 1)
            os._exit(int(file_lock("x").try_acquire()))
        finally:
            os._exit(9)
    lock.release()
    assert filelock_is_free("x")  # though the child lives
    os.close(reading)
    os.close(writing)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    with lock:
        pid = os.fork()
        if pid == 0:
            try:
                with pytest.raises(LockNotHeld):
                    lock.release()
                os._exit(int(file_lock("x").try_acquire()))
            finally:
                os._exit(9)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_those_who_give_up_leave_one_thread_however_many_they_are():
    before = set(threading.enumerate())  # threads of earlier tests may end while this one looks

    def new_waiters():
        return [thread for thread in set(threading.enumerate()) - before if thread.name == "perinvoke-lock"]

    with holder("file_lock('x')"):
        for _ in range(20):
            with pytest.raises(LockTimeout):
                file_lock("x", timeout=0.01).acquire()
        assert len(new_waiters()) == 1
    with file_lock("x", timeout=10):  # takes over the place in the queue, or finds the lock free
        pass
    until = time.monotonic() + 30
    while new_waiters() and time.monotonic() < until:
        time.sleep(0.01)
    assert new_waiters() == []
    assert lock_table.table.waiters == []
    assert filelock_is_free("x")


def test_a_signal_that_interrupts_the_wait_leaves_nothing_behind():
    def interrupts(signum, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupts)
    try:
        with holder("file_lock('x')") as other:
            for _ in range(20):
                with pytest.raises(KeyboardInterrupt):  # noqa: PT012  # armed inside: a late start of the wait must not let it escape
                    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0005, 0.01))
                    file_lock("x", timeout=5).acquire()
            other.popen.kill()
            with file_lock("x", timeout=10):
                pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert filelock_is_free("x")


def test_signals_that_interrupt_anything_at_any_moment_leave_nothing_held_after_the_invocation():
    """In a process of its own: an interrupt that strikes in a finalizer or a log handler would be the test runner's."""
    script = """
import logging, os, random, signal
logging.disable()
from perinvoke import file_lock, isolated
from perinvoke.environment import lock_table
from perinvoke.errors import LockNotHeld

class Interrupt(BaseException):
    pass

def interrupts(signum, frame):
    raise Interrupt

interrupted = 0

@isolated
def handler(event, context):
    global interrupted
    lock = file_lock("x", timeout=5)
    for _ in range(30):
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00001, 0.0003))
            for _ in range(1000):  # bounded: an interrupt that strikes in a finalizer is swallowed by Python
                with lock:
                    pass
        except Interrupt:
            interrupted += 1
        except LockNotHeld:  # the interrupt hit between a release and the end of its with block
            interrupted += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

descriptors = len(os.listdir("/proc/self/fd"))
signal.signal(signal.SIGALRM, interrupts)
for _ in range(50):
    try:
        handler({}, None)
    except BaseException:  # the last interrupt struck beside the handler's own try
        interrupted += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    with file_lock("x", timeout=0):
        pass
assert lock_table.table.holds == {}
# Between the return of open() and the next bytecode an interrupt loses a descriptor, in any Python code. It holds no lock.
assert len(os.listdir("/proc/self/fd")) - descriptors < interrupted // 10
print(interrupted)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 500
    assert filelock_is_free("x")


def test_a_lock_file_that_is_removed_does_not_split_its_waiters(root):
    path = root / "locks" / "x.lock"
    with holder("file_lock('x')") as other:
        waiting = Process("lock = file_lock('x', timeout=20)\nlock.acquire()\nprint('held', flush=True)\nsys.stdin.readline()")
        wait_for_waiter(path)
        path.unlink()
        other.popen.kill()
        with waiting:
            assert waiting.line() == "held"
            assert file_lock("x").try_acquire() is False


def wait_for_waiter(path: Path) -> None:
    inode = str(path.stat().st_ino)
    until = time.monotonic() + 10
    while time.monotonic() < until:
        if any("->" in line and inode in line for line in Path("/proc/locks").read_text().splitlines()):
            return
        time.sleep(0.005)
    raise AssertionError("nobody waits")


WORKER = """
kind, path, turns = sys.argv[1] if len(sys.argv) > 1 else {kind!r}, {path!r}, {turns}
lock = file_lock(Path(path)) if kind == "perinvoke" else filelock.FileLock(path + ".lock", poll_interval=0.001)
for _ in range(turns):
    with lock:
        value = int(open(path).read())
        with open(path + ".new." + str(os.getpid()), "w") as file:
            file.write(str(value + 1))
        os.rename(file.name, path)
        with open(path + ".log", "a") as log:
            log.write("x")
"""


@pytest.mark.timeout(240)
@pytest.mark.slow
def test_sixteen_processes_count_exactly(tmp_path):
    counter = tmp_path / "counter"
    counter.write_text("0")
    turns = 500
    processes = [Process(WORKER.format(kind="perinvoke", path=str(counter), turns=turns)) for _ in range(16)]
    for process in processes:
        process.popen.wait(200)
    for process in processes:
        process.__exit__()
    assert counter.read_text() == str(16 * turns)


@pytest.mark.timeout(240)
def test_the_count_is_exact_while_holders_and_waiters_are_killed_and_filelock_takes_part(tmp_path):
    """A turn is one rename: a process killed before it has counted nothing, one killed after it has counted one."""
    counter = tmp_path / "counter"
    counter.write_text("0")

    def start() -> Process:
        kind = random.choice(["perinvoke", "perinvoke", "perinvoke", "filelock"])
        return Process(WORKER.format(kind=kind, path=str(counter), turns=1_000_000))

    processes = [start() for _ in range(16)]
    for _ in range(100):
        time.sleep(random.uniform(0, 0.03))
        index = random.randrange(16)
        processes[index].__exit__()
        processes[index] = start()
    for process in processes:
        process.__exit__()
    counted = int(counter.read_text())
    logged = (tmp_path / "counter.log").stat().st_size
    # Killed between the rename and the log: at most once for each kill. Two holders at once would lose counts, not log entries.
    assert counted - 116 <= logged <= counted
    assert counted > 200
    with file_lock(counter, timeout=1):
        pass


def test_descriptors_threads_and_memory_stay_flat():
    """In a process of its own, where nothing else opens, starts or keeps anything."""
    script = """
import os, threading
from pathlib import Path
from perinvoke import file_lock

lock = file_lock("flat")

def take(times):
    for _ in range(times):
        with lock:
            pass
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    print(len(os.listdir("/proc/self/fd")), threading.active_count(), pages)

take(1_000)
take(100_000)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=100)
    before, after = (list(map(int, line.split())) for line in run.stdout.splitlines())
    assert after[0] < before[0] + 10
    assert after[1] < before[1] + 10
    assert after[2] - before[2] < 256  # pages: 1 MiB


@pytest.mark.parametrize("name", ["a/b", "/etc/passwd", "..", ".", "", "a\0b", "n" * 300, "é" * 130])
def test_a_name_that_cannot_be_a_files_is_refused(name):
    with pytest.raises(LockError, match="name"):
        file_lock(name)


@pytest.mark.parametrize("name", ["é", "日本", "with space", "-", "a.b", "n" * 250, "new\nline"])
def test_other_names_work(name):
    with file_lock(name):
        pass


@pytest.mark.parametrize("timeout", [-1, -0.001, float("nan"), float("-inf")])
def test_a_timeout_that_is_no_duration_is_refused(timeout):
    with pytest.raises(LockError, match="timeout"):
        file_lock("x", timeout=timeout)
    with pytest.raises(LockError, match="timeout"):
        file_lock("x").acquire(timeout=timeout)


def test_a_path_whose_directory_is_missing_or_read_only_is_named(tmp_path):
    with pytest.raises(LockError, match="missing/file.lock can't be opened: No such file or directory"):
        file_lock(tmp_path / "missing" / "file").acquire()
    with pytest.raises(LockError, match="can't be opened"):
        file_lock(Path("/proc/self/status")).acquire()


def test_a_lock_file_that_is_a_directory_or_a_symlink_is_refused(tmp_path):
    (tmp_path / "a.lock").mkdir()
    with pytest.raises(LockError, match="Is a directory"):
        file_lock(tmp_path / "a").acquire()
    (tmp_path / "b.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LockError, match="can't be opened"):
        file_lock(tmp_path / "b").acquire()


def test_a_directory_may_be_locked_through_the_file_beside_it(tmp_path):
    with file_lock(tmp_path):
        assert tmp_path.with_name(tmp_path.name + ".lock").is_file()
    tmp_path.with_name(tmp_path.name + ".lock").unlink()


def test_a_lock_named_at_import_touches_no_disk_and_survives_a_swept_root(root):
    lock = file_lock("x")
    assert not root.exists()
    with lock:
        pass
    root.rename(root.with_name("swept"))
    with lock:
        assert (root / "locks" / "x.lock").is_file()


class TestThreadsThatOutliveTheirInvocation:
    """They carry its context; what they take after its end nobody would give back."""

    def test_one_that_waits_gets_an_error_and_never_the_lock(self, caplog):
        told: list[BaseException] = []

        def section() -> None:
            try:
                with file_lock("x"):
                    told.append(AssertionError("held after the end"))
            except BaseException as error:  # whatever it is
                told.append(error)

        @isolated
        def handler(event, context):
            thread = threading.Thread(target=section)
            thread.start()
            time.sleep(0.2)
            return thread

        with holder("file_lock('x')") as other:
            thread = handler({}, None)
            other.popen.kill()
            thread.join(10)
        assert [type(error) for error in told] == [NotInInvocation]
        assert "has ended meanwhile" in str(told[0])
        assert filelock_is_free("x")

    def test_one_that_is_given_up_on_by_an_async_handler_too(self):
        def section() -> None:
            with file_lock("x"):
                time.sleep(60)

        @isolated
        async def handler(event, context):
            try:
                await asyncio.wait_for(asyncio.to_thread(section), 0.2)
            except TimeoutError:
                return "busy"

        with holder("file_lock('x')") as other:
            assert handler({}, None) == "busy"  # type: ignore[comparison-overlap]  # outside a loop it returns the result
            other.popen.kill()
        wait_until(lambda: filelock_is_free("x"))

    def test_a_descriptor_that_another_thread_has_just_opened_is_not_closed_under_it(self, monkeypatch, tmp_path):
        """By the time that thread locks it, the number would be another file's, which it would lock and take for the lock."""
        opened, go_on = threading.Event(), threading.Event()
        real = fcntl.flock
        locked: list[str] = []

        def flock(fd: int, operation: int) -> None:
            if threading.current_thread().name == "late":
                opened.set()
                assert go_on.wait(10)
                locked.append(os.readlink(f"/proc/self/fd/{fd}"))
            real(fd, operation)

        def section() -> None:
            with pytest.raises(NotInInvocation):
                file_lock("x").acquire()

        @isolated
        def handler(event, context):
            thread = threading.Thread(target=section, name="late")
            thread.start()
            assert opened.wait(10)
            return thread

        monkeypatch.setattr(fcntl, "flock", flock)
        thread = handler({}, None)
        with (tmp_path / "somebody else's").open("w"):
            go_on.set()
            thread.join(10)
        assert {Path(path).name for path in locked} == {"x.lock"}
        assert filelock_is_free("x")


def test_a_fork_waits_for_what_is_just_being_opened_so_that_the_child_shares_no_lock(root):
    """Else the child, which outlives us, would keep the lock of a holder that was killed."""
    script = """
import os, sys, threading, time
from perinvoke import file_lock
from perinvoke.environment import lock_table

def take():
    for _ in range(2000):
        with file_lock("x"):
            pass

thread = threading.Thread(target=take)
thread.start()
children = []
while thread.is_alive() and len(children) < 100:
    pid = os.fork()
    if pid == 0:
        paths = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        os._exit(any(os.readlink(path).endswith("x.lock") for path in paths if os.path.lexists(path)))
    children.append(pid)
thread.join()
print(sum(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children), len(children))
"""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 0, run.stderr
    shared, children = map(int, run.stdout.split())
    assert (shared, children > 0) == (0, True)


@pytest.mark.parametrize("name", [b"x", 5, None, "\ud800"])
def test_what_is_no_text_is_refused(name):
    with pytest.raises(LockError, match="name|bytes"):
        file_lock(name)


@pytest.mark.parametrize("timeout", ["1", b"1", [1]])
def test_a_timeout_that_is_no_number_is_refused(timeout):
    with pytest.raises(LockError, match="timeout"):
        file_lock("x", timeout=timeout)


def test_a_root_that_is_not_ours_alone_is_refused_although_it_is_there(root):
    (root / "locks").mkdir(parents=True)
    root.chmod(0o777)
    with pytest.raises(RootError, match="others may write to it"):
        file_lock("x").acquire()
