"""With pip install '.[testing]': a decorated function meets a provider that fails, and recovers.

Run it: python examples/decorated_function.py
"""

import asyncio
import sys

try:
    import httpx

    from lightrag_resilience import CircuitOpenError, Policy, resilient
    from lightrag_resilience.testing import Fault, Simulator
except ImportError as error:
    sys.exit(f"This example needs {error.name}: in a clone, pip install '.[testing]'")


@resilient("llm.example", Policy.llm(attempts=2, attempt_timeout=5.0))
async def complete(base_url: str, prompt: str) -> str:
    """Ask the provider one question."""
    async with httpx.AsyncClient() as client:
        message = {"role": "user", "content": prompt}
        body = {"model": "simulated", "messages": [message]}
        response = await client.post(f"{base_url}/chat/completions", json=body)
        response.raise_for_status()
        return str(response.json()["choices"][0]["message"]["content"])


async def main() -> None:
    """Show a success, an outage, and the refusal that spares the provider."""
    async with Simulator(seed=1) as provider:
        print("Answer:", await complete(provider.base_url, "Say something."))

        provider.set_faults([Fault.status(503)])
        provider.reset_calls()
        for number in range(1, 6):
            try:
                await complete(provider.base_url, "And again.")
            except CircuitOpenError as refusal:
                print(f"Call {number} was refused: {refusal}")
            except httpx.HTTPStatusError as error:
                print(f"Call {number} failed: HTTP {error.response.status_code}")
        print("Calls that reached the provider:", provider.count())


if __name__ == "__main__":
    asyncio.run(main())
