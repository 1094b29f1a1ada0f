"""An event loop whose time passes only when nothing is left to do: tests wait hours in no time."""

from __future__ import annotations

import asyncio
import math
import selectors
from typing import Any

__all__ = ["VirtualTimeLoop"]

_MAX_IDLE_ROUNDS = 100  # rounds of the loop in a row that take no time
_NANOSECOND = 1e-9


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Jumps to the next timer instead of sleeping until it is due.

    Give `loop.time` to what takes a clock. Real I/O still works while some is ready; a loop that
    waits for I/O alone blocks, as any loop does. Threads and other processes live in real time: a
    timer that runs beside them is over before they are done. For pytest with anyio's plugin::

        @pytest.fixture
        def anyio_backend():
            return "asyncio", {"loop_factory": VirtualTimeLoop}
    """

    def __init__(self) -> None:
        self._selector_of_time = _JumpingSelector()
        super().__init__(self._selector_of_time)

    def time(self) -> float:
        """Seconds that have passed on this loop, real ones not among them."""
        return self._selector_of_time.now

    async def shutdown_default_executor(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 - asyncio's own signature
    ) -> None:
        """Wait for the threads to end, however long: a time limit would be over at once."""
        del timeout
        await super().shutdown_default_executor()


class _JumpingSelector(selectors.DefaultSelector):
    """Never sleeps. A round of the loop takes no time at all, unless it has had many in a row.

    Code that arms a timer for a wait too short to change the time would otherwise spin forever.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self._rounds = 0

    def select(self, timeout: float | None = None) -> list[tuple[Any, int]]:
        if timeout is None:
            return super().select()
        ready = super().select(0)
        if timeout > 0 and not ready:
            self.now += timeout
            self._rounds = 0
        elif self._rounds < _MAX_IDLE_ROUNDS:
            self._rounds += 1
        else:
            self.now = max(self.now + _NANOSECOND, math.nextafter(self.now, math.inf))
        return ready
