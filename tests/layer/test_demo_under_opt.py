"""The demo's own hazards, over the built layer under a runtime that behaves like the managed one: none of them hits."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import perinvoke.demo
from environments import run
from managed_runtime import OURS
from perinvoke.demo.experiment import HAZARDS, WORKERS, results
from perinvoke.demo.figures import Count

FOLDER = Path(perinvoke.demo.__file__).parent
ISOLATED = "perinvoke.handler.handler"
# Memory is no hazard, and the demo's runner has the working directory elsewhere.
COUNTED = [hazard for hazard in HAZARDS if hazard.handler not in ("handler", "unpack")]

pytestmark = pytest.mark.slow  # the demo takes its time


@pytest.mark.parametrize("route", ["wrapper", "handler"])
def test_the_demo_finds_nothing(route, managed, tmp_path):
    runtime = managed()
    task = tmp_path / "demo"
    task.mkdir()
    shutil.copy(FOLDER / "app.py", task)

    async def count(handler: str, **options: object) -> Count:
        where = {"wrapper": OURS} if route == "wrapper" else {"env": {"PERINVOKE_HANDLER": handler}}
        name = handler if route == "wrapper" else ISOLATED
        async with runtime.environment(name, task, workers=WORKERS, timeout_seconds=options["seconds"], **where) as environment:
            found = await options["figure"](environment)  # type: ignore[operator]  # a hazard's figure
            assert isinstance(found, Count)
            return found

    async def scenario() -> dict[str, Count]:
        found = {}
        for hazard in COUNTED:
            if hazard.supervise and route != "wrapper":
                continue  # it takes the supervisor
            handler = f"{hazard.module}.{hazard.declared_handler or hazard.handler}"
            found[hazard.what] = await count(handler, seconds=hazard.timeout_seconds, figure=hazard.figure)
        async with runtime.environment(
            "app.unpack" if route == "wrapper" else ISOLATED,
            task,
            **({"wrapper": OURS} if route == "wrapper" else {"env": {"PERINVOKE_HANDLER": "app.unpack"}}),
        ) as environment:
            assert set(await results(environment, [{}] * 100)) == {"/var/task"}
        return found

    found = run(scenario(), 90)
    assert {what: figure.count for what, figure in found.items()} == dict.fromkeys(found, 0)
    assert all(figure.out_of > 0 for figure in found.values())
    assert len(found) == (7 if route == "wrapper" else 5)
