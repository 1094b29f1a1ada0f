"""What litellm's Router costs an LLM call, beside ours around the same call; and its refusal.

litellm answers by itself (`mock_response`), so what the Router takes above `litellm.acompletion` is
its own: the choice of a deployment, cool-downs, retries, fallbacks, callbacks. It wants other
versions than we do, so `scripts/bench-litellm` gives it an environment of its own.

``python -m benchmarks.litellm_router [--rounds 15] [--json FILE]``
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import random
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would ask the network for prices

import litellm
from litellm import Router

from benchmarks.figures import BARE, OURS, Figure, as_they_are, rounded
from benchmarks.measure import Samples, quietly
from benchmarks.stacks.ours import make_registry
from lightrag_resilience import CircuitOpenError, resilient

__all__ = ["ROUTER", "measure"]

ROUTER = "litellm Router"
_MODEL = "gpt-4o-mini"
_MESSAGES = [{"role": "user", "content": "hello"}]
_CALLS = 50
_COOLDOWN = 3600.0  # seconds of a cool-down, or a break

Ask = Callable[[], Awaitable[Any]]


async def measure(rounds: int) -> dict[str, dict[str, Figure]]:
    """Microseconds of a whole call: bare, guarded and routed; and of a refusal by the latter."""
    return {
        "happy": as_they_are(await _in_rounds(_answering(), rounds)),
        "refused": as_they_are(await _in_rounds(await _refusing(), rounds)),
    }


async def _bare() -> Any:
    return await litellm.acompletion(_MODEL, _MESSAGES, mock_response="hi", api_key="none")


def _answering() -> dict[str, Ask]:
    router = _router()
    guarded = resilient("llm.litellm", registry=make_registry())(_bare)

    async def routed() -> Any:
        return await router.acompletion(_MODEL, _MESSAGES, mock_response="hi")

    return {BARE: _bare, OURS: guarded, ROUTER: routed}


async def _refusing() -> dict[str, Ask]:
    """Both refuse: ours by hand, the Router after failures."""
    router = _router()
    registry = make_registry()
    registry.get("llm.litellm").breaker.open("by hand", open_for=_COOLDOWN)
    guarded = resilient("llm.litellm", registry=registry)(_bare)

    async def routed() -> Any:
        with contextlib.suppress(litellm.exceptions.RateLimitError, ValueError):
            return await router.acompletion(_MODEL, _MESSAGES, mock_response="hi")

    async def ours() -> Any:
        with contextlib.suppress(CircuitOpenError):
            return await guarded()

    for _ in range(20):  # until its deployments have a rest
        with contextlib.suppress(Exception):
            await router.acompletion(
                _MODEL, _MESSAGES, mock_response="litellm.RateLimitError", num_retries=0
            )
    if await routed() is not None:
        raise AssertionError("The Router does not refuse")
    return {OURS: ours, ROUTER: routed}


def _router() -> Router:
    """Two deployments of one model, as without a second one it never refuses."""
    parameters = {"model": f"openai/{_MODEL}", "api_key": "none"}
    deployments = [
        {"model_name": _MODEL, "litellm_params": {**parameters, "api_base": f"http://{name}"}}
        for name in ("one.invalid", "two.invalid")
    ]
    return Router(model_list=deployments, num_retries=3, allowed_fails=0, cooldown_time=_COOLDOWN)


async def _in_rounds(ready: dict[str, Ask], rounds: int) -> Samples:
    samples: Samples = {name: [] for name in ready}
    for ask in ready.values():
        await ask()
    with quietly():
        for _ in range(rounds):
            for name in random.sample(list(ready), len(ready)):
                await asyncio.sleep(0)
                began = perf_counter()
                for _ in range(_CALLS):
                    await ready[name]()
                samples[name].append((perf_counter() - began) / _CALLS * 1e6)
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.litellm_router")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--page", action="store_true", help="put them in docs/performance.md")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    litellm.suppress_debug_info = True
    figures = asyncio.run(measure(options.rounds))
    figures = rounded(
        {case: {name: asdict(one) for name, one in of.items()} for case, of in figures.items()}
    )
    print(json.dumps(figures, indent=1))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if options.page:
        from benchmarks import page  # noqa: PLC0415 - it needs what the report needs

        page.add("litellm", figures)


if __name__ == "__main__":
    main()
