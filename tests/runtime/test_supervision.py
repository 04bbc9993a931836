"""Workers that die on the real runtime: their callers are answered at once, they are replaced, nothing is lost, nothing stays."""

from __future__ import annotations

import functools
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from plain_platform import Platform, sockets_of
from processes import alive, wait_until

FUNCTIONS = Path(__file__).parent / "functions"
WORKERS = 4


@pytest.fixture
def platform(root):
    with Platform() as platform:
        yield platform


def start(platform: Platform, tmp_path: Path, handler: str = "dies.handler", *, workers: Any = WORKERS, **env: str) -> None:
    root = os.environ["PERINVOKE_ROOT"]
    variables = {"PERINVOKE_ROOT": root, "PERINVOKE_PRELOAD": "handler", **env}
    platform.start_python(handler, directory=FUNCTIONS, workers=workers, log=tmp_path / "log", **variables)
    wait_until(lambda: platform.polls >= workers, 30)


def all_serve(platform: Platform, workers: int = WORKERS) -> set[int]:
    """Invoke as many at once as there are workers: each must take one."""
    asked = [platform.invoke(how="sleep", seconds=0.3) for _ in range(workers)]
    answers = [platform.answer(request_id) for request_id in asked]
    assert {kind for kind, _ in answers} == {"response"}
    return {payload["pid"] for _, payload in answers}


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("SIGKILL", "was killed by signal 9 (SIGKILL)"),
        ("SIGSEGV", "was killed by signal 11 (SIGSEGV)"),
        ("os._exit", "ended with exit code 0"),
        ("sys.exit", "ended with exit code 0"),
        ("sys.exit(3)", "ended with exit code 3"),
    ],
)
@pytest.mark.parametrize("preload", ["handler", ""])
def test_the_caller_is_told_how_its_worker_died_and_another_takes_its_place(how, cause, preload, platform, tmp_path):
    start(platform, tmp_path, PERINVOKE_PRELOAD=preload)
    before = set(platform.workers())
    request_id = platform.invoke(how=how)
    kind, payload = platform.answer(request_id)
    assert (kind, payload["errorType"]) == ("error", "WorkerDied")
    assert payload["errorMessage"].endswith(f"{cause} while it ran invocation {request_id}")
    serving = all_serve(platform)
    assert len(serving) == WORKERS
    assert len(serving - before) == 1
    [record] = [record for record in platform.records() if record["level"] == "ERROR"]
    assert record["requestId"] == request_id
    assert cause in record["message"]
    assert record["perinvoke"]["workerPid"] in before
    assert platform.stop() == 0


@pytest.fixture
def small_cgroup():
    """A memory cgroup for one worker; skips where the machine doesn't let us make one (it takes root)."""
    for base, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(base, f"perinvoke-test-{os.getpid()}")
        try:
            group.mkdir()
            Path(group, limit).write_text(str(100 << 20))
        except OSError:
            continue
        yield group
        wait_until(functools.partial(is_empty, group))
        group.rmdir()
        return
    pytest.skip("no memory cgroup can be made here")


def is_empty(group: Path) -> bool:
    return not Path(group, "cgroup.procs").read_text()


def test_the_caller_of_a_worker_that_ran_out_of_memory_is_told_so(platform, small_cgroup, tmp_path):
    start(platform, tmp_path, workers=2)
    for pid in platform.workers():
        Path(small_cgroup, "cgroup.procs").write_text(str(pid))
    kind, payload = platform.call(how="memory")
    assert (kind, payload["errorType"]) == ("error", "WorkerDied")
    assert "was killed by signal 9 (SIGKILL), out of memory while it ran" in payload["errorMessage"]
    assert len(all_serve(platform, 2)) == 2
    assert platform.stop() == 0


def test_an_invocation_that_its_killed_worker_has_not_read_is_served_by_the_next_one(platform, tmp_path):
    start(platform, tmp_path)
    stopped = platform.workers()
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
        wait_until(functools.partial(is_stopped, pid))
    asked = [platform.invoke() for _ in stopped]
    time.sleep(0.2)  # all four lie in the connections of workers that don't read
    assert not platform.answers
    for pid in stopped:
        os.kill(pid, signal.SIGKILL)
    answers = [platform.answer(request_id) for request_id in asked]
    assert [kind for kind, _ in answers] == ["response"] * WORKERS
    assert {payload["pid"] for _, payload in answers}.isdisjoint(stopped)
    assert all_serve(platform).isdisjoint(stopped)


def is_stopped(pid: int) -> bool:
    """All its threads are: one that is still on its way could take an invocation."""
    stats = [stat.read_text() for stat in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)


def test_a_worker_that_dies_between_two_invocations_costs_no_caller_anything(platform, tmp_path):
    start(platform, tmp_path)
    for _ in range(20):
        victim = random.Random(1).choice(platform.workers())
        os.kill(victim, signal.SIGKILL)
        assert platform.call()[0] == "response"
    assert len(all_serve(platform)) == WORKERS


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("preload", ["handler", ""])
def test_of_many_invocations_among_many_kills_each_is_answered_once(preload, platform, tmp_path):
    """Kills at random moments: idle, asking, just handed an invocation, serving, answering, starting."""
    invocations, kills, workers = (3_000, 100, 16) if preload else (800, 24, 16)
    start(platform, tmp_path, workers=workers, PERINVOKE_PRELOAD=preload)
    generator = random.Random(7)
    asked: list[str] = []
    killed: set[int] = set()
    while len(asked) < invocations or len(killed) < kills:
        while len(asked) < invocations and len(asked) - len(platform.answers) < 3 * workers // 2:
            asked.append(platform.invoke(how="sleep", seconds=generator.choice([0, 0, 0.002, 0.005])))
        if len(killed) < kills and len(asked) * kills >= len(killed) * invocations:
            for pid in generator.sample(living := [pid for pid in platform.workers() if pid not in killed], min(1, len(living))):
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
        time.sleep(0.0005)
    wait_until(lambda: len(platform.answers) == invocations, 60)
    failed = [payload for kind, payload in platform.answers.values() if kind == "error"]
    assert {payload["errorType"] for payload in failed} == {"WorkerDied"}
    assert len(failed) <= kills
    assert len(all_serve(platform, workers)) == workers
    assert len(platform.workers()) == workers
    assert platform.stop() == 0


# --- the end -----------------------------------------------------------------------------------------------------------


def begun(platform: Platform, tmp_path: Path, **event: Any) -> str:
    """An invocation that has begun."""
    told = tmp_path / f"told-{random.random()}"
    request_id = platform.invoke(told=str(told), **event)
    wait_until(told.exists)
    return request_id


def test_sigterm_lets_invocations_end_and_leaves_nobody_behind(platform, tmp_path):
    start(platform, tmp_path, PERINVOKE_STOP_MS="8000")
    workers = platform.workers()
    request_id = begun(platform, tmp_path, how="sleep", seconds=0.5)
    assert platform.stop() == 0
    assert platform.answers[request_id][0] == "response"
    assert not any(alive(pid) for pid in workers)


def test_sigterm_interrupts_what_takes_too_long_and_runs_its_cleanup(platform, tmp_path):
    start(platform, tmp_path, "dies.isolated_handler", PERINVOKE_STOP_MS="3000")
    request_id = begun(platform, tmp_path, how="sleep", seconds=60, cleanup=str(tmp_path / "cleanup"))
    assert platform.stop() == 0
    kind, payload = platform.answers[request_id]
    assert (kind, payload["errorType"]) == ("error", "HandlerExited")
    assert (tmp_path / "cleanup").read_text() == "done"


@pytest.mark.parametrize("how", ["block", "sleep"])
def test_sigterm_ends_what_does_not_give_way_and_answers_for_it(how, platform, tmp_path):
    """One blocks all signals; the other's SystemExit ends the worker in the middle of a bare handler."""
    start(platform, tmp_path, PERINVOKE_STOP_MS="1000")
    request_id = begun(platform, tmp_path, how=how, seconds=60)
    assert platform.stop() == 0
    kind, payload = platform.answers[request_id]
    assert (kind, payload["errorType"]) == ("error", "WorkerDied")


def test_a_second_sigterm_changes_nothing(platform, tmp_path):
    start(platform, tmp_path, PERINVOKE_STOP_MS="8000")
    request_id = begun(platform, tmp_path, how="sleep", seconds=0.5)
    assert platform.runtime is not None
    platform.runtime.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert platform.stop() == 0
    assert platform.answers[request_id][0] == "response"


def test_sigterm_to_the_whole_group_is_the_same(platform, tmp_path):
    start(platform, tmp_path, PERINVOKE_STOP_MS="8000")
    request_id = begun(platform, tmp_path, how="sleep", seconds=0.5)
    assert platform.runtime is not None
    os.killpg(platform.runtime.pid, signal.SIGTERM)
    assert platform.runtime.wait(10) == 0
    assert platform.answers[request_id][0] == "response"


def test_sigterm_to_a_worker_ends_it_after_its_invocation_and_it_is_replaced(platform, tmp_path):
    start(platform, tmp_path, workers=1)
    [worker] = platform.workers()
    request_id = begun(platform, tmp_path, how="sleep", seconds=0.5)
    os.kill(worker, signal.SIGTERM)
    kind, payload = platform.answer(request_id)
    assert (kind, payload["pid"]) == ("response", worker)
    for _ in range(3):
        _, payload = platform.call()
        assert payload["pid"] != worker


def test_sigterm_while_workers_start_leaves_nobody_behind(platform, tmp_path):
    for delay in (0.0, 0.05, 0.1, 0.15, 0.2, 0.3):
        platform.start_python("dies.handler", directory=FUNCTIONS, workers=16, log=tmp_path / "log", PERINVOKE_PRELOAD="handler")
        assert platform.runtime is not None
        group = platform.runtime.pid
        time.sleep(delay)
        assert platform.stop() in (0, -signal.SIGTERM)
        wait_until(functools.partial(is_gone, group))


def is_gone(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def test_workers_end_with_their_parent_however_it_ends(platform, tmp_path):
    start(platform, tmp_path)
    workers = platform.workers()
    assert platform.runtime is not None
    platform.runtime.kill()
    platform.runtime.wait()
    wait_until(lambda: not any(alive(pid) for pid in workers))


def test_what_a_dead_worker_left_running_ends_with_the_environment(platform, tmp_path):
    start(platform, tmp_path)
    told = tmp_path / "child"
    assert platform.call(how="child", told=str(told))[1]["errorType"] == "WorkerDied"
    child = int(told.read_text())
    assert alive(child)
    assert platform.stop() == 0
    assert not alive(child)


def test_a_thread_that_lives_on_does_not_keep_the_environment(platform, tmp_path):
    start(platform, tmp_path)
    assert platform.call(how="hold on")[0] == "response"
    assert platform.stop() == 0


# --- what workers have of their own -------------------------------------------------------------------------------------


def test_workers_have_their_own_randomness_and_nobody_elses_connections(platform, tmp_path):
    start(platform, tmp_path)
    asked = [platform.invoke(how="sleep", seconds=0.3) for _ in range(WORKERS)]
    answers = [platform.answer(request_id)[1] for request_id in asked]
    assert len({answer["random"] for answer in answers}) == WORKERS
    for _ in range(3):
        platform.call(how="SIGKILL")
    all_serve(platform)
    sockets = [sockets_of(pid) for pid in platform.workers()]
    assert min(map(len, sockets)) >= 3  # what it asks over, what it answers over, and one to its parent
    assert len(set.union(*sockets)) == sum(map(len, sockets))


def test_sixty_four_workers_are_started_and_all_serve(platform, tmp_path):
    start(platform, tmp_path, workers=64)
    assert len(platform.workers()) == 64
    assert len(all_serve(platform, 16)) == 16
    assert platform.stop() == 0


def test_one_worker_is_replaced_too(platform, tmp_path):
    start(platform, tmp_path, workers=1)
    pids = {platform.call()[1]["pid"]}
    for _ in range(5):
        assert platform.call(how="os._exit")[1]["errorType"] == "WorkerDied"
        pids.add(platform.call()[1]["pid"])
    assert len(pids) == 6


# --- workers that can't start -------------------------------------------------------------------------------------------


def test_an_init_that_fails_is_told_and_ends_the_runtime_as_it_does_without_a_supervisor(platform, tmp_path):
    (tmp_path / "broken.py").write_text("raise ValueError('as told')\n")
    platform.start_python("broken.handler", directory=tmp_path, workers=WORKERS, log=tmp_path / "log")
    assert platform.runtime is not None
    assert platform.runtime.wait(20) == 1
    assert platform.init_errors[0]["errorType"] == "ValueError"
    assert "the environment ends, so that the platform replaces it" in platform.records()[-2]["message"]


def test_workers_that_die_before_they_ask_are_replaced_ever_more_slowly_until_the_environment_ends(platform, tmp_path):
    """They start well, and from some moment on each new one dies at once."""
    stop = tmp_path / "stop"
    code = f"import os, sys\nif os.path.exists({str(stop)!r}): os._exit(7)\ndef handler(event, context): os._exit(7)\n"
    (tmp_path / "later.py").write_text(code)
    platform.start_python("later.handler", directory=tmp_path, workers=2, log=tmp_path / "log")
    wait_until(lambda: platform.polls >= 2)
    stop.touch()
    for _ in range(2):
        assert platform.call()[1]["errorType"] == "WorkerDied"
    assert platform.runtime is not None
    assert platform.runtime.wait(60) == 1
    died = [record["message"] for record in platform.records() if record.get("perinvoke", {}).get("event") == "worker_died"]
    pauses = "".join(message.rpartition("in ")[2] for message in died if "it is replaced" in message)
    assert "".join(f"{seconds} s it is replaced" for seconds in (0.1, 0.2, 0.4, 0.8)) in pauses
    assert platform.records()[-2]["perinvoke"]["event"] == "crash_loop"


def test_a_worker_that_executes_another_program_is_answered_for_and_replaced_when_that_ends(platform, tmp_path):
    start(platform, tmp_path)
    assert platform.runtime is not None
    kind, payload = platform.call(how="exec")
    assert (kind, payload["errorType"]) == ("error", "WorkerDied")
    assert "ended with exit code 5" in payload["errorMessage"]
    assert len(all_serve(platform)) == WORKERS


def test_the_parent_of_a_worker_that_told_its_last_word_does_not_spin(platform, tmp_path):
    start(platform, tmp_path)
    assert platform.runtime is not None
    begun(platform, tmp_path, how="close all", seconds=60)
    before = cpu_ticks(platform.runtime.pid)
    time.sleep(0.5)
    assert cpu_ticks(platform.runtime.pid) - before < 0.25 * os.sysconf("SC_CLK_TCK")


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@pytest.mark.slow  # as long as workers are replaced ever more slowly
def test_the_environment_ends_when_nobody_gives_it_work_any_more(platform, tmp_path):
    start(platform, tmp_path)
    assert platform.call()[0] == "response"
    platform.vanish()
    assert platform.runtime is not None
    assert platform.runtime.wait(60) == 1
    assert platform.records()[-2]["perinvoke"]["event"] == "crash_loop"


@pytest.fixture
def pids_cgroup():
    """A cgroup that limits the number of processes; skips where the machine doesn't let us make one."""
    for base in ("/sys/fs/cgroup/pids", "/sys/fs/cgroup"):
        group = Path(base, f"perinvoke-test-pids-{os.getpid()}")
        try:
            group.mkdir()
            if Path(group, "pids.max").exists():
                yield group
                wait_until(functools.partial(is_empty, group))
                return
        except OSError:
            continue
        finally:
            if group.exists():
                group.rmdir()
    pytest.skip("no cgroup that limits processes can be made here")


@pytest.mark.slow  # it is tried again after five seconds
def test_a_fork_that_fails_is_tried_again_and_costs_the_other_workers_nothing(platform, pids_cgroup, tmp_path):
    start(platform, tmp_path)
    assert platform.runtime is not None
    Path(pids_cgroup, "cgroup.procs").write_text(str(platform.runtime.pid))
    Path(pids_cgroup, "pids.max").write_text("1")
    running = begun(platform, tmp_path, how="sleep", seconds=2.0)
    assert platform.call(how="SIGKILL")[1]["errorType"] == "WorkerDied"
    assert platform.answer(running)[0] == "response"
    wait_until(lambda: any(record.get("perinvoke", {}).get("event") == "fork_failed" for record in platform.records()))
    Path(pids_cgroup, "pids.max").write_text("max")
    wait_until(lambda: len(platform.workers()) == WORKERS, 20)
    assert len(all_serve(platform)) == WORKERS
    assert platform.stop() == 0


def test_a_forked_child_that_comes_back_from_its_handler_takes_nobodys_invocation(platform, tmp_path):
    start(platform, tmp_path, workers=2)
    platform.call(how="fork and come back")
    asked = {platform.invoke(echo=number): number for number in range(100)}
    for request_id, number in asked.items():
        kind, payload = platform.answer(request_id)
        assert kind == "response"
        assert payload["echo"] == number
    assert platform.stop() == 0


def test_a_platform_that_answers_with_errors_for_a_while_gets_its_workers_back(platform, tmp_path):
    start(platform, tmp_path)
    platform.fails_next = 3 * WORKERS
    for pid in platform.workers()[:2]:
        os.kill(pid, signal.SIGKILL)
    for _ in range(2 * WORKERS):
        assert platform.call()[0] == "response"
    wait_until(lambda: platform.fails_next <= 0)
    assert len(all_serve(platform)) == WORKERS


def test_a_log_that_nobody_reads_does_not_hold_up_supervision(platform, tmp_path):
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        while True:
            os.write(writing, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writing, True)
    variables = {"PERINVOKE_ROOT": os.environ["PERINVOKE_ROOT"], "PERINVOKE_PRELOAD": "handler"}
    log = Path(f"/proc/self/fd/{writing}")
    platform.start_python("dies.handler", directory=FUNCTIONS, workers=2, log=log, **variables)
    wait_until(lambda: platform.polls >= 2, 30)
    for _ in range(3):
        assert platform.call(how="os._exit")[1]["errorType"] == "WorkerDied"
    assert platform.call()[0] == "response"
    assert platform.stop() == 0
    os.close(reading)
    os.close(writing)
