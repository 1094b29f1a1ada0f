"""Why documents failed, and which of them to try again. Neither waits, nor knows a LightRAG."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

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
"""What LightRAG's pipeline takes up by itself when it runs."""
TRANSIENT, FATAL = "transient", "fatal"
_KEY = "resilience"
_REMEMBERED = 10_000  # documents
_REFUSAL = "recovery anchor row(s) missing"


@dataclass(frozen=True, slots=True)
class FailureRecord:
    """What is known of a failed document, kept in its own metadata: no text of any error.

    Attributes:
        cause: ``transient`` or ``fatal``; empty where it is unknown.
        requeues: How often it was tried again.
    """

    cause: str = ""
    requeues: int = 0

    @classmethod
    def of(cls, metadata: object) -> FailureRecord:
        """The record in a document's metadata; an empty one where none makes sense."""
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
    """How often documents were tried again: LightRAG drops what it does not know from metadata."""

    def __init__(self) -> None:
        self._requeues: OrderedDict[str, int] = OrderedDict()

    def requeued(self, document: str, times: int) -> None:
        """It is tried again for this time."""
        self._requeues[document] = times
        self._requeues.move_to_end(document)
        if len(self._requeues) > _REMEMBERED:
            self._requeues.popitem(last=False)

    def annotate(
        self, rows: Mapping[str, dict[str, Any]], work: WorkContext | None, *, is_away: bool = False
    ) -> bool:
        """Write the records into rows of the documents' status; whether one may be tried again.

        A document that failed while a dependency `is_away` has not been tried.
        """
        has_failed = False
        for document, row in rows.items():
            if is_failed(row):
                message = str(row.get("error_msg") or "")
                cause = cause_of(message, work)
                has_failed |= cause == TRANSIENT or is_refused(message)
                if is_away and self._requeues.get(document, 0):
                    self._requeues[document] -= 1
            elif document in self._requeues:
                cause = TRANSIENT
            else:
                continue
            record = FailureRecord(cause, self._requeues.get(document, 0))
            row["metadata"] = record.put_into(row.get("metadata"))
        return has_failed


def cause_of(message: str, work: WorkContext | None) -> str:
    """Why a document failed: LightRAG keeps the text of an error that a guard has seen before."""
    for text, is_transient in reversed(work.causes if work is not None else ()):
        if text and text in message:
            return TRANSIENT if is_transient else FATAL
    return ""


def is_failed(row: Mapping[str, Any] | None) -> bool:
    """Whether a row of the documents' status is that of a failed one."""
    status = row.get("status") if row else None
    return getattr(status, "value", status) == FAILED


def is_refused(message: object) -> bool:
    """Whether LightRAG did not take a document out of the graph, for want of its anchors."""
    return _REFUSAL in str(message)


def plan(
    failed: Iterable[tuple[str, object]], *, attempts: int, mended: Collection[str] = ()
) -> dict[str, FailureRecord]:
    """Which failed documents to try again, and their records then.

    Args:
        failed: Documents with their metadata.
        attempts: How often a document is tried again at the most.
        mended: Those whose cause is no more.
    """
    records = {document: FailureRecord.of(metadata) for document, metadata in failed}
    return {
        document: FailureRecord(TRANSIENT, record.requeues + 1)
        for document, record in records.items()
        if (record.cause == TRANSIENT or document in mended) and record.requeues < attempts
    }
