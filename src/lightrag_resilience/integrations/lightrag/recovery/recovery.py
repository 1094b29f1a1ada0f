"""Documents that an outage or a killed process left behind are resumed, with no human action."""

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
from typing import Any

from lightrag.base import DocStatus

try:
    from lightrag import utils_pipeline
except ImportError:  # LightRAG 1.4
    utils_pipeline = None

from lightrag_resilience.breakers import Snapshot, State
from lightrag_resilience.draining.journal import Journal
from lightrag_resilience.events import Event, RecoveryCompleted, StateChanged
from lightrag_resilience.integrations.lightrag.work.context import current_work
from lightrag_resilience.pipeline.registry import Guards
from lightrag_resilience.runtime.tasks import cancel_until_done, is_being_cancelled, within
from lightrag_resilience.text import counted

from .anchors import RecoveryAnchors
from .failed_documents import RESUMABLE, FailureRecord, FailureRecords, is_failed, is_refused, plan
from .interrupted_documents import in_words, left_documents

__all__ = ["Recovery"]

_log = logging.getLogger("lightrag_resilience")

_PAGE = 200  # documents; LightRAG gives no more at once
_MOST = 5000  # of them in one run
_GROWTH = 2.0
_LONGEST = 300.0  # seconds between two runs
_END = 5.0  # seconds for a run that is told to stop

_when_begun: ContextVar[Callable[[], None] | None] = ContextVar(
    "lightrag_resilience_when_begun", default=None
)
"""Called by what a run of recovery writes to the documents' status: LightRAG has let it begin."""


class Recovery:
    """Watches one LightRAG: runs at the start, when a breaker closes, and after failures.

    Args:
        rag: The LightRAG, whose storages are initialized by the time `begin` is called.
        registry: Its guards.
        dependencies: The names of those that ingest needs.
    """

    def __init__(self, rag: Any, registry: Guards, dependencies: Collection[str]) -> None:
        self._rag = rag
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
        self._rounds = 0
        self._is_refused = False
        self._left_at_start = sys.maxsize  # documents; counted until the first run is over
        self._journal = registry.settings.shutdown_journal

    def begin(self) -> None:
        """Watch from now on, and look for what was left before."""
        storage = self._rag.doc_status
        storage.upsert = self._annotating(storage.upsert)
        self._stop_listening = self._registry.events.subscribe(self._heard, StateChanged)
        self._wanted.set()
        self._task = self._loop.create_task(self._watch())

    async def end(self) -> None:
        """Stop, also a run under way: the next start resumes its documents."""
        self._stop_listening()
        vars(self._rag.doc_status).pop("upsert", None)
        if self._task is not None:
            # LightRAG swallows a cancellation now and then.
            await cancel_until_done([self._task], every=_END / 3, attempts=3)

    def _annotating(self, upsert: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(upsert)
        async def annotated(data: dict[str, dict[str, Any]]) -> Any:
            if (begun := _when_begun.get()) is not None:
                begun()
            is_away = bool(self._open)
            has_failed = self._records.annotate(data, current_work.get(), is_away=is_away)
            result = await upsert(data)
            if has_failed:
                self._wanted.set()
            return result

        return annotated

    def _heard(self, event: Event) -> None:
        if isinstance(event, StateChanged) and event.new == State.CLOSED.value:
            with contextlib.suppress(RuntimeError):  # the loop is closed by now
                self._loop.call_soon_threadsafe(self._wanted.set)

    async def _watch(self) -> None:
        """Run when it is wanted, until the process is told to stop: no failure ends this."""
        step: Callable[[], Awaitable[float | None]] = self._count_at_start
        while True:
            try:
                again_in = await step()
            except asyncio.CancelledError:  # also one of LightRAG's own, deep below
                if is_being_cancelled():
                    raise
                again_in = self._retry_after("cancelled")
            except Exception as error:  # noqa: BLE001 - whatever it is, the next run may do better
                again_in = self._retry_after(type(error).__name__)
            step = self._round
            await self._until_wanted(again_in)
            if self._registry.gate.is_closed:
                return  # the next start does it

    async def _count_at_start(self) -> None:
        """Count what waits before the first upload: the previous run did not leave that one's."""
        self._left_at_start = await self._waiting()

    async def _until_wanted(self, again_in: float | None) -> None:
        """Wait for so many seconds, or until a run is wanted and the pause before it is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(again_in):
                await self._wanted.wait()
                await asyncio.sleep(self._pause())
        self._wanted.clear()

    def _pause(self) -> float:
        """Seconds before a run; they double with each in a row."""
        pause = min(self._delay * _GROWTH ** min(self._rounds, 16), _LONGEST)
        return pause * random.uniform(0.8, 1.2)  # noqa: S311 - no secret

    def _retry_after(self, reason: str) -> float:
        self._rounds += 1
        pause = self._pause()
        if not self._registry.gate.is_closed:
            _log.warning("Documents could not be resumed: %s; again in %.1f s", reason, pause)
        return pause

    async def _round(self) -> float | None:
        """One run, where the dependencies and the other workers let it: seconds until the next.

        None until it is wanted.
        """
        if (probe_due_in := self._probe_due_in()) > 0:
            return min(probe_due_in, _LONGEST) + self._pause()
        wait = await self._in_turn()
        if not wait:
            self._is_refused = False
            return None
        level = logging.DEBUG if self._is_refused else logging.INFO
        self._is_refused = True
        _log.log(
            level,
            "Another worker holds the lease on documents to resume; asking again in %.1f s",
            wait,
        )
        return wait

    async def _journal_says(self) -> str:
        """What has become of the documents that the journal names; empty once it was said."""
        path, self._journal = self._journal, None
        if path is None:
            return ""
        try:
            left, rows = await within(_END, self._left_by(Journal(path)))
        except Exception as error:  # noqa: BLE001 - they are resumed in any case
            _log.warning("The journal %s could not be read: %s", path, type(error).__name__)
            return ""
        words = in_words(rows)
        return f". Of {counted(left, 'document')} that the journal names, {words}" if words else ""

    async def _left_by(self, journal: Journal) -> tuple[int, list[Any]]:
        """How many documents a journal names, and the rows of those that are there."""
        records = await asyncio.to_thread(lambda: list(journal.read()))
        left = left_documents(records, self._rag.workspace or "")
        return len(left), await self._rag.doc_status.get_by_ids(list(left)) if left else []

    def _probe_due_in(self) -> float:
        """Seconds until every dependency may be called; without traffic nothing else probes it."""
        waits = [_LONGEST if each.retry_after is None else each.retry_after for each in self._open]
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
        # While it is unknown whether the dependency is back, one document finds out for all.
        requeued = await self._requeue(planned if is_well else planned[:1])
        if requeued:
            _log.info("Trying %s again that failed", counted(requeued, "document"))
        left = min(max(await self._waiting() - requeued, 0), self._left_at_start)
        is_mine = bool(requeued or left) and await self._process(left)
        # Another process may do it, and be told to stop before their end.
        others = min(await self._waiting(), left)
        self._left_at_start = sys.maxsize
        resumed = left - others if is_mine else 0
        if len(planned) > requeued or others:
            self._wanted.set()
        goes_on = requeued or self._wanted.is_set()
        has_come_back = not self._open and not is_well
        self._rounds = self._rounds + 1 if goes_on and not has_come_back else 0
        if requeued or resumed or given_up:
            event = RecoveryCompleted(self._rag.workspace or "", resumed, requeued, given_up)
            self._registry.events.publish(event)

    async def _process(self, left: int) -> bool:
        """Let LightRAG process what waits; False where it leaves that to another worker's run."""
        is_mine = False
        details = await self._journal_says() if left else ""

        def begun() -> None:
            nonlocal is_mine
            if left and not is_mine:
                _log.info(
                    "Resuming %s left by the previous run%s", counted(left, "document"), details
                )
            is_mine = True

        token = _when_begun.set(begun)
        try:
            await self._rag.apipeline_process_enqueue_documents()
        finally:
            _when_begun.reset(token)
        return is_mine

    async def _in_turn(self) -> float:
        """Run, if no other worker of the cluster does: 0.0, or seconds until to ask again."""
        address = self._registry.settings.redis_url
        if address is None:
            await self._run()
            return 0.0
        from lightrag_resilience.shared_state.lease import Lease  # noqa: PLC0415 - not without Redis

        work = f"recovery:{self._rag.workspace or ''}"
        lease = Lease(address.get_secret_value(), self._registry.settings.redis_prefix, work)
        return await lease.run(self._run)

    async def _plan(self, *, is_well: bool) -> tuple[list[tuple[str, Any, FailureRecord]], int]:
        """Which failed documents may be tried again, the least tried first; how many may not."""
        failed = {
            document: row async for document, row in self._failed() if not _is_somebody_elses(row)
        }
        mended = await self._mended(failed) if is_well else set()
        metadata = [(document, row.metadata) for document, row in failed.items()]
        planned = plan(metadata, attempts=self._attempts, mended=mended)
        least_tried = sorted(planned.items(), key=lambda entry: entry[1].requeues)
        found = [(document, failed[document], record) for document, record in least_tried]
        return found, len(failed) - len(planned)

    async def _mended(self, failed: Mapping[str, Any]) -> set[str]:
        """Those that LightRAG refused to process anew, and will not refuse any more."""
        refused = {
            document
            for document, row in failed.items()
            if is_refused(row.error_msg)
            and FailureRecord.of(row.metadata).requeues < self._attempts
        }
        mended = await self._anchors.rebuild(refused)
        if refused - mended and self._anchors.can_rebuild:
            self._wanted.set()
        return mended

    async def _requeue(self, planned: list[tuple[str, Any, FailureRecord]]) -> int:
        """Make failed documents pending; how many."""
        requeued = 0
        for document, found, record in planned:
            content = await self._rag.full_docs.get_by_id(document)
            whole = await self._rag.doc_status.get_by_id(document)
            if content and is_failed(whole):
                # A page of rows is without chunks; LightRAG takes out of the graph what they name.
                row = dataclasses.replace(found, chunks_list=whole.get("chunks_list") or [])
                self._records.requeued(document, record.requeues)
                update = _pending(self._rag, row, content, record)
                await self._rag.doc_status.upsert({document: update})
                requeued += 1
        return requeued

    async def _failed(self) -> AsyncIterator[tuple[str, Any]]:
        page = 1
        while page * _PAGE <= _MOST:
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


def _pending(rag: Any, row: Any, content: Any, record: FailureRecord) -> dict[str, Any]:
    """A failed document's row as LightRAG's own reset makes it: what was done is done again."""
    if hasattr(rag, "_build_pending_reset_update"):
        update, _, _ = rag._build_pending_reset_update(row, content)  # noqa: SLF001 - the one place
    else:  # LightRAG 1.4 takes up failed documents as they are
        update = {**dataclasses.asdict(row), "status": DocStatus.PENDING, "error_msg": ""}
        update.pop("multimodal_processed", None)
    return {**update, "metadata": record.put_into(update.get("metadata"))}


def _is_somebody_elses(row: Any) -> bool:
    """Whether a custom-chunk operation owns a document, and wants to finish it by itself."""
    journal = getattr(utils_pipeline, "doc_status_custom_chunk_patch", None)
    return journal is not None and journal(row) is not None
