"""What a forked process makes anew: a thread that only its parent has may hold a lock there."""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet

__all__ = ["Renewed", "renew_in_children"]


class Renewed(Protocol):
    """Something of which a part is not to be shared with a child process."""

    def renew_after_fork(self) -> None:
        """Called in the child, before any other code of it."""


_renewed: WeakSet[Renewed] = WeakSet()
_is_known = False


def renew_in_children(it: Renewed) -> None:
    """Renew it in each process that is forked from this one, for as long as it is there."""
    global _is_known  # noqa: PLW0603 - a process can be told only once
    if not _is_known and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_renew)
        _is_known = True
    _renewed.add(it)


def _renew() -> None:
    for it in list(_renewed):
        it.renew_after_fork()
