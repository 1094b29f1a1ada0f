"""How to answer a query while some of its dependencies are unavailable."""

from __future__ import annotations

import dataclasses
from collections.abc import Set as AbstractSet
from enum import StrEnum
from typing import Any

__all__ = ["DegradationLevel", "QueryComponent", "level_for"]


class QueryComponent(StrEnum):
    """A part of a query; the value is its name in notes to users."""

    MODEL = "the language model"
    GRAPH = "the knowledge graph"
    VECTORS = "similarity search"
    TEXTS = "the texts and cached answers"


@dataclasses.dataclass(frozen=True)
class DegradationLevel:
    """One way to answer.

    Attributes:
        mode: LightRAG's mode.
        by_labels: Whether entities are found by name instead of by similarity.
        context_only: Whether the retrieved context is the answer, because the model is missing.
        uncached: Whether LightRAG's own cache is not used.
    """

    mode: str
    by_labels: bool = False
    context_only: bool = False
    uncached: bool = False

    def change(self, question: str, param: Any) -> Any:
        """The parameters of a query at this level."""
        changed = dataclasses.replace(param, mode=self.mode)
        if self.context_only:
            changed.only_need_context = True
            changed.stream = False
            if not (
                changed.hl_keywords or changed.ll_keywords
            ):  # else LightRAG asks a model for them
                changed.hl_keywords = changed.ll_keywords = [question]
        return changed


def level_for(mode: str, missing: AbstractSet[QueryComponent]) -> DegradationLevel | None:
    """The fullest level without the missing components; None if nothing is left to answer from."""
    without_graph = bool(missing & {QueryComponent.GRAPH, QueryComponent.TEXTS})
    without_vectors = QueryComponent.VECTORS in missing
    if mode == "bypass" or (without_graph and without_vectors):
        return None
    if without_graph:
        mode = "naive"
    elif without_vectors:
        mode = "local"
    return DegradationLevel(
        mode, without_vectors, QueryComponent.MODEL in missing, QueryComponent.TEXTS in missing
    )
