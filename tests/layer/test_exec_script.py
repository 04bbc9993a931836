"""``perinvoke/exec``, the layer's shell script: found anywhere, for any shell, and never in the function's way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from environments import result, run
from managed_runtime import OURS, VERSION, base_prefix
from perinvoke.runtime.layer_command import isolate

ISOLATED = "perinvoke.handler.handler"
PYTHON = f"{base_prefix()}/bin/{VERSION}"  # which has no perinvoke but the layer's
SHELLS = [shell for shell in ("dash", "bash", "busybox") if shutil.which(shell)]
# What the command would see: the variables, and its arguments.
TELLS = "import json, os, sys\nprint(json.dumps([sys.argv, dict(os.environ), sys.path]))\n"


@pytest.fixture(scope="module")
def layer(core_layer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layer in a folder with blanks; for all tests, so that its byte code is compiled once."""
    return Path(shutil.copytree(core_layer, tmp_path_factory.mktemp("a layer of ours") / "opt"))


@pytest.fixture
def own_layer(layer: Path, tmp_path: Path) -> Path:
    """A layer that a test may break."""
    return Path(shutil.copytree(layer, tmp_path / "opt"))


def start(layer: Path, *command: str, shell: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PERINVOKE_", "AWS_", "PYTHON", "_"))}
    words = [str(layer / "perinvoke" / "exec"), *command]
    if shell is not None:
        words = [*(["busybox", "sh"] if shell == "busybox" else [shell]), *words]
    return subprocess.run(words, env={**kept, **env}, capture_output=True, text=True, timeout=30, check=False)


def told(done: subprocess.CompletedProcess[str]) -> tuple[list[str], dict[str, str]]:
    assert done.returncode == 0, done.stderr
    arguments, variables, _ = json.loads(done.stdout)
    return arguments, variables


@pytest.fixture
def script(tmp_path: Path) -> str:
    folder = tmp_path / "a function's"
    folder.mkdir()
    (folder / "tells.py").write_text(TELLS)
    return str(folder / "tells.py")


# --- the shell's part ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", [None, *SHELLS])
def test_it_works_from_any_folder_in_any_shell_with_any_arguments(shell, layer, script):
    strange = ["", " two words ", "*", "$HOME", "a'b\"c", "--version", "-m", "new\nline"]
    arguments, variables = told(start(layer, PYTHON, script, *strange, shell=shell, _HANDLER="app.handler"))
    assert arguments == [script, *strange]
    assert (variables["_HANDLER"], variables["PERINVOKE_HANDLER"]) == (ISOLATED, "app.handler")
    assert "PYTHONPATH" not in variables


def test_a_relative_path_and_a_changed_cdpath_do_not_mislead_it(layer, script):
    command = ["sh", "-c", 'cd "$1" && shift && CDPATH=/ exec ./exec "$@"', "sh", str(layer / "perinvoke"), PYTHON, script]
    done = subprocess.run(
        command, env={**os.environ, "_HANDLER": "app.handler"}, capture_output=True, text=True, timeout=30, check=False
    )
    assert told(done)[1]["PERINVOKE_HANDLER"] == "app.handler"


def test_without_a_command_it_says_how_it_is_meant(layer):
    done = start(layer)
    assert done.returncode == 2
    assert "AWS_LAMBDA_EXEC_WRAPPER=" in done.stderr


def test_without_the_package_the_command_runs_as_it_stands_with_one_line(own_layer, script):
    shutil.rmtree(own_layer / "python" / "perinvoke")
    done = start(own_layer, PYTHON, script, _HANDLER="app.handler")
    assert told(done)[1]["_HANDLER"] == "app.handler"
    assert "from_layer.py; the function runs without perinvoke" in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_a_python_the_command_runs_as_it_stands_with_one_line(layer, tmp_path):
    """A command that isn't Python, where there is none."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "echo"):
        (tools / name).symlink_to(str(shutil.which(name)))
    done = start(layer, "echo", "served", PATH=str(tools))
    assert (done.returncode, done.stdout) == (0, "served\n")
    assert done.stderr == "perinvoke: there is no Python for it; the function runs without perinvoke\n"


@pytest.mark.parametrize("damage", ["raise RuntimeError('broken')", "import no_such_module", "this is no Python"])
@pytest.mark.parametrize("module", ["layer_command", "exec_wrapper"])
def test_a_package_that_can_not_be_imported_leaves_the_function_as_it_is(module, damage, own_layer, script):
    (own_layer / "python" / "perinvoke" / "runtime" / f"{module}.py").write_text(damage)
    done = start(own_layer, PYTHON, script, _HANDLER="app.handler", AWS_LAMBDA_MAX_CONCURRENCY="2")
    assert told(done)[1]["_HANDLER"] == "app.handler"
    assert done.stderr.startswith("perinvoke: can't be imported by ")
    assert done.stderr.count("\n") == 1


OLDER_PYTHON = """\
import sys, types
names = [name for name in type(sys.flags).__match_args__ if name != "safe_path"]
sys.flags, sys.version_info = types.SimpleNamespace(**{name: getattr(sys.flags, name) for name in names}), (3, 10, 13)
"""


def test_a_python_that_is_too_old_leaves_the_function_as_it_is(layer, script, tmp_path):
    """Lambda attaches a layer to any runtime, whatever the layer says it is compatible with."""
    (tmp_path / "sitecustomize.py").write_text(OLDER_PYTHON)
    done = start(layer, PYTHON, script, _HANDLER="app.handler", PYTHONPATH=str(tmp_path))
    assert told(done)[1]["_HANDLER"] == "app.handler"
    assert done.stderr.startswith("perinvoke: can't be imported by ")
    assert done.stderr.endswith("(RuntimeError: perinvoke needs Python 3.11 or newer); the function runs without perinvoke\n")


def test_a_command_that_is_not_python_finds_perinvoke_where_its_python_path_leads(layer, tmp_path):
    """As another wrapper that is named behind this one."""
    for python_path in ("", "/somewhere"):
        env = {"PYTHONPATH": python_path} if python_path else {}
        done = start(layer, "sh", "-c", 'echo "$_HANDLER $PERINVOKE_HANDLER ${PYTHONPATH-unset}"', _HANDLER="app.handler", **env)
        expected = f"/somewhere:{layer}/python" if python_path else "unset"
        assert done.stdout == f"{ISOLATED} app.handler {expected}\n"


def test_a_command_that_is_not_there_ends_as_in_a_shell(layer):
    assert start(layer, "/no/such/program").returncode == 127


# --- another wrapper -----------------------------------------------------------------------------------------------------


def test_another_wrapper_comes_first_and_once(layer, script, tmp_path):
    other = tmp_path / "another wrapper"
    other.write_text(
        '#!/bin/sh\necho once >&2\nexport ORDER="other of $#" _HANDLER=theirs.handler ORIG_HANDLER="$_HANDLER"\nexec "$@"\n'
    )
    other.chmod(0o755)
    done = start(layer, PYTHON, script, "x", PERINVOKE_EXEC_WRAPPER=str(other), _HANDLER="app.handler")
    arguments, variables = told(done)
    assert arguments == [script, "x"]
    assert done.stderr == "once\n"
    assert variables["ORDER"] == "other of 4"
    assert (variables["_HANDLER"], variables["PERINVOKE_HANDLER"], variables["ORIG_HANDLER"]) == (
        ISOLATED,
        "theirs.handler",
        "app.handler",
    )
    assert "PERINVOKE_EXEC_WRAPPER" not in variables


@pytest.mark.parametrize(("exists", "code", "what"), [(False, 127, "does not exist"), (True, 126, "is not an executable")])
def test_another_wrapper_that_can_not_be_run_ends_it_as_the_platform_does(exists, code, what, layer, tmp_path):
    other = tmp_path / "other"
    if exists:
        other.touch(0o644)
    done = start(layer, "echo", "served", PERINVOKE_EXEC_WRAPPER=str(other))
    assert (done.returncode, done.stdout) == (code, "")
    assert f"PERINVOKE_EXEC_WRAPPER={other}: {what}" in done.stderr


def test_naming_itself_as_the_other_wrapper_is_no_loop(layer, script):
    own = str(layer / "perinvoke" / "exec")
    assert told(start(layer, PYTHON, script, PERINVOKE_EXEC_WRAPPER=own, _HANDLER="app.handler"))[1]["_HANDLER"] == ISOLATED


# --- the handler ---------------------------------------------------------------------------------------------------------

MANAGED = ["/var/lang/bin/python3.13", "/var/runtime/bootstrap.py"]
IMAGE = ["python", "-m", "awslambdaric"]


@pytest.mark.parametrize(
    ("command", "before", "words", "after"),
    [
        (MANAGED, {"_HANDLER": "app.handler"}, [], {"_HANDLER": ISOLATED, "PERINVOKE_HANDLER": "app.handler"}),
        (MANAGED, {"_HANDLER": ISOLATED, "PERINVOKE_HANDLER": "app.handler"}, [], {}),
        (
            MANAGED,
            {"_HANDLER": "app.handler", "PERINVOKE_HANDLER": "of.before"},
            [],
            {"_HANDLER": ISOLATED, "PERINVOKE_HANDLER": "app.handler"},
        ),
        (MANAGED, {"_HANDLER": "dd.handler", "DD_LAMBDA_HANDLER": ISOLATED, "PERINVOKE_HANDLER": "app.handler"}, [], {}),
        (
            MANAGED,
            {"_HANDLER": "dd.handler", "DD_LAMBDA_HANDLER": "app.handler"},
            [],
            {"_HANDLER": ISOLATED, "PERINVOKE_HANDLER": "dd.handler"},
        ),
        (MANAGED, {"_HANDLER": ""}, [], {}),
        (MANAGED, {}, [], {}),
        ([*IMAGE, "app.handler"], {}, [*IMAGE, ISOLATED], {"PERINVOKE_HANDLER": "app.handler"}),
        (
            [*IMAGE, "app.handler"],
            {"_HANDLER": "app.handler"},
            [*IMAGE, ISOLATED],
            {"_HANDLER": ISOLATED, "PERINVOKE_HANDLER": "app.handler"},
        ),
        ([*IMAGE, ISOLATED], {"PERINVOKE_HANDLER": "app.handler"}, [], {}),
        (IMAGE, {}, [], {}),
    ],
)
def test_the_handler_is_isolated_unless_it_is(command, before, words, after):
    environ = dict(before)
    assert isolate(command, environ) == (words or command)
    assert environ == {**before, **after}


# --- the runtime ---------------------------------------------------------------------------------------------------------


def test_on_ordinary_lambda_it_isolates_and_supervises_nothing(layer, tmp_path):
    """One process, without workers: the runtime's own, which the wrapper has become."""
    (tmp_path / "bootstrap.py").write_text(
        "import os, sys\nsys.path.insert(0, os.environ['LAMBDA_TASK_ROOT'])\n"
        "import perinvoke.handler\nfrom types import SimpleNamespace\n"
        "print(perinvoke.handler.handler({}, None), os.getpid(), 'perinvoke.runtime.supervisor' in sys.modules)\n"
    )
    (tmp_path / "app.py").write_text(
        "import os\ndef handler(event, context):\n    return os.path.dirname(os.environ['TMPDIR'])\n"
    )
    done = start(
        layer,
        PYTHON,
        str(tmp_path / "bootstrap.py"),
        _HANDLER="app.handler",
        LAMBDA_TASK_ROOT=str(tmp_path),
        TMPDIR=str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    scratch, pid, supervised = done.stdout.split()
    assert scratch.startswith(f"{tmp_path}/perinvoke-{os.geteuid()}/worker-{pid}-")
    assert supervised == "False"
    assert done.stderr == ""


def test_on_ordinary_lambda_an_interpreter_with_options_finds_perinvoke_too(layer, tmp_path):
    (tmp_path / "runs.py").write_text(
        "import perinvoke.handler, sys\nprint(perinvoke.handler.handler({}, None), sys.flags.dev_mode)\n"
    )
    (tmp_path / "app.py").write_text("def handler(event, context):\n    return 'answered'\n")
    done = start(layer, PYTHON, "-X", "dev", str(tmp_path / "runs.py"), _HANDLER="app.handler", TMPDIR=str(tmp_path))
    assert done.stdout == "answered True\n", done.stderr


def test_an_image_whose_command_names_the_handler_is_isolated_and_supervised(managed, task):
    """``ENTRYPOINT ["/opt/perinvoke/exec", "python", "-m", "awslambdaric"]``."""
    runtime = managed()
    # In the place of the managed start: what an image's entry point and command come to.
    started = f'exec /opt/perinvoke/exec "{runtime.interpreter}" -m awslambdaric "$_HANDLER"\n'
    (runtime.folder / "var" / "runtime" / "bootstrap").write_text(f"#!/bin/sh\nexport PYTHONPATH=/var/runtime\n{started}")

    async def scenario() -> None:
        async with runtime.environment("tells.handler", task, wrapper=OURS, workers=2) as environment:
            answer = result(await environment.invoke(b"{}"))
            assert answer["isolated"] is True
            assert answer["parent"] == environment.runtime_pid
            assert answer["argv"][1:] == [ISOLATED]

    run(scenario())
