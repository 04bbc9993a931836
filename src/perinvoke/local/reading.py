"""Reads request bodies up to a limit; aiohttp's own limit gives up without telling how large the body was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiohttp import web

# Of a body over its limit so much is still read and dropped, so that the sender finishes and hears the answer on the same
# connection; beyond, the connection is closed on it.
DRAIN_BYTES = 268_435_456


@dataclass(frozen=True, slots=True)
class Oversized:
    """A body over the limit; its content was dropped."""

    size_bytes: int


async def read_body(request: web.BaseRequest, limit_bytes: int) -> bytes | Oversized:
    """The whole body, or its size when that exceeds the limit."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        # The sender waits for leave; the low-level server doesn't give it by itself.
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    length = request.content_length
    if length is not None and length <= limit_bytes:
        return await request.content.read()
    return await _read_counting(request, limit_bytes)


async def _read_counting(request: web.BaseRequest, limit_bytes: int) -> bytes | Oversized:
    kept = bytearray()
    size = 0
    while chunk := await request.content.readany():
        size += len(chunk)
        if size <= limit_bytes:
            kept += chunk
        elif size > DRAIN_BYTES:
            break
    declared = request.content_length or 0
    return Oversized(max(size, declared)) if size > limit_bytes else bytes(kept)
