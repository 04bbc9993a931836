from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from perinvoke import isolated, scratch

pytestmark = pytest.mark.usefixtures("root")


def test_threads_pooled_calls_and_children_left_running_are_named(caplog):
    stop = threading.Event()
    started: list[subprocess.Popen[bytes]] = []
    with ThreadPoolExecutor(1) as pool:

        def pooled_work() -> None:
            stop.wait(10)

        @isolated
        def handler(event, context):
            threading.Thread(target=stop.wait, args=(10,), name="metrics-sender").start()
            pool.submit(pooled_work)
            started.append(subprocess.Popen(["sleep", "10"]))
            return "answer"

        try:
            assert handler({}, None) == "answer"
            (record,) = caplog.records
            thread, pooled, child = record.perinvoke["left_running"]
            assert thread == "thread metrics-sender"
            assert pooled.startswith("pooled call ")
            assert pooled.endswith("pooled_work")
            assert child in {f"child process sleep (pid {started[0].pid})", f"child process python (pid {started[0].pid})"}
        finally:
            stop.set()
            started[0].kill()
            started[0].wait()


def test_what_ended_in_time_is_not_reported(caplog):
    @isolated
    def handler(event, context):
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(lambda: None).result()
        subprocess.run(["true"], check=True)

    handler({}, None)
    assert caplog.records == []


def test_a_thread_that_was_told_to_end_may_do_so(caplog, monkeypatch):
    """As AnyIO's, in which FastAPI runs what isn't async: it isn't waited for when the loop ends."""
    monkeypatch.setattr("perinvoke.invocation.leftovers._ENDING_SECONDS", 5.0)
    told = threading.Event()

    def work() -> None:
        told.wait(10)
        time.sleep(0.02)

    @isolated
    def handler(event, context):
        threading.Thread(target=work).start()
        told.set()

    handler({}, None)
    assert caplog.records == []


def test_an_idle_pool_is_no_leftover(caplog):
    with ThreadPoolExecutor(1) as pool:

        @isolated
        def handler(event, context):
            return pool.submit(lambda: 1).result()

        assert handler({}, None) == 1
    assert caplog.records == []


def test_a_child_that_was_there_before_is_not_the_invocations(caplog):
    with subprocess.Popen(["sleep", "10"]) as before:
        time.sleep(0.05)  # a process's age is told in hundredths of a second

        @isolated
        def handler(event, context):
            return None

        handler({}, None)
        before.kill()
    assert caplog.records == []


def test_a_child_that_ended_without_being_waited_for_is_not_running(caplog):
    started = []

    @isolated
    def handler(event, context):
        child = subprocess.Popen(["true"])
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        started.append(child)

    handler({}, None)
    started[0].wait()
    assert caplog.records == []


@pytest.mark.parametrize("kind", ["child", "daemon", "thread"])
def test_a_directory_that_a_leftover_may_know_is_never_used_again(kind, root, caplog):
    """The leftover knows TMPDIR, and writes there later, into whatever is there then."""
    stop = threading.Event()
    paths = []

    @isolated
    def leaves(event, context):
        paths.append(os.environ["TMPDIR"])
        if kind == "child":
            event.append(subprocess.Popen(["sleep", "10"]))
        elif kind == "daemon":
            subprocess.run([sys.executable, "-c", "import os; os.fork() or os.setsid()"], check=True)
        else:
            threading.Thread(target=stop.wait, args=(10,)).start()

    @isolated
    def next_one(event, context):
        paths.append(os.environ["TMPDIR"])

    children: list[subprocess.Popen[bytes]] = []
    leaves(children, None)
    next_one([], None)
    stop.set()
    for child in children:
        child.kill()
        child.wait()
    assert paths[0] != paths[1]


def test_in_a_shared_process_children_are_known_by_their_start(caplog, monkeypatch):
    monkeypatch.setenv("AWS_LAMBDA_CONCURRENCY_MODE", "thread")
    started = []

    @isolated
    def handler(event, context):
        scratch()
        started.append(subprocess.Popen(["sleep", "10"]))

    handler({}, None)
    started[0].kill()
    started[0].wait()
    assert f"(pid {started[0].pid})" in caplog.text


@pytest.mark.parametrize("hidden", ["by a nested invocation", "by an ignored SIGCHLD"])
def test_a_daemon_that_is_hard_to_see_keeps_the_directory_from_being_used_again(hidden, root):
    """It knows TMPDIR, and is nobody's child by the time anybody looks."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN if "SIGCHLD" in hidden else signal.SIG_DFL)
    try:

        @isolated
        def nested(event, context):
            return None

        @isolated
        def handler(event, context):
            if event == "start":
                os.system("(sleep 0.3; echo x > $TMPDIR/leak) 2>/dev/null &")
                nested({}, None)
            return os.environ["TMPDIR"]

        assert handler("start", None) != handler("look", None)
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_thread_of_the_function_that_was_told_tmpdir_never_reaches_another_invocations_directory(root):
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, args=(10,))
    thread.start()

    @isolated
    def handler(event, context):
        return os.environ["TMPDIR"]

    try:
        assert handler({}, None) != handler({}, None)
    finally:
        stop.set()
        thread.join()
