"""What an answer must be to count as one: texts, streams, structures, vectors and ranks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lightrag")

from lightrag.llm.openai import InvalidResponseError

from lightrag_resilience import FailureKind, InvalidResultError
from lightrag_resilience.failures.classifier import classify
from lightrag_resilience.failures.kinds import TRANSIENT
from lightrag_resilience.integrations.lightrag import contracts
from lightrag_resilience.integrations.lightrag.compat import completion_mark
from lightrag_resilience.integrations.lightrag.contracts import (
    Completion,
    Contract,
    Embedding,
    Rerank,
    under_contract,
    without_invalid_answers,
)
from lightrag_resilience.testing.invalid_answers import HTML_PAGE
from support.streams import collected
from support.virtual_time import anyio_backend

__all__ = ["anyio_backend"]

pytestmark = [pytest.mark.anyio, pytest.mark.lightrag]

COMPLETION_MARK = completion_mark()
JSON: dict[str, Any] = {"response_format": {"type": "json_object"}}
EXTRACTION: dict[str, Any] = {"system_prompt": f"Extract entities and end with {COMPLETION_MARK}."}
CUT = '{"entities": [{"name": "Ada", "description": "Ada found'


def completion(prompt: str = "Who?", **kwargs: Any) -> Completion:
    return Completion("llm", (prompt,), kwargs)


def broken(contract: Contract, result: Any) -> InvalidResultError:
    with pytest.raises(InvalidResultError) as raised:
        contract.checked(result)
    return raised.value


# ---------------------------------------------------------------------- completions

WRAPPED = ["\ufeff<html>", '<?xml version="1.0"?>\n<!DOCTYPE html>', "<!-- cached\n -->\n<html>"]


@pytest.mark.parametrize("text", ["Ada.", "0", "<p>Ada</p>", "<think>..</think>", "{", "<html5>"])
def test_a_text_is_a_completion(text: str) -> None:
    assert completion().checked(text) == text


@pytest.mark.parametrize(
    "page", [HTML_PAGE, "\n<html>", "<!doctype HTML><head>", "<html lang=en>", *WRAPPED]
)
def test_an_html_page_is_the_providers_failure(page: str) -> None:
    error = broken(completion(), page)
    assert str(error) == "'llm' answered with an HTML page instead of a text"
    assert classify(error).counts


def test_an_html_page_is_an_answer_where_one_is_asked_for() -> None:
    assert completion("Write an HTML page.").checked(HTML_PAGE) == HTML_PAGE
    assert completion("Write", system_prompt="You write html.").checked(HTML_PAGE) == HTML_PAGE
    said = [{"role": "user", "content": "An HTML page, please."}]
    assert completion("Again", history_messages=said).checked(HTML_PAGE) == HTML_PAGE
    for prompt in (
        "Make me a web page.",
        "写一个网页",
        "Напиши веб-страницу",
        "Crea una página web",
    ):
        assert completion(prompt).checked(HTML_PAGE) == HTML_PAGE


@pytest.mark.parametrize("options", [JSON, EXTRACTION])
def test_no_structure_is_an_html_page(options: dict[str, Any]) -> None:
    """The text to extract from may speak of HTML."""
    assert "HTML page" in str(broken(completion("HTML is a language.", **options), HTML_PAGE))


def test_only_the_first_empty_text_of_a_call_counts() -> None:
    """The same prompt may be the cause of them all."""
    contract = completion()
    verdicts = [classify(broken(contract, text)) for text in ("", " \n", None)]
    assert [verdict.kind for verdict in verdicts] == [FailureKind.TRANSIENT] * 3
    assert [verdict.counts for verdict in verdicts] == [True, False, False]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (HTML_PAGE, "with an HTML page"),
        (" \n", "with an empty body"),
        ("no such tenant", "with something that cannot be read: JSONDecodeError"),
    ],
)
def test_an_answer_that_a_binding_cannot_read_is_told_by_what_it_is(body: str, reason: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - JSON's own
        json.loads(body)
    error: Any = raised.value
    error.__resilience_failure__ = TRANSIENT  # as if an SDK had read it
    told = completion().broken_by(error)
    assert told is not None
    assert told.reason == reason
    assert completion().broken_by(ValueError("a bug")) is None


def test_three_empty_texts_of_a_slow_model_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contracts, "_LONG", -1.0)
    contract = completion()
    kinds = [classify(broken(contract, "")).kind for _ in range(3)]
    assert kinds == [FailureKind.TRANSIENT] * 2 + [FailureKind.FATAL]
    assert contract.accepts_after(broken(contract, ""))


async def test_the_openai_bindings_error_for_an_empty_text_is_one_of_an_empty_text() -> None:
    async def complete(_: str) -> str:
        raise InvalidResponseError("Received empty content from OpenAI API (finish_reason=stop)")

    contract = completion()
    counted = []
    for _ in range(2):
        with pytest.raises(InvalidResultError) as raised:
            await contract.call(complete, ("Who?",), {})
        counted.append(classify(raised.value).counts)
    assert counted == [True, False]


@pytest.mark.parametrize(
    "why",
    ["OpenAI API (finish_reason=content_filter, ...)", "Ollama API (done_reason=length, ...)"],
)
async def test_an_empty_text_by_a_filter_or_a_token_limit_is_no_outage(why: str) -> None:
    async def complete(_: str) -> str:
        raise InvalidResponseError(f"Received empty content from {why}")

    with pytest.raises(InvalidResponseError) as raised:
        await completion().call(complete, ("Who?",), {})
    assert classify(raised.value).kind is FailureKind.FATAL


def test_what_is_no_text_is_left_to_lightrag() -> None:
    result: dict[str, Any] = {"high_level_keywords": []}
    assert completion().checked(result) is result


# ---------------------------------------------------------------------- structures


@pytest.mark.parametrize(
    "text",
    ["{}", '```json\n{"a": 1}\n```', 'Here: {"a": 1} as asked', '{"a" 1}', '{"a": "\\frac"}'],
)
def test_json_that_lightrag_can_read_or_repair_passes(text: str) -> None:
    assert completion(**JSON).checked(text) == text


@pytest.mark.parametrize("length", range(1, len(CUT), 3))
def test_json_that_ends_in_the_middle_was_lost_on_its_way(length: int) -> None:
    contract = completion(**JSON)
    for _ in range(3):
        assert classify(broken(contract, CUT[:length])).counts
    assert contract.accepted_after(broken(contract, CUT[:length])) == CUT[:length]


def test_json_that_a_token_limit_has_cut_is_not_requested_again() -> None:
    utils: Any = pytest.importorskip("lightrag.utils")
    if not hasattr(utils, "TruncatedResponse"):
        pytest.skip("LightRAG 1.4 does not mark it")
    assert completion(**JSON).checked(utils.TruncatedResponse(CUT)) == CUT


@pytest.mark.parametrize("options", [JSON, EXTRACTION])
def test_a_text_in_place_of_a_structure_is_requested_once_more_and_never_counts(
    options: dict[str, Any],
) -> None:
    contract = completion(**options)
    error = broken(contract, "I am sorry.")
    assert classify(error).kind is FailureKind.TRANSIENT
    assert not classify(error).counts
    assert contract.checked("I am sorry.") == "I am sorry."
    assert contract.accepted_after(error) == "I am sorry."


@pytest.mark.parametrize(
    "text",
    [COMPLETION_MARK, "entity<|#|>Ada<|#|>Person<|#|>Founder", "intro\n- relation<|#|>A<|#|>B"],
)
def test_an_extraction_has_a_record_or_its_end(text: str) -> None:
    assert completion(**EXTRACTION).checked(text) == text


@pytest.mark.parametrize("repeated", ["\n", "- - -\n", "-", ". ", "<!--", "\ufeff", "<?xml "])
@pytest.mark.parametrize("options", [EXTRACTION, JSON, {}])
def test_a_text_that_repeats_itself_is_judged_at_once(
    options: dict[str, Any], repeated: str
) -> None:
    """Models do so until a token limit ends them. A search for a record took a minute."""
    began = time.thread_time()
    with contextlib.suppress(InvalidResultError):
        completion(**options).checked("Sorry" + repeated * 30_000)
    assert time.thread_time() - began < 1.0


def test_other_errors_are_raised_after_an_unreadable_text() -> None:
    contract = completion(**JSON)
    broken(contract, "I am sorry.")
    assert contract.accepted_after(ConnectionResetError()) is None
    assert contract.accepted_after(broken(contract, HTML_PAGE)) is None
    assert completion().accepted_after(broken(completion(), "")) is None


# ---------------------------------------------------------------------- streams


async def words(*items: Any) -> AsyncIterator[Any]:
    for item in items:
        await asyncio.sleep(0)
        yield item


async def test_a_stream_of_text_is_passed_on() -> None:
    items = ["", " ", "Ada", " founded", "<html>"]
    assert await collected(completion().checked(words(*items))) == items


@pytest.mark.parametrize(
    ("items", "counts"),
    [((), True), (("", " \n"), False), ((None,), False), ((HTML_PAGE,), True)],
)
async def test_a_stream_without_text_or_with_a_page_is_none(
    items: tuple[Any, ...],
    counts: bool,  # noqa: FBT001
) -> None:
    with pytest.raises(InvalidResultError) as raised:
        await collected(completion().checked(words(*items)))
    assert classify(raised.value).kind is FailureKind.TRANSIENT
    assert classify(raised.value).counts is counts


# ---------------------------------------------------------------------- vectors


def embedding(texts: int = 2, dimension: int = 3) -> Embedding:
    return Embedding(dimension, "embedding", (["text"] * texts,), {})


@pytest.mark.parametrize(
    "vectors",
    [np.eye(3)[:2], np.eye(3, dtype=np.float16)[:2], np.eye(3)[:2].ravel(), [[1, 0, 0], [0, 9, 0]]],
)
def test_as_many_vectors_as_texts_are_embeddings(vectors: Any) -> None:
    assert embedding().checked(vectors) is vectors


@pytest.mark.parametrize(
    ("vectors", "reason"),
    [
        (np.eye(3)[:1], "with 1 vectors for 2 texts"),
        (np.eye(3), "with 3 vectors for 2 texts"),
        (np.ones((2, 2)), "with vectors of 2 numbers where LightRAG expects 3: see EMBEDDING_DIM"),
        (np.ones((1, 6)), "with vectors of 6 numbers where LightRAG expects 3: see EMBEDDING_DIM"),
        (np.array([[1.0, np.nan, 0.0], [1.0, 0.0, 0.0]]), "with vectors that are not finite"),
        (np.array([[1.0, np.inf, 0.0], [1.0, 0.0, 0.0]]), "with vectors that are not finite"),
        (np.zeros((2, 3)), "with vectors of zeros"),
        ([[1.0, 2.0, 3.0], [1.0]], "with vectors that are none"),
        ("<html>", "with vectors that are none"),
        (None, "with 0 vectors for 2 texts"),
    ],
)
def test_other_vectors_are_the_providers_failure(vectors: Any, reason: str) -> None:
    error = broken(embedding(), vectors)
    assert reason in str(error)
    assert classify(error).counts


def test_one_vector_of_zeros_is_requested_once_more_and_does_not_count() -> None:
    contract, vectors = embedding(), np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    error = broken(contract, vectors)
    assert classify(error).kind is FailureKind.TRANSIENT
    assert not classify(error).counts
    assert contract.checked(vectors) is vectors


# ---------------------------------------------------------------------- ranks


def rank(index: Any, score: Any = 0.5) -> dict[str, Any]:
    return {"index": index, "relevance_score": score}


def rerank() -> Rerank:
    return Rerank("rerank", (), {"query": "Who?", "documents": ["a", "b"], "top_n": 1})


@pytest.mark.parametrize(
    "ranks", [[rank(1)], [rank(1), rank(0)], ["a document"], [rank(np.int64(1), -3.5)]]
)
def test_ranks_of_documents_that_were_sent_are_ranks(ranks: Any) -> None:
    """A reranker that ignores `top_n` is none the worse: LightRAG takes the first."""
    assert rerank().checked(ranks) is ranks


@pytest.mark.parametrize(
    "ranks",
    [
        [],
        [rank(2)],
        [rank(-1)],
        [rank("0")],
        [rank(True)],
        [rank(0), rank(0)],
        [rank(0, float("nan"))],
        [rank(0, "high")],
    ],
)
def test_other_ranks_are_the_rerankers_failure(ranks: Any) -> None:
    assert classify(broken(rerank(), ranks)).counts


def test_no_rank_counts_once_and_is_requested_three_times_at_the_most() -> None:
    """A reranker with a threshold finds nothing, or its gateway answered in its place."""
    contract = rerank()
    verdicts = [classify(broken(contract, [])) for _ in range(3)]
    assert [verdict.counts for verdict in verdicts] == [True, False, False]
    assert [verdict.kind is FailureKind.FATAL for verdict in verdicts] == [False, False, True]


# ---------------------------------------------------------------------- probes and the cache


async def test_a_probe_under_a_contract_fails_by_an_invalid_answer() -> None:
    async def embed(texts: list[str]) -> Any:
        return np.zeros((len(texts), 3))

    def contract(*call: Any) -> Embedding:
        return Embedding(3, *call)

    with pytest.raises(InvalidResultError):
        await under_contract(contract, "embedding", embed)(["probe"])


class Cache:
    def __init__(self, **entries: Any) -> None:
        self.entries = entries
        self.fails = False

    async def get_by_id(self, key: str) -> Any:
        return self.entries.get(key)

    async def delete(self, keys: list[str]) -> None:
        if self.fails:
            raise ConnectionError("down")
        for key in keys:
            del self.entries[key]


@pytest.mark.parametrize("text", ["", " ", HTML_PAGE, CUT])
async def test_a_cached_answer_that_is_none_is_deleted_and_not_served(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = Cache(key={"return": text, "original_prompt": "Who founded Alderwick?"})
    assert await without_invalid_answers(cache)("key") is None
    assert cache.entries == {}
    assert "requested anew" in caplog.text
    assert "Alderwick" not in caplog.text


async def test_no_cached_extraction_is_a_page() -> None:
    entry = {"return": HTML_PAGE, "original_prompt": "Of a website", "cache_type": "extract"}
    assert await without_invalid_answers(Cache(key=entry))("key") is None


async def test_a_cached_answer_that_cannot_be_deleted_is_not_served_either() -> None:
    cache = Cache(key={"return": HTML_PAGE})
    cache.fails = True
    assert await without_invalid_answers(cache)("key") is None


@pytest.mark.parametrize(
    "entry",
    [
        None,
        {"return": "Ada."},
        {"return": '{"high_level_keywords": []}'},
        {"return": HTML_PAGE, "original_prompt": "Write an HTML page."},
        {"return": HTML_PAGE, "original_prompt": "Who?", "queryparam": {"user_prompt": "As HTML."}},
        {"another": "shape"},
    ],
)
async def test_other_cached_answers_are_served(entry: Any) -> None:
    assert await without_invalid_answers(Cache(key=entry))("key") == entry
