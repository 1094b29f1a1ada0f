"""The coordinators of this process that have begun and do not join another."""

from __future__ import annotations

import os
from typing import Any
from weakref import WeakSet

from ._host import host
from ._signals import forget_signals

__all__ = ["add_root", "discard_root", "drain_all", "write_down_all"]

_roots: WeakSet[Any] = WeakSet()
_known_to_forks = False


def add_root(coordinator: Any) -> None:
    """It has begun."""
    global _known_to_forks  # noqa: PLW0603 - a process can be told only once
    if not _known_to_forks and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forget)
        _known_to_forks = True
    _roots.add(coordinator)


def discard_root(coordinator: Any) -> None:
    """It has ended."""
    _roots.discard(coordinator)


def drain_all(reason: str) -> None:
    """Begin the drain of every coordinator that has not begun it; on the thread of its loop."""
    for coordinator in list(_roots):
        coordinator.begin(reason)


def write_down_all(reason: str) -> None:
    """Write to the journals what is in flight, at once: for a process that dies here."""
    for coordinator in list(_roots):
        coordinator.write_down(reason)


def _forget() -> None:
    """A child was forked: what is in flight, and how it ends, is its parent's business."""
    forget_signals()
    host.ledger = None
    for coordinator in list(_roots):
        coordinator.forget()
    _roots.clear()
