"""Inner retries: a provider function's own tenacity loop yields while a guard owns the call."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import tenacity

from lightrag_resilience import Guards, Policy, resilient
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.integrations.lightrag.inner_retries import (
    _Yielding,
    make_inner_retries_yield,
    restore_inner_retries,
)

pytestmark = pytest.mark.anyio
ATTEMPTS = 4


async def no_sleep(seconds: float) -> None:
    """Waits no time."""


class Provider:
    """A provider whose function fails always, and retries by itself."""

    def __init__(self) -> None:
        self.calls = 0
        self.stop = tenacity.stop_after_attempt(ATTEMPTS)

        @tenacity.retry(stop=self.stop, sleep=no_sleep, reraise=True)
        async def complete() -> None:
            self.calls += 1
            raise ConnectionError("down")

        self.complete: Any = complete

    async def calls_of(self, function: Any) -> int:
        """How often the provider is called by one call of a function."""
        before = self.calls
        with pytest.raises(ConnectionError):
            await function()
        return self.calls - before


@pytest.fixture
def provider() -> Provider:
    return Provider()


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, provider: Provider) -> Iterator[ModuleType]:
    """A module of LightRAG's that holds the provider's function; afterwards nothing yields."""
    made = ModuleType("lightrag.llm.fake")
    vars(made)["complete"] = provider.complete
    monkeypatch.setitem(sys.modules, made.__name__, made)
    yield made
    restore_inner_retries()
    assert not isinstance(provider.complete.retry.stop, _Yielding)


def guarded(function: Any, **changes: Any) -> Any:
    owner = Guards(settings=load_settings({"RESILIENCE_QUERY__PATIENCE": "0"}), sleep=no_sleep)
    policy = Policy.llm(consecutive_failures=None, **changes)
    return resilient("llm.inner", policy, registry=owner)(function)


async def test_inside_a_guarded_call_there_is_one_attempt_only(
    module: ModuleType, provider: Provider
) -> None:
    call = guarded(provider.complete, attempts=1)
    assert await provider.calls_of(call) == ATTEMPTS
    make_inner_retries_yield()
    assert await provider.calls_of(call) == 1


async def test_the_guards_own_attempts_are_the_only_ones(
    module: ModuleType, provider: Provider
) -> None:
    make_inner_retries_yield()
    assert await provider.calls_of(guarded(provider.complete, attempts=3)) == 3


async def test_outside_a_guarded_call_inner_retries_are_unchanged(
    module: ModuleType, provider: Provider
) -> None:
    make_inner_retries_yield()
    assert await provider.calls_of(provider.complete) == ATTEMPTS


async def test_restore_brings_the_original_back(module: ModuleType, provider: Provider) -> None:
    make_inner_retries_yield()
    assert provider.complete.retry.stop is not provider.stop
    restore_inner_retries()
    assert provider.complete.retry.stop is provider.stop
    assert await provider.calls_of(guarded(provider.complete, attempts=1)) == ATTEMPTS


async def test_inner_retries_yield_until_the_last_user_restores(
    module: ModuleType, provider: Provider
) -> None:
    call = guarded(provider.complete, attempts=1)
    make_inner_retries_yield()
    make_inner_retries_yield()
    assert provider.complete.retry.stop.original is provider.stop
    restore_inner_retries()
    assert await provider.calls_of(call) == 1
    restore_inner_retries()
    assert provider.complete.retry.stop is provider.stop


async def test_an_extra_restore_does_nothing(module: ModuleType, provider: Provider) -> None:
    restore_inner_retries()
    make_inner_retries_yield()
    restore_inner_retries()
    restore_inner_retries()
    assert provider.complete.retry.stop is provider.stop


async def test_an_object_that_holds_the_function_is_found(
    module: ModuleType, provider: Provider
) -> None:
    vars(module)["complete"] = None
    vars(module)["embed"] = SimpleNamespace(func=provider.complete)
    make_inner_retries_yield()
    assert await provider.calls_of(guarded(provider.complete, attempts=1)) == 1


async def test_a_function_under_two_names_counts_once(
    module: ModuleType, provider: Provider
) -> None:
    vars(module)["again"] = provider.complete
    vars(module)["embed"] = SimpleNamespace(func=provider.complete)
    make_inner_retries_yield()
    assert provider.complete.retry.stop.users == 1
    assert provider.complete.retry.stop.original is provider.stop


async def test_methods_of_a_storage_yield_too(module: ModuleType, provider: Provider) -> None:
    class Storage:
        get_by_id = provider.complete

    vars(module)["Storage"] = Storage
    make_inner_retries_yield()
    assert provider.complete.retry.stop.users == 1


async def test_a_client_that_reads_an_attribute_yields(monkeypatch: pytest.MonkeyPatch) -> None:
    class PostgreSQLDB:
        def __init__(self) -> None:
            self.connection_retry_attempts = 10

    module = ModuleType("lightrag.kg.postgres_impl")
    vars(module)["PostgreSQLDB"] = PostgreSQLDB
    monkeypatch.setitem(sys.modules, module.__name__, module)
    before = PostgreSQLDB()
    make_inner_retries_yield()
    make_inner_retries_yield()
    later = PostgreSQLDB()
    guard = Guards(settings=load_settings({})).get("storage.postgres")

    async def attempts() -> list[int]:
        return [client.connection_retry_attempts for client in (before, later)]

    assert await attempts() == [10, 10]
    assert await guard.call(attempts) == [1, 1]
    restore_inner_retries()
    assert await guard.call(attempts) == [1, 1]
    restore_inner_retries()
    assert await guard.call(attempts) == [10, 10]
    assert "connection_retry_attempts" not in vars(PostgreSQLDB)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("lightrag.llm.fake", True),
        ("lightrag.rerank", True),
        ("lightrag.kg.fake", True),
        ("lightrag.utils", False),
        ("other.lightrag.llm.fake", False),
    ],
)
async def test_only_provider_modules_are_changed(
    name: str,
    found: bool,  # noqa: FBT001 - a parameter of the test
    module: ModuleType,
    provider: Provider,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "lightrag.llm.fake")
    monkeypatch.setitem(sys.modules, name, module)
    make_inner_retries_yield()
    assert (provider.complete.retry.stop is not provider.stop) == found


async def test_an_attribute_that_is_no_tenacity_controller_is_unchanged(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = SimpleNamespace(retry=SimpleNamespace(stop="untouched"), func=42)
    vars(module)["other"] = other
    unseen = Provider()
    no_module: Any = SimpleNamespace(complete=unseen.complete)
    monkeypatch.setitem(sys.modules, "lightrag.llm.strange", no_module)
    make_inner_retries_yield()
    assert other.retry.stop == "untouched"
    assert unseen.complete.retry.stop is unseen.stop


async def test_the_next_call_outside_retries_after_a_guarded_one(
    module: ModuleType, provider: Provider
) -> None:
    make_inner_retries_yield()
    call = guarded(provider.complete, attempts=1)
    counts = [await provider.calls_of(one) for one in (call, provider.complete, call)]
    assert counts == [1, ATTEMPTS, 1]


async def test_the_driver_of_opensearch_sends_once_inside_a_guarded_call() -> None:
    """LightRAG lets it send each request four times, also a deletion that may have been done."""
    opensearchpy = pytest.importorskip("opensearchpy")
    requests: list[str] = []

    base: Any = opensearchpy.AsyncHttpConnection

    class Broken(base):  # type: ignore[misc]  # it has no types where it is not installed
        async def perform_request(self, method: str, *args: Any, **kwargs: Any) -> Any:
            requests.append(method)
            raise opensearchpy.ConnectionTimeout("TIMEOUT", "m", TimeoutError())

    async def sent(function: Any) -> int:
        before = len(requests)
        with pytest.raises(opensearchpy.ConnectionTimeout):
            await function()
        return len(requests) - before

    client = opensearchpy.AsyncOpenSearch(
        ["http://127.0.0.1:9"], connection_class=Broken, max_retries=3, retry_on_timeout=True
    )

    async def delete() -> None:
        await client.delete(index="i", id="1")

    guarded = Guards(settings=load_settings({})).get("storage.opensearch", Policy.storage())
    as_before = await sent(lambda: guarded.call(delete))  # 4, unless another test protects yet
    extended = make_inner_retries_yield()
    try:
        assert await sent(lambda: guarded.call(delete)) == 1
        assert await sent(delete) == 4
    finally:
        restore_inner_retries(extended)
    assert await sent(delete) == 4
    assert await sent(lambda: guarded.call(delete)) == as_before
    await client.close()
