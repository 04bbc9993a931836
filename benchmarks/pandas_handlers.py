"""The handler of the workers benchmark's pandas rows, which are there only if pandas is installed."""

from __future__ import annotations

import importlib
from typing import Any

pd: Any = importlib.import_module("pandas")  # by name: mypy doesn't find what isn't installed

_TABLE = {"kind": ["a", "b", "a", "c"] * 250, "price": [1.5, 2.0, 2.5, 3.0] * 250}


def use_pandas(event: Any, context: Any) -> float:
    """Group a table of 1,000 lines."""
    frame = pd.DataFrame(_TABLE)
    return float(frame.groupby("kind")["price"].mean().sum())
