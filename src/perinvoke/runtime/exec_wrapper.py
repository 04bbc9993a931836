"""``perinvoke-exec COMMAND…``: runs the runtime's command with this process as the parent of its workers.

It builds on two things. The runtime's parent starts its workers as ``multiprocessing`` processes: their public ``start``,
``join`` and ``run`` are what it takes over. And awslambdaric asks and answers through its module
``lambda_runtime_client.runtime_client``.

The command's own code runs in this very process, so whatever else the runtime does in its parent, and does in a worker, it does.

Where the command isn't such a runtime it is executed as it stands, with one record that says why.
"""

from __future__ import annotations

import importlib
import os
import runpy
import sys
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

from perinvoke.errors import PreloadRefused, SettingError
from perinvoke.runtime.command import Program, parse_command
from perinvoke.runtime.config import read_config
from perinvoke.runtime.layer_command import ISOLATING_HANDLER
from perinvoke.runtime.preload import LAYERS, freeze, preload, preload_isolation
from perinvoke.runtime.preload_logging import PreloadLogging
from perinvoke.runtime.process_tree import kill_children
from perinvoke.runtime.records import Level, Records
from perinvoke.runtime.runtime_api import RuntimeApi
from perinvoke.runtime.start_state import StartState, allow_descriptors
from perinvoke.runtime.supervisor import Supervisor

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping, Sequence
    from types import ModuleType

    from perinvoke.runtime.config import Config

_DESCRIPTION = """\
Run the Lambda runtime's COMMAND as the parent of its workers: import the function once before the fork, replace workers
that die, answer their callers. For AWS_LAMBDA_EXEC_WRAPPER and as a container image's entry point."""

_EPILOG = """\
examples:
  AWS_LAMBDA_EXEC_WRAPPER=/opt/perinvoke-exec                        (of a function, with the layer)
  ENTRYPOINT ["perinvoke-exec", "python", "-m", "awslambdaric"]      (of a container image)
  perinvoke run app.handler --supervise --preload handler            (on a laptop)

variables:
  PERINVOKE_PRELOAD   modules to import before the fork, with commas between them; "handler" is the function's own
  PERINVOKE_STOP_MS   what the platform gives between SIGTERM and SIGKILL (default: 500)

Without AWS_LAMBDA_MAX_CONCURRENCY, as on ordinary Lambda, COMMAND is executed as it is."""

_EXIT_FAILED = 1
_EXIT_NOT_EXECUTABLE, _EXIT_NOT_FOUND = 126, 127  # as shells, and Lambda's own bootstrap, tell it
_MODULE = "perinvoke.runtime"
_LAYERS_SCRIPT = ("perinvoke", "runtime", "from_layer.py")  # stands for it where the layer isn't on the module search path
_DESCRIPTORS = 64  # the interpreter, the log, the first modules, and room for what is opened for a moment
_DESCRIPTORS_PER_WORKER = 3  # a pidfd, a control socket, the duplicate of its connection


class _Unsupported(Exception):  # it is an answer, not a failure
    """The command can't be supervised; the message says why."""


def main(arguments: Sequence[str] | None = None, *, layer: str | None = None) -> int:
    """Become the runtime; returns an exit code only if that can't be.

    Args:
        arguments: the options and the command; by default those of this process.
        layer: the folder that has perinvoke in it, when the layer's ``perinvoke/exec`` runs this.
    """
    options = _read(sys.argv[1:] if arguments is None else arguments)
    command: list[str] = options.command
    if options.version:
        from importlib.metadata import version  # noqa: PLC0415  # cold start: 20 ms

        print(f"perinvoke {version('perinvoke')}")  # noqa: T201
        return 0
    try:
        config = read_config()
    except SettingError as error:
        return _fail_init(error)
    records = Records(as_json=config.logs_as_json, level=config.log_level)
    if config.workers is None:
        return _run_alone(command, records, layer, is_here=options.in_process)
    try:
        program = _program(command, config)
        if not options.in_process and not _is_here(program):
            _execute_in_its_interpreter(program, command, layer)
        return _run(program, command, config, records, layer=layer, may_preload=not options.no_preload)
    except _Unsupported as error:
        records.write(Level.WARN, f"the runtime is not supervised: {error}. It runs as it would without perinvoke-exec")
    return _run_alone(command, records, layer, is_here=options.in_process)  # what it raises is no consequence of that


def _read(arguments: Sequence[str]) -> Any:
    """The options, and the command. What is wrong ends the process, as argparse does."""
    if arguments and arguments[0] and not arguments[0].startswith("-"):
        return SimpleNamespace(version=False, in_process=False, no_preload=False, command=list(arguments))
    parser = _parser()
    options = parser.parse_args(arguments)
    command: list[str] = options.command
    if options.version:
        return options
    if not command or not command[0]:
        parser.error("COMMAND is missing: what the platform would run, such as python -m awslambdaric app.handler")
    if command[0].startswith("-"):
        parser.error(f"there is no option {command[0]}; after the options comes COMMAND")
    return options


def _parser() -> argparse.ArgumentParser:
    import argparse  # noqa: PLC0415  # cold start: the platform calls it without options

    parser = argparse.ArgumentParser(
        prog="perinvoke-exec",
        usage="perinvoke-exec COMMAND [ARGUMENT ...]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="show the version and end")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)  # this is the command's own interpreter
    parser.add_argument("--no-preload", action="store_true", help=argparse.SUPPRESS)  # it was tried, and refused
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="COMMAND", help="what the platform would run, with its arguments"
    )
    return parser


def _run(program: Program, command: list[str], config: Config, records: Records, *, layer: str | None, may_preload: bool) -> int:
    """Run the program in this process, as the parent of its workers."""
    at_start = StartState()
    _set_path(program)
    runtime = _runtime()
    needed = _DESCRIPTORS + _DESCRIPTORS_PER_WORKER * (config.workers or 0)
    if not allow_descriptors(needed):
        raise _Unsupported(
            f"{config.workers} workers take {needed} file descriptors, more than the limit. Raise it: ulimit -n {needed}"
        )
    logs = PreloadLogging(records)
    if may_preload and config.preload:
        try:
            seconds = preload(config.preload, *_handlers(program, config), layers=layer or LAYERS)
        except PreloadRefused as refused:
            told = f"nothing is preloaded: {refused}. Every worker imports for itself, as without PERINVOKE_PRELOAD"
            records.write(Level.WARN, told, event="preload_refused")
            kill_children()
            at_start.restore()
            _execute_here(program, ["--no-preload", *command], at_start.environ, layer)
        records.write(Level.INFO, f"preloaded {', '.join(config.preload)} in {seconds:.2f} s", event="preloaded")
    elif layer is not None:
        preload_isolation()
    logs.close()
    freeze()
    address = config.api_address or ""
    supervisor = Supervisor(runtime, address, records, stop_seconds=config.stop_seconds, on_ready=logs.apply)
    with _taking_over(supervisor, at_start):
        _run_program(program)
    return 0


def _program(command: list[str], config: Config) -> Program:
    if config.shared_process:
        raise _Unsupported("AWS_LAMBDA_CONCURRENCY_MODE has several invocations share a process")
    program = parse_command(command)
    if program is None:
        raise _Unsupported(f"{command[0]} is not python with a module or a script")
    return program


def _runtime() -> ModuleType:
    """Awslambdaric's module that asks and answers.

    Raises:
        _Unsupported: it isn't there, or isn't as it was when this was written.
    """
    try:
        parent = importlib.import_module("awslambdaric.lambda_multi_concurrent_utils")
        runtime = importlib.import_module("awslambdaric.lambda_runtime_client")
    except ImportError as error:
        raise _Unsupported(f"it needs awslambdaric 4 or newer ({error})") from error
    client = getattr(runtime, "runtime_client", None)
    names = ("next", "post_invocation_result", "post_error")
    if not hasattr(parent, "multiprocessing") or not all(callable(getattr(client, name, None)) for name in names):
        raise _Unsupported("this awslambdaric starts its workers, or asks for invocations, in a way that isn't known")
    if not hasattr(os, "pidfd_open"):
        raise _Unsupported("it needs Linux 5.3 or newer")
    return runtime


def _handlers(program: Program, config: Config) -> tuple[str, str]:
    """The function's own handler, and the one that the runtime calls."""
    called = config.handler or ""
    if program.is_module and program.arguments:
        called = program.arguments[0]
    return (config.own_handler or called) if called == ISOLATING_HANDLER else called, called


@contextmanager
def _taking_over(supervisor: Supervisor, at_start: StartState) -> Iterator[None]:
    """The processes that the runtime starts are the supervisor's; in those, everything is as it was."""
    parent = os.getpid()
    methods = {"start": BaseProcess.start, "join": BaseProcess.join}

    def give_back() -> None:
        for name, method in methods.items():
            setattr(BaseProcess, name, method)

    def start(process: BaseProcess) -> None:
        def run() -> None:
            give_back()
            at_start.restore_descriptors()
            process.run()

        supervisor.start(run)

    def join(_process: BaseProcess, _timeout: float | None = None) -> None:
        supervisor.wait()

    BaseProcess.start, BaseProcess.join = start, join  # type: ignore[method-assign,assignment]
    try:
        yield
        supervisor.wait()
    finally:
        if os.getpid() == parent:
            give_back()
            kill_children()


def _run_program(program: Program) -> None:
    """As ``python -m name`` or ``python name`` would, in this process."""
    sys.argv = [program.name, *program.arguments]
    if program.is_module:
        runpy.run_module(program.name, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(program.name, run_name="__main__")


def _set_path(program: Program) -> None:
    """The first entry as the interpreter would have made it for the program."""
    if not sys.flags.safe_path:
        sys.path[0] = os.getcwd() if program.is_module else str(Path(program.name).resolve().parent)  # noqa: PTH109  # the same


# --- other processes ----------------------------------------------------------------------------------------------------


def _is_here(program: Program) -> bool:
    """Whether this is the very interpreter that the command names, and with no other options."""
    found = _which(program.interpreter)
    if found is None or program.flags:
        return False
    here, there = Path(sys.executable), Path(found).absolute()
    return there.parent == here.parent and there.resolve() == here.resolve()


def _which(interpreter: str) -> str | None:
    if interpreter.startswith("/") and os.access(interpreter, os.X_OK):
        return interpreter
    from shutil import which  # noqa: PLC0415  # cold start: the managed runtime's has its whole path

    return which(interpreter)


def _execute_in_its_interpreter(program: Program, command: list[str], layer: str | None) -> NoReturn:
    """Go on in the interpreter that the command names.

    Raises:
        _Unsupported: it isn't there, or perinvoke isn't.
    """
    found = _which(program.interpreter)
    if found is None:
        raise _Unsupported(f"there is no {program.interpreter}")
    if layer is None:  # the layer's script finds its perinvoke by itself, and tells if it can't
        import subprocess  # noqa: PLC0415  # cold start: the managed runtime's command never comes here

        check = subprocess.run([found, *program.flags, "-c", f"import {_MODULE}"], capture_output=True, check=False)  # noqa: S603
        if check.returncode != 0:
            raise _Unsupported(f"perinvoke can't be imported by {found}, which COMMAND names; this is {sys.executable}")
    _execute_here(program, command, os.environ, layer, interpreter=found)


def _execute_here(
    program: Program, arguments: list[str], environ: Mapping[str, str], layer: str | None, interpreter: str = sys.executable
) -> NoReturn:
    """Begin anew, in a process image that has nothing of this one's."""
    start = ["-m", _MODULE] if layer is None else [os.path.join(layer, *_LAYERS_SCRIPT)]  # noqa: PTH118  # a command's word
    again = [interpreter, *program.flags, *start, "--in-process", *arguments]
    os.execve(interpreter, again, environ)  # noqa: S606  # no shell is wanted


def _run_alone(command: list[str], records: Records, layer: str | None, *, is_here: bool) -> int:
    """Run the command without supervision.

    From the layer in this process, if that can be: the handler is perinvoke's, which may be found nowhere else.
    """
    if layer is None:
        return _execute(command, records)
    program = parse_command(command)
    if program is not None and (is_here or _is_here(program)):
        _set_path(program)
        _run_program(program)
        return 0
    if program is not None and _which(program.interpreter) is not None:
        _execute_in_its_interpreter(program, command, layer)
    if "PYTHONPATH" in os.environ:  # where it isn't set, the managed runtime adds the layers
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ["PYTHONPATH"], layer)))
    return _execute(command, records)


def _execute(command: list[str], records: Records) -> int:
    """Run the command in the place of this process; the exit code if that can't be."""
    try:
        os.execvp(command[0], command)  # noqa: S606  # the same
    except OSError as error:
        code = _EXIT_NOT_FOUND if isinstance(error, FileNotFoundError) else _EXIT_NOT_EXECUTABLE
        records.write(Level.ERROR, f"perinvoke-exec can't run {command[0]}: {error.strerror}. Check COMMAND, and the PATH")
        return code


def _fail_init(error: SettingError) -> int:
    """A setting is wrong: the platform is told so before any worker is started."""
    Records(as_json=os.environ.get("AWS_LAMBDA_LOG_FORMAT") == "JSON", level="ERROR").write(Level.ERROR, str(error))
    address = os.environ.get("AWS_LAMBDA_RUNTIME_API")
    if address:
        RuntimeApi(address).fail_init(type(error).__name__, str(error))
    return _EXIT_FAILED
