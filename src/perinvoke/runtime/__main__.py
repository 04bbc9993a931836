"""``python -m perinvoke.runtime COMMAND…``, the same as ``perinvoke-exec COMMAND…``."""

from __future__ import annotations

import sys

from perinvoke.runtime.exec_wrapper import main

if __name__ == "__main__":
    sys.exit(main())
