"""The real runtime below perinvoke's supervisor: what the emulator makes of workers that die and are replaced."""

from __future__ import annotations

import asyncio
import json
import os
import random
import select
import signal
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from environments import event, local, result, run
from perinvoke.errors import InitFailed
from perinvoke.local import LogLine, Outcome, Status, drive
from perinvoke.local.environment import runtime_command
from perinvoke.local.logs import Stream
from processes import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from perinvoke.local import LocalEnvironment


def kill_and_wait(pid: int) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        assert select.select([pidfd], [], [], 10)[0]
    finally:
        os.close(pidfd)


async def in_time(environment: LocalEnvironment) -> None:
    """All workers are there again, and are processes that live."""
    assert await environment.wait_complete(10)
    await asyncio.to_thread(wait_until, lambda: len(environment.worker_pids) == environment.config.workers)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("preload", ["", "handler"])
def test_random_kills_under_load_cost_only_what_the_killed_had_begun(tmp_path: Path, seed: int, preload: str) -> None:
    lines: list[LogLine] = []
    killed: set[int] = set()

    async def kill_some(environment: LocalEnvironment, choice: random.Random) -> None:
        for _ in range(30):
            await asyncio.sleep(choice.uniform(0.0, 0.15))
            pid = choice.choice(environment.worker_pids or (0,))
            if pid:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)

    async def scenario() -> list[Outcome]:
        options = {"workers": 4, "timeout_seconds": 20, "queue": True, "supervise": True, "preload": preload}
        async with local("app.begin", on_log=lines.append, **options) as environment:
            choice = random.Random(seed)

            async def call(number: int) -> Outcome:
                await asyncio.sleep(number * 0.006 + choice.uniform(0, 0.1))  # so that workers are idle now and then
                return await environment.invoke(event(path=str(tmp_path / "began"), seconds=choice.choice((0, 0, 0.02))))

            killing = asyncio.create_task(kill_some(environment, choice))
            outcomes = await asyncio.gather(*(call(number) for number in range(500)))
            await killing
            await in_time(environment)
            assert environment.workers_left == 4
            report = await drive(environment, [event(path=str(tmp_path / "after"))], requests=100, concurrency=4)
            assert report.outcomes == {Status.OK: 100}
        return list(outcomes)

    outcomes = run(scenario(), seconds=60)
    began = Counter(line.split()[0] for line in (tmp_path / "began").read_text().splitlines())
    platform = Counter(
        (line.request_id, json.loads(line.text)["type"]) for line in lines if line.stream is Stream.PLATFORM and line.request_id
    )
    for outcome in outcomes:
        assert platform[outcome.request_id, "platform.start"] == platform[outcome.request_id, "platform.report"] == 1
        if outcome.ok:
            assert began[outcome.request_id] == 1
            assert result(outcome) == outcome.worker_pid
            printed = [
                line for line in lines if line.text == f"in {outcome.worker_pid}" and line.request_id == outcome.request_id
            ]
            assert [line.worker_pid for line in printed] == [outcome.worker_pid]
        else:
            assert outcome.error_type == "WorkerDied", outcome
            assert outcome.worker_pid in killed
            assert began[outcome.request_id] <= 1
    failed = sum(not outcome.ok for outcome in outcomes)
    assert failed < len(killed)  # some were idle


def test_idle_workers_that_are_killed_leave_their_polls_to_the_next(tmp_path: Path) -> None:
    lines: list[LogLine] = []

    async def scenario() -> None:
        options = {"workers": 2, "preload": "handler", "timeout_seconds": 10, "on_log": lines.append}
        async with local("app.begin", **options) as environment:
            for round_number in range(1, 4):
                await asyncio.sleep(0.2)  # what has just answered takes a moment to poll again
                before = environment.worker_pids
                lines.clear()
                for pid in before:
                    kill_and_wait(pid)  # blocking: the loop can't hear of it
                calls = [environment.invoke(event(path=str(tmp_path / "began"), seconds=0.1)) for _ in range(2)]
                outcomes = await asyncio.gather(*calls)  # handed to connections that nobody reads yet
                assert {result(outcome) for outcome in outcomes} == {outcome.worker_pid for outcome in outcomes}
                assert {outcome.worker_pid for outcome in outcomes}.isdisjoint(before)
                started = [line.worker_pid for line in lines if line.request_id and "platform.start" in line.text]
                assert set(started).isdisjoint(before)  # that they had died wasn't read yet, and yet was known
                await in_time(environment)
                assert (environment.workers_left, environment.workers_replaced) == (2, 2 * round_number)

    run(scenario())


@pytest.mark.parametrize("handler", ["app.begin", "app.fork_and_die"])
def test_a_worker_that_dies_is_answered_for_at_once_and_replaced_and_leaves_no_ghost(tmp_path: Path, handler: str) -> None:
    async def scenario() -> None:
        async with local(handler, workers=2, supervise=True, preload="handler", timeout_seconds=20) as environment:
            for _ in range(5):
                outcome = await environment.invoke(event(path=str(tmp_path / "began"), die=True))
                assert (outcome.status, outcome.error_type) == (Status.FUNCTION_ERROR, "WorkerDied")
                assert outcome.duration_seconds < 2
                assert str(outcome.worker_pid) in outcome.error_message
                await in_time(environment)
                assert environment.workers_left == 2
                naps = (environment.invoke(event(path=str(tmp_path / "naps"), seconds=0.2)) for _ in range(3))
                statuses = sorted(outcome.status.value for outcome in await asyncio.gather(*naps))
                assert statuses == ["ok", "ok", "rejected"]  # not one worker more, not one fewer

    run(scenario(), seconds=20)


def test_a_worker_that_dies_during_init_is_replaced_and_the_start_succeeds(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with local(
            "dies_first.handler", workers=2, supervise=True, env={"DIES_FIRST": str(tmp_path / "one")}
        ) as environment:
            assert (environment.workers_left, environment.workers_replaced) == (2, 1)
            assert (await environment.invoke(b"{}")).ok

    run(scenario())


def test_when_all_workers_die_during_init_the_start_fails_with_what_they_said() -> None:
    async def scenario() -> None:
        with pytest.raises(InitFailed, match="the runtime ended with exit code 1, before all workers were ready") as caught:
            async with local("exits.handler", supervise=True):
                pass
        assert "last words" in caught.value.log_lines

    run(scenario())


def test_a_handler_that_cannot_be_imported_fails_the_start_as_without_a_supervisor() -> None:
    async def scenario() -> None:
        for preload in ("", "handler"):
            with pytest.raises(InitFailed, match="broken on purpose") as caught:
                async with local("broken.handler", supervise=True, preload=preload):
                    pass
            assert caught.value.error_type == "RuntimeError"

    run(scenario())


def test_what_is_preloaded_is_imported_by_the_parent(tmp_path: Path) -> None:
    async def scenario() -> None:
        for preload in ("", "handler", "json,app"):
            async with local("app.who_imported", supervise=True, preload=preload) as environment:
                imported_by = result(await environment.invoke(b"{}"))
                assert (imported_by == environment.runtime_pid) == bool(preload)

    run(scenario())


def test_a_wrong_preload_is_told_by_the_runtime() -> None:
    async def scenario() -> None:
        with pytest.raises(InitFailed, match="PERINVOKE_PRELOAD") as caught:
            async with local("app.echo", preload="a b"):
                pass
        assert caught.value.error_type == "SettingError"

    run(scenario())


def test_the_functions_own_exec_wrapper_comes_first(tmp_path: Path) -> None:
    wrapper = tmp_path / "wrapper"
    wrapper.write_text('#!/bin/sh\nexport WRAPPED="$*"\nexec "$@"\n')
    wrapper.chmod(0o755)

    async def scenario() -> None:
        env = {"AWS_LAMBDA_EXEC_WRAPPER": str(wrapper)}
        async with local("app.variables", workers=1, env=env, supervise=True) as environment:
            environ = result(await environment.invoke(b"{}"))["environ"]
            assert "-m perinvoke.runtime" in environ["WRAPPED"]
            assert environ["WRAPPED"].endswith("-m awslambdaric app.variables")

    run(scenario())


def test_two_supervisors_are_not_nested() -> None:
    config = local("app.echo", supervise=True).config
    assert "perinvoke.runtime" in runtime_command(config, {})
    assert "perinvoke.runtime" not in runtime_command(config, {"AWS_LAMBDA_EXEC_WRAPPER": "/opt/perinvoke-exec"})


def test_a_load_waits_for_the_last_replacement_before_it_counts(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with local("app.begin", supervise=True, preload="handler") as environment:
            report = await drive(environment, [event(path=str(tmp_path / "began"), die=True)], requests=2)
            assert (report.workers_left, report.replaced, report.errors) == (2, 2, {"WorkerDied": 2})

    run(scenario())


def test_when_the_parent_is_killed_the_environment_has_ended(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with local("app.begin", supervise=True, timeout_seconds=20) as environment:
            call = asyncio.create_task(environment.invoke(event(path=str(tmp_path / "began"), seconds=10)))
            await asyncio.to_thread(wait_until, (tmp_path / "began").exists)
            os.kill(environment.runtime_pid, signal.SIGKILL)
            assert (await call).error_type == "Runtime.ExitError"
            assert "killed by signal 9" in await environment.wait_gone()

    run(scenario(), seconds=10)
