"""Degraded documents: read by LightRAG's own parser while theirs is down, and later parsed anew.

A document's mark is in its own row, written together with its text: the format ``raw`` beside the
parser that it was meant for, whose results are never raw. So nothing else has to be kept, and the
mark ends with the document. To parse it anew, its row is made pending again. LightRAG then
replaces in place what the document has in the storages, or resumes that after a crash.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

from lightrag.base import DocStatus

from lightrag_resilience.circuit.state_machine import State
from lightrag_resilience.events import DocumentDegraded
from lightrag_resilience.integrations.lightrag.compat import (
    GRAPH_STARTED,
    MARK_DUPLICATE,
    PARSER_CLIENTS,
    PERSIST,
    PROCESS_DOCUMENT,
    configured_parsers,
    local_parser,
    pending_update,
    purge_stale,
    source_file,
)
from lightrag_resilience.pipeline.registry import Guards
from lightrag_resilience.text import counted

__all__ = ["DegradedDocuments", "Replacing"]

_FORMAT, _ENGINE, _CONTENT, _SOURCE = "parse_format", "parse_engine", "content", "source_file"
_RAW, _PENDING = "raw", "pending_parse"
_PAGE = 200  # documents; LightRAG returns no more at once
_log = logging.getLogger("lightrag_resilience")


class DegradedDocuments:
    """The degraded documents of one LightRAG.

    Args:
        rag: The LightRAG.
        registry: Its guards.
        after: Seconds for which a parser may be down before its documents are degraded.
    """

    def __init__(self, rag: Any, registry: Guards, after: float) -> None:
        self.after = after
        self._rag = rag
        self._registry = registry

    def parser_of(self, context: Any) -> Any:
        """LightRAG's own parser for a document; None if this must wait for its own."""
        row, path = context.content_data, context.file_path
        if row.get(_FORMAT) != _PENDING or row.get(_CONTENT):
            return None  # parsed anew: its degraded text answers queries meanwhile
        if source_file(self._rag, context.doc_id, path, row) is None:
            return None
        return local_parser(path)

    async def parse(self, context: Any, engine: str, parser: Any) -> Any:
        """What LightRAG's own parser makes of a document, marked; None if it cannot read it."""
        wanted = context.content_data.get(_ENGINE) or engine
        marking = dataclasses.replace(context, rag=_Marking(self._rag, wanted))
        try:
            result = await parser.parse(marking)
        except Exception as error:  # noqa: BLE001 - of any library that reads files
            _log.info(
                "Document %s waits for parser.%s: LightRAG cannot read it by itself: %s",
                context.doc_id,
                engine,
                type(error).__name__,
            )
            return None
        _log.warning(
            "parser.%s is down: LightRAG has read document %s by itself. It is parsed anew later",
            engine,
            context.doc_id,
        )
        if DocumentDegraded in self._registry.events.subscribed:
            event = DocumentDegraded(self._rag.workspace or "", f"parser.{engine}")
            self._registry.events.publish(event)
        return dataclasses.replace(result, parse_engine=wanted)

    def is_due(self, rows: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether one of these rows of the documents' status is to be parsed anew by now."""
        return any(
            _is_processed(row) and self._is_back(row.get("metadata")) for row in rows.values()
        )

    async def requeue(self) -> int:
        """Make degraded documents pending whose parser is back; how many were."""
        requeued = missing = 0
        pages = 1 + (await self._page(1))[1] // _PAGE
        # From the last page on: what is pending leaves its page, and moves later ones alone.
        for number in range(pages, 0, -1):
            for document, row in (await self._page(number))[0]:
                if self._is_back(row.metadata):
                    is_there = await self._requeue(document, row)
                    requeued += is_there is True
                    missing += is_there is False
        if requeued:
            _log.info("Parsing %s anew, as the parser is back", counted(requeued, "document"))
        if missing:
            _log.warning("%s not parsed anew: no file here", counted(missing, "degraded document"))
        return requeued

    async def _requeue(self, document: str, row: Any) -> bool | None:
        """Make one pending; None if it is no longer there, False if its file is not.

        The row of the text comes first. A crash after it leaves a processed document whose status
        has the mark, so that the next run finds it again; after the other row it is one of
        LightRAG's pending documents.
        """
        texts, statuses = self._rag.full_docs, self._rag.doc_status
        content, status = await texts.get_by_id(document), await statuses.get_by_id(document)
        if not content or not status or not _is_processed(status):
            return None
        source = {**content, _SOURCE: row.metadata.get(_SOURCE)}
        if source_file(self._rag, document, row.file_path, source) is None:
            return False
        pending = {**content, _FORMAT: _PENDING}
        await texts.upsert({document: pending})
        await texts.index_done_callback()
        # Rows of a page have no chunks, which LightRAG needs to clean the graph.
        whole = dataclasses.replace(row, chunks_list=status.get("chunks_list") or [])
        await statuses.upsert({document: pending_update(self._rag, whole, pending)})
        return True

    async def _page(self, number: int) -> tuple[list[tuple[str, Any]], int]:
        """Processed documents in the order in which they came, and how many there are."""
        page: tuple[list[tuple[str, Any]], int] = await self._rag.doc_status.get_docs_paginated(
            status_filter=DocStatus.PROCESSED,
            page=number,
            page_size=_PAGE,
            sort_field="created_at",
            sort_direction="asc",
        )
        return page

    def _is_back(self, metadata: object) -> bool:
        engine = _engine_of(metadata)
        if engine is None or engine not in configured_parsers():
            return False
        return self._registry.get(f"parser.{engine}").breaker.state is State.CLOSED


class Replacing:
    """Takes what a document has stored before out of the graph, while no other adds to it.

    LightRAG does it while others are added: what those have of an entity in common would be lost.
    It would also forget the chunks of a document that, parsed anew, is a duplicate of another.

    Args:
        rag: The LightRAG.
    """

    def __init__(self, rag: Any) -> None:
        self._rag = rag
        self._adding = set[str]()
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._turn = asyncio.Lock()

    def method_overrides(self) -> Iterator[tuple[str, Callable[..., Any]]]:
        """The methods of LightRAG's pipeline to replace."""
        for name, around in (
            (MARK_DUPLICATE, self._marking),
            (GRAPH_STARTED, self._starting),
            (PROCESS_DOCUMENT, self._processing),
        ):
            method = getattr(self._rag, name)
            yield name, functools.wraps(method)(functools.partial(around, method))

    async def _marking(self, original: Callable[..., Awaitable[bool]], **given: Any) -> bool:
        """After a document is parsed: it is replaced, or found to be a duplicate."""
        status = given["status_doc"]
        if status.chunks_list:
            async with self._turn:
                await self._is_idle.wait()
                await purge_stale(self._rag, status, given)
        return await original(**given)

    async def _starting(
        self, original: Callable[..., Awaitable[None]], document: str, *args: Any
    ) -> None:
        """Before a document is added to the graph."""
        async with self._turn:
            self._adding.add(document)
            self._is_idle.clear()
        await original(document, *args)

    async def _processing(self, original: Callable[..., Awaitable[None]], **given: Any) -> None:
        try:
            await original(**given)
        finally:
            self._adding.discard(given["doc_id"])
            if not self._adding:
                self._is_idle.set()


def _engine_of(metadata: object) -> str | None:
    """The parser that a degraded document was meant for; None if it is not degraded."""
    if not isinstance(metadata, Mapping) or metadata.get(_FORMAT) != _RAW:
        return None
    engine = str(metadata.get(_ENGINE)).partition("(")[0]  # with parameters in brackets
    return engine if engine in PARSER_CLIENTS else None


def _is_processed(row: Mapping[str, Any]) -> bool:
    return bool(row.get("status") == DocStatus.PROCESSED)  # a text, as this enum is


class _Marking:
    """A LightRAG in whose storage a document keeps the parser that it was meant for."""

    def __init__(self, rag: Any, engine: str) -> None:
        self._rag = rag
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._rag, name)
        return self._marking(found) if name == PERSIST else found

    def _marking(self, persist: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
        async def marking(document: str, record: Mapping[str, Any]) -> Any:
            return await persist(document, {**record, _ENGINE: self._engine})

        return marking
