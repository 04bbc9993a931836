"""The standard library's ``resource``. A function may have a ``resource.py`` of its own: then that name is the function's.

Unlike what else is imported here, nothing that functions usually have loads it, so such a function works without perinvoke.
"""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder

TYPE_CHECKING = False
if TYPE_CHECKING:
    import resource
else:

    def _of_the_library() -> object:
        """Loaded from the library's folder, and not put where an import of that name would find it."""
        spec = PathFinder.find_spec("resource", [folder for folder in sys.path if folder.endswith("lib-dynload")])
        if spec is None:  # built into the interpreter, where no file takes its place
            import resource  # noqa: PLC0415  # the same

            return resource
        module = spec.loader.create_module(spec)
        spec.loader.exec_module(module)
        return module

    resource = _of_the_library()

__all__ = ["resource"]
