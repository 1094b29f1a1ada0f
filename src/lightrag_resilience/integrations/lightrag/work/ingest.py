"""LightRAG's ingest during a drain: documents under way finish, no other starts.

What does not finish in time is cancelled and never marked as failed: its documents keep their
status, and the next start resumes them.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

from lightrag_resilience.calls.token_account import TokenAccount, current_account
from lightrag_resilience.draining.gate import allow_during_drain
from lightrag_resilience.draining.journal import AbandonedWork
from lightrag_resilience.errors import ShuttingDownError
from lightrag_resilience.events import DocumentProcessed
from lightrag_resilience.integrations.lightrag.compat import (
    IS_CANCELLED,
    MARK_CANCELLED,
    NEXT_STEP,
    PROCESS_DOCUMENT,
    is_cancelled_by_user,
)
from lightrag_resilience.pipeline.registry import Guards
from lightrag_resilience.runtime.tasks import drop_error, is_being_cancelled
from lightrag_resilience.shutdown import Coordinator

__all__ = ["Ingest", "IngestRun", "current_run", "on_stored", "save_answers"]

R = TypeVar("R")

_PIPELINE = "apipeline_process_enqueue_documents"
_ENQUEUE = "apipeline_enqueue_documents"
_OPERATIONS = {_PIPELINE: "ingest", _ENQUEUE: "enqueue", "adelete_by_doc_id": "delete"}
_NAME = "lightrag"

_log = logging.getLogger("lightrag_resilience")

on_stored: ContextVar[Callable[[], None] | None] = ContextVar(
    "lightrag_resilience_on_stored", default=None
)
"""Called when documents are in LightRAG's storages, so that a crash no longer loses them."""


class _EndedEarlyError(Exception):
    """Ends LightRAG's pipeline between two rounds."""


class IngestRun:
    """One run of ingest, and its records in the shutdown journal.

    Attributes:
        documents: Those under way: by id, the track id and the monotonic seconds of its start.
        skipped: How many documents are left to the next start.
        coordinator: Cancels it at the end of a drain; None without one.
    """

    def __init__(self, operation: str, workspace: str) -> None:
        self.operation = operation
        self.documents: dict[str, tuple[str, float]] = {}
        self.skipped = 0
        self.coordinator: Coordinator | None = None
        self._workspace = workspace
        self._parked = 0
        self._ended = asyncio.Event()

    @property
    def is_resumable(self) -> bool:
        """Whether the next start resumes it."""
        return self.operation == "ingest"

    @property
    def is_parked(self) -> bool:
        """Whether one of its calls is parked until the process exits."""
        return self._parked > 0

    async def park_until_exit(self) -> None:
        """During a drain, wait until the run is cancelled. Otherwise return at once.

        An error raised instead would make LightRAG mark the document as failed.

        Raises:
            CancelledError: The run is over, and this call was left behind.
        """
        coordinator = self.coordinator
        if not self.is_resumable or coordinator is None or not coordinator.is_draining:
            return
        self._parked += 1
        try:
            await self._ended.wait()
        finally:
            self._parked -= 1
        raise asyncio.CancelledError

    def end(self) -> None:
        """Release all parked calls: the run is over."""
        self._ended.set()

    def records(self, task: AbandonedWork) -> Iterator[AbandonedWork]:
        """Journal records of the run and of each document under way."""
        known: dict[str, Any] = {"operation": self.operation, "workspace": self._workspace}
        if self.is_resumable:
            known["effect"] = "idempotent_write"
        run = dataclasses.replace(task, **known)
        yield run
        now = time.monotonic()
        for document, (track, began) in self.documents.items():
            yield dataclasses.replace(
                run,
                id=uuid.uuid4().hex,
                kind="document",
                state="in_flight",
                seconds=now - began,
                started=began,
                parent=run.id,
                document=document,
                track=track,
            )


current_run: ContextVar[IngestRun | None] = ContextVar("lightrag_resilience_run", default=None)


class Ingest:
    """Makes the ingest of one LightRAG follow the drain of its event loop's coordinator.

    Args:
        rag: The LightRAG.
        registry: Its guards, whose gate closes when a drain begins.
    """

    def __init__(self, rag: Any, registry: Guards) -> None:
        self._rag = rag
        self._registry = registry

    @property
    def is_stopping(self) -> bool:
        """Whether no other document may start."""
        return self._registry.gate.is_closed

    def tracked(
        self, method: Callable[..., Coroutine[Any, Any, R]], name: str
    ) -> Callable[..., Any]:
        """A method of LightRAG whose work a drain waits for."""
        operation = _OPERATIONS.get(name, "insert")

        @functools.wraps(method)
        async def track(*args: Any, **kwargs: Any) -> R | None:
            if current_run.get() is not None:
                return await method(*args, **kwargs)
            if self.is_stopping and operation == "ingest":
                _log.info("Shutting down: waiting documents are left to the next start")
                return None
            self._registry.gate.check(_NAME)
            run = IngestRun(operation, self._rag.workspace or "")
            with _as_current(run):
                try:
                    result = await self._run(method(*args, **kwargs), run)
                except _EndedEarlyError:
                    _log.info("Shutting down: %d documents are left to the next start", run.skipped)
                    return None
                finally:
                    run.end()
            if operation == "enqueue" and (notify := on_stored.get()) is not None:
                notify()
            return result

        return track

    async def _run(self, work: Coroutine[Any, Any, R], run: IngestRun) -> R:
        coordinator: Coordinator | None = self._registry.coordinators.get(
            asyncio.get_running_loop()
        )
        if coordinator is None:
            return await work
        run.coordinator = coordinator
        with allow_during_drain():
            task = asyncio.create_task(work, name=f"{_NAME}.{run.operation}")
        coordinator.track_as(task, "task", task.get_name(), run)
        try:
            return await _joined(task)
        except asyncio.CancelledError:
            if coordinator.is_draining and not is_being_cancelled():
                raise ShuttingDownError(_NAME, None, "and this did not end in time") from None
            raise

    async def park_if_late(self) -> None:
        """Before a model call of ingest: park it if it could not finish before the deadline."""
        run = current_run.get()
        if run is not None and run.coordinator is not None and run.coordinator.is_near_deadline:
            await run.park_until_exit()

    # ------------------------------------------------------------------ between documents

    def method_overrides(self) -> Iterator[tuple[str, Callable[..., Any]]]:
        """Replacements for methods of the pipeline, by name."""
        rag = self._rag
        overrides: dict[str, Callable[..., Any]] = {
            PROCESS_DOCUMENT: self._process,
            IS_CANCELLED: self._is_cancelled,
            MARK_CANCELLED: self._mark_cancelled,
            NEXT_STEP: self._decide,
        }
        for name, override in overrides.items():
            original = getattr(rag, name)
            yield name, functools.wraps(original)(functools.partial(override, original))

    async def _process(self, original: Callable[..., Awaitable[Any]], **given: Any) -> None:
        """Process a document and record it as under way; during a drain skip it."""
        run = current_run.get() or IngestRun("", "")
        if self.is_stopping:
            run.skipped += 1
            return
        document = given["doc_id"]
        track = str(getattr(given["status_doc"], "track_id", None) or "")
        run.documents[document] = track, time.monotonic()
        account = TokenAccount("document")
        token = current_account.set(account)
        try:
            await original(**given)
        except BaseException:
            account.is_abandoned = True
            raise
        finally:
            run.documents.pop(document, None)
            current_account.reset(token)
            if DocumentProcessed in (events := self._registry.events).subscribed:
                workspace = self._rag.workspace or ""
                events.publish(DocumentProcessed(workspace, account.used, account.wasted))

    async def _is_cancelled(self, original: Callable[..., Awaitable[bool]], *given: Any) -> bool:
        """Whether to start no other stage of a document. LightRAG polls this between stages."""
        return self.is_stopping or await original(*given)

    async def _mark_cancelled(self, original: Callable[..., Awaitable[None]], **given: Any) -> None:
        """During a drain keep a document's status, unless a user has cancelled the pipeline."""
        run = current_run.get()
        if not self.is_stopping or is_cancelled_by_user(given["pipeline_status"]):
            await original(**given)
        elif run is not None:
            run.skipped += 1

    async def _decide(self, original: Callable[..., Awaitable[Any]], *given: Any) -> Any:
        """During a drain end the run before it takes new documents from its mailbox."""
        if self.is_stopping:
            raise _EndedEarlyError
        return await original(*given)


async def save_answers(rag: Any) -> None:
    """Flush the cache of model answers first: flushing the other storages may take longer.

    Resumed documents then need no second model call for them.
    """
    try:
        await rag.llm_response_cache.index_done_callback()
    except Exception as error:  # noqa: BLE001 - the other storages must be flushed as well
        _log.warning("Answers of models could not be saved: %s", type(error).__name__)


@contextlib.contextmanager
def _as_current(run: IngestRun) -> Iterator[None]:
    token = current_run.set(run)
    try:
        yield
    finally:
        current_run.reset(token)


async def _joined(task: asyncio.Task[R]) -> R:
    """Wait until a task is done, and pass every cancellation on to it."""
    while True:
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.done():
                drop_error(task)  # the caller was cancelled at the same time
                raise
            task.cancel()
