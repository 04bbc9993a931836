"""What dies, what is left: real kills."""

from __future__ import annotations

import asyncio
import os
import random
import select
import signal
import subprocess
import sys
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from environments import FUNCTIONS, event, local, result, run
from perinvoke.local import Status, drive
from processes import MARK, alive, marked, wait_until
from stalls import repeated_after_a_stall

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temp directory of this test."""
    folder = tmp_path / "t"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder


@pytest.fixture
def mark(temp: Path) -> Iterator[str]:
    """Marks the processes of one test; none may be left, and nothing in the temp directory."""
    value = uuid4().hex
    yield value
    assert marked(value) == []
    assert list(temp.iterdir()) == []


def kill_and_wait(pid: int) -> None:
    """Returns when the whole process has ended, and with it its connections: its first thread may be a zombie before."""
    pidfd = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        assert select.select([pidfd], [], [], 10)[0]
    finally:
        os.close(pidfd)


def test_leaving_ends_every_process_and_removes_every_file(mark: str) -> None:
    async def scenario() -> None:
        async with local("app.echo", env={MARK: mark}) as environment:
            assert len(marked(mark)) == 4  # keeper, parent, two workers
            assert os.getpgid(environment.worker_pids[0]) == environment.runtime_pid != os.getpgid(0)

    run(scenario())


@pytest.mark.parametrize("handler", ["app.detach", "app.ignore_sigterm", "app.fork_holding_connections"])
def test_leaving_ends_what_handlers_left_behind_too(mark: str, handler: str) -> None:
    async def scenario() -> None:
        async with local(handler, env={MARK: mark}) as environment:
            assert alive(result(await environment.invoke(b"{}")))

    run(scenario())


def test_an_error_inside_ends_every_process(mark: str) -> None:
    async def scenario() -> None:
        with pytest.raises(RuntimeError, match="inside"):
            async with local("app.echo", env={MARK: mark}):
                raise RuntimeError("inside")

    run(scenario())


@pytest.mark.parametrize("handler", ["nowhere.handler", "exits.handler"])
def test_a_failed_start_leaves_nothing(mark: str, handler: str) -> None:
    async def scenario() -> None:
        with pytest.raises(Exception, match="could not be initialised"):
            async with local(handler, env={MARK: mark}):
                pass

    run(scenario())


@pytest.mark.parametrize("times", [1, 2])
def test_cancelling_the_start_or_the_end_leaves_nothing(mark: str, times: int) -> None:
    async def scenario() -> None:
        async def use() -> None:
            async with local("hangs.handler", env={MARK: mark}):
                pass

        task = asyncio.create_task(use())
        await asyncio.to_thread(wait_until, lambda: len(marked(mark)) == 4)
        task.cancel()
        if times == 2:
            await asyncio.sleep(0.005)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(scenario())


def test_a_worker_that_exits_keeps_its_caller_waiting_for_the_deadline_and_is_not_replaced(mark: str) -> None:
    async def scenario() -> None:
        async with local("app.die", workers=2, timeout_seconds=0.5, env={MARK: mark}) as environment:
            outcome = await environment.invoke(b"{}")
            assert outcome.status is Status.TIMED_OUT
            assert outcome.duration_seconds >= 0.5
            assert environment.workers_left == len(environment.worker_pids) == 1

    run(scenario())


def test_when_the_last_worker_has_died_callers_hear_it_at_once(mark: str) -> None:
    async def scenario() -> None:
        async with local("app.die", workers=2, timeout_seconds=60, env={MARK: mark}) as environment:
            outcomes = await asyncio.gather(environment.invoke(b"{}"), environment.invoke(b"{}"))
            assert {(outcome.status, outcome.error_type) for outcome in outcomes} == {
                (Status.FUNCTION_ERROR, "Runtime.ExitError")
            }
            assert "all its workers have ended" in await environment.wait_gone()
            assert (await environment.invoke(b"{}")).status is Status.UNAVAILABLE

    run(scenario())


def test_when_the_runtimes_parent_is_killed_callers_hear_it_at_once(mark: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with local("app.nap", timeout_seconds=60, env={MARK: mark}) as environment:
            call = asyncio.create_task(environment.invoke(event(folder=str(tmp_path), seconds=10)))
            await asyncio.to_thread(wait_until, (tmp_path / "nap.began").exists)
            os.kill(environment.runtime_pid, signal.SIGKILL)
            outcome = await call
            assert (outcome.status, outcome.error_type) == (Status.FUNCTION_ERROR, "Runtime.ExitError")
            assert "killed by signal 9" in outcome.error_message
            assert environment.gone == "the runtime was killed by signal 9 (SIGKILL)"

    run(scenario())


def test_an_idle_worker_that_was_killed_is_never_given_an_invocation(mark: str) -> None:
    async def scenario() -> None:
        async with local("app.echo", workers=3, timeout_seconds=60, env={MARK: mark}) as environment:
            for left in (2, 1):
                kill_and_wait(environment.worker_pids[0])  # blocking: the loop can't read the connection's end
                report = await drive(environment, [b"{}"], requests=20, concurrency=1)
                assert report.outcomes == {Status.OK: 20}
                assert environment.workers_left == left

    run(scenario())


def test_an_idle_worker_whose_forked_child_keeps_its_connection_open_is_not_trusted_after_its_death(mark: str) -> None:
    async def scenario() -> None:
        handler = "app.fork_holding_connections"
        async with local(handler, workers=2, timeout_seconds=60, env={MARK: mark}) as environment:
            os.kill(result(await environment.invoke(b"{}")), signal.SIGKILL)
            await asyncio.to_thread(wait_until, lambda: environment.workers_left == 1)
            assert (await environment.invoke(b"{}")).ok

    run(scenario())


def test_random_kills_under_load_lose_no_answer(mark: str) -> None:
    async def scenario() -> None:
        async with local("app.echo", workers=8, timeout_seconds=2, env={MARK: mark}) as environment:

            async def kill_some() -> None:
                choice = random.Random(7)
                for pid in choice.sample(environment.worker_pids, 6):
                    await asyncio.sleep(choice.uniform(0.02, 0.1))
                    kill_and_wait(pid)

            killing = asyncio.create_task(kill_some())
            answered = 0
            while not killing.done():
                report = await drive(environment, [b"{}"], requests=100, concurrency=8)
                assert report.requests == 100
                assert set(report.outcomes) <= {Status.OK, Status.TIMED_OUT, Status.REJECTED}
                answered += report.outcomes.get(Status.OK, 0)
            await killing
            await asyncio.sleep(0)
            assert answered > 0
            assert environment.workers_left == len(environment.worker_pids) == 2
            report = await drive(environment, [b"{}"], requests=50, concurrency=2)
            assert report.outcomes == {Status.OK: 50}

    run(scenario())


_RUNNER = """
import asyncio, sys
from pathlib import Path
from perinvoke.local import LocalConfig, LocalEnvironment
async def main():
    config = LocalConfig(handler=sys.argv[1], workers=2, directory=Path(sys.argv[2]), env={sys.argv[3]: sys.argv[4]})
    async with LocalEnvironment(config) as environment:
        await environment.invoke(b"{}")
        print("ready", flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


def test_kill_9_of_the_runner_leaves_nothing(mark: str, temp: Path) -> None:
    command = [sys.executable, "-c", _RUNNER, "app.detach", str(FUNCTIONS), MARK, mark]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as runner:
        assert runner.stdout is not None
        assert runner.stdout.readline() == b"ready\n"
        assert len(marked(mark)) == 5
        runner.kill()
    wait_until(lambda: not marked(mark))
    wait_until(lambda: not list(temp.iterdir()))


@repeated_after_a_stall
def test_at_the_end_a_handler_gets_sigterm_and_a_moment(mark: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with local("app.say_goodbye", workers=1, env={MARK: mark}) as environment:
            assert (await environment.invoke(event(path=str(tmp_path / "goodbye")))).ok
        assert (tmp_path / "goodbye").read_text() == "written after SIGTERM"

    run(scenario())


def test_kill_9_of_the_keeper_ends_the_environment_and_its_group(mark: str) -> None:
    async def scenario() -> None:
        async with local("app.echo", env={MARK: mark}) as environment:
            keeper = min(marked(mark))
            os.kill(keeper, signal.SIGKILL)
            assert "keeper" in await environment.wait_gone()
            await asyncio.to_thread(wait_until, lambda: not alive(environment.runtime_pid))  # before anybody tidies up
            assert (await environment.invoke(b"{}")).status is Status.UNAVAILABLE

    run(scenario())
    wait_until(lambda: not marked(mark))
