"""Processes in which invocations run out of time: what their scripts begin with, and a storm of short deadlines."""

from __future__ import annotations

import os
import subprocess
import sys

PRELUDE = """
import ctypes, faulthandler, gc, logging, os, queue, random, signal, sys, threading, time
from perinvoke import InvocationState, current, file_lock, isolated, scratch, worker
from perinvoke.environment import supervised
from perinvoke.errors import DeadlineReached, InvocationTimeout
logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stdout)

class Context:
    aws_request_id = "r-1"
    def __init__(self, seconds):
        self.until = time.monotonic() + seconds
    def get_remaining_time_in_millis(self):
        return max(0.01, (self.until - time.monotonic()) * 1000)

def call(handler, seconds=0.2, event=None):
    try:
        return handler(event or {}, Context(seconds))
    except BaseException as error:
        return type(error).__name__

def stuck_in_c(seconds):
    library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    library.pthread_mutex_init(mutex, None)
    library.pthread_mutex_lock(mutex)
    until = time.time() + seconds
    spec = (ctypes.c_long * 2)(int(until), int(until % 1 * 1e9))
    library.pthread_mutex_timedlock(mutex, spec)

def sleeps(event, context):
    time.sleep(event.get("seconds", 30))
    return "slept"

sleeper = isolated(sleeps)
"""


def run(script: str, *, seconds: float = 60, **variables: str) -> tuple[str, str]:
    """Standard output and error of a process that runs the script with a margin of 0, unless said otherwise."""
    environment = {name: value for name, value in os.environ.items() if name != "TMPDIR"}
    environment |= {"PERINVOKE_TIMEOUT_MARGIN_MS": "0", **variables}
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + script], env=environment, capture_output=True, text=True, check=False, timeout=seconds
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr


STORM = """
logging.disable()
class State(InvocationState):
    value: int = 0
state = State()
log = logging.getLogger("app")
jobs = queue.Queue()
guard = threading.Lock()

@isolated
def handler(event, context):
    current().defer(list.append, event["cleaned"], 1)
    state.value = 1
    (scratch() / "a").write_text("x")
    os.environ["LEAK"] = "1"
    os.chdir(scratch())
    for _ in range(random.randrange(8)):
        log.error("a line")
        with file_lock("storm"):
            state.value += 1
        jobs.put(1)
        jobs.get()
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()
    if random.random() < 0.3:
        jobs.get()
    return "done"

def storm(times):
    seen, cwd = {}, os.getcwd()
    for _ in range(times):
        cleaned = []
        answer = call(handler, random.uniform(1e-5, 4e-3), {"cleaned": cleaned})
        seen[answer] = seen.get(answer, 0) + 1
        process = worker.process
        assert len(cleaned) <= 1
        assert process.occupancy._running == [] and not process.occupancy._lock.locked()
        assert "LEAK" not in os.environ and "TMPDIR" not in os.environ and os.getcwd() == cwd
        assert not logging._lock._is_owned()
        with jobs.mutex:
            jobs.queue.clear()
        for one in (process.watches._main, process.watches._others):
            assert not one or not one._armed
    assert file_lock("storm").try_acquire()
    assert threading._active_limbo_lock.acquire(timeout=5)
    threading._active_limbo_lock.release()
    print(sorted(seen.items()))
    assert set(seen) <= {"done", "InvocationTimeout"}, seen
    assert seen["InvocationTimeout"] > times / 10, seen
"""
