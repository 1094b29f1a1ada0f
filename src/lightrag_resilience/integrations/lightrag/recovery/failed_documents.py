"""Why documents failed, and which of them to retry: decisions without I/O."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lightrag_resilience.integrations.lightrag.compat import ANCHORS_MISSING
from lightrag_resilience.integrations.lightrag.work.context import WorkContext

__all__ = [
    "FAILED",
    "RESUMABLE",
    "FailureRecord",
    "FailureRecords",
    "cause_of",
    "is_failed",
    "is_refused",
    "plan",
]

FAILED = "failed"
RESUMABLE = ("pending", "parsing", "analyzing", "processing")
"""States of documents that LightRAG's pipeline processes whenever it runs."""
TRANSIENT, FATAL = "transient", "fatal"
_KEY = "resilience"
_KEPT = 10_000  # documents


@dataclass(frozen=True, slots=True)
class FailureRecord:
    """Why a document failed, stored in its metadata without any text of the error.

    Attributes:
        cause: ``transient`` or ``fatal``; empty if unknown.
        requeues: How often it was retried.
    """

    cause: str = ""
    requeues: int = 0

    @classmethod
    def of(cls, metadata: object) -> FailureRecord:
        """The record in a document's metadata; an empty one if it is missing or malformed."""
        found = metadata.get(_KEY) if isinstance(metadata, Mapping) else None
        if not isinstance(found, Mapping):
            return cls()
        cause, requeues = found.get("cause"), found.get("requeues")
        if not isinstance(requeues, int) or isinstance(requeues, bool) or requeues < 0:
            requeues = 0
        return cls(cause if cause in {TRANSIENT, FATAL} else "", requeues)

    def put_into(self, metadata: object) -> dict[str, Any]:
        """A document's metadata with this record."""
        kept = dict(metadata) if isinstance(metadata, Mapping) else {}
        return kept | {_KEY: {"cause": self.cause, "requeues": self.requeues}}


class FailureRecords:
    """How often documents were retried, in memory: LightRAG drops unknown keys from metadata."""

    def __init__(self) -> None:
        self._requeues: OrderedDict[str, int] = OrderedDict()

    def requeued(self, document: str, times: int) -> None:
        """Note that a document is retried for the n-th time."""
        self._requeues[document] = times
        self._requeues.move_to_end(document)
        if len(self._requeues) > _KEPT:
            self._requeues.popitem(last=False)

    def annotate(
        self,
        rows: Mapping[str, dict[str, Any]],
        work: WorkContext | None,
        *,
        is_unavailable: bool = False,
    ) -> bool:
        """Write records into rows of documents' status; whether one of them may be retried.

        A retry that failed while a dependency was unavailable (`is_unavailable`) does not count.
        """
        has_failed = False
        for document, row in rows.items():
            if is_failed(row):
                message = str(row.get("error_msg") or "")
                cause = cause_of(message, work)
                has_failed |= cause == TRANSIENT or is_refused(message)
                if is_unavailable and self._requeues.get(document, 0):
                    self._requeues[document] -= 1
            elif document in self._requeues:
                cause = TRANSIENT
            else:
                continue
            record = FailureRecord(cause, self._requeues.get(document, 0))
            row["metadata"] = record.put_into(row.get("metadata"))
        return has_failed


def cause_of(message: str, work: WorkContext | None) -> str:
    """Why a document failed: its message contains the text of an error that a guard saw."""
    for text, is_transient in reversed(work.causes if work is not None else ()):
        if text and text in message:
            return TRANSIENT if is_transient else FATAL
    return ""


def is_failed(row: Mapping[str, Any] | None) -> bool:
    """Whether a row of the documents' status says failed."""
    status = row.get("status") if row else None
    return getattr(status, "value", status) == FAILED


def is_refused(message: object) -> bool:
    """Whether LightRAG refused to remove a document from the graph: its anchors are missing."""
    return ANCHORS_MISSING in str(message)


def plan(
    failed: Iterable[tuple[str, object]], *, attempts: int, rebuilt: Collection[str] = ()
) -> dict[str, FailureRecord]:
    """Which failed documents to retry, and their records then.

    Args:
        failed: Documents with their metadata.
        attempts: The largest number of retries of a document.
        rebuilt: Documents whose missing anchors were rebuilt.
    """
    records = {document: FailureRecord.of(metadata) for document, metadata in failed}
    return {
        document: FailureRecord(TRANSIENT, record.requeues + 1)
        for document, record in records.items()
        if (record.cause == TRANSIENT or document in rebuilt) and record.requeues < attempts
    }
