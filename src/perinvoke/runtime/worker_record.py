"""What a worker and its parent share in memory: what the worker is doing, and for whom. It outlives the worker.

One anonymous page for each worker, made before its fork. The worker writes and the parent reads, but for one byte that goes the
other way. The parent decides nothing by what it reads but after the worker has ended or was stopped, when every write is done. A
write that a kill cuts short leaves the stage as it was: the stage is one byte, and written last.
"""

from __future__ import annotations

import mmap
import struct
from enum import IntEnum

_PAGE_BYTES = mmap.PAGESIZE
_STAGE = 0
_INTERRUPT = 1
_REPLACE = struct.Struct("=dd")  # when to replace the worker, by CLOCK_MONOTONIC, and the seconds its invocation had
_REPLACE_AT = 8
_ASKED = struct.Struct("=Q")  # how many bytes of requests its connection has taken when the next one is sent
_ASKED_AT = 16 + 8
_NAMES = struct.Struct("=HH")  # the lengths of the request id and of the invocation id
_NAMES_AT = 32
_TEXT_AT = 40
_MAX_TEXT_BYTES = _PAGE_BYTES - _TEXT_AT  # Lambda's ids have 36 characters


class Stage(IntEnum):
    """Where a worker stands."""

    STARTING = 0  # has not asked for an invocation yet
    ASKING = 1  # is sending the request for the next one
    POLLING = 2  # has sent it, and read no answer yet
    SERVING = 3  # has an invocation
    ANSWERED = 4  # has sent the answer


class WorkerRecord:
    """Lives as long as the parent; a new worker in its place gets a new one."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, _PAGE_BYTES)

    @property
    def stage(self) -> Stage:
        """What the worker was doing last."""
        return Stage(self._page[_STAGE])

    @stage.setter
    def stage(self, stage: Stage) -> None:
        self._page[_STAGE] = stage

    @property
    def asked_bytes(self) -> int:
        """How many bytes of requests the worker's connection has taken, once the request is sent that it is about."""
        asked: int = _ASKED.unpack_from(self._page, _ASKED_AT)[0]
        return asked

    def ask(self, asked_bytes: int) -> None:
        """Note that the next bytes are about to be sent."""
        _ASKED.pack_into(self._page, _ASKED_AT, asked_bytes)
        self.stage = Stage.ASKING

    def serve(self, request_id: str, invocation_id: str) -> None:
        """Note whose invocation the worker has from now on."""
        names = (request_id.encode(), invocation_id.encode())
        if sum(map(len, names)) > _MAX_TEXT_BYTES:
            names = (b"", b"")  # no id of Lambda's; the parent then can't answer for it
        _NAMES.pack_into(self._page, _NAMES_AT, *map(len, names))
        text = b"".join(names)
        self._page[_TEXT_AT : _TEXT_AT + len(text)] = text
        self.stage = Stage.SERVING

    @property
    def served(self) -> tuple[str, str]:
        """The request id and the invocation id (either may be empty) of the invocation that the worker had last."""
        first, second = _NAMES.unpack_from(self._page, _NAMES_AT)
        text = self._page[_TEXT_AT : _TEXT_AT + first + second]
        return text[:first].decode(errors="replace"), text[first:].decode(errors="replace")

    def replace_at(self, at_monotonic: float, timeout_seconds: float) -> None:
        """Have the worker ended and replaced at that second of CLOCK_MONOTONIC; 0.0 takes it back."""
        _REPLACE.pack_into(self._page, _REPLACE_AT, at_monotonic, timeout_seconds)

    @property
    def replacement(self) -> tuple[float, float]:
        """What ``replace_at`` was told last."""
        at_monotonic, timeout_seconds = _REPLACE.unpack_from(self._page, _REPLACE_AT)
        return at_monotonic, timeout_seconds

    @property
    def is_interrupted(self) -> bool:
        """The parent wants the handler to be interrupted by the next SIGTERM: the environment ends."""
        return bool(self._page[_INTERRUPT])

    def interrupt(self) -> None:
        """For the parent: have the next SIGTERM interrupt the handler."""
        self._page[_INTERRUPT] = 1

    def close(self) -> None:
        """Give the memory back. Idempotent."""
        self._page.close()
