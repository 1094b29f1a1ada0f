"""With pip install '.[testing]' openai: its SDK over a guarded transport, in an outage.

Run it: python examples/http_client.py
"""

import asyncio
import logging
import sys

try:
    import httpx
    import openai

    from lightrag_resilience import CircuitOpenError, Policy
    from lightrag_resilience.integrations.httpx import ResilientTransport
    from lightrag_resilience.testing import Fault, Simulator
except ImportError as error:
    sys.exit(f"This example needs {error.name}: in a clone, pip install '.[testing]' openai")


async def ask(client: openai.AsyncOpenAI, question: str) -> None:
    """Stream an answer, or print why there is none."""
    try:
        stream = await client.chat.completions.create(
            model="simulated", messages=[{"role": "user", "content": question}], stream=True
        )
        words = [chunk.choices[0].delta.content or "" async for chunk in stream]
        print("Answer: ", "".join(words))
    except CircuitOpenError as refusal:  # openai 3 passes it on
        print("Refused:", refusal)
    except openai.APIConnectionError as error:  # openai 1 and 2 wrap it
        print("Refused:", error.__cause__)
    except openai.APIStatusError as error:
        print("Failed:  HTTP", error.status_code)


async def main() -> None:
    """Show a hiccup, an outage, and the refusals that spare the provider."""
    transport = ResilientTransport(name="llm.example", policy=Policy.llm(attempts=3))
    async with (
        Simulator(seed=1, faults=[Fault.throttle(retry_after=1, end=1)]) as provider,
        httpx.AsyncClient(transport=transport) as http_client,
    ):
        client = openai.AsyncOpenAI(
            base_url=provider.base_url, api_key="none", http_client=http_client, max_retries=0
        )
        provider.begin()
        await ask(client, "Say something.")
        print("Calls it took:", provider.count())

        provider.set_faults([Fault.status(503)])
        provider.reset_calls()
        for _ in range(4):
            await ask(client, "And again.")
        print("Calls that reached the provider:", provider.count())


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)  # the library logs that the circuit opens
    asyncio.run(main())
