"""What tracked tasks know of themselves: whether they go on, and what the journal says of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from .journal import Abandoned

__all__ = ["Account", "account_of", "is_held", "tell_of"]


class Account(Protocol):
    """What a task knows of itself."""

    @property
    def is_held(self) -> bool:
        """Whether it will not go on in this process, so that nobody need wait for it."""
        ...

    def records(self, task: Abandoned) -> Iterable[Abandoned]:
        """The record of the task, with all that is known, and those of its parts."""
        ...


_accounts: WeakKeyDictionary[asyncio.Task[Any], Account] = WeakKeyDictionary()


def tell_of(task: asyncio.Task[Any], account: Account) -> None:
    """Let a task have an account of itself."""
    _accounts[task] = account


def account_of(task: asyncio.Task[Any] | None) -> Account | None:
    """What a task knows of itself, if it knows anything."""
    return None if task is None else _accounts.get(task)


def is_held(task: asyncio.Task[Any] | None) -> bool:
    """Whether a task waits for nothing but its end."""
    account = account_of(task)
    return account is not None and account.is_held
