from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import ProxyHandler, Request, build_opener
from uuid import uuid4

import pytest

from perinvoke.cli import build_parser, main, parse_variables
from perinvoke.errors import PerinvokeError
from processes import MARK, marked, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

FUNCTIONS = Path(__file__).parent / "local" / "functions"


def perinvoke(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "perinvoke.cli", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)


def run_load(handler: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return perinvoke("run", handler, "--directory", str(FUNCTIONS), *arguments, stdin=stdin)


@pytest.fixture
def mark() -> Iterator[str]:
    """Marks the processes of one test; none may be left."""
    value = uuid4().hex
    yield value
    assert marked(value) == []


# With a minute's grace, in place of a second, of which a busy machine may take all.
PATIENT = "import sys; from perinvoke.local import process; process.GRACE_SECONDS, process.END_SECONDS = 60.0, 75.0\n"
PATIENT += "from perinvoke.cli import main; sys.exit(main())"


def start(handler: str, mark: str, *arguments: str, patient: bool = False) -> subprocess.Popen[str]:
    program = ["-c", PATIENT] if patient else ["-m", "perinvoke.cli"]
    command = [sys.executable, *program, "run", handler, "--directory", str(FUNCTIONS), "--workers", "2"]
    return subprocess.Popen(
        [*command, "--env", f"{MARK}={mark}", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def serve(handler: str, mark: str, *arguments: str, patient: bool = False) -> tuple[subprocess.Popen[str], str]:
    """A serving runner and its URL."""
    runner = start(handler, mark, *arguments, patient=patient)
    assert runner.stdout is not None
    banner = [runner.stdout.readline() for _ in range(4)]
    url = re.search(r"http://127\.0\.0\.1:\d+", banner[0])
    assert url is not None, banner
    assert f"aws lambda invoke --endpoint-url {url[0]}" in banner[1]
    assert f'boto3.client("lambda", endpoint_url="{url[0]}"' in banner[3]
    return runner, url[0]


def invoke(url: str, event: bytes) -> object:
    request = Request(f"{url}/2015-03-31/functions/function/invocations", event)
    with build_opener(ProxyHandler({})).open(request, timeout=20) as response:
        return json.load(response)


def test_it_serves_until_ctrl_c_and_leaves_nothing(mark: str) -> None:
    runner, url = serve("app.talk", mark)
    assert invoke(url, b"{}") == "said"
    runner.send_signal(signal.SIGINT)
    errors = runner.communicate(timeout=20)[1]
    assert runner.returncode == 0
    assert re.search(r"^[0-9a-f]{8} printed$", errors, re.MULTILINE)
    assert "Traceback" not in errors


def test_sigterm_stops_it_like_ctrl_c(mark: str) -> None:
    runner, _ = serve("app.echo", mark)
    runner.terminate()
    assert runner.communicate(timeout=20)[1] == ""
    assert runner.returncode == 0


def test_ctrl_c_ends_a_handler_that_is_running_and_a_second_one_does_not_wait(mark: str, tmp_path: Path) -> None:
    runner, url = serve("app.ignore_sigterm", mark, patient=True)
    invoke(url, b"{}")
    runner.send_signal(signal.SIGINT)
    wait_until(lambda: len(marked(mark)) < 4)  # SIGTERM has been sent; one worker ignores it
    runner.send_signal(signal.SIGINT)
    errors = runner.communicate(timeout=20)[1]
    assert "Traceback" not in errors
    assert runner.returncode == 0


@pytest.mark.parametrize("handler", ["hangs.handler", "app.echo"])
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_ctrl_c_during_the_start_leaves_nothing(mark: str, handler: str, times: int, processes: int) -> None:
    runner = start(handler, mark)
    wait_until(lambda: len(marked(mark)) >= processes)
    for _ in range(times):
        runner.send_signal(signal.SIGINT)
    errors = runner.communicate(timeout=20)[1]
    assert "Traceback" not in errors
    assert runner.returncode in (0, 130)


def test_ctrl_c_during_a_load_exits_130(mark: str, tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    events.write_text(json.dumps({"folder": str(tmp_path), "seconds": 0.2}))
    runner = start("app.nap", mark, "--events", str(events), "--requests", "1000")
    wait_until((tmp_path / "nap.began").exists)
    runner.send_signal(signal.SIGINT)
    errors = runner.communicate(timeout=20)[1]
    assert "Traceback" not in errors
    assert runner.returncode == 130


def test_serving_ends_with_1_when_the_last_worker_has_died(mark: str) -> None:
    runner, _ = serve("app.echo", mark)
    (parent,) = [pid for pid in marked(mark) if "awslambdaric" in Path(f"/proc/{pid}/cmdline").read_text()][:1]
    os.kill(parent, signal.SIGKILL)
    errors = runner.communicate(timeout=20)[1]
    assert "nothing is left to serve" in errors
    assert runner.returncode == 1


def test_a_load_ends_with_a_plain_table_in_a_pipe(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    events.write_text('{"a": 1}\n{"b": 2}\n')
    done = run_load("app.echo", "--events", str(events), "--requests", "200", "--concurrency", "8")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    for row in (
        "invocations",
        "throughput",
        "latency p50",
        "latency p95",
        "latency p99",
        "latency max",
        "ok",
        "workers at the end",
    ):
        assert row in done.stdout
    assert "8 of 8" in done.stdout


def test_a_load_with_failures_ends_with_1_and_shows_each_type_with_a_sample() -> None:
    done = run_load("app.fail", "--requests", "4")
    assert done.returncode == 1
    assert "ValueError" in done.stdout
    assert "as asked" in done.stdout


def test_the_tables_are_markdown_in_a_pipe() -> None:
    done = run_load(
        "app.fail", "--requests", "2", "--events", "-", stdin='{"message": "a|b\\nc"}\n{"message": "%s"}' % ("x" * 150)
    )
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(rows) == len(
        [line for line in done.stdout.splitlines() if line.strip() and line.strip() not in ("Load", "Errors")]
    )
    assert all(row.endswith("|") for row in rows)
    assert sum(re.fullmatch(r"[|:-]+", row) is not None for row in rows) == 2
    assert re.search(r"^\| ValueError +\| +2 \| (a\\\|b c|x{150}) +\|$", done.stdout, re.MULTILINE)


def test_a_handler_that_is_no_function_is_hinted_at() -> None:
    done = run_load("app.not_callable", "--requests", "1")
    assert "'int' object is not callable" in done.stdout
    assert "Is app.not_callable a function?" in done.stdout
    assert "a function?" not in run_load("app.fail", "--requests", "1").stdout


def test_a_load_shows_which_workers_died_and_stay_dead() -> None:
    done = run_load("app.die_once", "--requests", "20", "--timeout", "0.3", "--workers", "4")
    assert re.search(r"^\| workers at the end +\| +3 of 4 \|$", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"^\| timed out, cut by the platform \(the handler may run on\) +\| +1 \|$", done.stdout, re.MULTILINE)
    assert "replaced" not in done.stdout


@pytest.mark.parametrize("options", [["--supervise"], ["--preload", "handler"]])
def test_a_supervised_load_shows_how_many_workers_were_replaced(options: list[str]) -> None:
    done = run_load("app.die_once", "--requests", "20", "--workers", "4", *options)
    assert re.search(r"^\| workers at the end +\| +4 of 4 \|$", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"^\| workers replaced +\| +1 \|$", done.stdout, re.MULTILINE)
    assert re.search(r"^\| WorkerDied +\| +1 \|", done.stdout, re.MULTILINE)
    assert "timed out" not in done.stdout
    assert done.returncode == 1


def test_isolate_reaches_the_function() -> None:
    done = run_load("app.echo", "--requests", "20", "--isolate")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["app"], "handler 'app' is not of the form module.function"),
        (["nowhere.handler"], "Runtime.ImportModuleError: Unable to import module 'nowhere'"),
        (["app.nothing"], "Runtime.HandlerNotFound"),
        (["app.echo", "--workers", "0"], "workers is 0; a whole number from 1 to 1024"),
        (["app.echo", "--workers", "-1"], "workers is -1"),
        (["app.echo", "--workers", "abc"], "--workers: invalid int value: 'abc'"),
        (["app.echo", "--workers", "10000"], "workers is 10000"),
        (["app.echo", "--timeout", "0"], "timeout is 0 seconds"),
        (["app.echo", "--timeout", "-2"], "timeout is -2 seconds"),
        (["app.echo", "--timeout", "nan"], "timeout is nan seconds"),
        (["app.echo", "--timeout", "901"], "timeout is 901 seconds"),
        (["app.echo", "--env", "NOTHING"], "--env 'NOTHING' is not of the form NAME=VALUE"),
        (["app.echo", "--env", "_HANDLER=x"], "_HANDLER is set by the runner"),
        (["app.echo", "--env", "PERINVOKE_PRELOAD=json", "--preload", "handler"], "preload is 'handler', and the variable"),
        (["app.echo", "--directory", "/proc/nonexistent"], "directory /proc/nonexistent does not exist"),
        (["app.echo", "--port", "99999"], "port is 99999"),
        (["app.echo", "--requests", "0"], "--requests: '0'; a whole number from 1 on"),
        (["app.echo", "--concurrency", "2"], "--concurrency needs a load"),
        (["app.echo", "--events", "/proc/nonexistent"], "events file /proc/nonexistent: No such file or directory"),
    ],
)
def test_bad_input_is_told_in_a_line_or_two(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["run", "--directory", str(FUNCTIONS), *arguments])
    except SystemExit as error:
        code = int(error.code or 0)
    output, errors = capsys.readouterr()
    assert code == 2
    assert message in errors
    assert len(errors.splitlines()) <= 2
    assert output == ""


def test_a_broken_module_is_told_with_its_stack() -> None:
    done = run_load("broken.handler")
    assert done.returncode == 2
    assert "RuntimeError: broken on purpose" in done.stderr
    assert "broken.py" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_module_that_exits_is_told_with_its_last_words() -> None:
    done = run_load("exits.handler", "--workers", "1")
    assert done.returncode == 2
    assert "last words" in done.stderr


def test_of_many_workers_that_exit_one_is_told_with_its_exit_code() -> None:
    done = run_load("exits.handler", "--workers", "8")
    assert done.returncode == 2
    assert done.stderr.count("last words") == 1
    assert re.search(r"worker \d+ ended with exit code 7 during init", done.stderr)


def test_a_handler_that_isolate_cannot_find_is_told_without_a_stack() -> None:
    done = run_load("app.nothing", "--isolate")
    assert done.returncode == 2
    assert "module 'app' has no 'nothing'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_malformed_line_is_named(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    events.write_text('{"a": 1}\n{"a": \n')
    done = run_load("app.echo", "--events", str(events))
    assert done.returncode == 2
    assert f"events file {events}, line 2 is not JSON" in done.stderr


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = run_load("app.echo", "--port", port)
    assert done.returncode == 2
    assert f"port {port} on 127.0.0.1 is in use" in done.stderr


def test_a_reader_that_leaves_early_is_no_crash() -> None:
    command = [sys.executable, "-m", "perinvoke.cli", "run", "app.echo", "--directory", str(FUNCTIONS), "--requests", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as runner:
        assert runner.stdout is not None
        assert runner.stderr is not None
        runner.stdout.close()
        assert runner.stderr.read() == ""


def test_an_output_that_cannot_be_written_is_told_in_one_line() -> None:
    run_echo = ["run", "app.echo", "--directory", str(FUNCTIONS), "--workers", "1"]
    for arguments in ([*run_echo, "--requests", "1"], run_echo, ["--help"], ["--version"]):
        with Path("/dev/full").open("w") as full:
            command = [sys.executable, "-m", "perinvoke", *arguments]
            buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=30, check=False, env=buffered)
        assert done.stderr == "perinvoke: the output can't be written: No space left on device\n"
        assert done.returncode == 1


@pytest.mark.parametrize("arguments", [["run", "app.echo", "--requests", "1"], ["run", "app.echo"], ["demo"]])
def test_a_closed_stdout_is_told_in_one_line(arguments: list[str]) -> None:
    command = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "perinvoke", *arguments]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=30, check=False, cwd=FUNCTIONS)
    assert done.returncode == 2
    assert done.stderr == "perinvoke: stdout is closed, and the result goes there; >/dev/null discards it\n"


def test_a_closed_stderr_disturbs_nothing() -> None:
    command = [*("sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-m", "perinvoke", "run", "app.talk")]
    command += ["--logs", "--requests", "20", "--directory", str(FUNCTIONS)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=30, check=False)
    assert done.returncode == 0
    assert "printed" not in done.stdout


@pytest.mark.parametrize("both", [True, False], ids=["2>&1", "stderr alone"])
def test_a_stderr_that_nobody_reads_delays_neither_answers_nor_deadlines_nor_ctrl_c(mark: str, *, both: bool) -> None:
    command = [sys.executable, "-m", "perinvoke", "run", "app.flood", "--directory", str(FUNCTIONS), "--workers", "2"]
    command += ["--timeout", "2", "--port", str(free_port()), "--env", f"{MARK}={mark}"]
    reading, writing = os.pipe()
    os.write(writing, b"x" * fcntl.fcntl(writing, fcntl.F_GETPIPE_SZ))
    stdout = writing if both else subprocess.DEVNULL
    with subprocess.Popen(command, stdout=stdout, stderr=writing) as runner:
        os.close(writing)
        url = f"http://127.0.0.1:{command[command.index('--port') + 1]}"
        wait_until(lambda: len(marked(mark)) == 4)
        wait_until(lambda: answers(url))
        for _ in range(20):  # 4 MB of log
            assert invoke(url, b"{}") == "printed"
        timed_out = invoke(url, b'{"seconds": 10}')
        assert isinstance(timed_out, dict)
        assert timed_out["errorType"] == "Sandbox.Timedout"
        began = time.monotonic()
        runner.send_signal(signal.SIGINT)
        assert runner.wait(timeout=10) == 0
        assert time.monotonic() - began < 10
    os.close(reading)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    try:
        return invoke(url, b"{}") == "printed"
    except OSError:  # not listening yet, or rejected because no worker is ready
        return False


def test_log_lines_that_a_slow_reader_makes_it_drop_are_counted(mark: str) -> None:
    runner, url = serve("app.flood", mark)
    for _ in range(40):  # 8 MB of log
        invoke(url, b"{}")
    runner.send_signal(signal.SIGINT)
    errors = runner.communicate(timeout=20)[1]
    dropped = re.search(r"^-------- ([0-9]+) log lines dropped$", errors, re.MULTILINE)
    assert dropped is not None
    assert int(dropped[1]) > 1_000
    assert runner.returncode == 0


def test_version_and_help_work_without_loading_the_local_extra() -> None:
    assert re.fullmatch(r"perinvoke \d+\.\d+\.\d+\n", perinvoke("--version").stdout)
    done = perinvoke("run", "--help")
    assert done.returncode == 0
    assert "perinvoke run app.handler --workers 16" in done.stdout
    assert "exit code" in done.stdout


def test_no_command_and_unknown_commands_are_told() -> None:
    for arguments in ([], ["fly"]):
        done = perinvoke(*arguments)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 2


def test_variables_are_split_at_the_first_equals_sign_and_the_last_one_wins() -> None:
    assert parse_variables(["A=1", "B=x=y", "A=", "C= "]) == {"A": "", "B": "x=y", "C": " "}
    with pytest.raises(PerinvokeError, match="NAME=VALUE"):
        parse_variables(["=1"])


def test_the_demo_is_offered() -> None:
    assert build_parser().parse_args(["demo", "--colour", "never"]).colour == "never"
    assert build_parser().parse_args(["demo", "--color", "always"]).colour == "always"


def test_the_package_itself_can_be_run() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "perinvoke", "--version"], capture_output=True, text=True, timeout=30, check=False
    )
    assert re.fullmatch(r"perinvoke \d+\.\d+\.\d+\n", done.stdout)
