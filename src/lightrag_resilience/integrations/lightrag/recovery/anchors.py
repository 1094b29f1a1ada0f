"""LightRAG's recovery anchors: the rows that name a document's entities and relations in the graph.

LightRAG needs them to remove a document from the graph, and refuses if they are missing. Before it
processes a document again it deletes them, and writes new ones only after the models have answered.
If the process is killed in between, LightRAG refuses the document for ever.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection, Iterator
from typing import Any

from lightrag_resilience.errors import CallRejected
from lightrag_resilience.integrations.lightrag.compat import ADD_ANCHORS, ANCHORS, PURGE
from lightrag_resilience.runtime.tasks import within

from .failed_documents import is_failed
from .graph_contributions import contributions

__all__ = ["RecoveryAnchors"]

_log = logging.getLogger("lightrag_resilience")

_TIMEOUT = 600.0  # seconds to read a graph


class RecoveryAnchors:
    """Keeps and rebuilds the anchors of one LightRAG. LightRAG 1.4 has none, and needs none.

    Args:
        rag: The LightRAG.
        tries: How many failures in a row end all rebuilding, which is then left to a human.
    """

    def __init__(self, rag: Any, tries: int = 1) -> None:
        self._rag = rag
        self._tries = tries
        self._failures = 0

    @property
    def can_rebuild(self) -> bool:
        """Whether to try: LightRAG has anchors, and not too many tries failed."""
        return hasattr(self._rag, ADD_ANCHORS) and self._failures < self._tries

    def method_overrides(self) -> Iterator[tuple[str, Callable[..., Any]]]:
        """Replacements for methods of the LightRAG, by name."""
        if hasattr(self._rag, PURGE) and hasattr(self._rag, ADD_ANCHORS):
            purge = getattr(self._rag, PURGE)
            yield PURGE, functools.wraps(purge)(functools.partial(self._purge, purge))

    async def _purge(
        self, purge: Callable[..., Any], document: str, *args: Any, **more: Any
    ) -> None:
        """Remove a document from the graph, and write empty anchors at once."""
        await purge(document, *args, **more)
        await self._write(document, (), ())

    async def rebuild(self, documents: Collection[str]) -> set[str]:
        """Rebuild missing anchors of failed documents from the graph, all at once.

        The whole graph is read before anything is written. A failure is logged.

        Returns:
            The documents that have anchors now.

        Raises:
            CallRejected: The storages are unavailable, or the process shuts down.
        """
        if not documents or not self.can_rebuild:
            return set()
        try:
            rebuilt = await within(_TIMEOUT, self._rebuild(documents))
        except CallRejected:  # says nothing about the graph: no failed try
            raise
        except Exception as error:  # noqa: BLE001 - the documents stay as they are
            self._failures += 1
            _log.error(
                "%d documents stay failed: their recovery anchors are missing, and could not be "
                "rebuilt from the graph (%s). By hand: python -m "
                "lightrag.tools.kg_integrity_repair --apply",
                len(documents),
                type(error).__name__,
            )
            return set()
        self._failures = 0
        return rebuilt

    async def _rebuild(self, documents: Collection[str]) -> set[str]:
        if lost := await self._lost(documents):
            found = await contributions(self._rag, lost)
            still = await self._lost(lost)  # another process may have rebuilt them meanwhile
            for document in still:
                await self._write(document, found[document].entities, found[document].relations)
            _log.warning(
                "Rebuilt the missing recovery anchors of %d documents from the graph", len(still)
            )
        return set(documents) - set(await self._lost(documents))

    async def _lost(self, documents: Collection[str]) -> dict[str, frozenset[str]]:
        """Failed documents without anchors, with their chunks."""
        lost = {}
        for document in documents:
            row = await self._rag.doc_status.get_by_id(document)
            chunks = frozenset(row.get("chunks_list") or ()) if is_failed(row) else None
            if chunks and not await self._has_anchors(document):
                lost[document] = chunks
        return lost

    async def _has_anchors(self, document: str) -> bool:
        for storage, names in ANCHORS.items():
            row = await getattr(self._rag, storage).get_by_id(document)
            if not isinstance(row, dict) or not isinstance(row.get(names), list):
                return False
        return True

    async def _write(
        self, document: str, entities: Collection[str], relations: Collection[tuple[str, str]]
    ) -> None:
        """Add to a document's anchors and flush them."""
        await getattr(self._rag, ADD_ANCHORS)(document, entities, relations)
