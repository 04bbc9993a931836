"""Tells where it runs, and what it sees there."""

from __future__ import annotations

import os
import sys


def handler(event, context):
    import boto3

    from perinvoke import NotInInvocation, current

    try:
        isolated = bool(current().scratch)
    except NotInInvocation:
        isolated = False
    return {
        "path": list(dict.fromkeys(sys.path)),
        "isolated": isolated,
        "boto3": boto3.__file__,
        "parent": os.getppid(),
        "folder": os.getcwd(),
        "uid": os.getuid(),
        "argv": sys.argv,
        "main": sys.modules["__main__"].__file__,
        "variables": {name: os.environ.get(name) for name in ("PYTHONPATH", "_HANDLER", "PERINVOKE_HANDLER")},
    }
