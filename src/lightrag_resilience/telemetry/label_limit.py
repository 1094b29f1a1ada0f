"""Keeps the values of a label from growing without end."""

from __future__ import annotations

import logging

__all__ = ["OTHER", "LabelLimiter", "bounded_labels"]

OTHER = "other"
_KINDS = 20  # of work, which who tracks it may name
_REASONS = 50  # of failures: classes of errors have any name

_log = logging.getLogger("lightrag_resilience")


class LabelLimiter:
    """The first so many distinct names stay as they are; further ones are ``other``.

    Args:
        most: Names at the most. The log says once that they are used up.
        what: What is named, for the log.
    """

    __slots__ = ("_complained", "_known", "_what", "most")

    def __init__(self, most: int, what: str = "dependencies") -> None:
        self.most = most
        self._what = what
        self._known: set[str] = set()
        self._complained = False

    def label_for(self, name: str) -> str:
        """The name to show for `name`."""
        if name in self._known:
            return name
        if len(self._known) < self.most:
            self._known.add(name)
            return name
        if not self._complained:
            self._complained = True
            _log.warning(
                "Metrics show %d %s; %r and all further ones are shown as %r",
                self.most,
                self._what,
                name,
                OTHER,
            )
        return OTHER


def bounded_labels(most: int) -> dict[str, LabelLimiter]:
    """For labels whose values others choose, those of their values that are shown."""
    return {
        "dependency": LabelLimiter(most),
        "workspace": LabelLimiter(most, "workspaces"),
        "kind": LabelLimiter(_KINDS, "kinds of work"),
        "reason": LabelLimiter(_REASONS, "reasons of failures"),
    }
