"""The time of a query: one deadline for all its calls, and one patience with what is down."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from lightrag_resilience.calls.deadline import deadline
from lightrag_resilience.composition.wait_for_recovery import Patience
from lightrag_resilience.config.process_settings import ProcessSettings

from .context import WorkContext, current_work

__all__ = ["QueryTime"]

_MOST_WAITING = 100  # calls of queries, for one dependency: each holds memory and a socket
_VARIABLE = "RESILIENCE_QUERY__TIMEOUT"


class QueryTime:
    """Gives the queries of one LightRAG their time.

    Args:
        settings: How long they may take and wait.
        clock: Monotonic seconds.
    """

    def __init__(self, settings: ProcessSettings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._waiting: Counter[str] = Counter()

    def around(self, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """A query method whose calls share a deadline and a patience."""

        @functools.wraps(method)
        async def ask(*args: Any, **kwargs: Any) -> Any:
            token = current_work.set(WorkContext(query_patience=self._patience()))
            try:
                with self._deadline():
                    return await method(*args, **kwargs)
            finally:
                current_work.reset(token)

        return ask

    def _patience(self) -> Patience | None:
        settings = self._settings
        if not settings.query__patience:
            return None
        return Patience(
            settings.query__patience,
            max_outage=settings.query__max_outage,
            waiting=self._waiting,
            most_waiting=_MOST_WAITING,
            repeats_single=False,  # LightRAG's own retries have taken place inside the attempt
        )

    def _deadline(self) -> contextlib.AbstractContextManager[None]:
        seconds = self._settings.query__timeout
        if seconds is None:
            return contextlib.nullcontext()
        reason = f"after the {seconds:g} s that a query may take ({_VARIABLE})"
        return deadline(seconds, clock=self._clock, reason=reason)
