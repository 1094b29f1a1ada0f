"""LightRAG's recovery anchors: the rows that name what a document has put into the graph.

LightRAG takes a document out of the graph by them, and refuses where they are missing. Before it
processes a document anew it deletes them, and writes new ones only when the models have answered: a
process that is killed between the two leaves a document that is refused for good.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection, Iterator
from typing import Any

from lightrag_resilience.errors import CallRejected
from lightrag_resilience.runtime.tasks import within

from .failed_documents import is_failed
from .graph_contributions import contributions

__all__ = ["RecoveryAnchors"]

_log = logging.getLogger("lightrag_resilience")

_PURGE = "_purge_doc_chunks_and_kg"
_WRITE = "_union_doc_recovery_anchors"
_ROWS = {"full_entities": "entity_names", "full_relations": "relation_pairs"}
_LONGEST = 600.0  # seconds to read a graph


class RecoveryAnchors:
    """Keeps the anchors of one LightRAG, and mends them. LightRAG 1.4 has none, and needs none.

    Args:
        rag: The LightRAG.
        tries: How often mending may fail in a row before it is left to a human.
    """

    def __init__(self, rag: Any, tries: int = 1) -> None:
        self._rag = rag
        self._tries = tries
        self._failures = 0

    @property
    def can_rebuild(self) -> bool:
        """Whether it makes sense to try."""
        return hasattr(self._rag, _WRITE) and self._failures < self._tries

    def method_overrides(self) -> Iterator[tuple[str, Callable[..., Any]]]:
        """What to put before methods of the LightRAG, by their names."""
        if hasattr(self._rag, _PURGE) and hasattr(self._rag, _WRITE):
            purge = getattr(self._rag, _PURGE)
            yield _PURGE, functools.wraps(purge)(functools.partial(self._purge, purge))

    async def _purge(
        self, purge: Callable[..., Any], document: str, *args: Any, **more: Any
    ) -> None:
        """Take a document out of the graph, and say at once that nothing of it is left."""
        await purge(document, *args, **more)
        await self._write(document, (), ())

    async def rebuild(self, documents: Collection[str]) -> set[str]:
        """Write anew the anchors of failed documents that lack them: from the graph, all at once.

        Nothing is written before the whole graph is read. It costs nothing where no document is
        given, and a failure is logged.

        Returns:
            The documents that have anchors now.

        Raises:
            CallRejected: The storages may not be asked now.
        """
        if not documents or not self.can_rebuild:
            return set()
        try:
            mended = await within(_LONGEST, self._rebuild(documents))
        except CallRejected:  # the storages are away, or the process ends: another time
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the documents stay as they are
            self._failures += 1
            _log.error(
                "%d documents stay failed: LightRAG has lost what they put into its graph, and it "
                "could not be found there (%s). By hand: python -m "
                "lightrag.tools.kg_integrity_repair --apply",
                len(documents),
                type(error).__name__,
            )
            return set()
        self._failures = 0
        return mended

    async def _rebuild(self, documents: Collection[str]) -> set[str]:
        if lost := await self._lost(documents):
            found = await contributions(self._rag, lost)
            still = await self._lost(lost)  # another process may have been faster
            for document in still:
                await self._write(document, found[document].entities, found[document].relations)
            _log.warning("Found anew what %d documents have put into the graph", len(still))
        return set(documents) - set(await self._lost(documents))

    async def _lost(self, documents: Collection[str]) -> dict[str, frozenset[str]]:
        """Failed documents without anchors, and their chunks."""
        lost = {}
        for document in documents:
            row = await self._rag.doc_status.get_by_id(document)
            chunks = frozenset(row.get("chunks_list") or ()) if is_failed(row) else None
            if chunks and not await self._has_anchors(document):
                lost[document] = chunks
        return lost

    async def _has_anchors(self, document: str) -> bool:
        for storage, names in _ROWS.items():
            row = await getattr(self._rag, storage).get_by_id(document)
            if not isinstance(row, dict) or not isinstance(row.get(names), list):
                return False
        return True

    async def _write(
        self, document: str, entities: Collection[str], relations: Collection[tuple[str, str]]
    ) -> None:
        """Add to a document's anchors, and flush them."""
        await getattr(self._rag, _WRITE)(document, entities, relations)
