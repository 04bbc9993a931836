"""The runtime's command as the layer runs it: with the function's handler isolated, and supervised where it has workers.

Light to import: on ordinary Lambda this is all that the wrapper costs besides the interpreter's own start.
"""

# ruff: noqa: PTH117, PTH120  # cold start: pathlib takes 4 ms

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping, Sequence

ISOLATING_HANDLER = "perinvoke.handler.handler"


def prepared(options: Sequence[str], command: Sequence[str], folder: str) -> Callable[[], int]:
    """What runs ``command`` in this process, isolated, with all loaded that it takes; nothing is changed before.

    Args:
        options: the exec wrapper's.
        command: the runtime's.
        folder: the layer's, that has perinvoke in it.
    """
    if "AWS_LAMBDA_MAX_CONCURRENCY" not in os.environ and _is_script_for_this(command):
        return lambda: _run_script(isolate(command, os.environ)[1:])
    from perinvoke.runtime.exec_wrapper import main  # noqa: PLC0415  # cold start: not on ordinary Lambda

    return lambda: main([*options, *isolate(command, os.environ)], layer=folder)


def isolate(command: Sequence[str], environ: MutableMapping[str, str]) -> list[str]:
    """Name perinvoke's handler where the function's own was named: in ``environ``, and in the command where it has it.

    A function that names perinvoke's somewhere already stays as it is, also where another library's handler calls it
    (``DD_LAMBDA_HANDLER``, ``ORIG_HANDLER`` …).
    """
    command = list(command)
    at = _handler_argument(command)
    called = command[at] if at else environ.get("_HANDLER", "")
    if not called or called == ISOLATING_HANDLER or ISOLATING_HANDLER in environ.values():
        return command
    environ["PERINVOKE_HANDLER"] = called
    if at:
        command[at] = ISOLATING_HANDLER
    if environ.get("_HANDLER"):
        environ["_HANDLER"] = ISOLATING_HANDLER
    return command


def _run_script(words: Sequence[str]) -> int:
    """As ``python SCRIPT ARGUMENTS`` would, in this process."""
    from runpy import run_path  # noqa: PLC0415  # cold start: the supervised way has it anyway

    if not sys.flags.safe_path:
        sys.path[0] = os.path.dirname(os.path.realpath(words[0]))
    sys.argv = list(words)
    run_path(words[0], run_name="__main__")
    return 0


def _handler_argument(command: Sequence[str]) -> int:
    """Where ``… -m awslambdaric HANDLER`` has the handler; 0: nowhere."""
    for at, word in enumerate(command[:-2], 1):
        if word == "-m" and command[at] == "awslambdaric":
            return at + 1
    return 0


def _is_script_for_this(command: Sequence[str]) -> bool:
    """``python SCRIPT …``, of the very interpreter that this is, without options."""
    if len(command) < 2 or command[1].startswith("-") or not os.path.isabs(command[0]):  # noqa: PLR2004  # a program, its script
        return False
    here, there = os.path.dirname(sys.executable), os.path.dirname(command[0])
    return here == there and os.path.realpath(sys.executable) == os.path.realpath(command[0])
