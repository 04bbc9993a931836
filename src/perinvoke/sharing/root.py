"""The root as what is shared lies below it."""

from __future__ import annotations

import os

from perinvoke import worker
from perinvoke.environment.disk_usage import FULL
from perinvoke.environment.worker_directory import check_root, not_made

TYPE_CHECKING = False
if TYPE_CHECKING:
    from perinvoke.settings import Settings

_checked: set[str] = set()  # of this process: the check costs two system calls


class Root:
    """The root of some settings; lives as long as what is shared below it."""

    __slots__ = ("_settings", "root")

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.root = settings.root

    def check(self) -> None:
        """See once in a process that the root is ours alone to write to, and make it if it is missing.

        Raises:
            RootError: it isn't.
        """
        if self.root not in _checked:
            check_root(self.root)
            _checked.add(self.root)

    def make(self, directory: str) -> None:
        """Make a directory below the root, and what lies between. Not before it is needed: an import must not touch the disk.

        Raises:
            RootError: the root can't be used or trusted.
            ScratchFull: the disk is full.
        """
        check_root(self.root)
        try:
            os.makedirs(directory, 0o700, exist_ok=True)
        except OSError as error:
            raise not_made(self.root, error) from error

    def makes_room(self, error: OSError) -> bool:
        """Whether ``error`` says that the disk is full, and room could be made on it. Blocks for as long as that takes."""
        return error.errno in FULL and worker.process.worker(self._settings).space.make_room()
