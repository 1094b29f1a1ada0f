"""Kill LightRAG's server at random moments, and check what became of its documents.

By hand, thirty rounds under Gunicorn with Redis, then LightRAG alone:

    python tests/support/kills.py 1-30
    python tests/support/kills.py 1-30 --bare

Without ``--alone`` it is Gunicorn with two workers, without ``--no-redis`` they share a Redis.
With ``--workers-only`` Gunicorn's master lives on and starts new workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lightrag_resilience.testing.redis_server import RedisServer
from support.drains import Recorder, document
from support.served import Served, launched, until_it_answers

TIMES = {
    "RESILIENCE_SHUTDOWN_TIMEOUT": "10",
    "RESILIENCE_SHUTDOWN_CANCEL_GRACE": "2",
    "RESILIENCE_SHUTDOWN_CLOSE_TIMEOUT": "4",
    "CHUNK_SIZE": "200",
    "CHUNK_OVERLAP_SIZE": "0",
    "MAX_PARALLEL_INSERT": "2",
    "MAX_ASYNC": "4",
}
LATENCY = 0.4  # seconds of the provider
SETTLES_WITHIN = 240.0  # seconds
IDLE = 25.0  # seconds without progress after which an unprotected LightRAG counts as settled
MOMENTS = {"ingest": "", "start": "", "catch-up": "", "drain": "", "worker": "--gunicorn"}
"""Moments to kill all processes of a server, and the option that each needs."""
_BOOTED = re.compile(r"Booting worker with pid: (\d+)")


@dataclass
class Round:
    """What became of the documents of one round.

    Attributes:
        seed: Decides when the server is killed.
        kills: The moments at which it was.
        accepted: Documents whose upload was answered.
        lost: The states of those of them that are not processed at the end.
        end: Documents by their state at the end.
        longest_stall: Longest seconds without progress after the last start.
        resumed: Seconds from the last start until all were processed.
        lines: How often the log has each line about resuming.
    """

    seed: int
    kills: list[str] = field(default_factory=list)
    accepted: int = 0
    lost: list[str] = field(default_factory=list)
    end: dict[str, int] = field(default_factory=dict)
    longest_stall: float = 0.0
    resumed: float = 0.0
    lines: Counter[str] = field(default_factory=Counter, repr=False)

    @property
    def is_whole(self) -> bool:
        """Whether each accepted document was processed, and no other is unfinished."""
        return not self.lost and set(self.end) <= {"processed"}


async def killed_at_random(
    folder: Path, seed: int, *options: str, moments: Sequence[str] = (), **variables: str
) -> Round:
    """One round: an ingest, one to three kills in a row, and a last start that is not killed.

    Args:
        folder: For the server's data.
        seed: Decides how often and when.
        options: For ``serve``.
        moments: Of the kills; chosen by the seed if empty.
        variables: Environment variables.
    """
    chance = random.Random(seed)
    possible = [moment for moment, option in MOMENTS.items() if option in {"", *options}]
    if "--bare" in options:
        possible.remove("catch-up")
    result = Round(seed)
    tracks: dict[str, int] = {}
    variables = TIMES | {"RESILIENCE_SHUTDOWN_JOURNAL": str(folder / "journal")} | variables
    async with Recorder(latency=LATENCY) as provider:
        for number in range(len(moments) or chance.randint(1, 3)):
            async with launched(folder, provider, *options, **variables) as server:
                chosen = "ingest" if number == 0 else chance.choice(possible)
                moment = moments[number] if moments else chosen
                result.kills.append(moment)
                sending = None
                if number == 0:
                    await until_it_answers(server.http, server.process, server.log)
                    sending = asyncio.create_task(sent(server, tracks, random.Random(seed)))
                await _kill(server, moment, chance)
                if sending is not None:
                    await sending
        result.accepted = sum(tracks.values())
        async with launched(folder, provider, *options, **variables) as server:
            await until_it_answers(server.http, server.process, server.log)
            began = time.monotonic()
            result.longest_stall = await _settled(server, is_unprotected="--bare" in options)
            result.resumed = time.monotonic() - began
            result.end = await server.statuses()
            result.lost = await lost(server, tracks)
            result.lines = _said(server)
    return result


async def sent(server: Served, tracks: dict[str, int], chance: random.Random) -> None:
    """Send documents, some at once and some one by one, until the server is killed."""
    number = 0
    for size in (8, *[1] * 8):
        if size == 1:
            await asyncio.sleep(chance.uniform(0.0, 1.0))
        names = [f"{number + part}.txt" for part in range(size)]
        body = {
            "texts": [document(number + part, 2) for part in range(size)],
            "file_sources": names,
        }
        try:
            response = await server.http.post("/documents/texts", json=body)
        except httpx.TransportError:
            return
        assert response.json()["status"] == "success", response.text
        tracks[response.json()["track_id"]] = size
        number += size


async def lost(server: Served, tracks: dict[str, int]) -> list[str]:
    """The states of accepted documents that are not processed."""
    found = []
    for track, size in tracks.items():
        response = await server.http.get(f"/documents/track_status/{track}")
        rows = response.json()["documents"]
        states = [f"{row['status'].lower()} {row.get('error_msg') or ''}" for row in rows]
        found += [state for state in states if state.strip() != "processed"]
        found += ["gone"] * (size - len(rows))
    return found


async def _kill(server: Served, moment: str, chance: random.Random) -> None:
    if moment == "ingest":
        await asyncio.sleep(chance.uniform(0.0, 5.0))
    elif moment == "start":
        await asyncio.sleep(chance.uniform(0.0, 12.0))
    else:
        await _resuming(server)
        await asyncio.sleep(chance.uniform(0.0, 2.0))
    if moment == "drain":
        server.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(chance.uniform(0.0, 3.0))
    if moment == "worker":  # the master starts new workers, which are killed as well
        kill_workers(server)
        await asyncio.sleep(chance.uniform(0.0, 20.0))
    server.killed()


def kill_workers(server: Served) -> None:
    """Kill Gunicorn's workers, but not its master."""
    for pid in _BOOTED.findall(server.log.read_text())[-2:]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


async def workers_killed(folder: Path, seed: int, *options: str, **variables: str) -> Round:
    """Kill the workers during an ingest, and their successors during recovery."""
    chance = random.Random(seed)
    result = Round(seed, ["worker", "worker"])
    tracks: dict[str, int] = {}
    async with (
        Recorder(latency=LATENCY) as provider,
        launched(folder, provider, *options, **TIMES | variables) as server,
    ):
        await until_it_answers(server.http, server.process, server.log)
        sending = asyncio.create_task(sent(server, tracks, chance))
        await asyncio.sleep(chance.uniform(1.0, 4.0))
        kill_workers(server)
        await sending
        await _resuming(server)
        await asyncio.sleep(chance.uniform(0.0, 1.0))
        kill_workers(server)
        await until_it_answers(server.http, server.process, server.log)
        began = time.monotonic()
        result.longest_stall = await _settled(server, is_unprotected="--bare" in options)
        result.resumed = time.monotonic() - began
        result.end = await server.statuses()
        result.lost = await lost(server, tracks)
        result.accepted = sum(tracks.values())
        result.lines = _said(server)
    return result


def _said(server: Served) -> Counter[str]:
    said = r"(Resuming|Another worker holds|could not be resumed)"
    return Counter(re.findall(said, server.log.read_text()))


async def _resuming(server: Served) -> None:
    """Wait until documents are resumed; at most 30 s, as there may be none."""
    before = server.log.read_text().count("Resuming")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(30.0):
            while server.log.read_text().count("Resuming") == before:  # noqa: ASYNC110
                await asyncio.sleep(0.1)


async def _settled(server: Served, *, is_unprotected: bool) -> float:
    """Wait until all documents are processed; the longest time without progress, in seconds."""
    longest, since, seen = 0.0, time.monotonic(), None
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SETTLES_WITHIN):
            while True:
                states = await server.statuses()
                progress = states, len(server.provider.calls)
                now = time.monotonic()
                longest = max(longest, now - since)
                if progress != seen:
                    seen, since = progress, now
                if not set(states) - {"processed"} or (is_unprotected and now - since > IDLE):
                    break
                await asyncio.sleep(0.2)
    return longest


async def main(seeds: str, options: list[str]) -> None:
    """Run rounds by hand."""
    first, _, last = seeds.partition("-")
    own = [each for each in options if each not in {"--alone", "--no-redis", "--workers-only"}]
    one_round = workers_killed if "--workers-only" in options else killed_at_random
    if "--alone" not in options:
        own += ["--gunicorn", "--workers", "2"]
    with RedisServer() as redis:
        rounds = []
        for seed in range(int(first), int(last or first) + 1):
            variables = {}
            if "--no-redis" not in options:
                variables["RESILIENCE_REDIS_URL"] = redis.url
                variables["RESILIENCE_REDIS_PREFIX"] = f"{seed}:"
            with tempfile.TemporaryDirectory() as folder:
                done = await one_round(Path(folder), seed, *own, **variables)
            print(done, dict(done.lines), flush=True)  # noqa: T201
            rounds.append(done)
    print(  # noqa: T201
        f"{len(rounds)} rounds, {sum(len(each.kills) for each in rounds)} kills: "
        f"{sum(each.accepted for each in rounds)} documents accepted, "
        f"{sum(len(each.lost) for each in rounds)} not processed, "
        f"{sum(not each.is_whole for each in rounds)} rounds not whole, "
        f"longest longest_stall {max(each.longest_stall for each in rounds):.1f} s"
    )


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2:]))
