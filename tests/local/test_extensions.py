"""Extensions beside the local runtime: what they are told, what becomes of the environment when they fail, what is left."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from environments import local, run
from perinvoke.cli import main
from perinvoke.errors import InitFailed, LocalError
from perinvoke.local import LocalConfig
from perinvoke.local.logs import Stream
from perinvoke.local.stages import EXTENSION_TRANSITIONS, ExtensionStage
from processes import MARK, alive, marked, wait_until
from stalls import repeated_after_a_stall

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from databases import Postgres
    from perinvoke.local.logs import LogLine

# What every extension here begins with: the API, over its own calls; and a place to note things down.
_PRELUDE = """
#!{python}
import json, os, sys, time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

notes = Path({notes!r})
API = "http://" + os.environ["AWS_LAMBDA_RUNTIME_API"] + "/2020-01-01/extension/"

def call(path, body=None, **headers):
    headers = {{name.replace("_", "-"): value for name, value in headers.items()}}
    data = None if body is None else json.dumps(body).encode()
    try:
        with build_opener(ProxyHandler({{}})).open(Request(API + path, data, headers)) as answer:
            return answer.status, dict(answer.headers), json.loads(answer.read())
    except HTTPError as error:
        return error.code, dict(error.headers), json.loads(error.read())

def register(events=("SHUTDOWN",), name="mine"):
    return call("register", {{"events": list(events)}}, Lambda_Extension_Name=name)

def note(name, value):
    (notes / name).write_text(json.dumps(value))
"""
_ORDINARY = """
status, headers, function = register()
note("registered", function)
identifier = headers["Lambda-Extension-Identifier"]
print("hello from the extension", flush=True)
note("event", call("event/next", Lambda_Extension_Identifier=identifier)[2])
"""


@pytest.fixture
def mark() -> Iterator[str]:
    """Marks the processes of one test; none may be left."""
    value = uuid4().hex
    yield value
    wait_until(lambda: marked(value) == [], 5)


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], str]:
    """Makes an extension of a few lines; its command."""

    def make(code: str) -> str:
        path = tmp_path / "mine"
        prelude = _PRELUDE.format(python=sys.executable, notes=str(tmp_path)).lstrip()
        path.write_text(prelude + textwrap.dedent(code))
        path.chmod(0o755)
        return str(path)

    return make


def noted(tmp_path: Path, name: str) -> Any:
    return json.loads((tmp_path / name).read_text())


def test_it_is_there_before_the_runtime_and_hears_of_the_end_when_that_has_ended(script, tmp_path, mark):
    command = script(f"""
        note("handler", os.environ.get("_HANDLER"))
        {textwrap.indent(_ORDINARY, " " * 8).strip()}
        workers = json.loads((notes / "workers").read_text())
        note("left", [pid for pid in workers if Path(f"/proc/{{pid}}").exists()])
    """)
    lines: list[LogLine] = []

    async def scenario() -> None:
        options = {"extensions": (command,), "env": {MARK: mark}, "on_log": lines.append}
        async with local("app.echo", **options) as environment:
            assert noted(tmp_path, "registered") == {
                "functionName": "function",
                "functionVersion": "$LATEST",
                "handler": "app.echo",
            }
            assert (await environment.invoke(b"{}")).ok
            assert len(marked(mark)) == 6  # keeper, parent, two workers; keeper, extension
            (tmp_path / "workers").write_text(json.dumps(environment.worker_pids))

    before = time.time()
    run(scenario())
    event = noted(tmp_path, "event")
    assert (event["eventType"], event["shutdownReason"]) == ("SHUTDOWN", "spindown")
    assert before < event["deadlineMs"] / 1000 < time.time() + 2
    assert noted(tmp_path, "left") == []
    assert noted(tmp_path, "handler") is None  # not told to extensions, as on Lambda
    assert [line.text for line in lines if line.stream is Stream.EXTENSION] == ["hello from the extension"]


def test_init_waits_until_it_has_asked_for_an_event(script, tmp_path, mark):
    command = script(_ORDINARY.replace('note("event"', "time.sleep(0.7); note('awake', 1); note(\"event\""))

    async def scenario() -> None:
        async with local("app.echo", extensions=(command,), env={MARK: mark}):
            assert (tmp_path / "awake").exists()

    run(scenario())


def test_what_managed_instances_refuse_is_refused(script, tmp_path, mark):
    command = script("""
        note("invoke", register(["INVOKE", "SHUTDOWN"]))
        note("nameless", call("register", {"events": []}))
        note("format", call("register", [], Lambda_Extension_Name="mine"))
        note("unregistered", call("event/next", Lambda_Extension_Identifier="unknown"))
        note("anonymous", call("event/next"))
        note("elsewhere", call("event/last", Lambda_Extension_Identifier="unknown"))
        identifier = register()[1]["Lambda-Extension-Identifier"]
        note("twice", register())
        note("untyped", call("exit/error", {}, Lambda_Extension_Identifier=identifier))
        call("event/next", Lambda_Extension_Identifier=identifier)
        note("late", call("init/error", {}, Lambda_Extension_Identifier=identifier, Lambda_Extension_Function_Error_Type="X.Y"))
    """)

    async def scenario() -> None:
        async with local("app.echo", extensions=(command,), env={MARK: mark}):
            pass

    run(scenario())
    told = {
        "invoke": (403, "Extension.InvalidEventType"),
        "nameless": (403, "Extension.InvalidExtensionName"),
        "format": (403, "InvalidRequestFormat"),
        "unregistered": (403, "Extension.UnknownExtensionIdentifier"),
        "anonymous": (403, "Extension.MissingHeader"),
        "elsewhere": (404, "NotFound"),
        "twice": (403, "Extension.InvalidExtensionState"),
        "untyped": (403, "Extension.MissingHeader"),
        "late": (403, "Extension.InvalidExtensionState"),
    }
    for name, expected in told.items():
        status, _, error = noted(tmp_path, name)
        assert (status, error["errorType"]) == expected, name


def test_one_that_reports_an_error_fails_init_with_its_message(script, mark):
    command = script("""
        identifier = register()[1]["Lambda-Extension-Identifier"]
        error = {"errorMessage": "no luck today", "errorType": "Extension.NoLuck", "stackTrace": []}
        headers = {"Lambda_Extension_Identifier": identifier, "Lambda_Extension_Function_Error_Type": "Extension.NoLuck"}
        call("init/error", error, **headers)
        sys.exit(1)
    """)

    async def scenario() -> None:
        with pytest.raises(InitFailed, match=r"the extension mine could not be initialised: Extension\.NoLuck: no luck today"):
            async with local("app.echo", extensions=(command,), env={MARK: mark}):
                pass

    run(scenario())


@pytest.mark.parametrize("before", ["", "register()\n"])
def test_one_that_ends_early_fails_init(script, mark, before):
    command = script(f"{before}print('my last words', flush=True); sys.exit(3)")

    async def scenario() -> None:
        with pytest.raises(InitFailed, match="it ended with exit code 3, before it had asked for an event") as caught:
            async with local("app.echo", extensions=(command,), env={MARK: mark}):
                pass
        assert caught.value.log_lines[0] == "my last words"

    run(scenario())


def test_one_that_hangs_fails_init_in_time(script, mark):
    command = script("register(); time.sleep(60)")

    async def scenario() -> None:
        with pytest.raises(InitFailed, match="init took longer than 0.5 s; extensions not ready: mine"):
            async with local("app.echo", extensions=(command,), env={MARK: mark}, init_timeout_seconds=0.5):
                pass

    run(scenario())


def test_one_that_dies_later_ends_the_environment(script, tmp_path, mark):
    command = script(_ORDINARY.replace("print(", "note('pid', os.getpid()); print("))

    async def scenario() -> None:
        async with local("app.echo", extensions=(command,), env={MARK: mark}) as environment:
            os.kill(noted(tmp_path, "pid"), signal.SIGKILL)
            gone = await environment.wait_gone()
            assert gone == "the extension mine has failed: Extension.Crash: it was killed by signal 9 (SIGKILL)"

    run(scenario())


@pytest.mark.parametrize("events", ["[]", "['SHUTDOWN']"])
@repeated_after_a_stall
def test_one_that_does_not_end_is_ended(script, mark, events):
    command = script(f"""
        identifier = register({events})[1]["Lambda-Extension-Identifier"]
        call("event/next", Lambda_Extension_Identifier=identifier)
        time.sleep(60)
    """)

    async def scenario() -> float:
        async with local("app.echo", extensions=(command,), env={MARK: mark}):
            began = time.monotonic()
        return time.monotonic() - began

    seconds = run(scenario())
    assert seconds > 1.9 if "SHUTDOWN" in events else seconds < 1.9


def test_a_part_of_the_runtime_may_register_and_gets_no_events(script, tmp_path, mark):
    async def scenario() -> None:
        async with local("app.echo", env={MARK: mark}) as environment:
            command = [sys.executable, script("note('all', register()); note('none', register([], 'inner'))")]
            address = environment.endpoint_url.removeprefix("http://")
            await asyncio.to_thread(subprocess.run, command, env={"AWS_LAMBDA_RUNTIME_API": address}, check=True)

    run(scenario())
    status, _, error = noted(tmp_path, "all")
    assert (status, error["errorType"]) == (403, "Extension.InvalidEventType")
    assert noted(tmp_path, "none")[0] == 200


@pytest.mark.parametrize("wanted", ["", "nowhere-to-be-found --now", "'"])
def test_what_cannot_be_run_is_refused(wanted):
    with pytest.raises(LocalError, match="extension"):
        LocalConfig(handler="app.echo", extensions=(wanted,))


def test_the_table_of_stages_ends():
    assert set(EXTENSION_TRANSITIONS) == set(ExtensionStage)
    assert [stage for stage, following in EXTENSION_TRANSITIONS.items() if not following] == [ExtensionStage.ENDED]


# --- perinvoke run --extension pgbouncer ---------------------------------------------------------------------------------

_HANDLER = """
import os
import psycopg
from perinvoke.environment.connections.pgbouncer import find

facts = find(os.environ["PERINVOKE_ROOT"], "default")  # it is there at import

def handler(event, context):
    with psycopg.connect(**facts.client_arguments(), prepare_threshold=None) as connection:
        return connection.execute("SELECT current_user").fetchone()[0]
"""


@pytest.fixture
def function(tmp_path: Path) -> Path:
    """The directory of a function that asks PgBouncer."""
    folder = tmp_path / "function"
    folder.mkdir()
    (folder / "app.py").write_text(_HANDLER)
    return folder


@pytest.fixture
def pgbouncer_variables(root: Path, postgres: Postgres) -> dict[str, str]:
    if shutil.which("pgbouncer") is None and shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin:/opt/bin") is None:
        pytest.skip("pgbouncer isn't installed: apt-get install pgbouncer")
    return {"PERINVOKE_ROOT": str(root), "PERINVOKE_PGBOUNCER_URL": postgres.url()}


def start(function: Path, mark: str, variables: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "perinvoke.cli", "run", "app.handler", "--directory", str(function), "--workers", "2"]
    return subprocess.Popen(
        [*command, "--extension", "pgbouncer", *arguments],
        env={**os.environ, **variables, MARK: mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def pgbouncers_below(root: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if os.readlink(entry / "cwd").startswith(f"{root}/"):
                found.append(int(entry.name))
        except OSError:
            continue
    return [pid for pid in found if alive(pid)]


def test_a_load_over_pgbouncer(function, mark, pgbouncer_variables, root):
    runner = start(function, mark, pgbouncer_variables, "--requests", "20")
    output, errors = runner.communicate(timeout=60)
    assert (runner.returncode, errors) == (0, "")
    assert re.search(r"ok +\| +20 ", output)
    assert pgbouncers_below(root) == []
    assert not (root / "pgbouncer" / "default").exists()


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_ctrl_c_and_worse_leave_no_pgbouncer(function, mark, pgbouncer_variables, root, ending):
    runner = start(function, mark, pgbouncer_variables)
    assert runner.stdout is not None
    assert runner.stdout.readline().startswith("Serving")
    [pgbouncer] = pgbouncers_below(root)
    runner.send_signal(ending)
    errors = runner.communicate(timeout=20)[1]
    wait_until(lambda: not alive(pgbouncer), 5)
    if ending != signal.SIGKILL:
        assert runner.returncode == 0
        assert "PgBouncer 1." in errors
        assert "pgbouncer has ended" in errors


def test_what_is_wrong_is_told_once(capsys, monkeypatch, function, root):
    monkeypatch.setenv("PERINVOKE_PGBOUNCER_URL", "postgresql://u:hunter2hunter2@h/d")
    monkeypatch.setenv("PERINVOKE_PGBOUNCER_PATH", "/nowhere/pgbouncer")
    assert main(["run", "app.handler", "--directory", str(function), "--extension", "pgbouncer"]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors == (
        "perinvoke: the extension perinvoke-pgbouncer could not be initialised: Extension.PgBouncerError: "
        "/nowhere/pgbouncer can't be used as pgbouncer: it is not there (apt-get install pgbouncer brings one, as "
        "/usr/sbin/pgbouncer). PERINVOKE_PGBOUNCER_PATH says where another one is.\n"
    )
