"""Polls the settings that operators changed for all workers, and applies each change."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from .messages import Override, StoredOverrides, WireError
from .script_runner import ScriptRunner

__all__ = ["Overrides"]

_log = logging.getLogger("lightrag_resilience")

_MAX_NAMES = 5  # in one line of the log


class Overrides:
    """Applies each change once. It outlives the sync threads, as the applied changes do.

    Args:
        prefix: Of the key.
        apply: Called on each change with all variables that are overridden.
    """

    def __init__(self, prefix: str, apply: Callable[[Mapping[str, Override]], None]) -> None:
        self._prefix = prefix
        self._apply = apply
        self._known: Mapping[str, Override] = {}
        self._logged = ""

    async def poll(self, runner: ScriptRunner) -> None:
        """Read the overrides and apply them; log malformed ones once, and ignore them.

        Raises:
            RedisError: Redis cannot be used.
        """
        try:
            found = await runner.overrides(self._prefix)
        except WireError as error:
            self._log_once(str(error))
            return
        self._log_once(_describe_malformed(found))
        if found.valid == self._known:
            return
        try:
            self._apply(found.valid)
        except Exception as error:  # noqa: BLE001 - it would end the polling of all workers
            name = type(error).__name__
            _log.error("Overrides in Redis are ignored: applying them fails with %s", name)
        self._known = found.valid  # last: a child forked while they are applied applies them itself

    def _log_once(self, problem: str) -> None:
        if problem and problem != self._logged:
            _log.error("Overrides in Redis are ignored: %s", problem)
        self._logged = problem


def _describe_malformed(found: StoredOverrides) -> str:
    if not found.odd:
        return ""
    shown = ", ".join(map(repr, found.odd[:_MAX_NAMES]))
    more = f" and {len(found.odd) - _MAX_NAMES} more" if len(found.odd) > _MAX_NAMES else ""
    return f"{shown}{more}, which `lightrag-resilience set` did not write and `unset` removes"
