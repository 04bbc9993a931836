"""``perinvoke-pgbouncer``: registers with Lambda for the end of the environment, and runs PgBouncer until then.

PgBouncer takes connections before the extension has registered: the platform starts the runtime when all extensions have, so a
handler's module finds it at import.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from perinvoke.errors import PerinvokeError, PgBouncerError
from perinvoke.pgbouncer.binary import find_binary
from perinvoke.pgbouncer.config import read_config
from perinvoke.pgbouncer.extension_api import ExtensionApi, ExtensionApiError
from perinvoke.pgbouncer.log import Log
from perinvoke.pgbouncer.secret import read_secret
from perinvoke.pgbouncer.service import Cause, Service
from perinvoke.pgbouncer.target import Database, complete, parse_secret

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from perinvoke.pgbouncer.binary import Binary
    from perinvoke.pgbouncer.config import Config

_USAGE = """\
usage: perinvoke-pgbouncer

Run PgBouncer beside the workers of a Lambda execution environment, as an external extension, whose file is
/opt/extensions/perinvoke-pgbouncer; or until SIGTERM where there is no Lambda.
Locally: perinvoke run HANDLER --extension pgbouncer

It goes by the variables PERINVOKE_PGBOUNCER_*; PERINVOKE_PGBOUNCER_URL, or PERINVOKE_PGBOUNCER_SECRET, must be set.
"""
_NAME = "perinvoke-pgbouncer"
_EXIT_OK, _EXIT_FAILED, _EXIT_USAGE = 0, 1, 2
_STOP_SECONDS = 2.0  # after a signal: what the platform gives extensions, too
_MARGIN_SECONDS = 0.2  # before the platform's SIGKILL: to cut off what still runs, and to remove the password's file


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; the exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words:
        return _answer(words)
    log = Log(
        as_json=os.environ.get("AWS_LAMBDA_LOG_FORMAT", "").upper() == "JSON", level=os.environ.get("AWS_LAMBDA_LOG_LEVEL", "")
    )
    api: ExtensionApi | None = None
    try:
        address = os.environ.get("AWS_LAMBDA_RUNTIME_API")
        api = ExtensionApi(address, _file_name()) if address else None
        with _signals() as signals:
            _run(api, log, signals)
    except Exception as error:  # noqa: BLE001 - whatever it is, the platform is to hear it
        return _failed(error, api, log)
    return _EXIT_OK


def _run(api: ExtensionApi | None, log: Log, signals: int) -> None:
    if not sys.platform.startswith("linux"):
        raise PgBouncerError(f"perinvoke-pgbouncer needs Linux; this is {sys.platform}. A container does")
    config = read_config()
    if config.url is not None:
        log.hide(config.url.password or "")
    binary = find_binary(config.path)
    database = _database(config)
    log.hide(database.password)
    with Service(config, database, binary, log, signals) as service:
        if api is not None:
            api.register()
        _tell(config, database, binary, log)
        event = None if api is None else api.ask()
        seconds = _STOP_SECONDS
        if service.serve(event) is Cause.EVENT and api is not None:
            seconds = _seconds_left(api.event())
        service.drain(seconds)
    log.write("INFO", "pgbouncer has ended")


def _database(config: Config) -> Database:
    secret = None if config.secret is None else parse_secret(config.secret, read_secret(config.secret))
    return complete(config.url, secret, config.secret or "")


def _tell(config: Config, database: Database, binary: Binary, log: Log) -> None:
    where = f"{database.host}:{database.port}/{database.database}"
    how = f"up to {config.max_connections} connections to {where}, {config.pool_mode} pooling"
    log.write("INFO", f"PgBouncer {binary.version} is ready as {config.name!r}: {how}", event="pgbouncer_ready")
    if config.pool_mode == "transaction" and not config.resets:
        log.write("INFO", "sessions are not reset between transactions: what one leaves behind, another may find")


def _seconds_left(event: dict[str, Any]) -> float:
    """Until the platform's end of patience."""
    deadline_ms = event.get("deadlineMs")
    if isinstance(deadline_ms, bool) or not isinstance(deadline_ms, int | float):
        return _STOP_SECONDS
    return max(0.0, deadline_ms / 1000 - time.time() - _MARGIN_SECONDS)


def _failed(error: Exception, api: ExtensionApi | None, log: Log) -> int:
    """Tell the log and the platform."""
    message = log.hidden(str(error) if isinstance(error, PerinvokeError) else f"{type(error).__name__}: {error}")
    log.write("ERROR", message)
    if api is not None and not isinstance(error, ExtensionApiError):
        tell = api.fail if api.is_ready else api.fail_init
        with suppress(ExtensionApiError):  # the log has it, and the exit code says the same
            tell(f"Extension.{type(error).__name__}", message)
    return _EXIT_FAILED


@contextmanager
def _signals() -> Iterator[int]:
    """A descriptor that becomes readable with each signal, with its number."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)  # only the wake-up counts
    try:
        yield reading
    finally:
        signal.set_wakeup_fd(-1)
        os.close(reading)
        os.close(writing)


def _file_name() -> str:
    """Lambda knows an extension by the name of its file."""
    name = os.path.basename(sys.argv[0])  # noqa: PTH119 - nothing else here needs pathlib, which stays in memory
    return name if name and not name.endswith(".py") and name != "-c" else _NAME


def _answer(words: list[str]) -> int:
    if words == ["--version"]:
        from importlib.metadata import version  # noqa: PLC0415 - three MiB, which would stay beside the workers

        print(f"perinvoke {version('perinvoke')}")  # noqa: T201
        return _EXIT_OK
    if words in (["--help"], ["-h"]):
        print(_USAGE, end="")  # noqa: T201
        return _EXIT_OK
    print(f"perinvoke-pgbouncer takes no arguments, and was given {' '.join(words)}\n{_USAGE}", file=sys.stderr, end="")  # noqa: T201
    return _EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
