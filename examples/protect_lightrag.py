"""With pip install '.[demo]': a protected LightRAG lives through an outage; all on this machine.

Run it: python examples/protect_lightrag.py
"""

import asyncio
import logging
import sys
import tempfile
from functools import partial
from typing import Any

try:
    import openai  # noqa: F401 - LightRAG would install it by itself
    from lightrag import LightRAG, QueryParam
    from lightrag.llm.openai import openai_complete_if_cache, openai_embed
    from lightrag.utils import EmbeddingFunc, Tokenizer

    from lightrag_resilience import ResilienceError, guard, protect
    from lightrag_resilience.testing import Fault, Simulator
except ImportError as error:
    sys.exit(f"This example needs {error.name}: in a clone, pip install '.[demo]'")


class Characters:
    """A tokenizer that downloads nothing."""

    def encode(self, content: str) -> list[int]:
        """One token a character."""
        return [ord(character) for character in content]

    def decode(self, tokens: list[int]) -> str:
        """The text again."""
        return "".join(map(chr, tokens))


def make_rag(provider: Simulator, folder: str) -> Any:
    """A LightRAG as you would make it for OpenAI, with another base URL."""
    connection = {"base_url": provider.base_url, "api_key": "not-a-secret"}
    embed = partial(openai_embed.func, model="simulated", embedding_dim=64, **connection)
    return LightRAG(
        working_dir=folder,
        llm_model_func=partial(openai_complete_if_cache, "simulated", **connection),
        embedding_func=EmbeddingFunc(embedding_dim=64, func=embed),
        tokenizer=Tokenizer("characters", Characters()),
    )


async def ask(rag: Any, question: str) -> None:
    """Print an answer, or why there is none."""
    try:
        print("Answer: ", await rag.aquery(question, QueryParam(mode="mix", enable_rerank=False)))
    except ResilienceError as error:
        print("Refused:", error)


async def main() -> None:
    """Ingest, ask, lose the provider, ask, get it back, ask."""
    with tempfile.TemporaryDirectory() as folder:
        async with Simulator(seed=1) as provider:
            rag = make_rag(provider, folder)
            await rag.initialize_storages()
            await protect(rag)  # this line is all it takes
            try:
                await rag.ainsert("Ada Merrow founded Alderwick beside the river.")
                await ask(rag, "Who founded Alderwick?")

                provider.set_faults([Fault.status(503)])
                print("The provider is down; queries wait for it (RESILIENCE_QUERY__PATIENCE=12).")
                for number in range(1, 4):
                    await ask(rag, f"Who founded Alderwick? (again, {number})")

                provider.set_faults([])
                wait = guard("llm.openai").breaker.snapshot().retry_after or 0.0
                print(f"The provider is back; the breaker looks again in {wait:.1f} s.")
                await asyncio.sleep(wait + 0.1)
                await ask(rag, "Who founded Alderwick, then?")
            finally:
                await rag.finalize_storages()


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)  # LightRAG logs every failed call
    asyncio.run(main())
