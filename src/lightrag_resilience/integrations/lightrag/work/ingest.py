"""LightRAG's ingest when the process is told to stop: documents under way end, no other begins.

What does not end in time is cancelled, never failed: its documents stay as they are in the storage
of their states, and the next start resumes them.
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

from lightrag_resilience.draining.gate import allow_during_drain
from lightrag_resilience.draining.journal import AbandonedWork
from lightrag_resilience.draining.quiescence import attach_details
from lightrag_resilience.errors import ShuttingDownError
from lightrag_resilience.pipeline.registry import Guards
from lightrag_resilience.runtime.tasks import drop_error, is_being_cancelled
from lightrag_resilience.shutdown import Coordinator

__all__ = ["Ingest", "IngestRun", "current_run", "heard_when_stored", "save_answers"]

R = TypeVar("R")

_PIPELINE = "apipeline_process_enqueue_documents"
_ENQUEUE = "apipeline_enqueue_documents"
_OPERATIONS = {_PIPELINE: "ingest", _ENQUEUE: "enqueue", "adelete_by_doc_id": "delete"}
_NAME = "lightrag"

_log = logging.getLogger("lightrag_resilience")

heard_when_stored: ContextVar[Callable[[], None] | None] = ContextVar(
    "lightrag_resilience_heard_when_stored", default=None
)
"""Called when documents stand in LightRAG's storages, and no death of the process loses them."""


class _EndedEarlyError(Exception):
    """Ends LightRAG's pipeline between two rounds."""


class IngestRun:
    """One run of ingest, and what the journal says of it.

    Attributes:
        documents: Those under way: the id with its track id, and monotonic seconds of its begin.
        skipped: How many were left to the next start.
        coordinator: Who cancels it at the end; None where nobody does.
    """

    def __init__(self, operation: str, workspace: str) -> None:
        self.operation = operation
        self.documents: dict[str, tuple[str, float]] = {}
        self.skipped = 0
        self.coordinator: Coordinator | None = None
        self._workspace = workspace
        self._held = 0
        self._ended = asyncio.Event()

    @property
    def is_resumable(self) -> bool:
        """Whether the next start goes on with it."""
        return self.operation == "ingest"

    @property
    def is_parked(self) -> bool:
        """Whether a call of it waits for the end."""
        return self._held > 0

    async def park_until_exit(self) -> None:
        """Wait for the end, where a failure would fail a document; return where nothing is lost.

        Raises:
            CancelledError: The coordinator has cancelled the run, and this is what it has left
                behind.
        """
        coordinator = self.coordinator
        if not self.is_resumable or coordinator is None or not coordinator.is_draining:
            return
        self._held += 1
        try:
            await self._ended.wait()
        finally:
            self._held -= 1
        raise asyncio.CancelledError

    def end(self) -> None:
        """It is over, and so is all that it held."""
        self._ended.set()

    def records(self, task: AbandonedWork) -> Iterator[AbandonedWork]:
        """The run, and each document under way."""
        known: dict[str, Any] = {"operation": self.operation, "workspace": self._workspace}
        if self.is_resumable:
            known["effect"] = "idempotent_write"
        whole = dataclasses.replace(task, **known)
        yield whole
        now = time.monotonic()
        for document, (track, began) in self.documents.items():
            yield dataclasses.replace(
                whole,
                id=uuid.uuid4().hex,
                kind="document",
                state="in_flight",
                seconds=now - began,
                started=began,
                parent=whole.id,
                document=document,
                track=track,
            )


current_run: ContextVar[IngestRun | None] = ContextVar("lightrag_resilience_run", default=None)


class Ingest:
    """Keeps the ingest of one LightRAG in step with the coordinator of its event loop.

    Args:
        rag: The LightRAG.
        registry: Its guards, whose gate closes when a drain begins.
    """

    def __init__(self, rag: Any, registry: Guards) -> None:
        self._rag = rag
        self._registry = registry

    @property
    def is_stopping(self) -> bool:
        """Whether no document is to be begun any more."""
        return self._registry.gate.is_closed

    def followed(
        self, method: Callable[..., Coroutine[Any, Any, R]], name: str
    ) -> Callable[..., Any]:
        """A method of LightRAG's whose work is waited for when the process is told to stop."""
        operation = _OPERATIONS.get(name, "insert")

        @functools.wraps(method)
        async def follow(*args: Any, **kwargs: Any) -> R | None:
            if current_run.get() is not None:
                return await method(*args, **kwargs)
            if self.is_stopping and operation == "ingest":
                _log.info("Told to stop: documents that wait are left to the next start")
                return None
            self._registry.gate.check(_NAME)
            run = IngestRun(operation, self._rag.workspace or "")
            with _as_current(run):
                try:
                    result = await self._do(method(*args, **kwargs), run)
                except _EndedEarlyError:
                    _log.info("Told to stop: %d documents are left to the next start", run.skipped)
                    return None
                finally:
                    run.end()
            if operation == "enqueue" and (tell := heard_when_stored.get()) is not None:
                tell()
            return result

        return follow

    async def _do(self, work: Coroutine[Any, Any, R], run: IngestRun) -> R:
        coordinator: Coordinator | None = self._registry.coordinators.get(
            asyncio.get_running_loop()
        )
        if coordinator is None:
            return await work
        run.coordinator = coordinator
        with allow_during_drain():
            task = asyncio.create_task(work, name=f"{_NAME}.{run.operation}")
        attach_details(coordinator.track(task), run)
        try:
            return await _joined(task)
        except asyncio.CancelledError:
            if coordinator.is_draining and not is_being_cancelled():
                raise ShuttingDownError(_NAME, None, "and this did not end in time") from None
            raise

    async def park_if_late(self) -> None:
        """Before a model is called: one of ingest waits for the end where it would not be over."""
        run = current_run.get()
        if run is not None and run.coordinator is not None and run.coordinator.is_near_deadline:
            await run.park_until_exit()

    # ------------------------------------------------------------------ between documents

    def method_overrides(self) -> Iterator[tuple[str, Callable[..., Any]]]:
        """What to put before methods of the pipeline, by their names; LightRAG 1.4 has none."""
        rag = self._rag
        stops: dict[str, Callable[..., Any]] = {
            "process_single_document": self._process,
            "_cancellation_requested": self._is_cancelled,
            "_mark_doc_cancelled_in_stage": self._mark_cancelled,
            "_decide_pipeline_next_step": self._decide,
        }
        if all(hasattr(rag, name) for name in stops):
            for name, stop in stops.items():
                original = getattr(rag, name)
                yield name, functools.wraps(original)(functools.partial(stop, original))

    async def _process(self, original: Callable[..., Awaitable[Any]], **given: Any) -> None:
        """Leave a document as it is, or be known to process it."""
        run = current_run.get() or IngestRun("", "")
        if self.is_stopping:
            run.skipped += 1
            return
        document = given["doc_id"]
        track = str(getattr(given["status_doc"], "track_id", None) or "")
        run.documents[document] = track, time.monotonic()
        try:
            await original(**given)
        finally:
            run.documents.pop(document, None)

    async def _is_cancelled(self, original: Callable[..., Awaitable[bool]], *given: Any) -> bool:
        """Whether to begin no other stage of a document; who parses or looks asks this."""
        return self.is_stopping or await original(*given)

    async def _mark_cancelled(self, original: Callable[..., Awaitable[None]], **given: Any) -> None:
        """Leave a document as it is: it was told to stop by nobody but the end of the process."""
        run = current_run.get()
        if not self.is_stopping or given["pipeline_status"].get("cancellation_requested"):
            await original(**given)
        elif run is not None:
            run.skipped += 1

    async def _decide(self, original: Callable[..., Awaitable[Any]], *given: Any) -> Any:
        """End the run, with all that was put into its mailbox still in it."""
        if self.is_stopping:
            raise _EndedEarlyError
        return await original(*given)


async def save_answers(rag: Any) -> None:
    """Write the model's answers to the storage, before all that may take longer to flush.

    Documents that are resumed need not ask for them a second time.
    """
    try:
        await rag.llm_response_cache.index_done_callback()
    except Exception as error:  # noqa: BLE001 - the other storages are to be flushed as well
        _log.warning("Answers of models could not be saved: %s", type(error).__name__)


@contextlib.contextmanager
def _as_current(run: IngestRun) -> Iterator[None]:
    token = current_run.set(run)
    try:
        yield
    finally:
        current_run.reset(token)


async def _joined(task: asyncio.Task[R]) -> R:
    """Wait for a task as for a coroutine: to its end, handing every cancellation on."""
    while True:
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.done():
                drop_error(task)  # the caller was cancelled at the same time
                raise
            task.cancel()
