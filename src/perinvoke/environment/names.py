"""What lies below the root: the names that more than one module must know."""

from __future__ import annotations

WORKER_PREFIX = "worker-"
LOCKS = "locks"
SHARED = "shared"
BUILDING = "building-"
ENTRY_LOCK = "lock"
