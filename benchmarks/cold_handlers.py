"""What the functions of ``cold_start.py`` do: nothing at import, one file in the temp directory at each invocation."""

import os


def handler(event: object, context: object) -> int:
    """Write and read a file; with perinvoke it is in the invocation's scratch directory, which ``TMPDIR`` names."""
    path = os.path.join(os.environ["TMPDIR"], f"cold-{os.getpid()}")  # noqa: PTH118  # pathlib is an import of its own
    with open(path, "w+", encoding="ascii") as file:  # noqa: PTH123  # the same
        return file.write("x")
