"""A module whose import ends the process of the first worker that tries."""

import os
from pathlib import Path

try:
    Path(os.environ["DIES_FIRST"]).touch(exist_ok=False)
except FileExistsError:
    pass
else:
    os._exit(7)


def handler(event, context):
    return os.getpid()
