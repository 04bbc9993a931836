from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from environments import FUNCTIONS, event, local, result, run
from perinvoke.errors import InitFailed, LocalError, PortInUse
from perinvoke.local import Status, drive
from perinvoke.local.outcome import MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES
from processes import wait_until


def test_the_real_runtime_answers_and_sees_what_the_caller_sent() -> None:
    async def scenario() -> None:
        async with local("app.echo", timeout_seconds=20) as environment:
            outcome = await environment.invoke(
                b'{"a": 1}',
                request_id="mine",
                tenant_id="tenant",
                client_context='{"custom": {"k": "v"}}',
                cognito_identity='{"cognitoIdentityId": "who"}',
                trace_id="Root=1-2-3",
            )
            answer = result(outcome)
            assert answer["event"] == {"a": 1}
            assert answer["request_id"] == outcome.request_id == "mine"
            assert answer["tenant_id"] == "tenant"
            assert answer["custom"] == {"k": "v"}
            assert answer["identity"] == "who"
            assert answer["trace_id"] == "Root=1-2-3"
            assert answer["arn"].endswith(":function:function")
            assert 15_000 < answer["remaining_ms"] <= 20_000
            assert answer["pid"] == outcome.worker_pid
            assert answer["pid"] in environment.worker_pids
            assert len(environment.worker_pids) == environment.workers_left == 2

    run(scenario())


def test_entering_waits_until_every_worker_is_ready() -> None:
    async def scenario() -> None:
        async with local("app.nap", workers=4) as environment:
            assert len(set(environment.worker_pids)) == 4

    run(scenario())


def test_workers_run_at_the_same_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with local("app.nap") as environment:
            naps = [event(folder=str(tmp_path), seconds=0.3, name=name) for name in ("a", "b")]
            outcomes = await asyncio.gather(*(environment.invoke(nap) for nap in naps))
            assert {outcome.worker_pid for outcome in outcomes} == set(environment.worker_pids)

    run(scenario())


def test_the_variables_are_those_of_managed_instances_and_the_functions_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("INHERITED", "yes")

    async def scenario() -> Any:
        async with local("app.variables", env={"TABLE": "orders", "AWS_REGION": "eu-central-1"}, memory_mb=512) as environment:
            return result(await environment.invoke(b"{}"))

    answer = run(scenario())
    environ = answer["environ"]
    expected = {
        "AWS_LAMBDA_INITIALIZATION_TYPE": "lambda-managed-instances",
        "AWS_EXECUTION_ENV": "AWS_Lambda_python3.13",
        "AWS_LAMBDA_MAX_CONCURRENCY": "2",
        "AWS_LAMBDA_FUNCTION_NAME": "function",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
        "AWS_LAMBDA_LOG_FORMAT": "JSON",
        "LAMBDA_TASK_ROOT": str(FUNCTIONS),
        "_HANDLER": "app.variables",
        "AWS_REGION": "eu-central-1",
        "AWS_ACCESS_KEY_ID": "local",
        "TABLE": "orders",
        "INHERITED": "yes",
    }
    assert {name: environ.get(name) for name in expected} == expected
    assert answer["cwd"] == str(FUNCTIONS)


def test_credentials_that_are_set_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "mine")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)

    async def scenario() -> None:
        async with local("app.variables", workers=1) as environment:
            environ = result(await environment.invoke(b"{}"))["environ"]
            assert environ["AWS_PROFILE"] == "mine"
            assert "AWS_ACCESS_KEY_ID" not in environ

    run(scenario())


def test_isolate_runs_the_handler_through_perinvoke_by_name_only() -> None:
    async def scenario() -> None:
        async with local("app.variables", isolate=True, workers=1) as environment:
            environ = result(await environment.invoke(b"{}"))["environ"]
            assert environ["_HANDLER"] == "perinvoke.handler.handler"
            assert environ["PERINVOKE_HANDLER"] == "app.variables"

    run(scenario())


@pytest.mark.parametrize(
    ("handler", "sent", "error_type", "message"),
    [
        ("app.fail", b'{"message": "no luck"}', "ValueError", "no luck"),
        ("app.not_json", b"{}", "Runtime.MarshalError", "Unable to marshal response"),
        ("app.not_callable", b"{}", "TypeError", "'int' object is not callable"),
        ("app.echo", b"{not json", "Runtime.UnmarshalError", "Unable to unmarshal input"),
        ("app.large", event(bytes=MAX_RESPONSE_BYTES + 1), "Function.ResponseSizeTooLarge", "(6291557 bytes)"),
    ],
)
def test_a_function_error_reaches_the_caller_and_the_worker_lives_on(
    handler: str, sent: bytes, error_type: str, message: str
) -> None:
    async def scenario() -> None:
        async with local(handler, workers=1) as environment:
            for _ in range(2):
                outcome = await environment.invoke(sent)
                assert (outcome.status, outcome.error_type) == (Status.FUNCTION_ERROR, error_type)
                assert message in outcome.error_message
            assert environment.workers_left == 1

    run(scenario())


def test_the_largest_response_that_lambda_allows_gets_through() -> None:
    async def scenario() -> None:
        async with local("app.large", workers=1) as environment:
            assert len((await environment.invoke(event(bytes=MAX_RESPONSE_BYTES))).payload) == MAX_RESPONSE_BYTES

    run(scenario())


def test_an_event_over_the_limit_is_refused_before_it_is_sent() -> None:
    async def scenario() -> None:
        async with local("app.echo", workers=1) as environment:
            with pytest.raises(LocalError, match="6291456"):
                await environment.invoke(b'"' + b"x" * MAX_REQUEST_BYTES + b'"')

    run(scenario())


def test_at_the_deadline_the_caller_is_answered_and_the_handler_runs_on_to_its_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with local("app.nap", workers=1, timeout_seconds=0.3) as environment:
            outcome = await environment.invoke(event(folder=str(tmp_path), seconds=3))
            assert outcome.status is Status.TIMED_OUT
            assert 0.29 < outcome.duration_seconds < 2.5
            assert not (tmp_path / "nap.done").exists()
            assert (await environment.invoke(b"{}")).status is Status.REJECTED  # its worker is still occupied
            await asyncio.to_thread(wait_until, (tmp_path / "nap.done").exists)
            # The late answer has freed the worker, which notices in its own time.
            outcome = await environment.invoke(event(folder=str(tmp_path), seconds=0))
            while outcome.status is Status.REJECTED:
                await asyncio.sleep(0.005)
                outcome = await environment.invoke(event(folder=str(tmp_path), seconds=0))
            assert outcome.ok

    run(scenario())


def test_a_queue_makes_callers_wait_instead_of_rejecting_them() -> None:
    async def scenario() -> None:
        async with local("app.echo", queue=True) as environment:
            report = await drive(environment, [b"{}"], requests=50, concurrency=25)
            assert report.outcomes == {Status.OK: 50}
        async with local("app.echo") as environment:
            report = await drive(environment, [b"{}"], requests=50, concurrency=25)
            assert report.outcomes[Status.REJECTED] > 0

    run(scenario())


def test_as_many_callers_as_workers_are_never_rejected() -> None:
    async def scenario() -> None:
        async with local("app.echo", workers=4) as environment:
            report = await drive(environment, [b"{}"], requests=500, concurrency=4)
            assert report.outcomes == {Status.OK: 500}

    run(scenario())


@pytest.mark.parametrize(
    ("handler", "error_type", "message"),
    [
        ("nowhere.handler", "Runtime.ImportModuleError", "No module named 'nowhere'"),
        ("app.nothing", "Runtime.HandlerNotFound", "'nothing' missing on module 'app'"),
        ("broken.handler", "RuntimeError", "broken on purpose"),
        ("sys.handler", "Runtime.BuiltInModuleConflict", "built-in module"),
        ("exits.handler", "Runtime.ExitError", "ended"),
    ],
)
def test_a_handler_that_cannot_be_loaded_fails_the_start_with_what_the_runtime_says(
    handler: str, error_type: str, message: str
) -> None:
    async def scenario() -> None:
        with pytest.raises(InitFailed, match=message) as caught:
            async with local(handler):
                pass
        assert caught.value.error_type == error_type
        if handler == "broken.handler":
            assert any("broken on purpose" in line for line in caught.value.stack_trace)
        if handler == "exits.handler":
            assert "last words" in caught.value.log_lines

    run(scenario())


def test_an_init_without_end_is_given_up() -> None:
    async def scenario() -> None:
        with pytest.raises(InitFailed, match=r"0 of 2 workers are ready") as caught:
            async with local("hangs.handler", init_timeout_seconds=0.5):
                pass
        assert caught.value.error_type == "Sandbox.Timedout"

    run(scenario())


def test_an_interpreter_that_does_not_exist_fails_the_start() -> None:
    async def scenario() -> None:
        with pytest.raises(InitFailed, match="127"):
            async with local("app.echo", python="/nonexistent/python"):
                pass

    run(scenario())


def test_a_port_in_use_is_named() -> None:
    async def scenario() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(PortInUse, match=f"port {port} on 127.0.0.1 is in use"):
                async with local("app.echo", port=port):
                    pass

    run(scenario())


def test_it_listens_on_loopback_only() -> None:
    async def scenario() -> None:
        async with local("app.echo", workers=1) as environment:
            assert listening_addresses(environment.port) == {"127.0.0.1"}

    run(scenario())


def listening_addresses(port: int) -> set[str]:
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ends = [row[1].split(":") for row in rows if row[3] == "0A"]  # TCP_LISTEN
    return {socket.inet_ntoa(bytes.fromhex(address)[::-1]) for address, end in ends if int(end, 16) == port}


def test_an_exec_wrapper_is_given_the_runtimes_command(tmp_path: Path) -> None:
    wrapper = tmp_path / "wrapper"
    wrapper.write_text('#!/bin/sh\nexport WRAPPED="$2 $3 $4"\nexec "$@"\n')
    wrapper.chmod(0o755)

    async def scenario() -> None:
        async with local("app.variables", workers=1, env={"AWS_LAMBDA_EXEC_WRAPPER": str(wrapper)}) as environment:
            environ = result(await environment.invoke(b"{}"))["environ"]
            assert environ["WRAPPED"] == "-m awslambdaric app.variables"

    run(scenario())


def test_a_temp_directory_with_a_long_path_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))

    async def scenario() -> None:
        async with local("app.talk", workers=1) as environment:
            assert "printed" in (await environment.invoke(b"{}")).log_tail

    run(scenario())
    assert list(long.iterdir()) == []


def test_the_payload_is_the_json_that_the_handler_returned() -> None:
    async def scenario() -> None:
        async with local("app.echo", workers=1) as environment:
            outcome = await environment.invoke('{"ä": "→"}'.encode())
            assert json.loads(outcome.payload)["event"] == {"ä": "→"}

    run(scenario())
