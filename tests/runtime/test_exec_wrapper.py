"""``perinvoke-exec`` as the platform, a container or a user calls it: what it runs, refuses, and tells."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from plain_platform import WRAPPER, Platform
from processes import wait_until

FUNCTIONS = Path(__file__).parent / "functions"
WHO = "import os\ndef handler(event, context):\n    return os.getppid()\n"


@pytest.fixture
def platform(root):
    with Platform() as platform:
        yield platform


def run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "AWS_LAMBDA_MAX_CONCURRENCY": "2", "AWS_LAMBDA_LOG_FORMAT": "TEXT", **env}
    variables = {name: value for name, value in variables.items() if value != "unset"}
    return subprocess.run([str(WRAPPER), *words], env=variables, capture_output=True, text=True, timeout=30, check=False)


def module(tmp_path: Path, code: str, name: str = "mine") -> Path:
    (tmp_path / f"{name}.py").write_text(code)
    return tmp_path


# --- the command -------------------------------------------------------------------------------------------------------


def test_without_a_command_it_tells_how_it_is_called():
    ended = run()
    assert ended.returncode == 2
    assert "usage: perinvoke-exec COMMAND" in ended.stderr


def test_its_help_names_the_variables():
    ended = run("--help")
    assert ended.returncode == 0
    assert "PERINVOKE_PRELOAD" in ended.stdout
    assert "PERINVOKE_STOP_MS" in ended.stdout


@pytest.mark.parametrize("workers", ["2", "unset"])
def test_a_command_that_is_not_there_is_named(workers):
    ended = run("no-such-command", "x", AWS_LAMBDA_MAX_CONCURRENCY=workers)
    assert ended.returncode == 127
    assert "perinvoke-exec can't run no-such-command: No such file or directory" in ended.stderr


def test_an_interpreter_that_is_not_there_is_named():
    ended = run("/no/such/python3.13", "-m", "awslambdaric", "x.y")
    assert ended.returncode == 127
    assert "can't run /no/such/python3.13" in ended.stderr


def test_a_command_that_can_not_be_executed_is_named(tmp_path):
    (tmp_path / "data").write_text("no program")
    ended = run(str(tmp_path / "data"))
    assert ended.returncode == 126
    assert "Permission denied" in ended.stderr


def test_a_command_that_is_not_python_is_executed_as_it_stands():
    ended = run("/bin/sh", "-c", "echo $$ $PPID; exit 3")
    assert ended.returncode == 3
    assert "the runtime is not supervised: /bin/sh is not python" in ended.stderr


@pytest.mark.parametrize("words", [("-c", "print('ran')"), ("--version",)])
def test_python_without_a_program_is_executed_as_it_stands(words):
    ended = run(sys.executable, *words)
    assert ended.returncode == 0
    assert ended.stdout
    assert "is not supervised" in ended.stderr


def test_on_ordinary_lambda_nothing_is_said_and_the_command_runs(tmp_path):
    ended = run(sys.executable, "-c", "print('ran')", AWS_LAMBDA_MAX_CONCURRENCY="unset")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "ran\n", "")


def test_where_invocations_share_a_process_it_steps_aside(tmp_path):
    ended = run(sys.executable, "-c", "print('ran')", AWS_LAMBDA_CONCURRENCY_MODE="thread")
    assert ended.stdout == "ran\n"
    assert "AWS_LAMBDA_CONCURRENCY_MODE has several invocations share a process" in ended.stderr


def test_without_awslambdaric_it_steps_aside(tmp_path):
    (tmp_path / "awslambdaric").mkdir()
    (tmp_path / "awslambdaric" / "__init__.py").write_text("")
    (tmp_path / "awslambdaric" / "__main__.py").write_text("print('ran')")
    ended = subprocess.run(
        [str(WRAPPER), sys.executable, "-m", "awslambdaric", "x.y"],
        env={**os.environ, "AWS_LAMBDA_MAX_CONCURRENCY": "2"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, "ran\n")
    assert "it needs awslambdaric 4 or newer" in ended.stderr


def test_the_program_sees_what_it_would_see_without_the_wrapper(tmp_path):
    """The module search path, the arguments and __main__; by name, as a script, and with options."""
    (tmp_path / "program.py").write_text(
        "import sys; print(sys.path[0], sys.argv[1:], __name__, sys.flags.dont_write_bytecode)\n"
    )
    for words in (["-m", "program", "a", "b"], ["program.py", "a"], ["-B", "-m", "program"]):
        command = [sys.executable, *words]
        env = {**os.environ, "AWS_LAMBDA_MAX_CONCURRENCY": "2"}
        bare = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=30, check=True)
        wrapped = subprocess.run(
            [str(WRAPPER), *command], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=30, check=True
        )
        assert wrapped.stdout == bare.stdout, wrapped.stderr


def test_a_script_that_runs_the_runtime_is_supervised_as_the_managed_one(platform, tmp_path):
    module(tmp_path, WHO)
    (tmp_path / "bootstrap.py").write_text("import sys\nfrom awslambdaric.__main__ import main\nmain(['', 'mine.handler'])\n")
    command = [sys.executable, str(tmp_path / "bootstrap.py")]
    env = {"PERINVOKE_PRELOAD": "handler", "_HANDLER": "mine.handler"}
    platform.start(command, directory=tmp_path, workers=2, log=tmp_path / "log", **env)
    assert platform.runtime is not None
    assert platform.call() == ("response", platform.runtime.pid)
    assert "preloaded handler" in platform.records()[0]["message"]


# --- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AWS_LAMBDA_MAX_CONCURRENCY", "abc"),
        ("AWS_LAMBDA_MAX_CONCURRENCY", "0"),
        ("AWS_LAMBDA_MAX_CONCURRENCY", "-1"),
        ("AWS_LAMBDA_MAX_CONCURRENCY", ""),
        ("AWS_LAMBDA_MAX_CONCURRENCY", "1000000"),
        ("PERINVOKE_PRELOAD", "a b"),
        ("PERINVOKE_PRELOAD", "app/models"),
        ("PERINVOKE_PRELOAD", "app,,models"),
        ("PERINVOKE_STOP_MS", "half"),
    ],
)
def test_a_value_that_is_not_allowed_fails_init_with_its_name(variable, value, platform, tmp_path):
    env = {variable: value} if variable.startswith("PERINVOKE") else {}
    workers: Any = value if not env else 2
    platform.start_python("mine.handler", directory=module(tmp_path, WHO), workers=workers, log=tmp_path / "log", **env)
    assert platform.runtime is not None
    assert platform.runtime.wait(20) == 1
    [told] = platform.init_errors
    assert told["errorType"] == "SettingError"
    assert told["errorMessage"].startswith(f"{variable} is {value!r}; allowed is ")
    assert told["errorMessage"] in platform.records()[0]["message"]


# --- preload -----------------------------------------------------------------------------------------------------------


def start(platform: Platform, tmp_path: Path, code: str, preload: str = "handler", **env: str) -> None:
    options: dict[str, Any] = {"directory": module(tmp_path, code), "workers": 2, "log": tmp_path / "log"}
    platform.start_python("mine.handler", PERINVOKE_PRELOAD=preload, **options, **env)


def test_what_is_preloaded_is_imported_once(platform, tmp_path):
    imported = tmp_path / "imported"
    start(platform, tmp_path, f"open({str(imported)!r}, 'a').write('once\\n')\n{WHO}")
    assert platform.call()[0] == "response"
    wait_until(lambda: platform.polls >= 3)
    assert imported.read_text() == "once\n"


def test_without_preload_every_worker_imports_for_itself(platform, tmp_path):
    imported = tmp_path / "imported"
    start(platform, tmp_path, f"open({str(imported)!r}, 'a').write('once\\n')\n{WHO}", preload="")
    wait_until(lambda: platform.polls >= 2)
    assert imported.read_text() == "once\nonce\n"


LEFT = {
    "thread 'poller'": "from threading import *\nThread(target=Event().wait, daemon=True, name='poller').start()",
    "thread 'ThreadPoolExecutor-0_0'": "from concurrent.futures import *\npool = ThreadPoolExecutor(1)\npool.submit(print)",
    "socket at 127.0.0.1:": "import socket\nserver = socket.create_server(('127.0.0.1', 0))",
    "socket to 127.0.0.1:": "import socket, os\nh, p = os.environ['AWS_LAMBDA_RUNTIME_API'].split(':')\n"
    "c = socket.create_connection((h, int(p)))",
    "an event loop or selector": "import asyncio\nloop = asyncio.new_event_loop()",
    "open file ": "import sqlite3\ndb = sqlite3.connect('x.db')\ndb.execute('create table if not exists t(a)')",
    "open pipe:": "import os\nends = os.pipe()",
    "child process ": "import subprocess\nchild = subprocess.Popen(['sleep', '99'])",
    "a running timer (setitimer ITIMER_REAL, alarm)": "import signal\nsignal.alarm(600)",
    "2 native threads that a fork doesn't end": "from native_threads import start\nstart(2)",
}


@pytest.mark.parametrize("what", LEFT)
def test_what_does_not_survive_a_fork_is_named_and_nothing_is_preloaded(what, platform, tmp_path):
    start(platform, tmp_path, f"{LEFT[what]}\n{WHO}", PYTHONPATH=str(FUNCTIONS))
    assert platform.call()[0] == "response"
    [record] = [record for record in platform.records() if record["level"] == "WARN"]
    assert record["message"].startswith("nothing is preloaded: importing mine left ")
    assert what in record["message"]


def test_a_child_that_the_refused_import_started_does_not_stay(platform, tmp_path):
    start(platform, tmp_path, f"{LEFT['child process ']}\nprint('child', child.pid, flush=True)\n{WHO}")
    assert platform.call()[0] == "response"
    first, *_ = [line for line in platform.log_path.read_text().splitlines() if line.startswith("child ")]
    assert not Path(f"/proc/{first.split()[1]}").exists()


def test_a_refused_import_leaves_no_trace_in_variables_and_directory(platform, tmp_path):
    code = "import os, threading\nseen = os.environ.get('CHANGED')\nos.environ['CHANGED'] = 'yes'\nos.chdir('/')\n"
    code += "if seen is None and 'perinvoke.runtime.supervisor' in __import__('sys').modules: ends = os.pipe()\n"
    start(platform, tmp_path, code + "def handler(event, context):\n    return seen\n")
    assert platform.call() == ("response", None)


@pytest.mark.parametrize(
    "harmless",
    [
        "log = open('log.txt', 'a')",
        "import os\nfolder = os.open('.', os.O_RDONLY)",
        "import os\nnothing = open('/dev/urandom', 'rb')",
        "import threading, time\nt = threading.Thread(target=time.sleep, args=(0.01,))\nt.start()\nt.join()",
        "import subprocess\nsubprocess.run(['true'])",
    ],
)
def test_what_survives_a_fork_is_let_pass(harmless, platform, tmp_path):
    start(platform, tmp_path, f"{harmless}\n{WHO}")
    assert platform.call()[0] == "response"
    assert [record["level"] for record in platform.records()] == ["INFO"]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ("no_such_module", "no_such_module can't be imported: No module named 'no_such_module'"),
        ("handler,no.such", "no.such can't be imported: No module named 'no'"),
        ("bad", "importing bad raised ZeroDivisionError: division by zero, at "),
        ("leaves", "importing leaves ended with SystemExit: 5"),
    ],
)
def test_a_module_that_can_not_be_preloaded_is_named_and_the_function_serves(names, told, platform, tmp_path):
    module(tmp_path, "1 / 0", "bad")
    module(tmp_path, "import sys; sys.exit(5)", "leaves")
    start(platform, tmp_path, WHO, preload=names)
    assert platform.call()[0] == "response"
    assert f"nothing is preloaded: {told}" in platform.records()[0]["message"]


def test_a_handler_whose_module_raises_fails_init_as_it_would_without_the_wrapper(platform, tmp_path):
    start(platform, tmp_path, "raise ValueError('as told')")
    assert platform.runtime is not None
    assert platform.runtime.wait(20) == 1
    assert platform.init_errors[0]["errorMessage"] == "as told"


def test_the_own_handler_of_an_isolated_function_is_preloaded(platform, tmp_path):
    imported = tmp_path / "imported"
    module(tmp_path, f"open({str(imported)!r}, 'a').write('once\\n')\n{WHO}")
    options: dict[str, Any] = {"directory": tmp_path, "workers": 2, "log": tmp_path / "log"}
    env = {"PERINVOKE_PRELOAD": "handler", "PERINVOKE_HANDLER": "mine.handler"}
    platform.start_python("perinvoke.handler.handler", **options, **env)
    assert platform.call()[0] == "response"
    wait_until(lambda: platform.polls >= 3)
    assert imported.read_text() == "once\n"


def test_what_looks_for_the_runtime_in_main_finds_it_preloaded_as_in_a_worker(platform, tmp_path):
    """So does Sentry, to wrap what calls the handler."""
    code = """
import os, sys
bootstrap = sys.modules["__main__"].bootstrap
called, original = [], bootstrap.handle_event_request
def seen(*args):
    called.append("wrapped")
    return original(*args)
bootstrap.handle_event_request = seen
def handler(event, context):
    return [*called, hasattr(sys.modules["__main__"], "bootstrap")]
"""
    start(platform, tmp_path, code)
    assert platform.call() == ("response", ["wrapped", True])
    assert "preloaded handler" in platform.records()[0]["message"]


def test_what_is_printed_while_preloading_is_told_once(platform, tmp_path):
    code = "print('said', 'once')\ndef handler(event, context):\n    print('more', flush=True)\n"
    start(platform, tmp_path, code, PYTHONUNBUFFERED="")
    assert [platform.call()[0] for _ in range(4)] == ["response"] * 4
    platform.stop()
    assert (tmp_path / "log").read_text().count("said once") == 1


def test_a_stream_without_a_descriptor_is_named_and_nothing_is_preloaded(platform, tmp_path):
    """The runtime asks for it as soon as a worker starts, which none would survive."""
    start(platform, tmp_path, f"import io, sys\nsys.stdout = io.StringIO()\n{WHO}")
    assert platform.call()[0] == "response"
    [record] = [record for record in platform.records() if "nothing is preloaded" in record["message"]]
    assert "importing mine put StringIO in the place of sys.stdout" in record["message"]


def test_sigterm_during_preload_ends_it_at_once(platform, tmp_path):
    start(platform, tmp_path, f"import time\nprint('begun', flush=True)\ntime.sleep(60)\n{WHO}")
    wait_until(lambda: "begun" in platform.log_path.read_text())
    began = time.monotonic()
    assert platform.stop() == -15
    assert time.monotonic() - began < 9


def test_numpys_global_generator_is_seeded_anew_in_every_worker(platform, tmp_path):
    """With numpy where it is installed; here a package that has what matters of it."""
    package = tmp_path / "numpy" / "random"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("")
    (package / "__init__.py").write_text("import os\nseeded = []\ndef seed():\n    seeded.append(os.getpid())\n")
    start(
        platform,
        tmp_path,
        "import numpy.random, os\ndef handler(event, context):\n    return numpy.random.seeded == [os.getpid()]\n",
    )
    assert platform.call() == ("response", True)


STATE = {
    "a timer": "import signal\nsignal.setitimer(signal.ITIMER_REAL, 1.0)",
    "the signal mask": "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])",
    "an ignored signal": "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)",
    "the umask": "import os\nos.umask(0o777)",
}


@pytest.mark.parametrize("what", STATE)
def test_a_refused_import_leaves_nothing_in_the_process_that_goes_on(what, platform, tmp_path):
    """What survives the execution of a program; only the first import sets it here."""
    told = tmp_path / "state"
    code = f"{LEFT['open pipe:']}\nimport pathlib\nif not pathlib.Path({str(told)!r}).exists():\n"
    code += f"    pathlib.Path({str(told)!r}).touch()\n" + "".join(f"    {line}\n" for line in STATE[what].splitlines())
    start(platform, tmp_path, code + WHO)
    assert platform.call()[0] == "response"
    assert "nothing is preloaded" in platform.records()[0]["message"]
    if what == "a timer":
        time.sleep(1.2)
    assert platform.call()[0] == "response"
    assert platform.stop() == 0


def test_a_preloaded_signal_mask_is_the_workers_and_not_the_parents(platform, tmp_path):
    code = "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
    code += "def handler(event, context):\n    return signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())\n"
    start(platform, tmp_path, code)
    assert platform.call() == ("response", True)
    assert platform.stop() == 0


def test_a_preloaded_module_that_ignores_the_end_of_children_changes_nothing(platform, tmp_path):
    code = "import os, signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
    code += (
        "def handler(event, context):\n    if event: os._exit(3)\n    return signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN\n"
    )
    start(platform, tmp_path, code)
    assert "ended with exit code 3" in platform.call(die=True)[1]["errorMessage"]
    assert platform.call() == ("response", True)


def test_too_few_descriptors_for_the_workers_are_told_and_it_steps_aside():
    shell = f"ulimit -n 100; exec {WRAPPER} {sys.executable} -m nothing"
    env = {**os.environ, "AWS_LAMBDA_MAX_CONCURRENCY": "64"}
    ended = subprocess.run(["sh", "-c", shell], env=env, capture_output=True, text=True, timeout=30, check=False)
    assert "64 workers take 256 file descriptors, more than the limit" in ended.stderr


def test_what_the_function_does_about_sigterm_stays_its_own(platform, tmp_path):
    code = "import signal, sys\ndef bye(number, frame):\n    print('bye', flush=True)\n    sys.exit(0)\n"
    code += "signal.signal(signal.SIGTERM, bye)\n"
    start(platform, tmp_path, code + WHO, PERINVOKE_STOP_MS="2000")
    assert platform.call()[0] == "response"
    wait_until(lambda: platform.polls >= 3)
    platform.stop()
    # Not by lines: the runtime writes them piece by piece, and those of two workers may mix. Who takes his time is asked again.
    assert platform.log_path.read_text().count("bye") >= 2


LOGGING = """
import logging
logging.basicConfig(level=logging.DEBUG, format="basic %(message)s")
class Mark(logging.Filter):
    def filter(self, record):
        record.msg = f"marked {record.msg}"
        return True
root = logging.getLogger()
for known in root.handlers:
    known.addFilter(Mark())
class Mine(logging.Handler):
    def emit(self, record):
        print("mine", record.getMessage(), flush=True)
root.addHandler(Mine())
LEVEL
def handler(event, context):
    logging.info("told as information")
    logging.warning("told as a warning")
"""


@pytest.mark.parametrize(
    "level", ["", "root.setLevel(logging.INFO)", "root.handlers[0].setFormatter(logging.Formatter('as %(message)s'))"]
)
@pytest.mark.parametrize("log_format", ["JSON", "TEXT"])
def test_the_function_logs_the_same_whether_it_is_preloaded_or_not(level, log_format, root, tmp_path):
    """What code does to the root logger when it is imported: basicConfig, filters, formatters, levels, handlers of its own."""
    lines = {}
    for preload in ("handler", ""):
        with Platform() as platform:
            options: dict[str, Any] = {"directory": module(tmp_path, LOGGING.replace("LEVEL", level)), "workers": 1}
            env = {"PERINVOKE_PRELOAD": preload, "AWS_LAMBDA_LOG_FORMAT": log_format}
            platform.start_python("mine.handler", log=tmp_path / f"log{preload}", **options, **env)
            assert platform.call()[0] == "response"
            assert platform.stop() == 0
        told = [line for line in (tmp_path / f"log{preload}").read_text().splitlines() if "told as" in line]
        lines[preload] = [re.sub(r"\d{4}-\d\d-\d\dT[^\"\t]*|[0-9a-f-]{36}", "X", line) for line in told]
    assert lines["handler"] == lines[""]
    assert "".join(lines[""]).count("told as a warning") == 2  # by the runtime's handler and the function's
