"""The built layer under a runtime that behaves like the managed one: each route keeps the invocations apart."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from environments import event, result, run
from managed_runtime import MOUNTED, OURS, PREFIXED, VERSION
from processes import wait_until

if TYPE_CHECKING:
    from perinvoke.local import LocalEnvironment, LogLine

PLAIN = "hazards.handler"
ISOLATED = "perinvoke.handler.handler"
ROUTES: dict[str, dict[str, Any]] = {
    "wrapper": {"handler": PLAIN, "wrapper": OURS},
    "wrapper, preloaded": {"handler": PLAIN, "wrapper": OURS, "env": {"PERINVOKE_PRELOAD": "handler"}},
    "wrapper and decorator": {"handler": "decorated.handler", "wrapper": OURS},
    "handler": {"handler": ISOLATED, "env": {"PERINVOKE_HANDLER": PLAIN}},
    "wrapper and handler": {"handler": ISOLATED, "wrapper": OURS, "env": {"PERINVOKE_HANDLER": PLAIN}},
    "decorator": {"handler": "decorated.handler"},
}
_QUICK = ((MOUNTED, "wrapper, preloaded"), (PREFIXED, "handler"))
_SLOW = (*((MOUNTED, route) for route in ROUTES if route != "wrapper, preloaded"), (PREFIXED, "wrapper, preloaded"))
PLACES = [*_QUICK, *(pytest.param(*place, marks=pytest.mark.slow) for place in _SLOW)]  # together they take half a minute


async def assert_apart(environment: LocalEnvironment, home: str, count: int = 24) -> list[Any]:
    """Invocations over all workers find nothing of each other."""
    outcomes = await asyncio.gather(*(environment.invoke(event(item=f"item {number}")) for number in range(count)))
    answers = [result(outcome) for outcome in outcomes]
    for answer in answers:
        clean: dict[str, Any] = {"files": [], "variable": None, "folder": home, "items": [], "own": True}
        assert {name: answer[name] for name in clean} == clean
    return answers


def records(lines: list[LogLine]) -> list[dict[str, Any]]:
    found = [json.loads(line.text) for line in lines if line.text.startswith("{")]
    return [record for record in found if record.get("logger") == "perinvoke"]


@pytest.mark.parametrize(("place", "route"), PLACES, ids=lambda value: value)
def test_invocations_are_kept_apart(place, route, managed, task):
    runtime = managed(place)
    note = runtime.tmp / "note"
    options = dict(ROUTES[route])
    handler = options.pop("handler")

    async def scenario() -> None:
        async with runtime.environment(handler, task, timeout_seconds=1.0, **options) as environment:
            answers = await assert_apart(environment, "/var/task" if runtime.mounts else str(task))
            assert {answer["uid"] == 65534 for answer in answers} == {runtime.mounts}
            assert all(answer["temp"].startswith("/tmp/" if runtime.mounts else str(runtime.tmp)) for answer in answers)
            # The caller learns of the time-out; and the handler doesn't go on.
            told = await environment.invoke(event(do="stay", seconds=1.4, note=str(note)))
            assert told.error_type in ("InvocationTimeout", "Sandbox.Timedout")
            if "wrapper" in route:
                assert (await environment.invoke(event(do="die"))).error_type == "WorkerDied"
                assert await environment.wait_complete(10)
                assert environment.workers_replaced == 1
            await asyncio.sleep(0.6)
            assert not note.exists()
            await assert_apart(environment, "/var/task" if runtime.mounts else str(task), 8)
            wait_until(lambda: [path for path in runtime.tmp.rglob("data.txt") if path.is_file()] == [])

    run(scenario())


def test_a_function_sees_behind_the_wrapper_what_it_sees_without_it(managed, task):
    """The module search path, the variables, the folder, the program."""
    runtime = managed()
    lines: list[LogLine] = []

    async def answer(**options: Any) -> Any:
        async with runtime.environment(
            options.pop("handler", "tells.handler"), task, workers=2, on_log=lines.append, **options
        ) as environment:
            return result(await environment.invoke(b"{}"))

    bare = run(answer())
    assert bare["isolated"] is False
    assert bare["path"][:5] == ["/var/task", f"/opt/python/lib/{VERSION}/site-packages", "/opt/python", *bare["path"][3:5]]
    wrapped = run(answer(wrapper=OURS))
    preloaded = run(answer(wrapper=OURS, env={"PERINVOKE_PRELOAD": "handler"}))
    for other in (wrapped, preloaded):
        assert other["isolated"] is True
        assert other["variables"].pop("PERINVOKE_HANDLER") == "tells.handler"
        assert other["variables"].pop("_HANDLER") == ISOLATED
        for name in ("path", "boto3", "folder", "uid", "argv", "main"):
            assert other[name] == bare[name], name
    assert [record["level"] for record in records(lines)] == ["INFO"] * len(records(lines))


@pytest.mark.parametrize("preload", ["handler", ""])
def test_what_pth_files_list_is_found_preloaded_or_not(preload, managed, task):
    runtime = managed()
    for folder, name in ((runtime.opt / "python", "of_a_layer"), (task, "of_the_function")):
        (folder / "more").mkdir()
        (folder / "more" / f"{name}.py").write_text("")
        (folder / f"{name}.pth").write_text(f"# a comment\nmore\nimport {name}\n")
    (task / "needs_both.py").write_text("import of_a_layer, of_the_function\ndef handler(event, context):\n    return True\n")
    lines: list[LogLine] = []

    async def scenario() -> None:
        env = {"PERINVOKE_PRELOAD": preload}
        async with runtime.environment(
            "needs_both.handler", task, wrapper=OURS, env=env, workers=2, on_log=lines.append
        ) as local:
            assert result(await local.invoke(b"{}")) is True

    run(scenario())
    told = [record["message"] for record in records(lines) if "preloaded" in record["message"]]
    assert [message.split(" in ")[0] for message in told] == (["preloaded handler"] if preload else [])


def test_with_a_python_path_of_its_own_the_function_is_isolated_all_the_same(managed, task):
    """The managed runtime then leaves out the layers' folders."""
    runtime = managed()

    async def answer(env: dict[str, str], **options: Any) -> Any:
        async with runtime.environment("elsewhere.handler", task, env={"PYTHONPATH": "/var/task/own", **env}, **options) as local:
            return result(await local.invoke(b"{}"))

    (task / "own").mkdir()
    (task / "own" / "elsewhere.py").write_text(
        "import os, sys\ndef handler(event, context):\n"
        "    return [os.environ['TMPDIR'] if 'TMPDIR' in os.environ else None, os.environ['PYTHONPATH'], sys.path]\n"
    )
    bare = run(answer({}))
    assert bare[0] is None
    for env in ({}, {"PERINVOKE_PRELOAD": "handler"}):
        scratch, python_path, path = run(answer(env, wrapper=OURS))
        assert "/perinvoke-" in scratch
        assert python_path == bare[1]
        assert [folder for folder in dict.fromkeys(path) if folder != "/opt/python"] == list(dict.fromkeys(bare[2]))


def test_a_function_may_have_modules_named_like_those_of_the_standard_library(managed, task):
    """Its folder comes first once the runtime has begun; also when a worker dies after that, and is answered for."""
    runtime = managed()
    for name in ("email", "http", "resource"):
        (task / f"{name}.py").write_text("OF = 'the function'\n")
    (task / "named_alike.py").write_text(
        "import os, resource\ndef handler(event, context):\n"
        "    if event.get('do') == 'die':\n        os._exit(1)\n"
        "    return [resource.OF, 'TMPDIR' in os.environ]\n"
    )

    async def scenario() -> None:
        async with runtime.environment("named_alike.handler", task, wrapper=OURS, workers=2) as local:
            assert (await local.invoke(event(do="die"))).error_type == "WorkerDied"
            assert result(await local.invoke(b"{}")) == ["the function", True]

    run(scenario())
