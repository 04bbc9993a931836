"""What a pool asks of others: how its connections are handled, and on whose behalf one is lent. Types only."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable
    from typing import Any, Protocol

    from perinvoke.environment.connections.entry import Cleaning

    class Connector(Protocol):
        """What can be done with the connections of one pool."""

        def open(self) -> Any:
            """A new one. Blocks; what it raises reaches who asked for a connection."""

        def reopen(self, connection: Any) -> Any:
            """Close it, wait until the server has, and open another in its place."""

        def close(self, connection: Any) -> None:
            """Close it and wait until the server has, for a moment."""

        def is_open(self, connection: Any) -> bool:
            """Whether there is anything to close; doesn't ask the server."""

        def is_alive(self, connection: Any) -> bool:
            """Whether the server still answers over it. Blocks."""

        def fileno(self, connection: Any) -> int | None:
            """Its socket's descriptor, where it has one that is known."""

        def recover(self, connection: Any, *, is_cut: bool) -> None:
            """Take it from a user who forgot it, and undo what was not committed. Blocks.

            ``is_cut``: another thread, which may be in the middle of using it, goes on.
            """

        def end_bereft(self, key: Hashable, /) -> None:
            """The end of who borrowed as ``key``, which has returned all: what lost its connection meanwhile begins anew.

            Raises nothing.
            """

        def begin_cleaning(self, connection: Any, /) -> Cleaning:
            """Have the server remove what its last user left in its session, as far as that goes without waiting."""

        def end_cleaning(self, connection: Any, seconds: float, /) -> None:
            """Hear the server's answer to what was ``SENT``; waits for it so long. Raises where it was no success."""

        def clean(self, connection: Any) -> None:
            """Remove what its last user left in its session. Blocks. Raises where that failed."""

    class Borrower(Protocol):
        """On whose behalf a connection is lent."""

        @property
        def key(self) -> Hashable:
            """Whose session it is: the same for all loans between which nothing need be cleaned."""

        def wait_seconds(self) -> float:
            """How long it may wait at most, from now."""

        def has_ended(self) -> bool:
            """Whether its end has come: what it takes now, nobody would take back."""

        def at_end(self, pool: Any) -> None:
            """Have ``pool.take_back_all`` called when it ends; once, however often it is asked."""
