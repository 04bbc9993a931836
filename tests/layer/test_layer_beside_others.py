"""The layer together with those of others, in front of it and behind it: both do their work, and invocations are kept apart."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from environments import event, result, run
from managed_runtime import OURS

if TYPE_CHECKING:
    from perinvoke.local import LogLine

OF_OTHERS = Path(__file__).parent / "of_others"
PLAIN, ISOLATED = "hazards.handler", "perinvoke.handler.handler"
OTEL, DATADOG = "/opt/otel-instrument", "datadog_lambda.handler.handler"
PRELOAD = {"PERINVOKE_PRELOAD": "handler"}
ALONE = {
    "DD_TRACE_TELEMETRY_ENABLED": "false",
    "DD_REMOTE_CONFIGURATION_ENABLED": "false",
    "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
}
WORKERS, INVOCATIONS = 2, 8

pytestmark = pytest.mark.slow  # a second for each of many ways; and the first time, the packages are fetched

WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "powertools, wrapper": ("powertools", {"handler": "with_powertools.handler", "wrapper": OURS, "env": PRELOAD}),
    "powertools, handler": (
        "powertools",
        {"handler": ISOLATED, "env": {"PERINVOKE_HANDLER": "with_powertools.handler"}},
    ),
    "powertools, decorator": ("powertools", {"handler": "with_powertools_decorated.handler"}),
    "sentry in front, wrapper": ("sentry", {"handler": "with_sentry.handler", "wrapper": OURS}),
    "sentry in front, wrapper, preloaded": ("sentry", {"handler": "with_sentry.handler", "wrapper": OURS, "env": PRELOAD}),
    "sentry in front, handler": ("sentry", {"handler": ISOLATED, "env": {"PERINVOKE_HANDLER": "with_sentry.handler"}}),
    "opentelemetry in front, wrapper": (
        "opentelemetry",
        {"handler": PLAIN, "wrapper": OURS, "env": {"PERINVOKE_EXEC_WRAPPER": OTEL}},
    ),
    "opentelemetry in front, wrapper, preloaded": (
        "opentelemetry",
        {"handler": PLAIN, "wrapper": OURS, "env": {"PERINVOKE_EXEC_WRAPPER": OTEL, **PRELOAD}},
    ),
    "opentelemetry in front, wrapper and decorator": (
        "opentelemetry",
        {"handler": "decorated.handler", "wrapper": OURS, "env": {"PERINVOKE_EXEC_WRAPPER": OTEL}},
    ),
    "opentelemetry in front, set up in its handler, wrapper, preloaded": (
        "opentelemetry",
        {"handler": PLAIN, "wrapper": OURS, "env": {"PERINVOKE_EXEC_WRAPPER": OTEL, "OTEL_IN_HANDLER": "1", **PRELOAD}},
    ),
    "opentelemetry, handler": ("opentelemetry", {"handler": ISOLATED, "wrapper": OTEL, "env": {"PERINVOKE_HANDLER": PLAIN}}),
    "opentelemetry, decorator": ("opentelemetry", {"handler": "decorated.handler", "wrapper": OTEL}),
    "datadog behind, wrapper": ("datadog", {"handler": DATADOG, "wrapper": OURS, "env": {"DD_LAMBDA_HANDLER": PLAIN}}),
    "datadog behind, wrapper, preloaded": (
        "datadog",
        {"handler": DATADOG, "wrapper": OURS, "env": {"DD_LAMBDA_HANDLER": PLAIN, **PRELOAD}},
    ),
    "datadog in front, wrapper": (
        "datadog",
        {"handler": DATADOG, "wrapper": OURS, "env": {"DD_LAMBDA_HANDLER": ISOLATED, "PERINVOKE_HANDLER": PLAIN}},
    ),
    "datadog in front, handler": (
        "datadog",
        {"handler": DATADOG, "env": {"DD_LAMBDA_HANDLER": ISOLATED, "PERINVOKE_HANDLER": PLAIN}},
    ),
    "datadog behind, handler": (
        "datadog",
        {"handler": ISOLATED, "env": {"DD_LAMBDA_HANDLER": PLAIN, "PERINVOKE_HANDLER": DATADOG}},
    ),
    "datadog, decorator": ("datadog", {"handler": DATADOG, "env": {"DD_LAMBDA_HANDLER": "decorated.handler"}}),
}
# What each of them writes for an invocation.
SIGNS = {
    "powertools": "said with powertools",
    "sentry": "sentry has seen",
    "opentelemetry": '"faas.invocation_id"',
    "datadog": "aws.lambda.enhanced.invocations",
}
# Where something is preloaded: what is told about it. What holds a thread or an open file isn't, and each worker imports it.
PRELOADED = {
    "powertools, wrapper": "preloaded handler in ",
    "sentry in front, wrapper, preloaded": "preloaded handler in ",
    "opentelemetry in front, wrapper, preloaded": "preloaded handler in ",
    "opentelemetry in front, set up in its handler, wrapper, preloaded": "importing otel_wrapper left thread 'OtelBatchSpan",
    "datadog behind, wrapper, preloaded": "nothing is preloaded: importing datadog_lambda.handler left ",
}


@pytest.mark.parametrize("way", WAYS)
def test_both_do_their_work(way, managed, task):
    name, options = WAYS[way]
    runtime = managed(others=(name,))
    if name == "opentelemetry":
        shutil.copy(OF_OTHERS / "otel-instrument", runtime.opt)
        shutil.copy(OF_OTHERS / "otel_wrapper.py", runtime.opt / "python")
    env = {
        **options.get("env", {}),
        **(
            {"OTEL_TRACES_EXPORTER": "console", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
            if name == "opentelemetry"
            else {}
        ),
        **({"DD_FLUSH_TO_LOG": "true", "DD_TRACE_ENABLED": "true", **ALONE} if name == "datadog" else {}),
    }
    lines: list[LogLine] = []

    async def scenario() -> list[Any]:
        settings = {**options, "env": env, "workers": WORKERS, "timeout_seconds": 10, "on_log": lines.append}
        async with runtime.environment(settings.pop("handler"), task, **settings) as local:
            outcomes = await asyncio.gather(*(local.invoke(event(item=f"item {number}")) for number in range(INVOCATIONS)))
            answers = [result(outcome) for outcome in outcomes]
            if "wrapper" in way:
                assert (await local.invoke(event(do="die"))).error_type == "WorkerDied"
                assert await local.wait_complete(20)
                answers.append(result(await local.invoke(event(item="after"))))
            return answers

    for answer in run(scenario(), 60):
        clean: dict[str, Any] = {"files": [], "variable": None, "folder": "/var/task", "items": []}
        assert {key: answer[key] for key in clean} == clean
    told = [line.text for line in lines]
    assert sum(text.count(SIGNS[name]) for text in told) >= INVOCATIONS
    said = [record for record in map(record_of, told) if record and record["perinvoke"].get("event", "").startswith("preload")]
    assert [PRELOADED[way] in record["message"] for record in said] == ([True] if way in PRELOADED else [])


def record_of(line: str) -> dict[str, Any] | None:
    """A record of perinvoke's; the lines of others may be anything."""
    if not line.startswith('{"timestamp"'):
        return None
    record: dict[str, Any] = json.loads(line)
    return record if record.get("logger") == "perinvoke" and "perinvoke" in record else None
