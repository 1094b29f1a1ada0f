"""A storage dies or hangs in the middle of an ingest, and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("lightrag.kg.factory", reason="LightRAG 1.5")

from lightrag_resilience import Guards, protect
from lightrag_resilience.config.settings import load_settings
from support.backends import POSTGRES, REDIS, Backend, Reader, StorageSet, storage_set_of
from support.ingest import Fault, Outcome, ingest

# Most of the time LightRAG works: measured, it would double.
pytestmark = [pytest.mark.lightrag, pytest.mark.once, pytest.mark.no_cover]
DOCUMENTS = 8
OUTAGE = 3.0  # seconds, longer than what LightRAG's storages try for themselves here
IMPATIENT = {"POSTGRES_CONNECTION_RETRIES": "1", "POSTGRES_CONNECTION_RETRY_BACKOFF": "0.1"}


@pytest.fixture(params=[POSTGRES, REDIS], ids=str)
def storage_set(request: pytest.FixtureRequest) -> Iterator[StorageSet]:
    backend: Backend = request.param
    with storage_set_of(backend, **IMPATIENT) as storage_set:
        yield storage_set


def killed(storage_set: StorageSet) -> Fault:
    assert storage_set.server is not None
    return Fault(storage_set.server.kill, storage_set.server.start, OUTAGE)


def hung(storage_set: StorageSet) -> Fault:
    assert storage_set.server is not None
    return Fault(storage_set.server.pause, storage_set.server.resume, OUTAGE)


def run(
    storage_set: StorageSet,
    fault: Fault | None = None,
    prepare: Callable[[Any], Awaitable[Any]] | None = None,
) -> Outcome:
    return asyncio.run(ingest(storage_set, DOCUMENTS, fault, prepare))


def test_two_ingests_without_a_fault_store_the_same(storage_set: StorageSet) -> None:
    one, other = run(storage_set), run(storage_set)
    assert one.content == other.content
    assert one.statuses == {"processed": DOCUMENTS}
    assert all(one.vectors.values())


def test_an_unprotected_ingest_fails_when_its_server_is_killed(storage_set: StorageSet) -> None:
    """Why there is a guard: if this fails one day, LightRAG got better."""
    outcome = run(storage_set, killed(storage_set))
    assert outcome.statuses["processed"] < DOCUMENTS


def test_an_unprotected_ingest_survives_a_short_hang(storage_set: StorageSet) -> None:
    assert run(storage_set, hung(storage_set)).content == run(storage_set).content


async def protected(rag: Any) -> None:
    await protect(rag, registry=Guards(settings=load_settings({})))


@pytest.mark.parametrize("fault", [killed, hung])
def test_a_protected_ingest_stores_the_same_as_without_a_fault(
    storage_set: StorageSet, fault: Callable[[StorageSet], Fault]
) -> None:
    assert run(storage_set, fault(storage_set), protected).content == run(storage_set).content


# ---------------------------------------------------------------------- PostgreSQL's own retries


async def read_while_down(storage_set: StorageSet, attempts: int | None) -> tuple[bool, bool, bool]:
    """Read while the server is down for more than a backoff, and again when it is back.

    Returns:
        Whether the first read ended, and with an error, and whether the second was answered.
    """
    assert storage_set.server is not None
    async with storage_set.lightrag(Reader()) as rag:
        await rag.full_docs.upsert({"a": {"content": "text", "file_path": "a.txt"}})
        if attempts is not None:
            rag.full_docs.db.connection_retry_attempts = attempts
        await asyncio.to_thread(storage_set.server.kill)
        first = asyncio.ensure_future(rag.full_docs.get_by_id("a"))
        await asyncio.wait([first], timeout=2.0)
        await asyncio.to_thread(storage_set.server.start)
        done, _ = await asyncio.wait([first], timeout=3.0)
        failed = bool(done) and first.exception() is not None
        second = asyncio.ensure_future(rag.full_docs.get_by_id("a"))
        answered, _ = await asyncio.wait([second], timeout=3.0)
        for read in (first, second):
            read.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        return bool(done), failed, bool(answered)


def test_unprotected_postgres_hangs_after_an_outage_longer_than_its_backoff() -> None:
    """Its retry of opening the pool needs the lock that the first try holds: a deadlock."""
    with storage_set_of(POSTGRES, POSTGRES_CONNECTION_RETRY_BACKOFF="0.1") as storage_set:
        assert asyncio.run(read_while_down(storage_set, None)) == (False, False, False)


def test_postgres_with_one_attempt_fails_at_once_and_recovers_with_its_server() -> None:
    """The client reads the attribute for each call, so a guard can own the retries."""
    with storage_set_of(POSTGRES) as storage_set:
        assert asyncio.run(read_while_down(storage_set, 1)) == (True, True, True)
