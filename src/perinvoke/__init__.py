"""perinvoke: a handler that is safe on ordinary Lambda, safe on Lambda Managed Instances.

The public names, each loaded when it is first used: an import at init is paid by every worker of the execution environment.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # what typing.TYPE_CHECKING is at run time; typing itself costs a worker 3 ms
if TYPE_CHECKING:
    from perinvoke.errors import NotInInvocation, PerinvokeError
    from perinvoke.handler import isolated
    from perinvoke.invocation.context import Invocation, current, scratch
    from perinvoke.invocation.state import InvocationState
    from perinvoke.sharing.aws import boto3_client, boto3_resource, deadline_bound
    from perinvoke.sharing.connections import engine, pool
    from perinvoke.sharing.files import shared_file
    from perinvoke.sharing.locks import file_lock

__version__ = "0.1.0"
__all__ = [
    "Invocation",
    "InvocationState",
    "NotInInvocation",
    "PerinvokeError",
    "__version__",
    "boto3_client",
    "boto3_resource",
    "current",
    "deadline_bound",
    "engine",
    "file_lock",
    "isolated",
    "pool",
    "scratch",
    "shared_file",
]

_HOMES = {
    "Invocation": "perinvoke.invocation.context",
    "InvocationState": "perinvoke.invocation.state",
    "NotInInvocation": "perinvoke.errors",
    "PerinvokeError": "perinvoke.errors",
    "boto3_client": "perinvoke.sharing.aws",
    "boto3_resource": "perinvoke.sharing.aws",
    "current": "perinvoke.invocation.context",
    "deadline_bound": "perinvoke.sharing.aws",
    "engine": "perinvoke.sharing.connections",
    "file_lock": "perinvoke.sharing.locks",
    "isolated": "perinvoke.handler",
    "pool": "perinvoke.sharing.connections",
    "scratch": "perinvoke.invocation.context",
    "shared_file": "perinvoke.sharing.files",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'perinvoke' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
