"""DrainMiddleware behind other servers, through their lifespan alone."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from support.masters import Master, results, running

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals"),
]


class Hypercorn(Master):
    workers = 1

    def words(self, descriptor: int, port: int) -> list[str]:
        del port
        # Its worker gets no signal, only the end of its connections.
        patience = "45" if self.budget[0] > 10 else "2"
        return ["-m", "hypercorn", "-b", f"fd://{descriptor}", "--graceful-timeout", patience]


class Granian(Master):
    workers = 1
    binds_itself = True

    def words(self, descriptor: int, port: int) -> list[str]:
        del descriptor
        return ["-m", "granian", "--interface", "asgi", "--port", str(port)]


class Uvicorn(Master):
    workers = 1

    def words(self, descriptor: int, port: int) -> list[str]:
        del port
        return ["-m", "uvicorn", "--fd", str(descriptor), "--timeout-graceful-shutdown", "45"]


@pytest.fixture(params=[Hypercorn, Granian, Uvicorn], ids=lambda server: server.__name__)
def server(request: pytest.FixtureRequest) -> Any:
    if importlib.util.find_spec(request.param.__name__.lower()) is None:
        pytest.skip(f"{request.param.__name__} is not installed")
    return request.param


async def test_work_that_fits_into_the_budget_ends(server: type[Master], tmp_path: Path) -> None:
    async with running(tmp_path / "files", "uvicorn", of=server) as master:
        await asyncio.gather(*await master.begin("task", 1.5))
        requests = await master.begin("request", 1.0, 5)
        requests += await master.begin("stream", 1.0)
        await master.stop(signal.SIGTERM)
        assert await results(requests) == [200] * 6
        assert sorted(master.done) == sorted(master.begun)
        assert master.records() == {}
        assert master.marked("lifespan", "shutdown")


class UvicornWorkers(Uvicorn):
    workers = 2

    def words(self, descriptor: int, port: int) -> list[str]:
        return [*super().words(descriptor, port), "--workers", "2"]


class UvicornReload(Uvicorn):
    def words(self, descriptor: int, port: int) -> list[str]:
        return [*super().words(descriptor, port), "--reload"]


class GranianWorkers(Granian):
    workers = 2

    def words(self, descriptor: int, port: int) -> list[str]:
        return [*super().words(descriptor, port), "--workers", "2"]


class HypercornWorkers(Hypercorn):
    workers = 2

    def words(self, descriptor: int, port: int) -> list[str]:
        return [*super().words(descriptor, port), "--workers", "2"]


@pytest.mark.once
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda each: each.name)
@pytest.mark.parametrize(
    "server",
    [UvicornWorkers, UvicornReload, GranianWorkers, HypercornWorkers, Uvicorn],
    ids=lambda server: server.__name__,
)
async def test_a_signal_to_the_process_group_cuts_nothing_off(
    server: type[Master], number: signal.Signals, tmp_path: Path
) -> None:
    """As Ctrl-C, systemd and supervisor's stopasgroup send it: workers get it twice."""
    async with running(tmp_path / "files", "uvicorn", of=server) as master:
        requests = await master.begin("request", 2.5, 3)
        requests += await master.begin("stream", 2.5)
        os.killpg(master.process.pid, number)  # a session of its own
        assert await results(requests) == [200] * 4
        await master.end()
        assert sorted(master.done) == sorted(master.begun)
        assert master.records() == {}


async def test_work_that_does_not_fit_into_the_budget_is_in_the_journal(
    server: type[Master], tmp_path: Path
) -> None:
    if server is Hypercorn and sys.version_info >= (3, 12):
        pytest.skip("its asyncio worker waits for all connections first, for as long as they last")
    budget = (2.5, 0.5, 0.5)
    async with running(tmp_path / "files", "uvicorn", of=server, budget=budget) as master:
        await asyncio.gather(*await master.begin("task", 60.0))
        requests = await master.begin("request", 60.0, 3)
        await master.stop(signal.SIGTERM)
        assert await results(requests) == ([500] if server is Hypercorn else [503]) * 3
        assert set(master.records()) == set(master.begun)
        assert master.marked("lifespan", "shutdown")
