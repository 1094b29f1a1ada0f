"""With pip install '.[testing]': a second provider takes over; then an old answer says so.

Run it: python examples/fallback.py
"""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any

try:
    import httpx

    from lightrag_resilience import (
        AllFailedError,
        Policy,
        StaleCache,
        call_chain,
        resilient,
        with_fallbacks,
    )
    from lightrag_resilience.testing import Fault, Simulator
except ImportError as error:
    sys.exit(f"This example needs {error.name}: in a clone, pip install '.[testing]'")


def model(name: str, provider: Simulator) -> Callable[[str], Coroutine[Any, Any, str]]:
    """A guarded function that asks one provider."""

    @resilient(name, Policy.llm(attempts=1))
    async def complete(prompt: str) -> str:
        async with httpx.AsyncClient() as client:
            message = {"role": "user", "content": prompt}
            body = {"model": "simulated", "messages": [message]}
            response = await client.post(f"{provider.base_url}/chat/completions", json=body)
            response.raise_for_status()
            return str(response.json()["choices"][0]["message"]["content"])

    return complete


async def main() -> None:
    """Lose one provider, then the other."""
    async with Simulator(seed=1) as first, Simulator(seed=2) as second:
        complete = with_fallbacks(
            model("llm.first", first),
            model("llm.second", second),
            total=30.0,
            stale=StaleCache(max_age=3600.0),
        )
        print("Both are up:       from", (await call_chain(complete, "Say something.")).source)

        first.set_faults([Fault.status(503)])
        answer = await call_chain(complete, "Say something.")
        print("The first is down: from", answer.source, "because", *answer.reasons)

        second.set_faults([Fault.status(401)])
        answer = await call_chain(complete, "Say something.")
        print(f"Both are down:     from {answer.source}, {answer.stale_for:.1f} s old")
        try:
            await complete("Say something.")
        except AllFailedError as error:
            print("Without old ones: ", error)


if __name__ == "__main__":
    asyncio.run(main())
