"""What listeners are told of a drain: its phases as they come, and what became of the work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sized
from typing import Any

from ._phases import Drain
from .events import DrainChanged, DrainEnded, Events, WorkAbandoned

__all__ = ["tell_of_drain"]

_LOOK = 0.05  # seconds between two looks at the phase
_TELL = 1.0  # seconds after which a phase that lasts is told again


def tell_of_drain(
    events: Events, drain: Drain, in_flight: Callable[[], Sized], ended: asyncio.Future[Any]
) -> None:
    """Tell of a drain that has begun until it has ended. Nothing waits for it; it makes no task.

    Args:
        events: Where it is told.
        drain: What knows the phase.
        in_flight: What is left.
        ended: Becomes the drain's report.
    """
    loop = asyncio.get_running_loop()
    told, told_at = None, 0.0

    def look() -> None:
        nonlocal told, told_at
        if ended.done():
            return
        if drain.phase is not told or loop.time() - told_at >= _TELL:
            told, told_at = drain.phase, loop.time()
            events.emit(DrainChanged(told.value, len(in_flight())))
        loop.call_later(_LOOK, look)

    def end(done: asyncio.Future[Any]) -> None:
        if done.cancelled() or done.exception() is not None:
            return
        report = done.result()
        for record in report.abandoned:
            events.emit(WorkAbandoned(record.kind))
        counts = report.drained, len(report.abandoned), len(report.stuck)
        events.emit(DrainEnded(*counts, report.seconds))

    look()
    ended.add_done_callback(end)
