"""Imports modules before the fork, so that all workers share what they take, and refuses when that wouldn't be safe."""

from __future__ import annotations

import gc
import importlib
import os
import sys
import time
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from perinvoke.errors import PreloadRefused

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HANDLER = "handler"  # in PERINVOKE_PRELOAD: the module of the function's own handler

# What every worker of awslambdaric loads by itself soon after the fork; none of it owns anything. And what isolated invocations
# load when they first need it.
_RUNTIME = (
    *("concurrent.futures.thread", "json", "logging", "decimal"),
    *("awslambdaric.bootstrap", "awslambdaric.lambda_config", "awslambdaric.lambda_literals"),
)
_EVERY_INVOCATION = (
    *("perinvoke.handler", "perinvoke.worker", "perinvoke.environment.orphans", "perinvoke.environment.disk_usage"),
    *(f"perinvoke.invocation.{name}" for name in ("deadline_watch", "process_timer", "measures", "stacks")),
)
# What is likely to be used and takes little. Not what InvocationState takes (25 ms): a module that has one brings it.
_LIKELY = ("pathlib", "perinvoke.sharing.locks", "perinvoke.sharing.files")

_THRESHOLDS = gc.get_threshold()

LAYERS = "/opt/python"  # where the managed runtime looks for the layers' code


def preload(names: Sequence[str], own_handler: str, called: str, *, layers: str = LAYERS) -> float:
    """Import what is named, in this order; returns how many seconds it took.

    Afterwards everything is frozen (``gc.freeze``), so that no worker's garbage collection touches, and so copies, a shared page.

    Args:
        names: modules; ``handler`` stands for the module of the function's own handler.
        own_handler: the function's own handler, as Lambda names it.
        called: the handler that the runtime calls; perinvoke's where it isolates the function's own.
        layers: the folder with the layers' code.

    Raises:
        PreloadRefused: a module can't be imported, or leaves something that doesn't survive a fork; nothing is undone.
    """
    from perinvoke.runtime.fork_safety import left_between, look  # noqa: PLC0415  # cold start: only where something is preloaded

    started = time.monotonic()
    _find_code(layers)
    gc.set_threshold(0)  # so that no collection in between leaves holes that workers would fill
    for name in _RUNTIME:
        importlib.import_module(name)
    before, streams = look(), _streams()
    with _main_like_the_runtimes():
        for name in dict.fromkeys(handler_module(own_handler) if name == HANDLER else name for name in names):
            _import(name)
            gc.collect()  # what only garbage holds is no reason to refuse
            left = left_between(before, look())
            if left:
                raise PreloadRefused(
                    f"importing {name} left {', '.join(left)}, which a fork would share or lose. "
                    f"Make it at the first invocation instead, or leave {name} out of PERINVOKE_PRELOAD"
                )
            _check_streams(name, streams)
    _flush()
    _import_what_isolated_needs(called)
    return time.monotonic() - started


def freeze() -> None:
    """Put all that is there out of the garbage collector's reach; right before the first fork."""
    gc.collect()
    gc.freeze()
    if not gc.get_threshold()[0]:  # the code has no wish of its own
        gc.set_threshold(*_THRESHOLDS)


def handler_module(handler: str) -> str:
    """The module of the function's own handler, which ``PERINVOKE_HANDLER`` names where the runtime's is perinvoke's. Pure.

    Raises:
        PreloadRefused: the name isn't one of a handler.
    """
    module, _, function = handler.rpartition(".")
    if not module or not function:
        raise PreloadRefused(f"the handler {handler!r} is not of the form module.function")
    return module.replace("/", ".")


@contextmanager
def _main_like_the_runtimes() -> Iterator[None]:
    """``__main__`` with the runtime's ``bootstrap`` in it, as in a worker.

    There Sentry looks for what calls the handler; not finding it, it would report nothing, and not say so.
    """
    main = sys.modules["__main__"]
    if hasattr(main, "bootstrap"):
        yield
        return
    main.bootstrap = sys.modules["awslambdaric.bootstrap"]  # type: ignore[attr-defined]
    try:
        yield
    finally:
        vars(main).pop("bootstrap", None)


def _streams() -> dict[str, int | None]:
    """The descriptors that ``sys.stdout`` and ``sys.stderr`` say they write to; None: they don't say."""
    found: dict[str, int | None] = {}
    for stream in ("stdout", "stderr"):
        try:
            found[stream] = getattr(sys, stream).fileno()
        except (AttributeError, OSError, ValueError):  # of another kind, closed, or none at all
            found[stream] = None
    return found


def _check_streams(name: str, before: dict[str, int | None]) -> None:
    """Refuse what a worker's runtime couldn't lead to the log: it asks its streams for their descriptors.

    Where the worker imports the module itself, it has asked before.
    """
    for stream, descriptor in _streams().items():
        if descriptor != before[stream]:
            told = type(getattr(sys, stream)).__name__
            raise PreloadRefused(
                f"importing {name} put {told} in the place of sys.{stream}, with another fileno() than its {before[stream]}, "
                f"which leads a worker's output to the log. Give it a fileno(), replace the stream at the first invocation, "
                f"or leave {name} out of PERINVOKE_PRELOAD"
            )


def _flush() -> None:
    """What was printed is told once, and not again by each worker."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):  # none, full, or closed
            continue


def _import(name: str) -> None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise PreloadRefused(f"{name} can't be imported: {error}. Check the name in PERINVOKE_PRELOAD and the layers") from error
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise PreloadRefused(
            f"importing {name} raised {type(error).__name__}: {error}, at {where.filename}:{where.lineno}"
        ) from error
    except BaseException as error:
        raise PreloadRefused(f"importing {name} ended with {type(error).__name__}: {error}") from error


def preload_isolation() -> None:
    """Import what every isolated invocation needs, and nothing of the function's: each worker would pay for it otherwise."""
    gc.set_threshold(0)
    _import_own("concurrent.futures.thread", *_EVERY_INVOCATION)


def _import_what_isolated_needs(called: str) -> None:
    """Without perinvoke in it, the function needs none of this."""
    if "perinvoke.handler" in sys.modules or called.startswith("perinvoke."):
        _import_own(*_EVERY_INVOCATION, *_LIKELY)


def _import_own(*names: str) -> None:
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:  # a part of the layer is missing: who uses it is told
            continue


def _find_code(layers: str) -> None:
    """The folders that the runtime looks in; the managed one adds them itself later, in this order, and reads their ``.pth``."""
    version = f"{layers}/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    # As the managed one does it: with PYTHONPATH the function says itself where its layers are.
    of_layers = () if "PYTHONPATH" in os.environ else (layers, version)
    folders = [folder for folder in (*of_layers, os.environ.get("LAMBDA_TASK_ROOT", "")) if folder and Path(folder).is_dir()]
    for folder in folders:
        sys.path.insert(0, folder)
    for folder in reversed(folders):
        for listed in sorted(Path(folder).glob("*.pth")):
            _add_folders_of(listed)


def _add_folders_of(listed: Path) -> None:
    """Add what a ``.pth`` file lists. What it would run is left to the runtime, which would run it again."""
    try:
        lines = listed.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):  # the runtime tells
        return
    for line in lines:
        if not line.strip() or line.startswith(("#", "import ", "import\t")):
            continue
        folder = str(listed.parent / line.strip())
        if folder not in sys.path and Path(folder).is_dir():
            sys.path.append(folder)
