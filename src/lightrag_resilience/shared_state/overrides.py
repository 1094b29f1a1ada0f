"""What operators changed for all workers, as one worker finds it in Redis again and again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from .messages import Override, StoredOverrides, WireError
from .script_runner import ScriptRunner

__all__ = ["Overrides"]

_log = logging.getLogger("lightrag_resilience")

_SHOWN = 5  # names in a line of the log


class Overrides:
    """Hands changes on, each once; outlives the threads that look, since what it applied does.

    Args:
        prefix: Of their key.
        apply: Told which variables have other values in all workers, at each change.
    """

    def __init__(self, prefix: str, apply: Callable[[Mapping[str, Override]], None]) -> None:
        self._prefix = prefix
        self._apply = apply
        self._known: Mapping[str, Override] = {}
        self._complaint = ""

    async def poll(self, store: ScriptRunner) -> None:
        """Read them. Whatever stands there, it is applied, or ignored and told once.

        Raises:
            RedisError: Redis cannot be used.
        """
        try:
            found = await store.overrides(self._prefix)
        except WireError as error:
            self._complain(str(error))
            return
        self._complain(_about_odd(found))
        if found.valid == self._known:
            return
        try:
            self._apply(found.valid)
        except Exception as error:  # noqa: BLE001 - it would end the looks of all workers
            name = type(error).__name__
            _log.error("Overrides in Redis are ignored: applying them fails with %s", name)
        self._known = found.valid  # after it: a child forked in between applies them itself

    def _complain(self, complaint: str) -> None:
        if complaint and complaint != self._complaint:
            _log.error("What stands in Redis as overrides is ignored: %s", complaint)
        self._complaint = complaint


def _about_odd(found: StoredOverrides) -> str:
    if not found.odd:
        return ""
    shown = ", ".join(map(repr, found.odd[:_SHOWN]))
    more = f" and {len(found.odd) - _SHOWN} more" if len(found.odd) > _SHOWN else ""
    return f"{shown}{more}, which `lightrag-resilience set` did not write and `unset` removes"
