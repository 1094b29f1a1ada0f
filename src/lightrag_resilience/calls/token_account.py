"""Tokens of one query or one document: what its answers used, and what was wasted, by cause."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Literal

__all__ = ["Race", "TokenAccount", "Use", "Work", "current_account", "current_race"]

Work = Literal["query", "document", "other"]
Use = Literal["answer", "failed", "retry", "hedge", "cancelled"]
"""What tokens were for: an ``answer``, or a cause of waste: a first attempt that ``failed``, a
``retry`` that failed too, the slower call of a ``hedge``, a call ``cancelled`` by its caller."""


class TokenAccount:
    """Tokens of one query or one document.

    Attributes:
        used: Those of answers that were returned.
        wasted: Those of all other attempts.
        is_abandoned: Whether it failed or was cancelled. LightRAG's queues let its calls go on, and
            drop their answers.
    """

    __slots__ = ("is_abandoned", "used", "wasted", "work")

    def __init__(self, work: Work) -> None:
        self.work: Work = work
        self.is_abandoned = False
        self.used = 0
        self.wasted = 0

    def add(self, use: Use, tokens: int) -> None:
        """Count the tokens of an attempt."""
        if use == "answer":
            self.used += tokens
        else:
            self.wasted += tokens


current_account: ContextVar[TokenAccount | None] = ContextVar(
    "lightrag_resilience_account", default=None
)


class Race:
    """Calls of which the first answer is used; the others are cancelled once it `is_decided`."""

    __slots__ = ("is_decided",)

    def __init__(self) -> None:
        self.is_decided = False


current_race: ContextVar[Race | None] = ContextVar("lightrag_resilience_race", default=None)
