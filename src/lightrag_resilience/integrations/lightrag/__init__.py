"""Protect a LightRAG instance: `await protect(rag)`.

Every LLM role, the embedding function, the rerank function and all storages go through guards.
Ingest waits for a dependency that is unavailable; a query for some seconds, then it fails with an
error that says so, where LightRAG by itself would answer ``None``.
"""

from __future__ import annotations

import contextlib
from typing import Any

from lightrag_resilience.runtime.extras import install

try:
    import lightrag as _lightrag  # noqa: F401 - is it installed?
except ModuleNotFoundError as error:
    if error.name != "lightrag":
        raise
    message = f"To protect a LightRAG needs LightRAG 1.4.16 or later: {install('lightrag')}"
    raise ModuleNotFoundError(message, name=error.name) from error

from lightrag_resilience.errors import UnsupportedCallError
from lightrag_resilience.integrations.lightrag.work.query_errors import QueryFailedError
from lightrag_resilience.pipeline.registry import Guards, resolve_guards

from .protection import Protection

__all__ = ["QueryFailedError", "is_protected", "protect", "unprotect"]

_ATTRIBUTE = "_lightrag_resilience"


async def protect(rag: Any, *, registry: Guards | None = None) -> None:
    """Put guards around all dependencies of a LightRAG. A second call changes nothing.

    Guards are named after the provider where one of LightRAG's own functions is used, or called by
    yours (``llm.openai``, ``embedding.ollama``), else after the family (``llm``, ``embedding``,
    ``rerank``). With several hosts or models of one provider each has a guard of its own
    (``llm.openai.gpu1``). An attempt may take as long as LightRAG was given.

    One warning names what this release of LightRAG does not let it guard.

    Args:
        rag: A LightRAG 1.4.16 or later, before or after `initialize_storages`.
        registry: The guards to use; those of the process by default.

    Raises:
        SettingsError: A ``RESILIENCE_*`` variable is wrong.
        UnsupportedCallError: `rag` is no LightRAG that can be protected; or not all of it can be
            guarded, and ``RESILIENCE_STRICT`` is true.
        Exception: Any other error. All changes made so far are undone.
    """
    if isinstance(rag, type):
        name = rag.__name__
        raise UnsupportedCallError(
            f"protect() takes a LightRAG, not the class: write await protect({name}(...))"
        )
    if not hasattr(rag, "initialize_storages"):
        raise UnsupportedCallError(
            f"protect() takes a LightRAG of version 1.4.16 or later, not a {type(rag).__name__}"
        )
    if is_protected(rag):
        return
    protection = Protection(rag, resolve_guards(registry))
    setattr(rag, _ATTRIBUTE, protection)
    try:
        await protection.apply()
    except BaseException:
        with contextlib.suppress(Exception):  # the first error says what is wrong
            await unprotect(rag)
        raise


async def unprotect(rag: Any) -> None:
    """Restore a LightRAG's own functions. Does nothing if it is not protected."""
    protection: Protection | None = vars(rag).pop(_ATTRIBUTE, None)
    if protection is not None:
        await protection.undo()


def is_protected(rag: Any) -> bool:
    """Whether `protect` was called on this instance, and `unprotect` was not."""
    return _ATTRIBUTE in vars(rag)
