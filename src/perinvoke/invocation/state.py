"""``InvocationState``: declared variables that every invocation starts anew.

The registry, its descriptors and their semantics are those of contextvars-extras. Only the variable below each field is ours: a
``ContextVar`` whose values belong to the invocation that set them. So the reset costs nothing, whatever the number of fields; and
a pooled thread that keeps the context of an ended invocation reads defaults, never that invocation's values.
"""

from __future__ import annotations

import contextvars
import dataclasses

from contextvars_extras.context_var_descriptor import ContextVarDescriptor
from contextvars_extras.context_var_ext import NO_DEFAULT
from contextvars_extras.context_vars_registry import ContextVarsRegistry, ContextVarsRegistryMeta

from perinvoke.errors import NotInInvocation, StateError
from perinvoke.invocation.context import Invocation, entered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Self

    Entry = tuple[Invocation | None, Any]


class _OwnedVar:
    """What ContextVarDescriptor needs of a ``ContextVar``; a value is seen only by the invocation that set it.

    Outside an invocation it is an ordinary context variable, whose values no invocation sees.
    """

    def __init__(self, name: str, default: Any, factory: Callable[[], Any] | None) -> None:
        self.name = name
        self._default = default
        self._factory = factory
        self._var: contextvars.ContextVar[Entry] = contextvars.ContextVar(name)

    def get(self, default: Any = NO_DEFAULT) -> Any:
        entry = self._var.get(None)
        owner = entered.get()
        if entry is not None and entry[0] is owner and (owner is None or not owner.ended):
            return entry[1]
        if default is not NO_DEFAULT:
            return default
        if self._factory is not None:
            return self._made(self._factory)
        if self._default is NO_DEFAULT:
            raise LookupError(self)
        return self._default

    def _made(self, factory: Callable[[], Any]) -> Any:
        """The factory's value: one for the whole invocation, one for each context outside, a passing one where it has ended."""
        invocation = entered.get()
        if invocation is None:
            value = factory()
            self._var.set((None, value))
            return value
        if invocation.ended:
            return factory()
        if self not in invocation.state_defaults:
            # No lock: a factory may wait for a thread that reads a field. Of two that run at once, one's value is taken by all.
            invocation.state_defaults.setdefault(self, factory())
        return invocation.state_defaults[self]

    def set(self, value: Any) -> contextvars.Token[Entry]:
        invocation = entered.get()
        if invocation is not None and invocation.ended:
            # Kept, it would be what the next invocation's call in this thread reads.
            raise NotInInvocation(
                f"{self.name} can't be set: invocation {invocation.request_id}, which started this thread, has ended"
            )
        return self._var.set((invocation, value))

    def reset(self, token: contextvars.Token[Entry]) -> None:
        self._var.reset(token)

    def __repr__(self) -> str:
        return f"<variable {self.name} of the invocation>"


class _StateMeta(ContextVarsRegistryMeta):  # type: ignore[misc]  # contextvars-extras ships no types
    """Gives each state class the registry as a direct base, which contextvars-extras insists on."""

    def __new__(mcs, name: str, bases: tuple[type, ...], attrs: dict[str, Any]) -> Self:
        if bases and bases != (ContextVarsRegistry,):
            if any(isinstance(base, _StateMeta) and base.__bases__ != (ContextVarsRegistry,) for base in bases):
                raise StateError(f"{name}: subclass InvocationState directly; a state class can't be subclassed again")
            position = next(i for i, base in enumerate(bases) if isinstance(base, _StateMeta)) + 1
            bases = (*bases[:position], ContextVarsRegistry, *bases[position:])
        try:
            made: Self = super().__new__(mcs, name, bases, attrs)
        except NameError as error:
            raise StateError(
                f"{name}: a field's type can't be looked up: {error}. Import it outside `if TYPE_CHECKING:`"
            ) from error
        return made

    def __setattr__(cls, name: str, value: Any) -> None:  # noqa: N805  # a metaclass's self is a class
        field = cls.__dict__.get(name)
        if isinstance(field, ContextVarDescriptor) and not isinstance(value, ContextVarDescriptor):
            raise StateError(f"{cls.__name__}.{name} is a field: set it on an instance, or all invocations would share the value")
        super().__setattr__(name, value)


class InvocationState(ContextVarsRegistry, metaclass=_StateMeta):  # type: ignore[misc]  # the same
    """Declared state of the running invocation. The values live as long as the invocation, the class as long as the worker.

    Declare fields with types and defaults in a direct subclass, make one instance at module level, and read and set attributes::

        class Audit(InvocationState):
            user: str = "nobody"
            entries: list[str] = field(default_factory=list)     # dataclasses.field

        audit = Audit()

    Every invocation starts with the defaults. Threads, pooled calls and tasks that it starts see its values as they were at that
    moment; what they set themselves stays with them. A factory is called at the invocation's first read, and its value is the
    same object in all of them. A field without a default raises ``AttributeError`` until it is set.

    Outside an invocation fields can be set and read too (for init code and unit tests); no invocation sees those values. In a
    thread that outlived its invocation, reading gives the defaults and setting raises ``NotInInvocation``.

    Raises:
        StateError: from the declaration: a default that can't be hashed, such as a list (all invocations would share it), or a
            second subclass; from setting a field on the class. A mutable object that can be hashed isn't recognised.
    """

    _registry_allocate_on_setattr = False  # a misspelt name is an AttributeError, not a new variable

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        descriptors = cls._registry_var_descriptors
        for name, declared in list(descriptors.items()):
            descriptors[name] = descriptor = _owned(cls, name, declared)
            setattr(cls, name, descriptor)


def _owned(cls: type, name: str, declared: Any) -> Any:
    """The same field over an ``_OwnedVar``."""
    default, factory = declared.default, declared.deferred_default
    if isinstance(default, dataclasses.Field):
        default, factory = _default_of(default)
    if getattr(type(default), "__hash__", None) is None:
        raise StateError(
            f"{cls.__name__}.{name}: all invocations would share the default {default!r}; "
            f"write dataclasses.field(default_factory={type(default).__name__})"
        )
    variable = _OwnedVar(declared.name, default, factory)
    return ContextVarDescriptor(declared.name, default=default, deferred_default=factory, _context_var=variable)


def _default_of(field: dataclasses.Field[Any]) -> tuple[Any, Callable[[], Any] | None]:
    if field.default_factory is not dataclasses.MISSING:
        return NO_DEFAULT, field.default_factory
    return (NO_DEFAULT if field.default is dataclasses.MISSING else field.default), None
