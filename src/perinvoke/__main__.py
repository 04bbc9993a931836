"""``python -m perinvoke``."""

import sys

from perinvoke.cli import main

if __name__ == "__main__":
    sys.exit(main())
