"""A batch that is refused for its size is sent in parts; it is no sign of an outage."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("lightrag")

from lightrag_resilience import FailureKind, Guards
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.failures.classifier import classify
from lightrag_resilience.failures.too_large import is_too_large
from lightrag_resilience.integrations.lightrag import protect
from support.lightrag_rig import DIMENSIONS, Provider, lightrag_on

pytestmark = [pytest.mark.anyio, pytest.mark.lightrag]


def refusal(status: int, message: str = "no") -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "http://provider/v1")
    response = httpx.Response(status, request=request)
    return httpx.HTTPStatusError(message, request=request, response=response)


class Small(Provider):
    """Takes a few texts or documents at once; the vector of a text is its length."""

    most = 3

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def _take(self, items: list[str]) -> None:
        self.sizes.append(len(items))
        if len(items) > self.most:
            raise refusal(413)

    async def embed(self, texts: list[str]) -> np.ndarray[Any, Any]:
        self._take(texts)
        return np.array([[float(len(text))] * DIMENSIONS for text in texts])

    async def rerank(self, query: str, documents: list[str], top_n: int | None = None) -> Any:
        del query
        self._take(documents)
        ranks = [
            {"index": index, "relevance_score": float(document)}
            for index, document in enumerate(documents)
        ]
        return sorted(ranks, key=lambda it: -it["relevance_score"])[:top_n]


def new_guards() -> Guards:
    return Guards(settings=load_settings({"RESILIENCE_RECOVERY": "false"}))


def counted(guards: Guards) -> int:
    return sum(guard.breaker.snapshot().failed for guard in guards)


async def test_a_batch_of_texts_that_is_too_large_is_embedded_in_halves() -> None:
    provider, guards = Small(), new_guards()
    async with lightrag_on(provider) as rag:
        await protect(rag, registry=guards)
        vectors = await rag.embedding_func(["x" * length for length in range(1, 11)])
    assert vectors[:, 0].tolist() == [float(length) for length in range(1, 11)]
    assert provider.sizes == [10, 5, 2, 3, 5, 2, 3]
    assert counted(guards) == 0


async def test_ranks_of_the_halves_are_merged_by_their_scores() -> None:
    provider, guards = Small(), new_guards()
    async with lightrag_on(provider) as rag:
        await protect(rag, registry=guards)
        documents = ["0.1", "0.9", "0.3", "0.8", "0.2"]
        ranks = await rag.rerank_model_func(query="Who?", documents=documents, top_n=3)
    assert [it["index"] for it in ranks] == [1, 3, 2]
    assert provider.sizes == [5, 2, 3]
    assert counted(guards) == 0


async def test_a_single_text_that_is_too_large_is_refused_once() -> None:
    provider, guards = Small(), new_guards()
    provider.most = 0
    async with lightrag_on(provider) as rag:
        await protect(rag, registry=guards)
        with pytest.raises(httpx.HTTPStatusError):
            await rag.embedding_func(["one", "two", "three", "four"])
    assert provider.sizes == [4, 2, 1]
    assert counted(guards) == 0


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (413, "no"),
        # vLLM and OpenAI
        (400, "This model's maximum context length is 8192 tokens. However, you requested 9000"),
        (400, "max_tokens_per_request: Requested 400000 tokens, max 300000 tokens per request"),
        # Cohere, Voyage, Mistral, Google, Bedrock
        (400, "invalid request: total number of texts must be at most 96 - received 100"),
        (400, "The max allowed tokens per submitted batch is 120000. Please lower the number"),
        (400, "Too many inputs in request. Max is 512."),
        (400, "BatchEmbedContentsRequest.requests: at most 100 requests can be in one batch"),
        (400, "Malformed input request: expected maxLength: 50000, actual: 60000"),
        # text-embeddings-inference, SiliconFlow, Infinity, NIM
        (422, "Input validation error: inputs must have less than 512 tokens. Given: 1050"),
        (400, "length of prompt_tokens (600) must be less than max_total_tokens (512)"),
        (422, "List should have at most 2048 items after validation, not 2049"),
        (400, "Input length 600 exceeds maximum allowed token size 512"),
        # DashScope, Zhipu
        (400, "InvalidParameter: Range of input length should be [1, 2048]"),
        (400, "\u8f93\u5165\u6570\u7ec4\u6700\u5927\u4e0d\u5f97\u8d85\u8fc764\u6761"),
        (400, "The batch size is limited to 128"),
        (422, "batch size 64 > maximum allowed batch size 32"),
        (400, "Invalid 'input': array too long. Expected an array with maximum length 2048"),
        (500, "the input length exceeds the context length"),
        (500, "the request exceeds the available context size"),
        (500, "input is too large to process. increase the physical batch size"),
    ],
)
def test_a_refusal_for_its_size_is_fatal_for_the_request_as_it_is(
    status: int, message: str
) -> None:
    error = refusal(status, message)
    assert is_too_large(error)
    assert classify(error).kind is FailureKind.FATAL


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "The model does not exist"),
        (400, "Invalid value for 'encoding_format': must be float or base64"),
        (400, "This model does not support specifying dimensions"),
        (422, "Input should be a valid string"),
        (401, "The key is too long"),
        (429, "Too many tokens: slow down"),
        (500, "The batch has failed"),
        (503, "The queue is too long"),
    ],
)
def test_other_refusals_are_not_about_the_size(status: int, message: str) -> None:
    assert not is_too_large(refusal(status, message))


def test_a_code_says_that_a_request_is_too_large() -> None:
    class ProviderError(Exception):
        status_code = 400
        code = "context_length_exceeded"

    error = ProviderError("no")
    error.code = "context_length_exceeded"
    assert is_too_large(error)
