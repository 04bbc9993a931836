"""As whom PgBouncer runs: as the extension's own user, or, because it refuses to be root, as ``nobody``."""

from __future__ import annotations

import os
from typing import NamedTuple

_NOBODY = "nobody"
_OVERFLOW = 65_534  # what the kernel itself calls somebody whom nobody knows


class Identity(NamedTuple):
    """A user and a group; ``changes``: they aren't this process's own."""

    uid: int
    gid: int
    changes: bool

    def take(self) -> None:
        """Become that user, for good. Called in the child."""
        if self.changes:
            os.setgroups([])
            os.setgid(self.gid)
            os.setuid(self.uid)


def identity_for_pgbouncer() -> Identity:
    """The one to run it as, from here."""
    if os.geteuid() != 0:
        return Identity(os.geteuid(), os.getegid(), changes=False)
    import pwd  # noqa: PLC0415 - on Lambda nobody is root, and this is loaded beside the workers

    try:
        nobody = pwd.getpwnam(_NOBODY)
    except KeyError:  # a container without a list of users
        return Identity(_OVERFLOW, _OVERFLOW, changes=True)
    return Identity(nobody.pw_uid, nobody.pw_gid, changes=True)
