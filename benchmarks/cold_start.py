"""What the layer adds to a cold start: until every worker has asked for its first invocation, and the first invocation itself.

``python benchmarks/cold_start.py`` prints it; ``make bench`` runs it with the others and writes ``RESULTS.md``.
"""

from __future__ import annotations

import asyncio
import functools
import statistics
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measure import Measured, interleaved
from perinvoke.cli import main as perinvoke
from results import Findings, Row, Target, Unit, page, show

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # the stand-in of the managed runtime is the tests'

from managed_runtime import OURS, ManagedRuntime

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_BARE = "without the layer"
_TARGET = Target(10e-3, Unit.MILLISECONDS)
_HANDLER = "cold_handlers.handler"

_METHOD = (
    (
        "The built core layer, unpacked, beside the real awslambdaric, behind a bootstrap script that behaves like the managed "
        "one; the interpreter has nothing else installed. The function writes one file in the temp directory and imports only os."
    ),
    (
        "Route handler: perinvoke.handler.handler. Route wrapper: AWS_LAMBDA_EXEC_WRAPPER=/opt/perinvoke/exec, which also "
        "replaces workers that die; preloaded: with PERINVOKE_PRELOAD=handler."
    ),
    (
        "More per worker: from the start of the runtime until the last worker's first poll, less the same of the function "
        "without the layer in the same round, divided by the number of workers. First invocation: of each of 8 workers."
    ),
    "Compiled: built with --compile. Source only: /opt is read-only, so every process that imports a module compiles it first.",
)
_UNPROVEN = (
    "What Lambda itself takes to fetch and mount a layer; and its disks.",
    "How it is with one processor for each worker: here all start on those named above.",
)


def findings(*, quick: bool, folder: Path) -> Findings:
    """Measure; writes below ``folder`` only."""
    runtimes = {
        _BARE: _runtime(folder / "bare", None),
        "compiled": _runtime(folder / "compiled", _built(folder / "dist-compiled", "--compile")),
        "source only": _runtime(folder / "source", _built(folder / "dist-source")),
    }
    rows = []
    for workers in (1, 8):
        show(f"cold start of {workers} worker{'s' if workers > 1 else ''} ...")
        rows += _rows(runtimes, workers, rounds=1 if quick else 12)
    return Findings("Cold start with the layer", tuple(rows), _METHOD, _UNPROVEN)


def _built(out: Path, *options: str) -> Path:
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if perinvoke(["layer", "build", "--python", python, "--out", str(out), *options]) != 0:
        raise RuntimeError("the layer can't be built")
    return next(out.glob("*.zip"))


def _runtime(folder: Path, layer: Path | None) -> ManagedRuntime:
    folder.mkdir()
    runtime = ManagedRuntime(folder, mounts=False).make()
    if layer is not None:
        with zipfile.ZipFile(layer) as file:
            file.extractall(runtime.opt)
        (runtime.opt / "perinvoke" / "exec").chmod(0o755)
    return runtime


def _rows(runtimes: dict[str, ManagedRuntime], workers: int, *, rounds: int) -> list[Row]:
    routes: dict[str, dict[str, Any]] = {
        "route handler": {"handler": "perinvoke.handler.handler", "env": {"PERINVOKE_HANDLER": _HANDLER}},
        "route wrapper": {"wrapper": OURS},
        "route wrapper, preloaded": {"wrapper": OURS, "env": {"PERINVOKE_PRELOAD": "handler"}},
    }
    ways = {
        f"{route}, {layer}": (runtimes[layer], options)
        for layer in ("compiled", "source only")
        for route, options in routes.items()
        if layer == "compiled" or "preloaded" not in route
    }
    lives: dict[str, Callable[[], Sequence[float]]] = {}
    firsts: dict[str, list[float]] = {}
    for name, (runtime, options) in {_BARE: (runtimes[_BARE], {}), **ways}.items():
        firsts[name] = []
        lives[name] = functools.partial(_life, runtime, options, workers, firsts[name])
    started = interleaved(lives, rounds=rounds)
    many = f"{workers} worker{'s' if workers > 1 else ''}"
    rows = []
    for name in ways:
        more = _divided(started[name].above(started[_BARE]), workers)
        whole = _divided(started[_BARE], workers)
        rows.append(
            Row(f"cold start of {many}, {name}: more per worker", Unit.MILLISECONDS, more, f"{_BARE}: its own", whole, _TARGET)
        )
    if workers > 1:
        first = {name: Measured((statistics.median(taken),), tuple(taken)) for name, taken in firsts.items()}
        compiled = [name for name in ways if "compiled" in name]
        rows += [Row(f"first invocation, {name}", Unit.MILLISECONDS, first[name], _BARE, first[_BARE]) for name in compiled]
    return rows


def _divided(measured: Measured, by: int) -> Measured:
    return Measured(tuple(value / by for value in measured.rounds), tuple(value / by for value in measured.calls))


def _life(runtime: ManagedRuntime, options: dict[str, Any], workers: int, firsts: list[float]) -> list[float]:
    return [asyncio.run(_one_life(runtime, {"handler": _HANDLER, **options}, workers, firsts))]


async def _one_life(runtime: ManagedRuntime, options: dict[str, Any], workers: int, firsts: list[float]) -> float:
    # As on a read-only /opt, also where who runs this may write there.
    env = {**options.get("env", {}), "PYTHONDONTWRITEBYTECODE": "1"}
    environment = runtime.environment(
        options["handler"], Path(__file__).parent, wrapper=options.get("wrapper"), env=env, workers=workers
    )
    began = time.perf_counter()
    async with environment:
        seconds = time.perf_counter() - began
        for _ in range(workers):
            outcome = await environment.invoke(b"{}")
            if not outcome.ok:
                raise RuntimeError(f"an invocation failed: {outcome.error_type}: {outcome.error_message}")
            firsts.append(outcome.duration_seconds)
    return seconds


def main() -> None:
    """Measure and print."""
    quick = "--quick" in sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="perinvoke-bench-", ignore_cleanup_errors=True) as folder:
        show(page([findings(quick=quick, folder=Path(folder))], root=Path(folder), quick=quick))


if __name__ == "__main__":
    main()
