"""The command line: parse, build objects, call, print."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from perinvoke.errors import InitFailed, PerinvokeError
from perinvoke.layer.options import add_layer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from perinvoke.local.session import Load

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

_RUN_DESCRIPTION = """\
Run a handler locally as Lambda Managed Instances do: AWS's own runtime client with several workers over one /tmp, real
deadlines, rejection when all workers are busy. Serves Lambda's Invoke API on 127.0.0.1 until Ctrl-C, or drives a load
itself when --events or --requests is given."""

_RUN_EPILOG = """\
examples:
  perinvoke run app.handler
  perinvoke run app.handler --workers 16 --timeout 3 --port 9000 --env TABLE=orders
  perinvoke run app.handler --isolate --requests 1000 --concurrency 8
  perinvoke run app.handler --isolate --supervise --preload handler
  perinvoke run app.handler --extension pgbouncer
  perinvoke run app.handler --events events.jsonl --requests 1000 --queue

exit code: 0 after Ctrl-C, or when every invocation of the load succeeded; 1 when any failed, timed out or was rejected,
or when the runtime ended by itself; 2 when something asked for is wrong, such as a handler that can't be imported;
130 when a load was interrupted."""


_TABLE_DESCRIPTION = """\
Make, or look at, the one DynamoDB table that leases and idempotency use: key id (a string), on demand, old records removed by
their attribute expiration."""

_TABLE_EPILOG = """\
examples:
  perinvoke table create coordination --dry-run > table.yaml
  perinvoke table create coordination --region eu-west-1 --profile production
  perinvoke table describe coordination

create prints the CloudFormation to stdout, and to stderr how far it is and what a function's role needs. A table that is there
and fits is left as it is; one that doesn't fit, too.

exit code: 0 when the table fits; 1 when describe finds that it doesn't; 2 when it can't be told or made: no such table, no
credentials, no permission, nobody who answers, another table of that name; 130 after Ctrl-C."""


class _Parser(argparse.ArgumentParser):
    """Tells what is wrong in two lines instead of repeating the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\nTry '{self.prog} --help'.\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    try:
        _check_streams()
        return _run_command(arguments)
    except InitFailed as error:
        from perinvoke.local.report import init_failure  # noqa: PLC0415 - needs the local extra

        return _fail(init_failure(error))
    except PerinvokeError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _discard_stdout()  # whoever read it has gone
        return EXIT_FAILED
    except OSError as error:
        _discard_stdout()
        what = error.filename or "the output can't be written"
        _fail(f"{what}: {error.strerror or error}")
        return EXIT_FAILED


def _run_command(arguments: Sequence[str] | None) -> int:
    try:
        options = build_parser().parse_args(arguments)
        code: int = options.command(options)
    finally:
        sys.stdout.flush()  # here, after --help too, an error can still be told; at exit it would be Python's own complaint
    return code


def _check_streams() -> None:
    """Python sets to None what was closed before it began."""
    if getattr(sys, "stderr", None) is None:  # nobody wants to read it; and nothing else may become descriptor 2
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - as long as the process
    if getattr(sys, "stdout", None) is None:
        raise PerinvokeError("stdout is closed, and the result goes there; >/dev/null discards it")


def _discard_stdout() -> None:
    """Python would complain again when it flushes at exit."""
    with suppress(OSError):  # no file at all, as in a test
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def build_parser() -> argparse.ArgumentParser:
    """All commands and options."""
    parser = _Parser(
        prog="perinvoke",
        description="Makes Python handlers safe on Lambda Managed Instances, where many invocations share one environment.",
    )
    parser.add_argument("--version", action="version", version=f"perinvoke {version('perinvoke')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_run(commands)
    _add_demo(commands)
    _add_table(commands)
    add_layer(commands).set_defaults(command=_layer)
    return parser


def _add_run(commands: argparse._SubParsersAction[_Parser]) -> None:
    run = commands.add_parser(
        "run",
        help="run a handler locally with several workers, serve or load it",
        description=_RUN_DESCRIPTION,
        epilog=_RUN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    run.set_defaults(command=_run)
    run.add_argument("handler", metavar="HANDLER", help="module.function, as in the function's configuration")
    run.add_argument("--workers", type=int, default=8, metavar="N", help="invocations at once (default: 8)")
    run.add_argument("--timeout", type=float, default=30.0, metavar="S", help="the time-out in seconds (default: 30)")
    run.add_argument("--isolate", action="store_true", help="run the handler through perinvoke, without changing it")
    run.add_argument("--supervise", action="store_true", help="run it below perinvoke-exec, which replaces workers that die")
    run.add_argument(
        "--preload",
        default="",
        metavar="MODULES",
        help="import these once, before the workers are forked: names with commas between them, 'handler' is the function's own "
        "module; implies --supervise",
    )
    run.add_argument(
        "--extension",
        action="append",
        default=[],
        metavar="NAME|COMMAND",
        help="start this beside the runtime: 'pgbouncer' for perinvoke's own, which goes by the variables PERINVOKE_PGBOUNCER_*, "
        "or the command of an extension of yours (may be repeated)",
    )
    run.add_argument("--queue", action="store_true", help="let invocations wait for a free worker instead of rejecting them")
    run.add_argument("--env", action="append", default=[], metavar="K=V", help="set a variable (may be repeated)")
    run.add_argument("--port", type=int, default=0, metavar="P", help="port on 127.0.0.1 (default: any free one)")
    run.add_argument("--directory", type=Path, default=Path(), metavar="D", help="the code's directory (default: here)")
    run.add_argument("--memory", type=int, default=2_048, metavar="MB", help="what the function is told (default: 2048)")
    run.add_argument("--function-name", default="function", metavar="NAME", help="its name (default: function)")
    run.add_argument(
        "--logs",
        action=argparse.BooleanOptionalAction,
        help="write the function's log to stderr (default: when serving, not during a load)",
    )
    load = run.add_argument_group("load", "drive a load, print its figures and end")
    load.add_argument(
        "--events", type=Path, metavar="FILE", help="one JSON event on each line, sent in turn; - is stdin; default: {}"
    )
    load.add_argument("--requests", type=_positive, metavar="N", help="how many (default: each event once)")
    load.add_argument("--concurrency", type=_positive, metavar="N", help="callers at once (default: as many as workers)")


def _add_demo(commands: argparse._SubParsersAction[_Parser]) -> None:
    text = "show what shared workers break, and that perinvoke mends it, on the real runtime"
    demo = commands.add_parser("demo", help=text, description=text[0].upper() + text[1:] + ".")
    demo.set_defaults(command=_demo)
    demo.add_argument("--colour", "--color", choices=("auto", "always", "never"), default="auto", help="default: on a terminal")


def _add_table(commands: argparse._SubParsersAction[_Parser]) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    table = commands.add_parser(
        "table",
        help="make or look at the DynamoDB table of leases and idempotency",
        description=_TABLE_DESCRIPTION,
        epilog=_TABLE_EPILOG,
        formatter_class=raw,
    )
    verbs = table.add_subparsers(title="commands", metavar="COMMAND", required=True)
    create = verbs.add_parser("create", help="make it, and print it as CloudFormation", epilog=_TABLE_EPILOG, formatter_class=raw)
    create.add_argument("name", metavar="NAME", help="the table's name")
    create.add_argument("--dry-run", action="store_true", help="only print; needs no credentials")
    describe = verbs.add_parser("describe", help="show it, and whether it fits", epilog=_TABLE_EPILOG, formatter_class=raw)
    describe.add_argument("name", metavar="NAME", help="the table's name or ARN")
    for verb, name in ((create, "create"), (describe, "describe")):
        verb.set_defaults(command=_table, verb=name)
        verb.add_argument("--region", metavar="R", help="default: AWS_DEFAULT_REGION, or the profile's")
        verb.add_argument("--profile", metavar="P", help="whose credentials; default: AWS_PROFILE")
        verb.add_argument("--endpoint-url", metavar="URL", help="another DynamoDB, such as DynamoDB local")


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; a whole number from 1 on is expected")
    return number


def _run(options: argparse.Namespace) -> int:
    # Late: these need the local extra, and nothing but this command pays for loading them.
    from perinvoke.local.config import LocalConfig  # noqa: PLC0415
    from perinvoke.local.session import run_session  # noqa: PLC0415

    load = _load(options)
    logs = options.logs if options.logs is not None else load is None
    config = LocalConfig(
        handler=options.handler,
        workers=options.workers,
        timeout_seconds=options.timeout,
        directory=options.directory,
        env=parse_variables(options.env),
        isolate=options.isolate,
        supervise=options.supervise,
        preload=options.preload,
        extensions=tuple(options.extension),
        queue=options.queue,
        port=options.port,
        memory_mb=options.memory,
        function_name=options.function_name,
    )
    return run_session(config, load, logs=logs)


def _load(options: argparse.Namespace) -> Load | None:
    if options.events is None and options.requests is None:
        if options.concurrency is not None:
            raise PerinvokeError("--concurrency needs a load: give --requests or --events too")
        return None
    from perinvoke.local.events import read_events  # noqa: PLC0415 - needs the local extra
    from perinvoke.local.session import Load  # noqa: PLC0415

    events = (b"{}",) if options.events is None else tuple(read_events(options.events))
    return Load(events, options.requests or len(events), options.concurrency or options.workers)


def parse_variables(pairs: Sequence[str]) -> dict[str, str]:
    """The variables of ``K=V`` arguments; a later one wins."""
    variables = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise PerinvokeError(f"--env {pair!r} is not of the form NAME=VALUE")
        variables[name] = value
    return variables


def _demo(options: argparse.Namespace) -> int:
    from perinvoke.demo import main as show  # noqa: PLC0415 - needs the local extra

    automatic = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return show(colour={"auto": automatic, "always": True, "never": False}[options.colour])


def _table(options: argparse.Namespace) -> int:
    from perinvoke.fleet.table import command  # noqa: PLC0415 - needs the aws extra

    return {"create": command.create, "describe": command.describe}[options.verb](options)


def _layer(options: argparse.Namespace) -> int:
    # Late: build needs no boto3, and no other command any of it.
    if options.verb == "build":
        from perinvoke.layer.build.command import build  # noqa: PLC0415

        return build(options)
    if options.verb == "publish":
        from perinvoke.layer.publish.command import publish  # noqa: PLC0415

        return publish(options)
    from perinvoke.layer.attach import command  # noqa: PLC0415

    return {"attach": command.attach, "detach": command.detach}[options.verb](options)


def _fail(message: str) -> int:
    with suppress(OSError):  # nobody can be told; the exit code still says it
        print(f"perinvoke: {message}", file=sys.stderr)  # noqa: T201
    return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
