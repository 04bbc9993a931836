"""Reads ``os.environ`` for a handler: ``PERINVOKE_*`` and what the platform says, as one frozen ``Settings``.

The exec wrapper reads what it goes by in ``runtime.config``; nothing else reads ``PERINVOKE_*``.

A plain class with slots, not a dataclass: importing ``dataclasses`` costs every worker 10 to 30 ms at init.
"""

from __future__ import annotations

import logging
import os

from perinvoke.errors import SettingError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

KNOWN = frozenset(
    {
        "PERINVOKE_ATTACHED",
        "PERINVOKE_CALLER_TIMEOUT_SECONDS",
        "PERINVOKE_EXEC_WRAPPER",
        "PERINVOKE_HANDLER",
        "PERINVOKE_METRICS",
        "PERINVOKE_MIN_FREE_BYTES",
        "PERINVOKE_ON_TIMEOUT",
        "PERINVOKE_PGBOUNCER_IDLE_SECONDS",
        "PERINVOKE_PGBOUNCER_MAX_CONNECTIONS",
        "PERINVOKE_PGBOUNCER_NAME",
        "PERINVOKE_PGBOUNCER_PATH",
        "PERINVOKE_PGBOUNCER_POOL_MODE",
        "PERINVOKE_PGBOUNCER_RESET",
        "PERINVOKE_PGBOUNCER_SECRET",
        "PERINVOKE_PGBOUNCER_TLS_CA_FILE",
        "PERINVOKE_PGBOUNCER_TLS_MODE",
        "PERINVOKE_PGBOUNCER_URL",
        "PERINVOKE_PGBOUNCER_WAIT_SECONDS",
        "PERINVOKE_PRELOAD",
        "PERINVOKE_ROOT",
        "PERINVOKE_SHARED_MAX_BYTES",
        "PERINVOKE_STOP_MS",
        "PERINVOKE_TIMEOUT_MARGIN_MS",
        "PERINVOKE_TIMEOUT_SECONDS",
    }
)

# What a handler may need to answer before the platform's own cut, when a wait has ended without success.
_DEFAULT_MARGIN_MS = 300

# What happens to a handler that is still running when its time is up.
ON_TIMEOUT = ("raise", "replace", "report", "off")
# Where figures go besides the log record of an abnormal invocation.
METRICS = ("off", "emf")
# A day: more than any platform gives, and little enough for every clock and timer.
_MAX_TIMEOUT_SECONDS = 86_400

# 16 MiB: half of what each of 16 workers has of the platform's smallest /tmp.
_DEFAULT_MIN_FREE_BYTES = 16 * 1024 * 1024

# Digits. More than any file system has bytes; and int() refuses very long ones with an error of its own.
_MAX_DIGITS = 18

# The platform's announced names for "several invocations at once in one process" (awslambdaric issue 215).
_SHARED_PROCESS_MODES = frozenset({"thread", "hybrid"})

# The minor version of Python from which the managed runtimes poll in a helper thread.
_HELPER_THREAD_SINCE = 12

logger = logging.getLogger("perinvoke")


class Settings:
    """What one handler was set up with. Frozen; lives as long as the handler it was read for.

    Attributes:
        root: the folder below which perinvoke keeps its files: absolute, not yet checked.
        handler: the real handler of the no-code-change route, or None.
        shared_process: the platform says that several invocations run at once in one process.
        timeout_margin_seconds: how long before the deadline a wait ends, and the handler is interrupted.
        timeout_seconds: how long an invocation may take, however long the platform gives it; None: as long as that.
        caller_timeout_seconds: how long the caller waits, from the start that the event tells; None: nobody knows.
        polls_in_helper_thread: awslambdaric waits for the next invocation in a thread, so that the main thread can take signals.
        on_timeout: what happens to a handler whose time is up: one of ``ON_TIMEOUT``.
        metrics: where figures go: one of ``METRICS``.
        function_name: the function's, as the platform says; empty where it doesn't.
        shared_max_bytes: how much all shared files may take that nobody uses, or None for no such limit.
        min_free_bytes: below this much free space perinvoke makes room.
    """

    __slots__ = (
        "caller_timeout_seconds",
        "function_name",
        "handler",
        "metrics",
        "min_free_bytes",
        "on_timeout",
        "polls_in_helper_thread",
        "root",
        "shared_max_bytes",
        "shared_process",
        "timeout_margin_seconds",
        "timeout_seconds",
    )
    root: str
    handler: str | None
    shared_process: bool
    polls_in_helper_thread: bool
    timeout_margin_seconds: float
    timeout_seconds: float | None
    caller_timeout_seconds: float | None
    on_timeout: str
    metrics: str
    function_name: str
    shared_max_bytes: int | None
    min_free_bytes: int

    def __init__(
        self,
        *,
        root: str,
        handler: str | None,
        shared_process: bool,
        polls_in_helper_thread: bool,
        timeout_margin_seconds: float,
        timeout_seconds: float | None,
        caller_timeout_seconds: float | None,
        on_timeout: str,
        metrics: str,
        function_name: str,
        shared_max_bytes: int | None,
        min_free_bytes: int,
    ) -> None:
        object.__setattr__(self, "root", root)
        object.__setattr__(self, "handler", handler)
        object.__setattr__(self, "shared_process", shared_process)
        object.__setattr__(self, "polls_in_helper_thread", polls_in_helper_thread)
        object.__setattr__(self, "timeout_margin_seconds", timeout_margin_seconds)
        object.__setattr__(self, "timeout_seconds", timeout_seconds)
        object.__setattr__(self, "caller_timeout_seconds", caller_timeout_seconds)
        object.__setattr__(self, "on_timeout", on_timeout)
        object.__setattr__(self, "metrics", metrics)
        object.__setattr__(self, "function_name", function_name)
        object.__setattr__(self, "shared_max_bytes", shared_max_bytes)
        object.__setattr__(self, "min_free_bytes", min_free_bytes)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Settings are frozen; {name!r} can't be set")

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name}={getattr(self, name)!r}' for name in self.__slots__)})"


def read_settings(environ: Mapping[str, str] | None = None, *, on_timeout: str | None = None) -> Settings:
    """Read every setting once. An argument wins over its variable.

    Raises:
        SettingError: a variable's or an argument's value isn't allowed; the error names it, the value and what is allowed.
    """
    environ = os.environ if environ is None else environ
    return Settings(
        root=_root(environ),
        handler=environ.get("PERINVOKE_HANDLER"),
        shared_process=is_shared_process(environ),
        polls_in_helper_thread=_polls_in_helper_thread(environ),
        timeout_margin_seconds=whole_number(environ, "PERINVOKE_TIMEOUT_MARGIN_MS", "milliseconds", _DEFAULT_MARGIN_MS) / 1000,
        timeout_seconds=_seconds(environ, "PERINVOKE_TIMEOUT_SECONDS"),
        caller_timeout_seconds=_seconds(environ, "PERINVOKE_CALLER_TIMEOUT_SECONDS"),
        on_timeout=_on_timeout(environ, on_timeout),
        metrics=_metrics(environ),
        function_name=environ.get("AWS_LAMBDA_FUNCTION_NAME", ""),
        shared_max_bytes=whole_number(environ, "PERINVOKE_SHARED_MAX_BYTES", "bytes", 0, least=1) or None,
        min_free_bytes=whole_number(environ, "PERINVOKE_MIN_FREE_BYTES", "bytes", _DEFAULT_MIN_FREE_BYTES),
    )


def is_shared_process(environ: Mapping[str, str]) -> bool:
    """Whether the platform runs several invocations at once in one process."""
    return environ.get("AWS_LAMBDA_CONCURRENCY_MODE", "").lower() in _SHARED_PROCESS_MODES


def warn_of_unknown(environ: Mapping[str, str] | None = None) -> None:
    """Log which ``PERINVOKE_*`` variables are set and not known: a misspelt one would be ignored in silence."""
    environ = os.environ if environ is None else environ
    unknown = sorted(name for name in environ if name.startswith("PERINVOKE_") and name not in KNOWN)
    if unknown:
        logger.warning("perinvoke does not know %s; it knows %s", ", ".join(unknown), ", ".join(sorted(KNOWN)))


def whole_number(environ: Mapping[str, str], name: str, unit: str, default: int, *, least: int = 0) -> int:
    """The value of a variable that holds a whole number from ``least`` on, or ``default``.

    Raises:
        SettingError: it holds something else.
    """
    value = environ.get(name)
    if value is None:
        return default
    if not value.isascii() or not value.isdigit() or len(value) > _MAX_DIGITS or int(value) < least:
        raise not_allowed(name, value, f"a whole number of {unit} from {least} on")
    return int(value)


def _polls_in_helper_thread(environ: Mapping[str, str]) -> bool:
    """As awslambdaric 4.2 decides it: in the managed runtimes from Python 3.12 on."""
    version = environ.get("AWS_EXECUTION_ENV", "").removeprefix("AWS_Lambda_python3.")
    return version.isascii() and version.isdigit() and int(version[:_MAX_DIGITS]) >= _HELPER_THREAD_SINCE


def _seconds(environ: Mapping[str, str], name: str) -> float | None:
    value = environ.get(name)
    if value is None:
        return None
    whole, _, fraction = value.partition(".")
    # Digits only: float() also takes "nan", "1e9", "1_0" and blanks.
    plain = value.isascii() and whole.isdigit() and (fraction.isdigit() or "." not in value) and len(value) <= _MAX_DIGITS
    if not plain or not 0 < float(value) <= _MAX_TIMEOUT_SECONDS:
        raise not_allowed(name, value, f"a number of seconds above 0, up to {_MAX_TIMEOUT_SECONDS}, such as 29 or 2.5")
    return float(value)


def _on_timeout(environ: Mapping[str, str], argument: object) -> str:
    allowed = "one of " + ", ".join(ON_TIMEOUT)
    variable = environ.get("PERINVOKE_ON_TIMEOUT", ON_TIMEOUT[0])
    if variable not in ON_TIMEOUT:
        raise not_allowed("PERINVOKE_ON_TIMEOUT", variable, allowed)
    if argument is None:
        return variable
    if not isinstance(argument, str) or argument not in ON_TIMEOUT:
        raise not_allowed("isolated's on_timeout", argument, allowed)
    return argument


def _metrics(environ: Mapping[str, str]) -> str:
    value = environ.get("PERINVOKE_METRICS", METRICS[0])
    if value not in METRICS:
        raise not_allowed("PERINVOKE_METRICS", value, "one of " + ", ".join(METRICS))
    return value


def _root(environ: Mapping[str, str]) -> str:
    root = environ.get("PERINVOKE_ROOT")
    if root is None:
        # Named after the user, because /tmp is shared by users too: the first one's folder must not lock out the second.
        return os.path.join(_system_temp_directory(environ), f"perinvoke-{os.geteuid()}")
    if not os.path.isabs(root) or "\0" in root:
        raise not_allowed("PERINVOKE_ROOT", root, "an absolute path such as /tmp/perinvoke")
    return os.path.normpath(root)


def _system_temp_directory(environ: Mapping[str, str]) -> str:
    """``tempfile.gettempdir`` without its import (12 ms) and without its write test."""
    for name in ("TMPDIR", "TEMP", "TMP"):
        value = environ.get(name)
        if value and os.path.isdir(value):
            return os.path.abspath(value)
    return "/tmp"  # noqa: S108  # where Lambda's only writable folder is


def not_allowed(setting: str, value: object, allowed: str) -> SettingError:
    """The error for a value that isn't allowed."""
    return SettingError(
        f"{setting} is {value!r}; allowed is {allowed}. Set it to that, or remove it for the default.",
        setting=setting,
        value=value,
        allowed=allowed,
    )
