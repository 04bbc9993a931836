"""Whether a function can have the layer, before AWS is asked: what Lambda refuses, and what it allows and isn't well. Pure."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING

from perinvoke.layer.attach.names import layer_of
from perinvoke.layer.attach.routes import PRELOAD
from perinvoke.layer.errors import LayerError
from perinvoke.layer.limits import (
    ENVIRONMENT_BYTES,
    LAYERS_PER_FUNCTION,
    MANAGED_INSTANCES_PYTHON,
    MEMORY_GIB_PER_VCPU,
    PYTHONS,
    WORKERS_PER_VCPU,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from perinvoke.layer.attach.configuration import Configuration, Parts

# MB that a worker takes with boto3 and two clients, each importing for itself: 652 MiB in 16, says benchmarks/RESULTS.md.
_WORKER_MB = 41
_MB_PER_GIB = 1024
_LARGEST = 3  # so many variables are named


def check_kind(function: Configuration) -> None:
    """Whether it is one that a layer of perinvoke's can do something for.

    Raises:
        LayerError: it is an image, or isn't Python, or its Python is too old.
    """
    name = function.name
    if function.is_image:
        raise LayerError(
            f"function {name!r} is a container image, and those take no layers. Install perinvoke in the image: RUN pip install "
            'perinvoke, and ENTRYPOINT ["perinvoke-exec", "python", "-m", "awslambdaric"] in its Dockerfile, with '
            "perinvoke.handler.handler as its CMD and PERINVOKE_HANDLER set to what CMD was"
        )
    version = _python(function.runtime)
    if version is None:
        raise LayerError(f"function {name!r} runs on {function.runtime or 'no runtime of Lambda'}: perinvoke is for Python only")
    if version < _python_of(PYTHONS[0]):
        raise LayerError(f"function {name!r} runs on {function.runtime}: perinvoke needs Python {PYTHONS[0]} or newer. Update it")


def check_fits(function: Configuration, arn: str, runtimes: Iterable[str], architectures: Iterable[str]) -> None:
    """Whether the layer version is for the function's runtime and architecture, as far as it says for which it is.

    Raises:
        LayerError: it is for others.
    """
    for kind, wanted, offered in (
        ("runtime", function.runtime, list(runtimes)),
        ("architecture", function.architecture, list(architectures)),
    ):
        if offered and wanted not in offered:
            raise LayerError(
                f"{arn} is for {kind} {' and '.join(offered)}, and function {function.name!r} has {wanted}. Publish one that "
                f"fits: perinvoke layer build --python {function.runtime.removeprefix('python')} --arch {function.architecture}, "
                "then perinvoke layer publish"
            )


def check_limits(after: Parts, layer: str) -> None:
    """Whether Lambda takes it.

    Raises:
        LayerError: too many layers, or variables that are too large.
    """
    if len(after.layers) > LAYERS_PER_FUNCTION:
        others = ", ".join(arn for arn in after.layers if layer_of(arn) != layer_of(layer))
        raise LayerError(
            f"a function takes {LAYERS_PER_FUNCTION} layers, and with {layer} these would be {len(after.layers)}. It has "
            f"{others}. Take one off, or make one of two"
        )
    size = environment_bytes(after.environment)
    if size > ENVIRONMENT_BYTES:
        raise LayerError(
            f"the variables would take {size} bytes, {size - ENVIRONMENT_BYTES} more than the {ENVIRONMENT_BYTES} that Lambda "
            f"allows for all of them. The largest are {_largest(after.environment)}. Make them smaller, or keep what they hold "
            "in SSM Parameter Store or Secrets Manager"
        )


def environment_bytes(variables: Mapping[str, str]) -> int:
    """As Lambda measures: the JSON of all, without blanks; an error of its own shows what it has measured."""
    return len(_json(variables).encode())


def warnings_about(function: Configuration) -> list[str]:
    """What is allowed, and better known before."""
    found = []
    version = _python(function.runtime)
    if version is not None and version < MANAGED_INSTANCES_PYTHON:
        oldest = ".".join(map(str, MANAGED_INSTANCES_PYTHON))
        found.append(f"it runs on {function.runtime}; Managed Instances take Python {oldest} or newer")
    if function.instances is None:
        found.append(
            "it has no capacity provider, so it doesn't run on Managed Instances: each environment has one invocation at a time. "
            "The layer works there all the same"
        )
    return found + _memory(function)


def _memory(function: Configuration) -> list[str]:
    """Whether all workers fit into what an environment has."""
    if function.instances is None or not function.memory_mb:
        return []
    vcpus = function.memory_mb / _MB_PER_GIB / (function.instances.memory_gib_per_vcpu or MEMORY_GIB_PER_VCPU)
    workers = function.instances.workers or max(1, round(WORKERS_PER_VCPU * vcpus))
    needed = workers * _WORKER_MB
    if needed <= function.memory_mb:
        return []
    told = "PerExecutionEnvironmentMaxConcurrency" if function.instances.workers else f"{WORKERS_PER_VCPU} for each vCPU"
    enough = _MB_PER_GIB * math.ceil(needed / _MB_PER_GIB)
    warning = (
        f"{workers} workers ({told}) with boto3 take about {needed} MB ({_WORKER_MB} MB each; less with {PRELOAD}), and an "
        f"environment has {function.memory_mb} MB. Give it {enough} MB, or at most {function.memory_mb // _WORKER_MB} workers"
    )
    return [warning]


def _largest(variables: Mapping[str, str]) -> str:
    """Names and sizes, never values."""
    sizes = sorted(((environment_bytes({name: value}) - 2, name) for name, value in variables.items()), reverse=True)
    return ", ".join(f"{name} ({size} bytes)" for size, name in sizes[:_LARGEST])


def _json(variables: Mapping[str, str]) -> str:
    return json.dumps(dict(variables), separators=(",", ":"), ensure_ascii=False)


def _python(runtime: str) -> tuple[int, int] | None:
    """``(3, 13)`` for ``python3.13``; None for what isn't Python."""
    found = re.fullmatch(r"python(\d+\.\d+)", runtime)
    return None if found is None else _python_of(found[1])


def _python_of(version: str) -> tuple[int, int]:
    major, minor = map(int, version.split("."))
    return major, minor
