"""What tracked tasks know of themselves: whether they go on, and what the journal says of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from .journal import AbandonedWork

__all__ = ["QuiescenceDetector", "WorkDetails", "attach_details", "details_of"]

_LOOKS = 10  # in a row: between two calls nothing goes on for a moment


class WorkDetails(Protocol):
    """What a task knows of itself."""

    @property
    def is_parked(self) -> bool:
        """Whether it will not go on in this process, so that nobody need wait for it."""
        ...

    def records(self, task: AbandonedWork) -> Iterable[AbandonedWork]:
        """The record of the task, with all that is known, and those of its parts."""
        ...


_accounts: WeakKeyDictionary[asyncio.Task[Any], WorkDetails] = WeakKeyDictionary()


def attach_details(task: asyncio.Task[Any], account: WorkDetails) -> None:
    """Let a task have an account of itself."""
    _accounts[task] = account


def details_of(task: asyncio.Task[Any] | None) -> WorkDetails | None:
    """What a task knows of itself, if it knows anything."""
    return None if task is None else _accounts.get(task)


class QuiescenceDetector:
    """Notices when all that is in flight waits for nothing but its end, and for a while."""

    def __init__(self) -> None:
        self._looks = 0

    def is_quiescent(self, tasks: Iterable[asyncio.Task[Any] | None]) -> bool:
        """Whether it does, seen at each look; never with nothing in flight."""
        accounts = [details_of(task) for task in tasks]
        is_quiet = bool(accounts) and all(each is not None and each.is_parked for each in accounts)
        self._looks = self._looks + 1 if is_quiet else 0
        return self._looks >= _LOOKS
