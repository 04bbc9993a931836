"""Keeps the values of a function's variables out of what people are shown. Pure.

Lambda's own refusals repeat them: "String measured: {…}", with all of the variables.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

# A shorter value is no secret, and is in many a word.
_SHORTEST = 4
_MEASURED = "String measured"


def without_values(text: str, values: Iterable[str]) -> str:
    """The text with dots in place of each value, as it is or as JSON has it."""
    text = text.partition(_MEASURED)[0].rstrip()
    for value in sorted(set(values), key=len, reverse=True):
        if len(value) >= _SHORTEST:
            for form in (value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]):
                text = text.replace(form, "…")
    return text
