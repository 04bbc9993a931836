"""The one place that looks for what the ``local`` extra brings; imported before anything that needs it."""

from __future__ import annotations

from importlib.util import find_spec

from perinvoke.errors import MissingExtra

PACKAGES = ("aiohttp", "awslambdaric", "rich")


def missing_packages() -> list[str]:
    """The packages of the extra that aren't installed."""
    return [name for name in PACKAGES if find_spec(name) is None]


if missing := missing_packages():
    raise MissingExtra(
        f"running a handler locally needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed; "
        "the 'local' extra brings it: pip install 'perinvoke[local]'",
        extra="local",
    )
