"""JSON as Lambda takes it: UTF-8 and nothing else, and none of Python's own additions to the language."""

from __future__ import annotations

import json
from typing import Any, NoReturn


class NotJson(ValueError):
    """The text isn't JSON; the message goes on after "the text"."""


def parse(raw: bytes) -> Any:
    """What the JSON text says.

    Raises:
        NotJson: it isn't UTF-8 (Python would guess UTF-16 and UTF-32 too), isn't JSON, holds ``NaN`` or ``Infinity``, is nested
            too deeply, or holds a number too long for Python.
    """
    try:
        return json.loads(raw.decode(), parse_constant=_refuse_constant)
    except NotJson:
        raise
    except UnicodeDecodeError as error:
        raise NotJson(f"is not UTF-8: byte {raw[error.start]:#04x} at column {error.start + 1}") from None
    except json.JSONDecodeError as error:
        where = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise NotJson(f"is not JSON: {error.msg} at {where}") from None
    except RecursionError:
        raise NotJson("is nested too deeply") from None
    except ValueError:  # sys.get_int_max_str_digits
        raise NotJson("holds a whole number with too many digits") from None


def _refuse_constant(name: str) -> NoReturn:
    raise NotJson(f"is not JSON: {name} is not a JSON value")
