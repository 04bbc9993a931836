""".pyc files for a layer: /opt can't be written to, so without them every process of a function compiles what it imports.

They are "unchecked": Python takes them without a look at the source, whose time in a layer says nothing. The same version of
Python, to the last number, makes the same bytes of the same files in the same order; another patch release may make others, which
the runtime's Python can read all the same. So layer.json says which one it was.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from perinvoke.layer.build.entries import Entry
from perinvoke.layer.errors import LayerError

if TYPE_CHECKING:
    from perinvoke.layer.build.interpreters import Interpreter

# Runs in the target's Python, in the directory that stands for /opt. What it can't compile is left to whoever imports it.
_SCRIPT = """\
import py_compile, sys
for name in open("names", encoding="utf-8").read().split("\\0"):
    try:
        py_compile.compile(name, cfile=name + "c", dfile="/opt/" + name, doraise=True,
                           invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    except (py_compile.PyCompileError, ValueError, RecursionError):
        pass
"""


def compiled(entries: list[Entry], interpreter: Interpreter) -> list[Entry]:
    """What that interpreter makes of all modules below ``python/``.

    Raises:
        LayerError: it fails.
    """
    sources = sorted(entry for entry in entries if entry.name.startswith("python/") and entry.name.endswith(".py"))
    tag = "cpython-" + "".join(interpreter.version.split(".")[:2])
    with tempfile.TemporaryDirectory(prefix="perinvoke-layer-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        for entry in sources:
            path = directory / entry.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(entry.content)
        (directory / "names").write_text("\0".join(entry.name for entry in sources), encoding="utf-8")
        _run(interpreter, directory)
        made = []
        for entry in sources:
            path = directory / f"{entry.name}c"
            if path.is_file():
                folder, _, file_name = entry.name.rpartition("/")
                target = f"{folder}/__pycache__/{file_name.removesuffix('.py')}.{tag}.pyc"
                made.append(Entry(target, path.read_bytes(), executable=False, package=entry.package))
    return made


def _run(interpreter: Interpreter, directory: Path) -> None:
    # Nothing of this environment decides what comes out. The hash seed: in what order sets of names are visited.
    variables = {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8", "PATH": os.defpath}
    command = [interpreter.path, "-s", "-S", "-P", "-W", "ignore", "-c", _SCRIPT]
    done = subprocess.run(command, cwd=directory, env=variables, stdin=subprocess.DEVNULL, capture_output=True, check=False)  # noqa: S603
    if done.returncode != 0:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["it says nothing"])[-1]
        raise LayerError(f"{interpreter.path} can't compile the layer's modules: {last}")
