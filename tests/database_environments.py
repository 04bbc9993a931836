"""Environments for functions over databases: their connections are counted by a budget, or kept by PgBouncer."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from databases import Postgres

BUDGET, PGBOUNCER = "budget", "pgbouncer"


def options_for(which: str, server: Postgres, root: Path, *, connections: int) -> dict[str, Any]:
    """What LocalConfig needs for one of the functions in sessions.py; skips where there is no PgBouncer."""
    env = {
        "PERINVOKE_ROOT": str(root),
        "SESSIONS_ENGINE": which,
        "SESSIONS_URL": server.url(),
        "SESSIONS_BUDGET": str(connections),
    }
    options: dict[str, Any] = {"env": env, "queue": True, "isolate": True, "preload": "handler"}
    if which == PGBOUNCER:
        if shutil.which("pgbouncer") is None and shutil.which("pgbouncer", path="/usr/sbin") is None:
            pytest.skip("pgbouncer not found: apt-get install pgbouncer")
        env |= {"PERINVOKE_PGBOUNCER_URL": server.url(""), "PERINVOKE_PGBOUNCER_MAX_CONNECTIONS": str(connections)}
        options["extensions"] = ("pgbouncer",)
    return options
