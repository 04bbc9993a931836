from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING

from environments import local, run
from perinvoke.local.invocation import Invocation, Request
from perinvoke.local.logs import Logs, Stream
from perinvoke.local.outcome import LOG_TAIL_BYTES
from processes import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from perinvoke.local import LogLine


def test_lines_of_every_kind_belong_to_the_invocation_that_wrote_them() -> None:
    async def scenario() -> None:
        lines: list[LogLine] = []
        async with local("app.talk", workers=4, on_log=lines.append) as environment:
            outcomes = await asyncio.gather(*(environment.invoke(b"{}") for _ in range(4)))
            for outcome in outcomes:
                mine = [line for line in lines if line.request_id == outcome.request_id]
                assert {line.worker_pid for line in mine} == {outcome.worker_pid}
                function = {line.text: line.stream for line in mine if line.stream is not Stream.PLATFORM}
                assert function.pop("printed") is function.pop("without a newline") is Stream.STDOUT
                assert function.pop("to stderr") is Stream.STDERR
                (logged,) = function
                assert json.loads(logged)["requestId"] == outcome.request_id
                platform = [json.loads(line.text) for line in mine if line.stream is Stream.PLATFORM]
                assert [record["type"] for record in platform] == ["platform.start", "platform.report"]
                assert platform[1]["record"]["status"] == "success"
                assert outcome.log_tail.splitlines() == [line.text for line in mine]

    run(scenario())


def test_the_tail_is_complete_when_the_caller_is_answered() -> None:
    async def scenario() -> None:
        async with local("app.talk", workers=1) as environment:
            for _ in range(100):
                tail = (await environment.invoke(b"{}")).log_tail
                assert all(text in tail for text in ("printed", "to stderr", "logged", "without a newline"))

    run(scenario())


def test_a_long_log_keeps_its_last_four_kilobytes() -> None:
    async def scenario() -> None:
        async with local("app.chatter", workers=1) as environment:
            tail = (await environment.invoke(b"{}")).log_tail
            assert len(tail) == LOG_TAIL_BYTES
            assert "line 0\n" not in tail
            assert "line 999\n" in tail
            assert json.loads(tail.splitlines()[-1])["type"] == "platform.report"

    run(scenario())


def test_a_json_line_belongs_to_the_invocation_that_it_names_whichever_began_last_in_its_process(tmp_path: Path) -> None:
    async def scenario() -> None:
        lines: list[LogLine] = []
        logs = Logs(as_json=True, on_line=lines.append)
        logs.listen(str(tmp_path / "log"))
        first, second = (
            Invocation(Request(b"{}", request_id=name), asyncio.get_running_loop().create_future(), 0.0, patient=False)
            for name in ("first", "second")
        )
        for invocation in (first, second):
            invocation.worker_pid = os.getpid()
            logs.started(invocation)
        _, writer = await asyncio.open_unix_connection(str(tmp_path / "log"))
        writer.write(b'{"requestId": "first", "message": "mine"}\nplain\n{"requestId": "nobody"}\n{"requestId": broken\n')
        writer.close()
        await asyncio.to_thread(wait_until, lambda: len(lines) == 6)
        logs.close()
        assert [line.request_id for line in lines[2:]] == ["first", "second", "second", "second"]
        assert "mine" in first.log_tail
        assert "mine" not in second.log_tail

    run(scenario(), seconds=10)


def test_text_format_writes_start_end_and_report() -> None:
    async def scenario() -> None:
        async with local("app.talk", workers=1, env={"AWS_LAMBDA_LOG_FORMAT": "Text"}) as environment:
            outcome = await environment.invoke(b"{}")
            lines = outcome.log_tail.splitlines()
            assert lines[0] == f"START RequestId: {outcome.request_id} Version: $LATEST"
            assert lines[-2] == f"END RequestId: {outcome.request_id}"
            assert lines[-1].startswith(f"REPORT RequestId: {outcome.request_id}\tDuration: ")
            assert any(line.startswith("[INFO]") and line.endswith("logged") for line in lines)

    run(scenario())


def test_a_listener_that_fails_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def fail(line: LogLine) -> None:
        raise RuntimeError("listener")

    async def scenario() -> None:
        async with local("app.talk", workers=1, on_log=fail) as environment:
            assert (await environment.invoke(b"{}")).ok

    run(scenario())
    assert "on_log failed" in caplog.text


def test_a_failed_invocation_reports_its_error_type() -> None:
    async def scenario() -> None:
        async with local("app.fail", workers=1) as environment:
            report = json.loads((await environment.invoke(b"{}")).log_tail.splitlines()[-1])
            assert report["record"]["status"] == "error"
            assert report["record"]["errorType"] == "ValueError"

    run(scenario())
