"""LightRAG's server is stopped or killed during an ingest, and the results.

By hand: ``python tests/support/drains.py sigterm 10 [--gunicorn --workers 2]``, ``… kill 50``, and
``… kill 2x60`` for two rounds in each of sixty fresh folders.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from aiohttp import web

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lightrag_resilience.draining.journal import Journal
from lightrag_resilience.testing import SeenCall, Simulator
from lightrag_resilience.testing import simulator as module
from support.served import STARTS_WITHIN, Served, serving

TIMES = {
    "RESILIENCE_SHUTDOWN_CANCEL_GRACE": "2",
    "RESILIENCE_SHUTDOWN_CLOSE_TIMEOUT": "4",
    "RESILIENCE_RECOVERY_DELAY": "0.2",
    "CHUNK_SIZE": "200",
    "CHUNK_OVERLAP_SIZE": "0",
    "MAX_PARALLEL_INSERT": "2",
    "MAX_ASYNC": "4",
}
DOCUMENTS = 8
SETTLES_WITHIN = 180.0  # seconds
QUESTION = "Who founded Alderwick?"


class Recorder(Simulator):
    """Knows calls of the model by their prompts, and streams slowly.

    Args:
        latency: Seconds before any answer.
        gap: Seconds between two words of a stream.
    """

    def __init__(self, *, latency: float = 0.0, gap: float = 0.0) -> None:
        super().__init__(seed=1, latency=latency)
        self.gap = gap
        self.prompts: dict[str, list[SeenCall]] = {}

    async def _respond(
        self, request: web.Request, answer: Any, seen: SeenCall
    ) -> web.StreamResponse:
        if "chat" not in request.path:
            seen.outcome = "200"
            return web.json_response(answer(await request.json()).body)
        asked = await request.json()
        prompt = json.dumps(asked["messages"]).encode()
        key = hashlib.md5(prompt, usedforsecurity=False).hexdigest()
        self.prompts.setdefault(key, []).append(seen)
        if not asked.get("stream"):
            return await super()._respond(request, answer, seen)
        response = web.StreamResponse()
        response.content_type = "text/event-stream"
        await response.prepare(request)
        for event in module._chat(asked).events:
            await response.write(event.encode())
            await asyncio.sleep(self.gap)
        seen.outcome = "200"
        return response

    def finished(self) -> set[str]:
        """Prompts that were answered to the end."""
        return {
            key for key, calls in self.prompts.items() if any(c.outcome == "200" for c in calls)
        }

    def calls_of(self, prompt: str) -> int:
        return len(self.prompts[prompt])


def document(number: int, sentences: int) -> str:
    """Sentences that share no name with another document's, each a chunk of its own."""
    name = f"N{chr(ord('A') + number) * 4}"
    return " ".join(
        f"{name}{chr(ord('a') + part) * 3} knows {name} for {'many ' * 30}years."
        for part in range(sentences)
    )


@dataclass
class Ended:
    """The result of an ingest whose server was stopped.

    Attributes:
        seconds: From the signal to the end of the process; of Gunicorn, of its workers.
        code: The process's exit status.
        stream: The last line of the stream that was under way.
        left: Documents by their state when the server had started again.
        answered: How many calls of the model had been answered by the end.
        repeated: How many of these were made again after the restart.
        resumed: Seconds from the restart until all documents were processed.
        log: What the server wrote before its end.
    """

    seconds: float
    code: int
    stream: str
    answered: int
    repeated: int
    resumed: float
    log: str = field(repr=False)
    journal: list[str] = field(default_factory=list)


async def stopped_during_ingest(
    folder: Path, *options: str, sentences: int = 2, budget: float = 12.0
) -> Ended:
    """SIGTERM amid an ingest of eight documents and a stream.

    Args:
        folder: Where it all is.
        options: For ``serve``.
        sentences: How long the first two documents are, each a call of the model.
        budget: Seconds for the drain.
    """
    journal = folder / "journal"
    variables = TIMES | {
        "RESILIENCE_SHUTDOWN_JOURNAL": str(journal),
        "RESILIENCE_SHUTDOWN_TIMEOUT": str(budget),
    }
    async with Recorder(latency=0.7, gap=0.4) as provider:
        async with serving(folder, provider, *options, **variables) as server:
            await server.ingest()
            stream = asyncio.create_task(streamed(server))
            await submitted(server, sentences)
            await amid(server, provider)
            seconds = await server.ended_by(signal.SIGTERM)
            last = await stream
            code = server.process.returncode
        log = server.log.read_text()
        answered = provider.finished()
        before = {prompt: provider.calls_of(prompt) for prompt in answered}
        async with serving(folder, provider, *options, **variables) as server:
            began = time.monotonic()
            await all_processed(server, DOCUMENTS + 1)
            resumed = time.monotonic() - began
        repeated = sum(provider.calls_of(prompt) > before[prompt] for prompt in answered)
    if "--gunicorn" in options:
        seconds = seconds_between(log, "Draining, requested by", "Shutting down: Master")
    abandoned = [f"{each.kind} {each.name} {each.state}" for each in Journal(journal).read()]
    return Ended(seconds, code, last, len(answered), repeated, resumed, log, abandoned)


def seconds_between(log: str, first: str, last: str) -> float:
    """From the first line with a text to the last with another: Gunicorn's own end takes longer."""
    found = [line for line in log.splitlines() if first in line or last in line]
    times = [datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f") for line in found]  # noqa: DTZ007 - of one clock
    return (times[-1] - times[0]).total_seconds()


async def streamed(server: Served) -> str:
    """The last line of a stream, however it ends."""
    body = {"query": QUESTION, "mode": "naive", "stream": True}
    last = ""
    try:
        async with server.http.stream("POST", "/query/stream", json=body) as answer:
            async for line in answer.aiter_lines():
                last = line or last
    except httpx.TransportError as error:
        return f"{type(error).__name__} after {last}"
    return last


async def submitted(server: Served, sentences: int) -> None:
    texts = [document(number, sentences if number < 2 else 2) for number in range(DOCUMENTS)]
    names = [f"{number}.txt" for number in range(DOCUMENTS)]
    response = await server.http.post(
        "/documents/texts", json={"texts": texts, "file_sources": names}
    )
    response.raise_for_status()


async def amid(server: Served, provider: Recorder) -> None:
    """Wait until some of the ingest has been done, and the stream has begun."""
    enough = len(provider.finished()) + 4
    async with asyncio.timeout(STARTS_WITHIN):
        while len(provider.finished()) < enough:  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(0.02)


async def all_processed(server: Served, count: int) -> None:
    async with asyncio.timeout(STARTS_WITHIN):
        while await server.statuses() != {"processed": count}:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.1)


@dataclass
class Killed:
    """What became of documents whose server was killed, again and again.

    Attributes:
        submitted: Documents whose upload was answered.
        unanswered: Documents whose upload was not, so that their sender knows that it must ask.
        lost: Submitted documents that are neither processed nor resumable, nor in the journal.
        end: Documents by their state at the end of all.
    """

    submitted: int = 0
    unanswered: int = 0
    lost: set[str] = field(default_factory=set)
    end: dict[str, int] = field(default_factory=dict)


async def killed(folder: Path, rounds: int, seed: int, *options: str) -> Killed:
    """Documents are sent one after the other, and kill -9 comes at a random moment."""
    chance = random.Random(seed)
    result = Killed()
    tracks: dict[str, str] = {}
    async with Recorder(latency=0.1) as provider:
        for number in range(rounds):
            async with serving(folder, provider, *options, **TIMES) as server:
                result.lost |= await lost(server, tracks)
                sending = asyncio.create_task(sent(server, tracks, number, result))
                await asyncio.sleep(chance.uniform(0.0, 1.5))
                server.process.kill()
                await asyncio.to_thread(server.process.wait)
                await sending
        async with serving(folder, provider, *options, **TIMES) as server:
            result.lost |= await lost(server, tracks)
            result.submitted = len(tracks)
            await settled(server)
            result.end = await server.statuses()
            result.lost |= await lost(server, tracks, {"processed"})
    return result


async def sent(server: Served, tracks: dict[str, str], number: int, result: Killed) -> None:
    """Documents, until the server is gone."""
    for part in range(200):
        name = f"{number}-{part}.txt"
        person, town = (f"{first}{words(number)}x{words(part)}" for first in "PT")
        text = f"Document {name}: {person} lives in {town}, and {town} has a river."
        body = {"text": text, "file_source": name}
        try:
            response = await server.http.post("/documents/text", json=body)
        except httpx.TransportError:
            result.unanswered += 1
            return
        assert response.json()["status"] == "success", response.text
        tracks[response.json()["track_id"]] = name


def words(number: int) -> str:
    return "".join(chr(ord("a") + int(digit)) for digit in str(number))


RESUMABLE = {"pending", "parsing", "analyzing", "processing", "processed"}


async def lost(server: Served, tracks: dict[str, str], kept: set[str] = RESUMABLE) -> set[str]:
    """Which of the documents are in no state that leads to an end."""
    gone = set()
    for track, name in tracks.items():
        response = await server.http.get(f"/documents/track_status/{track}")
        states = {each["status"].lower() for each in response.json()["documents"]}
        if len(states) != 1 or not states <= kept:
            why = [each.get("error_msg") for each in response.json()["documents"]]
            gone.add(f"{name}: {states} {why}")
    return gone


async def settled(server: Served) -> None:
    """Wait until all are processed, or for as long as it makes sense."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SETTLES_WITHIN):
            while set(await server.statuses()) - {"processed"}:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.2)


async def main(kind: str, times: str, options: list[str]) -> None:
    rounds, _, folders = times.partition("x")
    if kind == "kill":
        for seed in range(1, int(folders or 1) + 1):
            with tempfile.TemporaryDirectory() as folder:
                print(seed, await killed(Path(folder), int(rounds), seed, *options), flush=True)  # noqa: T201
        return
    for number in range(int(rounds)):
        for sentences in (2, 20):
            with tempfile.TemporaryDirectory() as folder:
                ended = await stopped_during_ingest(Path(folder), *options, sentences=sentences)
                print(number, sentences, ended, flush=True)  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
