"""Answers made with what is still there, and marked as such."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

from lightrag import QueryParam
from lightrag.prompt import PROMPTS

from lightrag_resilience.composition.stale_cache import StaleCache
from lightrag_resilience.errors import CallRejected, DependencyError
from lightrag_resilience.failures.classifier import FailureKind, classify
from lightrag_resilience.integrations.lightrag.work.context import current_request
from lightrag_resilience.integrations.lightrag.work.query_errors import Answer, mark, streamed

from .levels import QueryComponent, level_for
from .substitutes import with_substitutes

__all__ = ["Degradation"]

R = TypeVar("R")

_log = logging.getLogger("lightrag_resilience")


class Degradation:
    """Goes down the ladder of answers, one part that is away after the other.

    Args:
        rag: The LightRAG.
        parts_of: For the name of a dependency, what a query loses with it.
        stale_for: Seconds for which an answer is kept, to be given again; 0 keeps none.
    """

    def __init__(
        self, rag: Any, parts_of: Callable[[str], frozenset[QueryComponent]], stale_for: float
    ) -> None:
        self._rag = rag
        self._parts_of = parts_of
        self._stale_for = stale_for
        self._old = self._nothing_old()

    def around(
        self, whole: Callable[..., Awaitable[Answer]], method: Callable[..., Awaitable[Answer]]
    ) -> Callable[..., Any]:
        """A query method that degrades.

        Args:
            whole: The method of the instance, which may be its user's own.
            method: That of its class, which can be told what stands in for a part.
        """

        @functools.wraps(whole)
        async def ask(query: str, param: Any = None, *args: Any, **kwargs: Any) -> Answer:
            param = QueryParam() if param is None else param
            memory = self._old  # an answer from before a deletion goes into what was forgotten
            try:
                answer = await whole(query, param, *args, **kwargs)
            except DependencyError as error:
                if not _is_away(error):
                    raise
                old = self._remembered(method, error, query, param, *args, **kwargs)
                return old or await self._descend(method, error, query, param, *args, **kwargs)
            if memory is not None:
                _remember(memory, method, answer, query, param, *args, **kwargs)
            return answer

        return ask

    def forgetting(self, method: Callable[..., Awaitable[R]]) -> Callable[..., Awaitable[R]]:
        """A method that deletes: no answer from before it is given again."""

        @functools.wraps(method)
        async def forget(*args: Any, **kwargs: Any) -> R:
            try:
                return await method(*args, **kwargs)
            finally:  # a deletion that failed may have done half of it
                self._old = self._nothing_old()

        return forget

    def _nothing_old(self) -> StaleCache | None:
        return StaleCache(max_age=self._stale_for, key=_question) if self._stale_for else None

    async def _descend(
        self,
        method: Callable[..., Awaitable[Answer]],
        first: DependencyError,
        query: str,
        param: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Answer:
        """The fullest answer that can be made, else the first error."""
        missing: dict[QueryComponent, DependencyError] = {}
        error = first
        while True:
            lost = self._parts_of(error.dependency) - missing.keys()
            missing |= dict.fromkeys(lost, error)
            rung = level_for(param.mode, missing.keys())
            if not lost or rung is None:
                raise first
            rag = with_substitutes(self._rag, rung)
            try:
                answer = await method(rag, query, rung.change(query, param), *args, **kwargs)
            except DependencyError as another:
                if not _is_away(another):
                    raise
                error = another
            else:
                if not _says_something(answer, context_only=rung.context_only):
                    raise first  # nothing found in the half of what there is means nothing
                return _marked(answer, missing)

    def _remembered(
        self, method: Callable[..., Any], error: DependencyError, *args: Any, **kwargs: Any
    ) -> Answer | None:
        if self._old is None:
            return None
        old = self._old.recall(self._old.key_of(method.__name__, args, kwargs))
        if old is None:
            return None
        answer: Answer = old.value
        answer.setdefault("metadata", {})["stale_for"] = round(old.age, 1)
        mark(answer, {error.dependency: error})
        note = f"Answer of {_ago(old.age)}: {error.dependency!r} is unavailable."
        return _noted(answer, note)


def _remember(
    memory: StaleCache, method: Callable[..., Any], answer: Answer, *args: Any, **kwargs: Any
) -> None:
    key = memory.key_of(method.__name__, args, kwargs)
    if answer.get("status") != "success":
        memory.forget(key)  # what was found then is found no more
    elif not (answer.get("llm_response") or {}).get("is_streaming"):
        memory.remember(key, "lightrag", answer)


def _question(query: str, param: Any, *args: Any, **kwargs: Any) -> str:
    """All that an answer depends on."""
    kwargs.pop("progress_callback", None)
    asked = {**dataclasses.asdict(param), "stream": None}
    return repr((query, sorted(asked.items()), args, sorted(kwargs.items())))


def _is_away(error: DependencyError) -> bool:
    """Whether waiting would mend it: a wrong key is to be seen, not to be worked around."""
    if isinstance(error, CallRejected):
        return True
    return classify(error.__cause__ or error).kind is not FailureKind.FATAL


def _says_something(answer: Answer, *, context_only: bool) -> bool:
    if answer.get("status") != "success":
        return False
    response = answer.get("llm_response")
    return response is None or context_only or response.get("content") != PROMPTS["fail_response"]


def _marked(answer: Answer, missing: Mapping[QueryComponent, DependencyError]) -> Answer:
    errors = {error.dependency: error for error in missing.values()}
    mark(answer, errors)
    names = " and ".join(repr(name) for name in errors)
    level = logging.INFO if current_request.get() is None else logging.DEBUG  # that has its line
    _log.log(level, "A query was answered without %s", names)
    unavailable = f"{names} {'is' if len(errors) == 1 else 'are'} unavailable."
    if QueryComponent.MODEL in missing:
        answer.get("llm_response", {})["llm_generated"] = False
        return _noted(answer, f"No answer, but what was found to answer from: {unavailable}")
    parts = " and ".join(missing)
    return _noted(answer, f"Answered without {parts}: {unavailable}")


def _noted(answer: Answer, note: str) -> Answer:
    """An answer that begins with a note for its reader."""

    async def after_note(stream: AsyncIterator[str]) -> AsyncIterator[str]:
        yield f"[{note}]\n\n"
        async for item in stream:
            yield item

    response = answer.get("llm_response") or {}
    if response.get("content"):
        response["content"] = f"[{note}]\n\n{response['content']}"
    return streamed(answer, after_note)


def _ago(seconds: float) -> str:
    for unit, length in (("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "a moment ago"
