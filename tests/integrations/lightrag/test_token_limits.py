"""A limit on tokens holds for every script, by the count of the provider itself."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")
pytest.importorskip("ollama")

import certifi
from lightrag.llm import ollama, openai
from lightrag.utils import Tokenizer

from lightrag_resilience import Guards
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.integrations.lightrag import protect
from lightrag_resilience.integrations.lightrag.compat import takes_tracker
from lightrag_resilience.limits import token_usage
from lightrag_resilience.testing.simulator import Simulator
from support.lightrag_rig import Provider, lightrag_on

pytestmark = [pytest.mark.anyio, pytest.mark.lightrag, pytest.mark.once]

TPM = 150_000
TEXTS = {
    "English": "Marie Curie discovered polonium in Paris together with her husband Pierre. ",
    "Chinese": "居里夫人与丈夫皮埃尔在巴黎共同发现了元素钋，实验室又小又冷，但他们的测量非常精确。",  # noqa: RUF001
    "Japanese": "マリー・キュリーは夫のピエールとともにパリで元素ポロニウムを発見した。",
    "Korean": "마리 퀴리는 남편 피에르와 함께 파리에서 폴로늄 원소를 발견했다. ",
    "Russian": "Мария Кюри вместе со своим мужем Пьером открыла в Париже элемент полоний. ",  # noqa: RUF001
    "code": Path(token_usage.__file__).read_text(encoding="utf-8"),
}


class NoTable:
    """A tokenizer whose table cannot be loaded."""

    def encode(self, content: str) -> list[int]:
        raise OSError(content[:0])

    decode = encode


def through_openai(provider: Simulator) -> Callable[..., Any]:
    return functools.partial(
        openai.openai_complete_if_cache, "simulated", base_url=provider.base_url, api_key="none"
    )


def through_ollama(provider: Simulator) -> Callable[..., Any]:
    model = functools.partial(ollama._ollama_model_if_cache, "simulated")
    return functools.partial(model, host=provider.base_url.removesuffix("/v1"))


def model_of(rag: Any) -> Any:
    return rag.role_llm_funcs["query"] if hasattr(rag, "role_llm_funcs") else rag.llm_model_func


@pytest.fixture(autouse=True)
def one_authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call of a binding makes a client, which takes long to read all authorities."""
    first, end, _ = Path(certifi.where()).read_text(encoding="utf-8").partition("-----END CERT")
    (tmp_path / "one.pem").write_text(f"{first}{end}IFICATE-----\n", encoding="utf-8")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "one.pem"))


async def worst_window(provider: Simulator, model: Callable[..., Any], text: str) -> float:
    """The most tokens that a minute can get, of its limit, while twelve calls want to be sent."""
    prompt = (text * 400)[: 1500 if len(text.encode()) > 2 * len(text) else 6000]
    provider.begin()
    await asyncio.gather(*(model(f"{n} {prompt}", max_tokens=16, stream=False) for n in range(12)))
    sent, worst = 0, 0.0
    for seen in provider.calls:
        sent += seen.tokens
        # A minute may get what is sent at once, and then what the limit lets through.
        worst = max(worst, 1 + sent / TPM - seen.at / 60)
    return worst


@pytest.mark.parametrize(
    "binding",
    [
        through_openai,
        pytest.param(
            through_ollama,
            marks=pytest.mark.skipif(
                not takes_tracker(ollama.ollama_model_complete),
                reason="LightRAG 1.4 reads no usage there",
            ),
        ),
    ],
)
async def test_no_window_has_more_tokens_than_a_tenth_above_the_limit(
    binding: Callable[[Simulator], Any],
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        asked = []
        for text in TEXTS.values():
            guards = Guards(settings=load_settings({"RESILIENCE_LLM__LIMIT__TPM": str(TPM)}))
            provider = await stack.enter_async_context(Simulator(latency=0.05))
            rag = await stack.enter_async_context(
                lightrag_on(
                    Provider(),
                    llm_model_func=binding(provider),
                    llm_model_max_async=12,
                    tokenizer=Tokenizer("none", NoTable()),
                )
            )
            await protect(rag, registry=guards)
            asked.append(worst_window(provider, model_of(rag), text))
        worst = dict(zip(TEXTS, await asyncio.gather(*asked), strict=True))
    assert {script: share for script, share in worst.items() if share > 1.10} == {}
