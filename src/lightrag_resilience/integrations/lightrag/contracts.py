"""What an answer must be: a contract for each kind of LightRAG's calls, checked in each attempt.

A result that breaks its contract is a failed attempt. It is the provider's failure and counts,
unless the model or the prompt of one call may be the cause.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from inspect import isasyncgen, isawaitable
from typing import Any, NoReturn

import numpy as np

from lightrag_resilience.errors import InvalidResultError
from lightrag_resilience.failures.classifier import classify, root_cause
from lightrag_resilience.failures.kinds import FATAL, LOCAL, TRANSIENT
from lightrag_resilience.streams.judged_items import JudgedItems
from lightrag_resilience.verdicts import Failure

from .compat import completion_mark, is_empty_answer, is_truncated

__all__ = [
    "Completion",
    "Contract",
    "Embedding",
    "EmptyAnswers",
    "NewContract",
    "Rerank",
    "under_contract",
    "without_invalid_answers",
]

_log = logging.getLogger("lightrag_resilience")

_PAGE = re.compile(
    r"[\s\ufeff]{0,200}(?:<\?xml[^>]{0,200}>\s{0,9})?(?:<!--.{0,2000}?-->\s{0,9})?"
    r"(?:<!doctype\s+html|<html[\s>])",
    re.IGNORECASE | re.DOTALL,
)
# A model that is asked for a page may write one without a word around it.
_ASKS_FOR_PAGE = re.compile(
    r"html|web[ -]?(?:page|site|seite)|(?:page|site|página|sitio|pagina|sito) web|landing page|"
    r"网页|網頁|网站|網站|ウェブ|ホームページ|웹|홈페이지|веб|сайт",
    re.IGNORECASE,
)
# Bounded: a model that repeats a line break without end would hold the event loop for a minute.
_RECORD = re.compile(r"^[^\w\n]{0,40}(?:entity|relation(?:ship)?)\W", re.MULTILINE | re.IGNORECASE)
_EMPTY, _HTML = "with an empty text", "with an HTML page instead of a text"
_CUT = "with JSON that ends in the middle"
# Errors of reading an answer; JSON's and pydantic's are ValueErrors.
_OF_READING = (AttributeError, TypeError, LookupError, ValueError)
_OF_BINDINGS = frozenset({"InvalidResponseError", "ContentTypeError"})  # LightRAG's, aiohttp's
_NO_JSON, _NO_RECORDS = "with a text instead of JSON", "with a text instead of an extraction"
# Of a slow model so many empty texts in so many seconds are enough: its call has no time for more.
_ENOUGH, _LONG = 3, 60.0
_UNREADABLE = frozenset({_CUT, _NO_JSON, _NO_RECORDS})


Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Contract:
    """The contract of one call, with all its attempts.

    Args:
        dependency: Name of its guard.
        args: Its positional arguments.
        kwargs: Its other arguments.
    """

    __slots__ = ("args", "dependency", "kwargs")

    def __init__(self, dependency: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.dependency = dependency
        self.args = args
        self.kwargs = kwargs

    async def call(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The result of an attempt, with a function of any async kind.

        Raises:
            InvalidResultError: It breaks the contract.
        """
        try:
            result = function(*args, **kwargs)
            if isawaitable(result):
                result = await result
        except Exception as error:
            if (invalid := self.broken_by(error)) is not None:
                raise invalid from error
            raise
        return self.checked(result)

    def checked(self, result: Any) -> Any:
        """The result of an attempt.

        Raises:
            InvalidResultError: It breaks the contract.
        """
        return result

    def broken_by(self, error: Exception) -> InvalidResultError | None:
        """The error of a broken contract, where that is what a function's error means.

        An SDK and LightRAG's bindings fail in many ways on a page in place of an answer, such as
        ``'str' object has no attribute 'choices'``.
        """
        cause = root_cause(error)
        if not isinstance(cause, _OF_READING) and type(cause).__name__ not in _OF_BINDINGS:
            return None
        verdict = classify(error)
        if not verdict.counts or verdict.status is not None:
            return None
        return InvalidResultError(self.dependency, None, _problem_of_body(cause), verdict)

    def accepted_after(self, error: Exception) -> Any:
        """The result to use nevertheless after the last attempt's error; None for the error."""
        del error

    def accepts_after(self, error: Exception) -> bool:
        """Whether another such answer is the model's own, if the provider answers other requests.

        From then on the contract lets it pass.
        """
        del error
        return False

    def halves(self) -> tuple[Arguments, Arguments] | None:
        """The arguments of two calls in place of one that is too large; None if it has no parts."""
        return None

    def joined(self, first: Any, second: Any) -> Any:
        """The result of the two calls, as that of the one."""
        raise NotImplementedError

    def _halved(self, position: int, name: str) -> tuple[Arguments, Arguments] | None:
        """The arguments with each half of a list."""
        whole = self._argument(position, name)
        if not isinstance(whole, (list, tuple)) or len(whole) < 2:  # noqa: PLR2004 - no half of one
            return None
        middle = len(whole) // 2
        first, second = (self._with(position, name, it) for it in (whole[:middle], whole[middle:]))
        return first, second

    def _with(self, position: int, name: str, value: Any) -> Arguments:
        if len(self.args) > position:
            return (*self.args[:position], value, *self.args[position + 1 :]), dict(self.kwargs)
        return self.args, self.kwargs | {name: value}

    def _break(self, reason: str, verdict: Failure = TRANSIENT) -> NoReturn:
        raise InvalidResultError(self.dependency, None, reason, verdict)

    def _argument(self, position: int, name: str) -> Any:
        is_given = len(self.args) > position
        return self.args[position] if is_given else self.kwargs.get(name)


class EmptyAnswers:
    """Whether a model is known to answer some prompts with an empty text, as small ones do."""

    __slots__ = ("are_known",)

    def __init__(self) -> None:
        self.are_known = False


class Completion(Contract):
    """Text that is not empty, no HTML page unless one was asked for, and readable if structured.

    An empty text may be the answer to this prompt alone: only the first in a call counts. It is
    one, as a page is, if after the last attempt the provider answers another prompt in another way,
    and this one as before. A text
    in place of a structure is the model's failure: it is requested once more, and never counts.
    JSON that ends in the middle, though the answer is said to be complete, was lost on its way.
    LightRAG gets what still cannot be read after the last attempt, and makes the best of it.

    Args:
        call: As of any contract.
        empty: What is known of the model's empty texts. Once one was its own answer, the next is
            requested only once more before the provider is asked, and does not count.
    """

    __slots__ = (
        "_accepted",
        "_began",
        "_empty_answers",
        "_empty_count",
        "_has_item",
        "_has_text",
        "_unreadable",
    )

    def __init__(self, *call: Any, empty: EmptyAnswers | None = None) -> None:
        super().__init__(*call)
        self._empty_answers = empty or EmptyAnswers()
        self._has_item = self._has_text = False
        self._empty_count, self._began = 0, time.monotonic()
        self._unreadable: str | None = None
        self._accepted: str | None = None

    def checked(self, result: Any) -> Any:
        """The text, or a stream whose items and end are judged."""
        if isasyncgen(result):
            self._has_text = self._has_item = False
            return JudgedItems(result, self.dependency, self._item, self._end)
        if result is None:  # the content of a message of Ollama, where a proxy has sent it
            result = ""
        if not isinstance(result, str):
            return result
        if (reason := problem_of_text(result, self._asks_for_html)) is not None:
            if reason == self._accepted:
                self._empty_answers.are_known |= reason == _EMPTY
                return result
            self._break(reason, self._empty() if reason == _EMPTY else TRANSIENT)
        if (reason := self._unreadable_as(result)) is not None:
            is_second, self._unreadable = self._unreadable is not None, result
            if reason == _CUT:
                self._break(reason)
            if not is_second:
                self._break(reason, LOCAL)
        return result

    def broken_by(self, error: Exception) -> InvalidResultError | None:
        """That of an empty text, for which LightRAG's OpenAI binding raises."""
        if is_empty_answer(root_cause(error)):
            return InvalidResultError(self.dependency, None, _EMPTY, self._empty())
        return super().broken_by(error)

    def accepted_after(self, error: Exception) -> Any:
        """An unreadable text, if the last attempt had one too: a page after it is an outage."""
        is_unreadable = isinstance(error, InvalidResultError) and error.reason in _UNREADABLE
        return self._unreadable if is_unreadable else None

    def accepts_after(self, error: Exception) -> bool:
        """An empty text, or a page that the model wrote; of no structure is a page an answer.

        LightRAG's OpenAI binding raises for an empty text, and its error is then final.
        """
        reason = error.reason if isinstance(error, InvalidResultError) else ""
        if reason != _EMPTY and (reason != _HTML or self._is_json() or self._is_extraction()):
            return False
        self._accepted = reason
        return True

    def _empty(self) -> Failure:
        was_empty, self._empty_count = self._empty_count > 0, self._empty_count + 1
        are_known = self._empty_answers.are_known
        is_slow = self._empty_count >= _ENOUGH and time.monotonic() > self._began + _LONG
        if self._accepted == _EMPTY or (was_empty and are_known) or is_slow:
            return FATAL  # not requested again
        return LOCAL if was_empty or are_known else TRANSIENT

    def _asks_for_html(self) -> bool:
        if self._is_json() or self._is_extraction():
            return False
        asked = self._argument(0, "prompt"), self._argument(2, "history_messages")
        # In LightRAG's system prompts are the texts that it has found.
        speaks_of_it = "html" in str(self._argument(1, "system_prompt")).lower()
        return speaks_of_it or _ASKS_FOR_PAGE.search(str(asked)) is not None

    def _is_json(self) -> bool:
        kind = self.kwargs.get("response_format")
        return isinstance(kind, dict) and kind.get("type") in {"json_object", "json_schema"}

    def _is_extraction(self) -> bool:
        system = self._argument(1, "system_prompt")
        return isinstance(system, str) and completion_mark() in system

    def _unreadable_as(self, text: str) -> str | None:
        """Why a structured text cannot be read; a token limit would cut the next one too."""
        if is_truncated(text):
            return None
        if self._is_json():
            return _problem_of_json(text)
        if not self._is_extraction() or completion_mark() in text:
            return None
        return None if _RECORD.search(text) else _NO_RECORDS

    def _item(self, item: Any) -> Failure | None:
        self._has_item = True
        if self._has_text or item is None:
            return None
        self._has_text = not isinstance(item, str) or bool(item.strip())
        if not isinstance(item, str):
            return None
        is_page = self._accepted != _HTML and _PAGE.match(item) and not self._asks_for_html()
        return Failure(TRANSIENT.kind, reason=_HTML) if is_page else None

    def _end(self, _: Any) -> Failure | None:
        if self._has_text or self._accepted == _EMPTY:
            return None
        # Items without text, with their finish marker, are the model's own; no item is no answer.
        verdict = LOCAL if self._has_item else self._empty()
        return replace(verdict, reason=_EMPTY)


def _problem_of_body(error: BaseException) -> str:
    """Why an answer cannot be read, by the error that reading it raised."""
    body = getattr(error, "doc", getattr(error, "obj", None))
    if isinstance(body, str) and _PAGE.match(body):
        return "with an HTML page"
    if isinstance(body, str) and not body.strip():
        return "with an empty body"
    return f"with something that cannot be read: {type(error).__name__}"


def problem_of_text(text: str, asks_for_html: Callable[[], bool]) -> str | None:
    """Why a text is no completion; None if it is one."""
    if not text or text.isspace():
        return _EMPTY
    return _HTML if _PAGE.match(text) and not asks_for_html() else None


def _problem_of_json(text: str) -> str | None:
    """Why a text has no readable JSON; LightRAG repairs lesser faults."""
    start = text.find("{")
    if start < 0:
        return _NO_JSON
    try:
        json.JSONDecoder().raw_decode(text, start)
    except json.JSONDecodeError as error:
        rest = text[error.pos :].strip()  # letters are a word that was cut, such as ``fal``
        is_cut = not rest or rest.isalpha() or error.msg.startswith("Unterminated string")
        return _CUT if is_cut else None
    except RecursionError:
        return None
    return None


class Embedding(Contract):
    """As many vectors as texts, of the right dimension, finite, and not all zero.

    A vector of zeros beside others may be what the model makes of that text: it is requested once
    more, and does not count. LightRAG's own store would rank it, without a direction, first in each
    query.
    """

    __slots__ = ("_dimension", "_had_zeros")

    def __init__(self, dimension: int, *call: Any) -> None:
        super().__init__(*call)
        self._dimension = dimension
        self._had_zeros = False

    def checked(self, result: Any) -> Any:
        """The vectors."""
        texts = self._argument(0, "texts")
        try:
            vectors = np.asarray(result, dtype=np.float64)
        except (TypeError, ValueError):  # ragged, or no numbers
            self._break("with vectors that are none")
        size = self._dimension
        if vectors.ndim == 2 and vectors.shape[1] != size:  # noqa: PLR2004 - texts, numbers
            self._break(
                f"with vectors of {vectors.shape[1]} numbers where LightRAG expects {size}: see "
                "EMBEDDING_DIM"
            )
        if isinstance(texts, (list, tuple)) and vectors.size != len(texts) * size:
            self._break(f"with {vectors.size // size} vectors for {len(texts)} texts")
        if not np.isfinite(vectors).all():
            self._break("with vectors that are not finite")
        if vectors.size and not vectors.any():
            self._break("with vectors of zeros")
        if not self._had_zeros and not vectors.reshape(-1, size).any(axis=1).all():
            self._had_zeros = True
            self._break("with a vector of zeros", LOCAL)
        return result

    def halves(self) -> tuple[Arguments, Arguments] | None:
        """Each half of the texts."""
        return self._halved(0, "texts")

    def joined(self, first: Any, second: Any) -> Any:
        """All vectors."""
        return np.concatenate([np.asarray(first), np.asarray(second)])


class Rerank(Contract):
    """Ranks of documents that were sent, each at most once, with finite scores.

    No rank at all may be the answer of a reranker with a threshold: only the first in a call
    counts, and the third is the last, in a brownout too. LightRAG then does without ranks.
    """

    __slots__ = ("_empty",)

    def __init__(self, *call: Any) -> None:
        super().__init__(*call)
        self._empty = 0

    def checked(self, result: Any) -> Any:
        """The ranks; what is in another form is LightRAG's to judge."""
        documents = self._argument(1, "documents")
        if not isinstance(documents, (list, tuple)) or not isinstance(result, list):
            return result
        if not result and documents:
            verdict = (TRANSIENT, LOCAL, FATAL)[min(self._empty, 2)]
            self._empty += 1
            self._break(f"with no rank for {len(documents)} documents", verdict)
        ranks = [it for it in result if isinstance(it, dict) and "index" in it]
        indices = [it["index"] for it in ranks]
        if not all(_is_index(it) and 0 <= it < len(documents) for it in indices):
            self._break("with a rank of a document that was not sent")
        if len(set(indices)) < len(indices):
            self._break("with two ranks of one document")
        if not all(_is_finite(it.get("relevance_score", 0.0)) for it in ranks):
            self._break("with a score that is no finite number")
        return result

    def halves(self) -> tuple[Arguments, Arguments] | None:
        """Each half of the documents."""
        return self._halved(1, "documents")

    def joined(self, first: Any, second: Any) -> Any:
        """The best of both halves: a reranker scores each document by itself."""
        middle = len(self._argument(1, "documents")) // 2
        ranks = [*first, *second]
        if all(isinstance(it, dict) and "index" in it and "relevance_score" in it for it in ranks):
            ranks = [*first, *({**it, "index": it["index"] + middle} for it in second)]
            ranks.sort(key=lambda it: -float(it["relevance_score"]))
        return ranks[: self._argument(2, "top_n") or len(ranks)]


def _is_index(value: object) -> bool:
    # numpy's too: a reranker of one's own sorts with it, and LightRAG takes them or leaves them.
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _is_finite(score: object) -> bool:
    try:
        return math.isfinite(float(score))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return False


NewContract = Callable[[str, tuple[Any, ...], dict[str, Any]], Contract]
"""Makes the contract of a call: by its guard's name and its arguments."""


def under_contract(
    contract: NewContract, dependency: str, function: Callable[..., Any]
) -> Callable[..., Any]:
    """A function whose calls have one attempt each, as those of a probe."""

    async def call(*args: Any, **kwargs: Any) -> Any:
        return await contract(dependency, args, kwargs).call(function, args, kwargs)

    return call


# ---------------------------------------------------------------------- LightRAG's cache


def without_invalid_answers(cache: Any) -> Callable[..., Any]:
    """The `get_by_id` of LightRAG's cache of answers: what is no answer is deleted, not served.

    It may have been stored before answers were checked.
    """
    get_by_id = cache.get_by_id

    @functools.wraps(get_by_id)
    async def get_valid(key: str) -> Any:
        entry = await get_by_id(key)
        if entry is None or (reason := _problem_of_entry(entry)) is None:
            return entry
        _log.warning("A cached answer of LightRAG is requested anew: it was stored %s", reason)
        with suppress(Exception):  # it is not served in any case
            await cache.delete([key])
        return None

    return get_valid


def _problem_of_entry(entry: Any) -> str | None:
    text = entry.get("return") if isinstance(entry, dict) else None
    if not isinstance(text, str):
        return None

    def asks_for_page() -> bool:
        if entry.get("cache_type") == "extract":  # the text to extract from may speak of pages
            return False
        question, instructions = entry.get("original_prompt"), entry.get("queryparam")
        return bool(_ASKS_FOR_PAGE.search(f"{question} {instructions}"))

    if (reason := problem_of_text(text, asks_for_page)) is not None:
        return reason
    return _problem_of_json(text) if text.lstrip().startswith("{") else None
