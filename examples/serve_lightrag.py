"""With pip install '.[server,testing]': LightRAG's own server, protected, loses its provider: 503.

It is what ``lightrag-resilience serve`` does, in one process with a provider that is made up.
Run it: python examples/serve_lightrag.py
"""

import asyncio
import contextlib
import functools
import logging
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from typing import Any

try:
    import fastapi  # noqa: F401 - LightRAG's server needs it
    import httpx
    import uvicorn
    from lightrag.utils import Tokenizer

    from lightrag_resilience.integrations.lightrag.server import protect_server
    from lightrag_resilience.testing import Fault, Simulator
except ImportError as error:
    sys.exit(f"This example needs {error.name}: in a clone, pip install '.[server,testing]'")


class Characters:
    """A tokenizer that downloads nothing."""

    def encode(self, content: str) -> list[int]:
        """One token a character."""
        return [ord(character) for character in content]

    def decode(self, tokens: list[int]) -> str:
        """The text again."""
        return "".join(map(chr, tokens))


def make_app(provider: Simulator, folder: str) -> Any:
    """LightRAG's application, made as its own commands make it."""
    for kind in ("LLM", "EMBEDDING"):
        os.environ |= {
            f"{kind}_BINDING": "openai",
            f"{kind}_BINDING_HOST": provider.base_url,
            f"{kind}_BINDING_API_KEY": "not-a-secret",
            f"{kind}_MODEL": "simulated",
        }
    os.environ |= {"EMBEDDING_DIM": "64", "EMBEDDING_SEND_DIM": "true", "WORKING_DIR": folder}
    os.environ |= {"INPUT_DIR": folder, "LOG_DIR": folder}
    sys.argv = ["lightrag-server"]
    from lightrag.api import config, lightrag_server  # noqa: PLC0415 - it reads the environment

    server: Any = lightrag_server
    server.LightRAG = functools.partial(server.LightRAG, tokenizer=Tokenizer("x", Characters()))
    protect_server(server)  # this line is all it takes
    config.initialize_config()
    return server.get_application()


@contextlib.asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    """Serve an application on a free port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:  # noqa: ASYNC110 - uvicorn publishes no event
            await asyncio.sleep(0.05)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await task


async def main() -> None:
    """Ingest, ask, lose the provider, ask."""
    with tempfile.TemporaryDirectory() as folder:
        async with Simulator(seed=1) as provider:
            app = make_app(provider, folder)
            async with served(app) as url, httpx.AsyncClient(base_url=url, timeout=60) as http:
                text = "Ada Merrow founded Alderwick beside the river."
                await http.post("/documents/text", json={"text": text, "file_source": "ada.txt"})
                while not await processed(http):  # noqa: ASYNC110 - it is another program's
                    await asyncio.sleep(0.1)
                await ask(http, "Who founded Alderwick?")
                provider.set_faults([Fault.status(503)])
                for number in range(1, 4):
                    await ask(http, f"Who founded Alderwick? (again, {number})")


async def processed(http: httpx.AsyncClient) -> bool:
    """Whether the document is there."""
    counts = await http.get("/documents/status_counts")
    return bool(counts.json()["status_counts"]["processed"])


async def ask(http: httpx.AsyncClient, question: str) -> None:
    """Print what the server answers."""
    answer = await http.post("/query", json={"query": question, "mode": "mix"})
    body = answer.json()
    print(answer.status_code, body.get("response") or body["detail"])


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)  # LightRAG logs every failed call
    asyncio.run(main())
