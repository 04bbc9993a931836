"""Runs CDK apps one after the other in one process: most of the time goes into starting jsii.

``python synthesize.py OUT CONTEXT FOLDER…``: prints for each the error, or null, on a line. jsii's own process has the variables
that there were when it was started, so all have one output folder and context, and only one of them should come to its end.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path


def main() -> None:
    """Run them; an app's error is its result."""
    out, context, *folders = sys.argv[1:]
    os.environ |= {"CDK_OUTDIR": out, "CDK_CONTEXT_JSON": context}
    for folder in folders:
        os.chdir(folder)
        error = None
        try:
            runpy.run_path(str(Path(folder) / "app.py"))
        except Exception as problem:  # noqa: BLE001  # whatever it is, it is told
            error = f"{type(problem).__name__}: {problem}"
        print(json.dumps(error), flush=True)


if __name__ == "__main__":
    main()
