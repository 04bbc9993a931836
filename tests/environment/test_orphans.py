"""What the dead left, seen from the living: found between invocations, and never while anybody uses it."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from perinvoke import isolated
from perinvoke.environment.orphans import reclaim
from processes import Process, wait_until


@isolated
def nothing(event: object, context: object) -> None:
    """An invocation that touches no file."""


def gone(path: Path) -> bool:
    """One more invocation; the workers look after the dead between those."""
    isolated(nothing.__wrapped__)({}, None)  # type: ignore[attr-defined]
    return not path.exists()


HANGS = """
@isolated
def handler(event, context):
    (scratch() / "left").write_text("x")
    print(scratch(), flush=True)
    sys.stdin.readline()
handler({}, None)
"""


def test_a_worker_that_dies_is_reclaimed_by_one_that_goes_on(root):
    """The living have looked at their start; the death comes after."""
    with Process(HANGS) as victim:
        scratch = Path(victim.line())
        assert not gone(scratch.parent)
        victim.popen.send_signal(signal.SIGKILL)
        victim.popen.wait()
        wait_until(lambda: gone(scratch.parent))
    assert len(list(root.glob("worker-*"))) == 1


@pytest.mark.parametrize(
    "command",
    [
        "exec sleep 60",
        'unset TMPDIR; cd "$OWN"; exec sleep 60',
        'unset TMPDIR; exec sleep 60 < "$OWN/left"',
    ],
    ids=["its TMPDIR", "its working directory", "an open file"],
)
def test_a_dead_workers_child_keeps_its_files_as_long_as_it_lives(root, command):
    code = f"""
import subprocess
@isolated
def handler(event, context):
    (scratch() / "left").write_text("x")
    child = subprocess.Popen(["sh", "-c", {command!r}], env=dict(os.environ, OWN=str(scratch())))
    print(scratch(), child.pid, flush=True)
    sys.stdin.readline()
handler({{}}, None)
"""
    with Process(code) as victim:
        scratch, pid = victim.line().split()
        wait_until(lambda: b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes())
        victim.popen.send_signal(signal.SIGKILL)
        victim.popen.wait()
        assert reclaim(str(root), lambda path: True) == 0
        assert (Path(scratch) / "left").exists()
        os.kill(int(pid), signal.SIGKILL)
        wait_until(lambda: gone(Path(scratch).parent))


def test_a_dead_workers_child_that_is_being_executed_keeps_its_files(root):
    """In the middle of it nobody sees what it was given: so it is executed again and again, and looked at as often."""
    code = """
import subprocess
@isolated
def handler(event, context):
    (scratch() / "left").write_text("x")
    child = subprocess.Popen(["sh", "-c", 'exec sh -c "$AGAIN"'], env=dict(os.environ, AGAIN='exec sh -c "$AGAIN"'))
    print(child.pid, flush=True)
    sys.stdin.readline()
handler({}, None)
"""
    with Process(code) as victim:
        pid = int(victim.line())
        victim.popen.send_signal(signal.SIGKILL)
        victim.popen.wait()
        taken = sum(reclaim(str(root), lambda path: True) for _ in range(100))
        os.kill(pid, signal.SIGKILL)
        assert taken == 0
        wait_until(lambda: reclaim(str(root), lambda path: True) == 1)


def test_a_dead_workers_forked_child_keeps_its_files_as_long_as_it_lives(root):
    code = """
@isolated
def handler(event, context):
    (scratch() / "left").write_text("x")
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    print(scratch(), pid, flush=True)
    sys.stdin.readline()
handler({}, None)
"""
    with Process(code) as victim:
        scratch, pid = victim.line().split()
        victim.popen.send_signal(signal.SIGKILL)
        victim.popen.wait()
        assert reclaim(str(root), lambda path: True) == 0
        os.kill(int(pid), signal.SIGKILL)
        wait_until(lambda: gone(Path(scratch).parent))


def test_what_nobody_holds_below_shared_goes_and_what_is_published_stays(root):
    with Process("print(shared_file('k', lambda path: path.write_text('x')), flush=True)") as builder:
        path = Path(builder.line())
    dead = path.parent.parent / "building-0123abcd"
    dead.mkdir()
    (dead / "k").write_text("half")
    empty = root / "shared" / "empty"
    empty.mkdir()
    (empty / "lock").touch()
    wait_until(lambda: gone(dead) and not empty.exists())
    assert path.read_text() == "x"


LOOKS = """
import threading

@isolated
def handler(event, context):
    pass

real, started = threading.Thread.start, []
def start(thread):
    started.append(thread.name)
    real(thread)

handler({}, None)
began = time.monotonic()
threading.Thread.start = start
for _ in range(100):
    handler({}, None)
print(len(started) <= 1 + (time.monotonic() - began), started)
"""


@pytest.mark.usefixtures("root")
def test_looking_costs_no_thread_but_once_a_second():
    """Between two looks an invocation starts no thread: a handler that forks would get Python's warning each time.

    In a process of its own: where a child process runs, as a database of other tests, what it may use is thrown away each time.
    """
    with Process(LOOKS) as worker:
        assert worker.line().startswith("True")


def test_a_process_that_only_looks_is_no_reason_to_wait(root):
    """The finder has the dead worker's directory open itself."""
    with Process(HANGS) as victim:
        scratch = Path(victim.line())
        victim.popen.send_signal(signal.SIGKILL)
        victim.popen.wait()
    trash = root.parent / "taken"
    trash.mkdir()

    def take(path: str) -> bool:
        os.rename(path, trash / "x")
        return True

    assert reclaim(str(root), take) == 1
    assert not scratch.exists()
    subprocess.run(["rm", "-r", trash], check=True)
