"""Public names that are loaded when they are first used, and that need a package which may not be installed."""

from __future__ import annotations

import importlib

from perinvoke.errors import MissingExtra

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


def load(
    package: str, name: str, homes: Mapping[str, str], *, names: Collection[str], needs: Mapping[str, str], extra: str
) -> object:
    """A package's public name; what ``__getattr__`` of the package returns.

    Args:
        package: its dotted name.
        name: what is asked for.
        homes: in which of its modules names are; those that it doesn't tell of are errors of the fleet.
        names: all public names.
        needs: packages that its modules import, and by what name people know them.
        extra: of perinvoke, which brings them.

    Raises:
        AttributeError: there is no such name.
        MissingExtra: one of the packages isn't installed.
    """
    if name not in names:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    home = f"{package}.{homes[name]}" if name in homes else "perinvoke.fleet.errors"
    try:
        module = importlib.import_module(home)
    except ModuleNotFoundError as error:
        missing = needs.get((error.name or "").partition(".")[0])
        if missing is None:
            raise
        raise MissingExtra(
            f"{package} needs {missing}, which isn't installed: pip install 'perinvoke[{extra}]'", extra=extra
        ) from error
    return getattr(module, name)
