"""``python -m perinvoke.pgbouncer`` is ``perinvoke-pgbouncer`` of this very interpreter."""

from __future__ import annotations

import sys

from perinvoke.pgbouncer.extension import main

if __name__ == "__main__":
    sys.exit(main())
