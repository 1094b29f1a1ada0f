"""The id of the current request; `telemetry.correlation` sets it."""

from __future__ import annotations

from contextvars import ContextVar

__all__ = ["current_id", "note_id"]

current_id: ContextVar[str | None] = ContextVar("lightrag_resilience_correlation", default=None)

_NOTE = "Request id: "


def note_id(error: BaseException) -> None:
    """Add the id to an error as a note, for its traceback; once, even in nested guards."""
    identity = current_id.get()
    if identity is None or not isinstance(error, Exception):
        return
    if not any(note.startswith(_NOTE) for note in getattr(error, "__notes__", ())):
        error.add_note(_NOTE + identity)
