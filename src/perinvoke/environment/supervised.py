"""Where a worker finds the process that supervises it, if there is one."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Supervisor(Protocol):
        """What a worker asks of the process that started it; lives as long as the worker."""

        def replace_at(self, at_monotonic: float, timeout_seconds: float) -> None:
            """End this worker at that second of CLOCK_MONOTONIC, and answer its caller ``InvocationTimeout``.

            Each call replaces the one before; 0.0 takes it back. Called twice in every invocation with ``on_timeout="replace"``:
            must not block and must not raise.

            Args:
                at_monotonic: the second, as ``time.monotonic()`` counts them.
                timeout_seconds: how long the invocation might have taken, for the message.
            """


# Set in a worker's process by the wrapper that supervises it, after the fork.
supervisor: Supervisor | None = None
