"""The ``simulate`` command: the simulated provider by itself."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from .exit_codes import fail, write_line

if TYPE_CHECKING:
    from lightrag_resilience.testing import Simulator

__all__ = ["simulate"]


def simulate(
    *,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes a free one.")] = 0,
    seed: Annotated[int, typer.Option(help="The same seed fails the same calls.")] = 0,
    latency: Annotated[float, typer.Option(min=0, help="Seconds before any answer.")] = 0.02,
    faults: Annotated[str, typer.Option(help="A JSON list of faults.")] = "[]",
) -> None:
    """Run a provider of the OpenAI kind that fails on command, until interrupted.

    It serves chat, embeddings, rerank and models, and Ollama's chat and embeddings. Three calls in
    ten fail with

    \b
    --faults '[{"action": "status", "code": 503, "share": 0.3}]'

    \b
    action           what happens (and its own settings)
    status           an error status (code, retry_after in seconds, word)
    hang             no answer
    reset            the connection is reset
    slow             the answer is late (seconds)
    truncate         the connection is lost after some pieces (pieces)
    stall            nothing more comes after some pieces (pieces)
    end_early        the answer ends after some pieces (pieces)
    error_event      an error ends a stream (word, pieces)
    html_200         status 200 with the page of a gateway
    empty_200        status 200 without a body
    choices_null     a completion without choices
    truncated_json   a completion whose text ends in the middle
    nan              vectors of no numbers
    zeros            vectors of zeros
    short_batch      a vector too few
    wrong_dimension  vectors of another length
    bad_rank         ranks of documents that were not sent

    Each also takes share (0 to 1), path (calls whose path holds this text), and start and end, in
    seconds. The first fault that hits a call is the one that happens.
    """  # noqa: D301 - typer wants this backspace before lines that are not wrapped
    try:
        from lightrag_resilience.testing import Fault, Simulator  # noqa: PLC0415 - needs aiohttp
    except ImportError as error:
        fail(str(error))
    token = secrets.token_urlsafe(16)
    try:
        asked: Sequence[Fault] = Fault.from_json(faults)
        provider = Simulator(
            seed=seed, latency=latency, faults=asked, port=port, control_token=token
        )
        asyncio.run(_serve(provider, token))
    except (ValueError, OSError) as error:
        fail(str(error))


async def _serve(provider: Simulator, token: str) -> None:
    async with provider:
        write_line(f"Serving {provider.base_url} until interrupted; control token: {token}")
        await asyncio.Event().wait()
