"""``python …/from_layer.py COMMAND…``: where the layer's ``perinvoke/exec`` goes on in Python.

A script, because the layer's folder isn't on the module search path before the runtime has put it there, and ``PYTHONPATH`` must
stay as it is. The folder is added at the end of the path: it hides nothing, neither from the runtime nor from the function.

Whatever fails here, the command runs as it stands.
"""

# ruff: noqa: PTH100, PTH118, PTH120  # cold start: pathlib takes 4 ms

from __future__ import annotations

import os
import sys

_OPTIONS = ("--in-process", "--no-preload")  # of the exec wrapper, when it begins anew


def main() -> int:
    """Isolate the function's handler, and become the runtime."""
    folder = os.path.abspath(__file__).rsplit(os.sep, 3)[0]
    if not getattr(sys.flags, "safe_path", False):  # Python 3.10 has no such flag
        # This script's own folder is no place for modules. What stands there instead is replaced by the command's.
        sys.path[0] = os.path.join(os.path.dirname(folder), "perinvoke")
    sys.path.append(folder)
    at = 1
    while sys.argv[at : at + 1] and sys.argv[at] in _OPTIONS:
        at += 1
    options, command = sys.argv[1:at], sys.argv[at:]
    try:
        if sys.version_info < (3, 11):  # noqa: UP036  # Lambda doesn't look at what a layer is compatible with
            raise RuntimeError("perinvoke needs Python 3.11 or newer")  # noqa: TRY301  # told as whatever else fails here
        from perinvoke.runtime.layer_command import prepared  # noqa: PLC0415  # the folder has to be on the path first

        run = prepared(options, command, folder)
    except Exception as error:  # noqa: BLE001  # whatever it is
        told = f"{type(error).__name__}: {error}"
        if sys.stderr is not None:  # it was closed when this process began
            sys.stderr.write(f"perinvoke: can't be imported by {sys.executable} ({told}); the function runs without perinvoke\n")
            sys.stderr.flush()
        os.execvp(command[0], command)  # noqa: S606  # no shell is wanted
    return run()


if __name__ == "__main__":
    sys.exit(main())
