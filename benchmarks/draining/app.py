"""What is served: an answer after a short while."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from lightrag_resilience.integrations.asgi import DrainMiddleware

SECONDS = 0.02


async def application(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{message['type']}.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    await asyncio.sleep(SECONDS)
    body = str(os.getpid()).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


app = DrainMiddleware(application)
