"""A module that ends its process while it is imported."""

import os
import sys

sys.stdout.write("last words\n")
sys.stdout.flush()
os._exit(7)
