"""Bounds the number of values of a label."""

from __future__ import annotations

import logging

__all__ = ["OTHER", "LabelLimiter", "bounded_labels"]

OTHER = "other"
_KINDS = 20  # of tracked work; the application chooses the names
_REASONS = 50  # of failures: names of any error classes

_log = logging.getLogger("lightrag_resilience")


class LabelLimiter:
    """Keeps the first `most` distinct names; further ones become ``other``.

    Args:
        most: Maximum number of names. The log says once when it is reached.
        what: Noun for the log.
    """

    __slots__ = ("_has_warned", "_known", "_what", "most")

    def __init__(self, most: int, what: str = "dependencies") -> None:
        self.most = most
        self._what = what
        self._known: set[str] = set()
        self._has_warned = False

    def label_for(self, name: str) -> str:
        """Return `name`, or ``other``."""
        if name in self._known:
            return name
        if len(self._known) < self.most:
            self._known.add(name)
            return name
        if not self._has_warned:
            self._has_warned = True
            _log.warning(
                "Metrics show %d %s; %r and all further ones are shown as %r",
                self.most,
                self._what,
                name,
                OTHER,
            )
        return OTHER


def bounded_labels(most: int) -> dict[str, LabelLimiter]:
    """Limiters for the labels whose values come from outside this library."""
    return {
        "dependency": LabelLimiter(most),
        "workspace": LabelLimiter(most, "workspaces"),
        "kind": LabelLimiter(_KINDS, "kinds of work"),
        "reason": LabelLimiter(_REASONS, "reasons of failures"),
    }
