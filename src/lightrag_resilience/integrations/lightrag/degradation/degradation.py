"""Answers from the dependencies that still work, marked as such."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

from lightrag import QueryParam

from lightrag_resilience.composition.stale_cache import StaleCache
from lightrag_resilience.errors import CallRejected, DependencyError
from lightrag_resilience.failures.classifier import FailureKind, classify
from lightrag_resilience.integrations.lightrag.compat import is_fail_response
from lightrag_resilience.integrations.lightrag.work.context import current_request
from lightrag_resilience.integrations.lightrag.work.query_errors import Answer, mark, streamed

from .levels import QueryComponent, level_for
from .substitutes import with_substitutes

__all__ = ["Degradation"]

R = TypeVar("R")

_log = logging.getLogger("lightrag_resilience")


class Degradation:
    """Answers queries at lower levels, with one more component missing at each failure.

    Args:
        rag: The LightRAG.
        components_of: For a dependency's name, what a query loses with it.
        stale_for: Seconds for which an answer may be served again; 0 keeps none.
    """

    def __init__(
        self, rag: Any, components_of: Callable[[str], frozenset[QueryComponent]], stale_for: float
    ) -> None:
        self._rag = rag
        self._components_of = components_of
        self._stale_for = stale_for
        self._stale = self._new_cache()

    def around(
        self, whole: Callable[..., Awaitable[Answer]], method: Callable[..., Awaitable[Answer]]
    ) -> Callable[..., Any]:
        """A query method that degrades.

        Args:
            whole: The method of the instance, which its user may have replaced.
            method: The method of its class, which takes a LightRAG with substitutes.
        """

        @functools.wraps(whole)
        async def ask(query: str, param: Any = None, *args: Any, **kwargs: Any) -> Answer:
            param = QueryParam() if param is None else param
            cache = self._stale  # a deletion meanwhile replaces it: this answer is then dropped
            try:
                answer = await whole(query, param, *args, **kwargs)
            except DependencyError as error:
                if not _is_outage(error):
                    raise
                old = self._remembered(method, error, query, param, *args, **kwargs)
                return old or await self._descend(method, error, query, param, *args, **kwargs)
            if cache is not None:
                _remember(cache, method, answer, query, param, *args, **kwargs)
            return answer

        return ask

    def clearing(self, method: Callable[..., Awaitable[R]]) -> Callable[..., Awaitable[R]]:
        """A method that deletes, and clears the cache of stale answers."""

        @functools.wraps(method)
        async def clear(*args: Any, **kwargs: Any) -> R:
            try:
                return await method(*args, **kwargs)
            finally:  # a failed deletion may have deleted some
                self._stale = self._new_cache()

        return clear

    def _new_cache(self) -> StaleCache | None:
        return StaleCache(max_age=self._stale_for, key=_key) if self._stale_for else None

    async def _descend(
        self,
        method: Callable[..., Awaitable[Answer]],
        first: DependencyError,
        query: str,
        param: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Answer:
        """The fullest answer that can still be made.

        Raises:
            DependencyError: No level answers. This is the first error.
        """
        missing: dict[QueryComponent, DependencyError] = {}
        error = first
        while True:
            lost = self._components_of(error.dependency) - missing.keys()
            missing |= dict.fromkeys(lost, error)
            level = level_for(param.mode, missing.keys())
            if not lost or level is None:
                raise first
            rag = with_substitutes(self._rag, level)
            try:
                answer = await method(rag, query, level.change(query, param), *args, **kwargs)
            except DependencyError as another:
                if not _is_outage(another):
                    raise
                error = another
            else:
                if not _has_content(answer, context_only=level.context_only):
                    raise first  # "nothing found" proves nothing while a part was not searched
                return _marked(answer, missing)

    def _remembered(
        self, method: Callable[..., Any], error: DependencyError, *args: Any, **kwargs: Any
    ) -> Answer | None:
        if self._stale is None:
            return None
        old = self._stale.recall(self._stale.key_of(method.__name__, args, kwargs))
        if old is None:
            return None
        answer: Answer = old.value
        answer.setdefault("metadata", {})["stale_for"] = round(old.age, 1)
        mark(answer, {error.dependency: error})
        note = f"Answer of {_ago(old.age)}: {error.dependency!r} is unavailable."
        return _noted(answer, note)


def _remember(
    cache: StaleCache, method: Callable[..., Any], answer: Answer, *args: Any, **kwargs: Any
) -> None:
    key = cache.key_of(method.__name__, args, kwargs)
    if answer.get("status") != "success":
        cache.forget(key)  # the older answer is outdated
    elif not (answer.get("llm_response") or {}).get("is_streaming"):
        cache.remember(key, "lightrag", answer)


def _key(query: str, param: Any, *args: Any, **kwargs: Any) -> str:
    """The cache key: everything that an answer depends on."""
    kwargs.pop("progress_callback", None)
    param_values = {**dataclasses.asdict(param), "stream": None}
    return repr((query, sorted(param_values.items()), args, sorted(kwargs.items())))


def _is_outage(error: DependencyError) -> bool:
    """Whether waiting may help. Other errors, such as a wrong key, are raised and not hidden."""
    if isinstance(error, CallRejected):
        return True
    return classify(error.__cause__ or error).kind is not FailureKind.FATAL


def _has_content(answer: Answer, *, context_only: bool) -> bool:
    if answer.get("status") != "success":
        return False
    response = answer.get("llm_response")
    return response is None or context_only or not is_fail_response(response.get("content"))


def _marked(answer: Answer, missing: Mapping[QueryComponent, DependencyError]) -> Answer:
    errors = {error.dependency: error for error in missing.values()}
    mark(answer, errors)
    names = " and ".join(repr(name) for name in errors)
    level = (
        logging.INFO if current_request.get() is None else logging.DEBUG
    )  # a request has its own log record
    _log.log(level, "A query was answered without %s", names)
    unavailable = f"{names} {'is' if len(errors) == 1 else 'are'} unavailable."
    if QueryComponent.MODEL in missing:
        answer.get("llm_response", {})["llm_generated"] = False
        return _noted(answer, f"No answer, but what was found to answer from: {unavailable}")
    components = " and ".join(missing)
    return _noted(answer, f"Answered without {components}: {unavailable}")


def _noted(answer: Answer, note: str) -> Answer:
    """An answer that begins with a note to its reader."""

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
