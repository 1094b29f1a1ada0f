"""Resumes documents that an outage or a killed process left behind, without human action."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextvars import ContextVar
from typing import Any, Protocol

from lightrag.base import DocStatus

from lightrag_resilience.breakers import Snapshot, State
from lightrag_resilience.draining.journal import Journal
from lightrag_resilience.events import Event, RecoveryCompleted, StateChanged
from lightrag_resilience.integrations.lightrag.compat import is_custom_chunk_patch, pending_update
from lightrag_resilience.integrations.lightrag.work.context import current_work
from lightrag_resilience.pipeline.registry import Guards
from lightrag_resilience.runtime.tasks import cancel_until_done, is_being_cancelled, within
from lightrag_resilience.text import counted

from .anchors import RecoveryAnchors
from .failed_documents import RESUMABLE, FailureRecord, FailureRecords, is_failed, is_refused, plan
from .interrupted_documents import in_words, left_documents

__all__ = ["Degraded", "Recovery"]

_log = logging.getLogger("lightrag_resilience")

_PAGE = 200  # documents; LightRAG returns no more at once
_MAX_DOCUMENTS = 5000  # in one run
_GROWTH = 2.0
_MAX_PAUSE = 300.0  # seconds between two runs
_STOP_TIMEOUT = 5.0  # seconds for a run to stop, and to read the journal

_on_run_started: ContextVar[Callable[[], None] | None] = ContextVar(
    "lightrag_resilience_on_run_started", default=None
)
"""Called at the first status that a run writes: only then has LightRAG let this worker process."""


class Degraded(Protocol):
    """Documents that are to be parsed anew once their parser is back."""

    def is_due(self, rows: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether one of these rows of the documents' status is such a document."""
        ...

    async def requeue(self) -> int:
        """Make those pending whose parser is back; how many were."""
        ...


class Recovery:
    """Watches one LightRAG: runs at the start, when a breaker closes, and after failures.

    Args:
        rag: The LightRAG, whose storages are initialized by the time `begin` is called.
        registry: Its guards.
        dependencies: The names of those that ingest needs.
        degraded: Its degraded documents, if it may have any.
    """

    def __init__(
        self,
        rag: Any,
        registry: Guards,
        dependencies: Collection[str],
        degraded: Degraded | None = None,
    ) -> None:
        self._rag = rag
        self._degraded = degraded
        self._registry = registry
        self._dependencies = dependencies
        self._attempts = registry.settings.recovery_attempts
        self._delay = registry.settings.recovery_delay
        self._anchors = RecoveryAnchors(rag, self._attempts)
        self._records = FailureRecords()
        self._wanted = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._stop_listening: Callable[[], None] = lambda: None
        self._runs_in_row = 0
        self._waits_for_lease = False
        self._left_at_start = sys.maxsize  # documents; counted until the first run is over
        self._journal = registry.settings.shutdown_journal

    def begin(self) -> None:
        """Start watching; the first run resumes what the previous process left."""
        storage = self._rag.doc_status
        storage.upsert = self._annotating(storage.upsert)
        self._stop_listening = self._registry.events.subscribe(self._on_state_change, StateChanged)
        self._wanted.set()
        self._task = self._loop.create_task(self._watch())

    async def end(self) -> None:
        """Stop, also a run under way, whose documents the next start resumes."""
        self._stop_listening()
        vars(self._rag.doc_status).pop("upsert", None)
        if self._task is not None:
            # LightRAG swallows some cancellations.
            await cancel_until_done([self._task], every=_STOP_TIMEOUT / 3, attempts=3)

    def _annotating(self, upsert: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(upsert)
        async def annotated(data: dict[str, dict[str, Any]]) -> Any:
            if (on_started := _on_run_started.get()) is not None:
                on_started()
            is_unavailable = bool(self._open)
            has_failed = self._records.annotate(
                data, current_work.get(), is_unavailable=is_unavailable
            )
            result = await upsert(data)
            if has_failed or (self._degraded is not None and self._degraded.is_due(data)):
                self._wanted.set()
            return result

        return annotated

    def _on_state_change(self, event: Event) -> None:
        if isinstance(event, StateChanged) and event.new == State.CLOSED.value:
            with contextlib.suppress(RuntimeError):  # the loop is closed by now
                self._loop.call_soon_threadsafe(self._wanted.set)

    async def _watch(self) -> None:
        """Run whenever a run is wanted, until the process drains. No failure ends this loop."""
        step: Callable[[], Awaitable[float | None]] = self._count_at_start
        while True:
            try:
                delay = await step()
            except asyncio.CancelledError:  # can be one of LightRAG's own tasks
                if is_being_cancelled():
                    raise
                delay = self._retry_after("cancelled")
            except Exception as error:  # noqa: BLE001 - the next run may succeed
                delay = self._retry_after(type(error).__name__)
            step = self._run_if_due
            await self._until_wanted(delay)
            if self._registry.gate.is_closed:
                return  # the next start resumes the rest

    async def _count_at_start(self) -> None:
        """Count waiting documents before the first upload, whose document no previous run left."""
        self._left_at_start = await self._waiting()

    async def _until_wanted(self, delay: float | None) -> None:
        """Wait `delay` seconds, or until a run is wanted and the pause before it has passed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._wanted.wait()
                await asyncio.sleep(self._pause())
        self._wanted.clear()

    def _pause(self) -> float:
        """Seconds before a run, with jitter; doubled for each run in a row."""
        pause = min(self._delay * _GROWTH ** min(self._runs_in_row, 16), _MAX_PAUSE)
        return pause * random.uniform(0.8, 1.2)  # noqa: S311 - no secret

    def _retry_after(self, reason: str) -> float:
        self._runs_in_row += 1
        pause = self._pause()
        if not self._registry.gate.is_closed:
            _log.warning("Documents could not be resumed: %s; next try in %.1f s", reason, pause)
        return pause

    async def _run_if_due(self) -> float | None:
        """Run once, if the dependencies and other workers allow it.

        Returns:
            Seconds until the next run; None to wait until one is wanted.
        """
        if (probe_due_in := self._probe_due_in()) > 0:
            return min(probe_due_in, _MAX_PAUSE) + self._pause()
        wait = await self._run_with_lease()
        if not wait:
            self._waits_for_lease = False
            return None
        level = logging.DEBUG if self._waits_for_lease else logging.INFO
        self._waits_for_lease = True
        _log.log(
            level,
            "Another worker holds the lease on documents to resume; next try in %.1f s",
            wait,
        )
        return wait

    async def _journal_details(self) -> str:
        """What became of the documents in the journal, for the log; empty after the first call."""
        path, self._journal = self._journal, None
        if path is None:
            return ""
        try:
            left, rows = await within(_STOP_TIMEOUT, self._left_by(Journal(path)))
        except Exception as error:  # noqa: BLE001 - they are resumed anyway
            _log.warning("The journal %s could not be read: %s", path, type(error).__name__)
            return ""
        words = in_words(rows)
        return f". Of {counted(left, 'document')} in the journal, {words}" if words else ""

    async def _left_by(self, journal: Journal) -> tuple[int, list[Any]]:
        """How many documents a journal names, and the rows of those that still exist."""
        records = await asyncio.to_thread(lambda: list(journal.read()))
        left = left_documents(records, self._rag.workspace or "")
        return len(left), await self._rag.doc_status.get_by_ids(list(left)) if left else []

    def _probe_due_in(self) -> float:
        """Seconds until each dependency admits a probe. Without traffic only a run probes it."""
        waits = [
            _MAX_PAUSE if each.retry_after is None else each.retry_after for each in self._open
        ]
        return max(waits, default=0.0)

    @property
    def _open(self) -> list[Snapshot]:
        """The breakers of this LightRAG's dependencies that are not closed."""
        seen = [
            guard.breaker.snapshot() for guard in self._registry if guard.name in self._dependencies
        ]
        return [each for each in seen if each.state is not State.CLOSED]

    async def _run(self) -> None:
        is_well = not self._open
        planned, given_up = await self._plan(is_well=is_well)
        # Until a breaker is closed again, one document is the probe for all. Which one is chance:
        # each needs other dependencies, and one that waits for a parser must not hold up the rest.
        chosen = planned if is_well or not planned else [random.choice(planned)]  # noqa: S311
        requeued = await self._requeue(chosen)
        if requeued:
            _log.info("Retrying %s that failed", counted(requeued, "document"))
        anew = await self._degraded.requeue() if self._degraded is not None else 0
        left = min(max(await self._waiting() - requeued - anew, 0), self._left_at_start)
        is_mine = bool(requeued or anew or left) and await self._process(left)
        # Another process may process them, and stop before their end.
        unfinished = min(await self._waiting(), left)
        self._left_at_start = sys.maxsize
        resumed = left - unfinished if is_mine else 0
        if len(planned) > requeued or unfinished or anew:
            self._wanted.set()
        is_repeated = requeued or self._wanted.is_set()
        has_recovered = not self._open and not is_well
        self._runs_in_row = self._runs_in_row + 1 if is_repeated and not has_recovered else 0
        if requeued or resumed or given_up or anew:
            event = RecoveryCompleted(self._rag.workspace or "", resumed, requeued, given_up, anew)
            self._registry.events.publish(event)

    async def _process(self, left: int) -> bool:
        """Let LightRAG process waiting documents; False if another worker's run does it already."""
        is_mine = False
        details = await self._journal_details() if left else ""

        def on_started() -> None:
            nonlocal is_mine
            if left and not is_mine:
                _log.info(
                    "Resuming %s left by the previous run%s", counted(left, "document"), details
                )
            is_mine = True

        token = _on_run_started.set(on_started)
        try:
            await self._rag.apipeline_process_enqueue_documents()
        finally:
            _on_run_started.reset(token)
        return is_mine

    async def _run_with_lease(self) -> float:
        """Run unless another worker of the cluster does: 0.0, or seconds until the next try."""
        address = self._registry.settings.redis_url
        if address is None:
            await self._run()
            return 0.0
        from lightrag_resilience.shared_state.lease import Lease  # noqa: PLC0415 - needs Redis

        work = f"recovery:{self._rag.workspace or ''}"
        lease = Lease(address.get_secret_value(), self._registry.settings.redis_prefix, work)
        return await lease.run(self._run)

    async def _plan(self, *, is_well: bool) -> tuple[list[tuple[str, Any, FailureRecord]], int]:
        """Failed documents to retry, the least retried first, and how many are given up."""
        failed = {
            document: row
            async for document, row in self._failed()
            if not is_custom_chunk_patch(row)
        }
        rebuilt = await self._rebuild(failed) if is_well else set()
        metadata = [(document, row.metadata) for document, row in failed.items()]
        planned = plan(metadata, attempts=self._attempts, rebuilt=rebuilt)
        least_tried = sorted(planned.items(), key=lambda entry: entry[1].requeues)
        found = [(document, failed[document], record) for document, record in least_tried]
        return found, len(failed) - len(planned)

    async def _rebuild(self, failed: Mapping[str, Any]) -> set[str]:
        """Rebuild anchors of documents that LightRAG refused; those it will accept now."""
        refused = {
            document
            for document, row in failed.items()
            if is_refused(row.error_msg)
            and FailureRecord.of(row.metadata).requeues < self._attempts
        }
        rebuilt = await self._anchors.rebuild(refused)
        if refused - rebuilt and self._anchors.can_rebuild:
            self._wanted.set()
        return rebuilt

    async def _requeue(self, planned: list[tuple[str, Any, FailureRecord]]) -> int:
        """Set failed documents to pending; how many were."""
        requeued = 0
        for document, found, record in planned:
            content = await self._rag.full_docs.get_by_id(document)
            status = await self._rag.doc_status.get_by_id(document)
            if content and is_failed(status):
                # Rows of a page have no chunks, which LightRAG needs to clean the graph.
                row = dataclasses.replace(found, chunks_list=status.get("chunks_list") or [])
                self._records.requeued(document, record.requeues)
                update = pending_update(self._rag, row, content)
                update = {**update, "metadata": record.put_into(update.get("metadata"))}
                await self._rag.doc_status.upsert({document: update})
                requeued += 1
        return requeued

    async def _failed(self) -> AsyncIterator[tuple[str, Any]]:
        page = 1
        while page * _PAGE <= _MAX_DOCUMENTS:
            rows, total = await self._rag.doc_status.get_docs_paginated(
                status_filter=DocStatus.FAILED, page=page, page_size=_PAGE
            )
            for row in rows:
                yield row
            if page * _PAGE >= total:
                return
            page += 1

    async def _waiting(self) -> int:
        counts = await self._rag.doc_status.get_status_counts()
        return sum(counts.get(status, 0) for status in RESUMABLE)
