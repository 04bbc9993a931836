"""How an extension is asked for: by the name of one of perinvoke's own, or by its command."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

from perinvoke.errors import LocalError

# Extensions that come with perinvoke, by the name that --extension takes.
_OWN = {"pgbouncer": ("perinvoke-pgbouncer", "perinvoke.pgbouncer")}


def extension_command(wanted: str, python: str) -> list[str]:
    """The command of an extension: of one of perinvoke's own by its name, or as it is given.

    Raises:
        LocalError: it can't be run.
    """
    if wanted in _OWN:
        return [python, "-P", "-m", _OWN[wanted][1]]  # -P: the function's modules are none of its business
    try:
        words = shlex.split(wanted)
    except ValueError as error:
        raise LocalError(f"extension {wanted!r}: {error}") from error
    if not words or shutil.which(words[0]) is None:
        own = ", ".join(_OWN)
        raise LocalError(f"extension {wanted!r} is neither one of perinvoke's own ({own}) nor a command that can be run")
    return [shutil.which(words[0]) or words[0], *words[1:]]


def extension_name(wanted: str) -> str:
    """What Lambda would call it: its file's name."""
    return _OWN[wanted][0] if wanted in _OWN else Path(shlex.split(wanted)[0]).name
