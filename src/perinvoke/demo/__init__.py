"""The demo: shows on the real runtime what shared workers break, and that perinvoke mends it."""

from perinvoke.local import requirements as requirements  # first: it names the extra that is missing

# isort: split
from perinvoke.demo.show import main

__all__ = ["main"]
