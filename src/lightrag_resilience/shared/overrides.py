"""What operators changed for all workers, as one worker finds it in Redis again and again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from .store import Store
from .wire import Override, WireError

__all__ = ["Overrides"]

_log = logging.getLogger("lightrag_resilience")


class Overrides:
    """Hands changes on, each once; outlives the threads that look, since what it applied does.

    Args:
        prefix: Of their key.
        apply: Told which variables have other values in all workers, at each change.
    """

    def __init__(self, prefix: str, apply: Callable[[Mapping[str, Override]], None]) -> None:
        self._prefix = prefix
        self._apply = apply
        self._known: Mapping[str, Override] | None = {}

    async def look(self, store: Store) -> None:
        """Read them.

        Raises:
            RedisError: Redis cannot be used.
        """
        try:
            found = await store.overrides(self._prefix)
        except WireError as error:
            if self._known is not None:
                _log.error("What stands in Redis as overrides is ignored: %s", error)
            self._known = None
            return
        if found != self._known:
            self._apply(found)
            self._known = found  # after it: a child forked in between applies them itself
