"""What a function's configuration is, as far as attaching a layer goes by it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from perinvoke.layer.errors import LayerError

if TYPE_CHECKING:
    from collections.abc import Mapping

# Members in which a published version may be behind $LATEST, other than those that are attach's own business.
_PUBLISHED = ("CodeSha256", "Runtime", "MemorySize", "Timeout", "Role", "Architectures")


@dataclass(frozen=True)
class Parts:
    """What attach and detach change, and nothing else. Equal where the functions would be.

    Attributes:
        handler: ``Handler``; empty for an image.
        layers: ARNs of layer versions, in their order.
        environment: all variables. No repr, no message and no log shows a value: some are secrets.
    """

    handler: str
    layers: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Instances:
    """How a function runs on Managed Instances.

    Attributes:
        capacity_provider: the ARN.
        workers: how many an environment has; None where nobody has said so.
        memory_gib_per_vcpu: None where nobody has said so.
    """

    capacity_provider: str
    workers: int | None
    memory_gib_per_vcpu: float | None


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """A function, or a version of it, at one moment.

    Attributes:
        name: the function's.
        arn: with the version, where it is one.
        revision: changes with every change; an update may have it for a condition.
        parts: what may be changed here.
        is_image: it is a container image.
        runtime: ``"python3.13"``; empty for an image.
        architecture: ``"x86_64"`` or ``"arm64"``.
        memory_mb: what an environment has.
        instances: None on ordinary Lambda.
        state: ``"Active"``, and so on.
        state_reason: why, where it isn't active.
        update_status: of the last change: ``"Successful"``, ``"InProgress"`` or ``"Failed"``.
        update_reason: why it failed.
        others: more that a published version keeps, to be compared with another's.
    """

    name: str
    arn: str
    revision: str
    parts: Parts
    is_image: bool
    runtime: str
    architecture: str
    memory_mb: int
    instances: Instances | None
    state: str
    state_reason: str
    update_status: str
    update_reason: str
    others: Mapping[str, Any] = field(repr=False)


def configuration_of(told: Mapping[str, Any]) -> Configuration:
    """What Lambda answers to ``GetFunctionConfiguration``.

    Raises:
        LayerError: the variables can't be read with these credentials: a change would lose them.
    """
    environment = told.get("Environment", {})
    failure = environment.get("Error")
    if failure:
        raise LayerError(
            f"the variables of function {told['FunctionName']!r} can't be read ({failure.get('ErrorCode', 'unknown')}: "
            f"{failure.get('Message', 'no reason given')}), and a change replaces all of them at once. Have your credentials "
            f"allowed to use the key that encrypts them ({told.get('KMSKeyArn', 'the default key')}): kms:Decrypt and kms:Encrypt"
        )
    return Configuration(
        name=told["FunctionName"],
        arn=told["FunctionArn"],
        revision=told.get("RevisionId", ""),
        parts=Parts(
            told.get("Handler", ""),
            tuple(layer["Arn"] for layer in told.get("Layers", ())),
            dict(environment.get("Variables", {})),
        ),
        is_image=told.get("PackageType") == "Image",
        runtime=told.get("Runtime", ""),
        architecture=(told.get("Architectures") or ["x86_64"])[0],
        memory_mb=told.get("MemorySize", 0),
        instances=_instances(told),
        state=told.get("State", "Active"),
        state_reason=_reason(told, "StateReason"),
        update_status=told.get("LastUpdateStatus", "Successful"),
        update_reason=_reason(told, "LastUpdateStatusReason"),
        others={name: told[name] for name in _PUBLISHED if name in told},
    )


def members(before: Parts, after: Parts) -> dict[str, Any]:
    """What ``UpdateFunctionConfiguration`` is asked for: only what changes, the variables all at once."""
    found: dict[str, Any] = {}
    if after.layers != before.layers:
        found["Layers"] = list(after.layers)
    if after.handler != before.handler:
        found["Handler"] = after.handler
    if after.environment != before.environment:
        found["Environment"] = {"Variables": dict(after.environment)}
    return found


def unpublished(latest: Configuration, published: Configuration) -> list[str]:
    """In what ``$LATEST`` is not as it was published, in Lambda's words."""
    found = [name for name in _PUBLISHED if latest.others.get(name) != published.others.get(name)]
    return ["Code" if name == "CodeSha256" else name for name in found] + list(members(published.parts, latest.parts))


def _instances(told: Mapping[str, Any]) -> Instances | None:
    found = told.get("CapacityProviderConfig", {}).get("LambdaManagedInstancesCapacityProviderConfig")
    if not found:
        return None
    return Instances(
        capacity_provider=found.get("CapacityProviderArn", ""),
        workers=found.get("PerExecutionEnvironmentMaxConcurrency"),
        memory_gib_per_vcpu=found.get("ExecutionEnvironmentMemoryGiBPerVCpu"),
    )


def _reason(told: Mapping[str, Any], member: str) -> str:
    """``"code: text"``, as far as there is any."""
    return ": ".join(str(told[name]) for name in (f"{member}Code", member) if told.get(name))
