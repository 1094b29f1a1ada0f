"""A storage that is prepared does what the bare one does, in each set of real storages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

pytest.importorskip("lightrag.kg.factory", reason="LightRAG 1.5")

from lightrag_resilience import Guards
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.integrations.lightrag.storages import guard_storage
from support.backends import BACKENDS, EMBEDDED, Backend, Reader, storage_set_of
from support.storage_operations import CALLS, KINDS, LIFE, Call, methods_of, sequences

# Most of the time LightRAG and Hypothesis work: measured, it would double.
pytestmark = [pytest.mark.lightrag, pytest.mark.once, pytest.mark.no_cover]
STRAIGHT = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
FIRST = settings(STRAIGHT, max_examples=200, phases=[Phase.generate], report_multiple_bugs=False)

Prepare = Callable[[Any], Any]


def guarded(storage: Any) -> Any:
    guard_storage(storage, registry=Guards(settings=load_settings({})))
    return storage


# Of documents that share a path or a hash, Redis returns the one that SCAN meets first.
ANY_OF_SEVERAL = {"get_doc_by_file_path", "get_doc_by_file_basename", "get_doc_by_content_hash"}


@dataclass
class Pair:
    """Two LightRAGs over one set of storages, and the loop that they live on."""

    runner: asyncio.Runner
    one: Any
    other: Any

    def storages(self, kind: str) -> tuple[Any, Any]:
        attribute = KINDS[kind][1]
        return getattr(self.one, attribute), getattr(self.other, attribute)

    def difference(self, kind: str, calls: list[Call], prepare: Prepare) -> str:
        """The first call that gives another result when the second storage is prepared."""
        return self.runner.run(self._difference(kind, calls, prepare))

    async def _difference(self, kind: str, calls: list[Call], prepare: Prepare) -> str:
        one, other = self.storages(kind)
        for storage in (one, other):
            await storage.drop_pending_index_ops()
            await storage.drop()
        prepared = prepare(other)
        for call in calls:
            expected, given = await call.of(one), await call.of(prepared)
            is_any = call.method in ANY_OF_SEVERAL and expected and type(expected) is type(given)
            if expected != given and not is_any:
                return f"{call}: {expected} or {given}"
        return ""


@pytest.fixture(scope="module", params=BACKENDS, ids=str)
def backend(request: pytest.FixtureRequest) -> Backend:
    found: Backend = request.param
    return found


@pytest.fixture(scope="module")
def pair(backend: Backend) -> Iterator[Pair]:
    yield from made(backend)


@pytest.fixture
def embedded() -> Iterator[Pair]:
    yield from made(EMBEDDED)


def made(backend: Backend) -> Iterator[Pair]:
    with ExitStack() as stack:
        storage_set = stack.enter_context(storage_set_of(backend))
        runner = stack.enter_context(asyncio.Runner())
        rags = AsyncExitStack()
        try:
            one = runner.run(rags.enter_async_context(storage_set.lightrag(Reader())))
            other = runner.run(rags.enter_async_context(storage_set.lightrag(Reader())))
            yield Pair(runner, one, other)
        finally:
            runner.run(rags.aclose())


@pytest.mark.parametrize("kind", KINDS)
@STRAIGHT
@given(data=st.data())
def test_the_same_calls_give_the_same_results(pair: Pair, kind: str, data: st.DataObject) -> None:
    calls = data.draw(sequences(kind))
    assert pair.difference(kind, calls, guarded) == ""


@pytest.mark.parametrize("kind", KINDS)
def test_stored_data_is_the_same_after_a_restart(pair: Pair, kind: str) -> None:
    writes = find(sequences(kind), lambda calls: len(calls) > 5, settings=FIRST)
    life = [Call("index_done_callback"), Call("finalize"), Call("initialize")]
    assert pair.difference(kind, [*writes, *life, *writes], guarded) == ""


@pytest.mark.parametrize("kind", KINDS)
def test_each_method_of_a_storage_is_compared(kind: str) -> None:
    called = {find(calls, lambda _: True, settings=FIRST).method for calls in CALLS[kind]}
    assert called | LIFE == methods_of(kind)


# ---------------------------------------------------------------------- the test of the test


class Wrong:
    """A storage of which one method does something else."""

    def __init__(self, storage: Any, method: str, wrong: Callable[..., Any]) -> None:
        self._storage, self._method, self._wrong = storage, method, wrong

    def __getattr__(self, name: str) -> Any:
        return self._wrong if name == self._method else getattr(self._storage, name)


async def nothing(*_: Any, **__: Any) -> None:
    """Confirm absence, whatever is there; and lose what is written."""


async def refuse(*_: Any, **__: Any) -> None:
    raise ConnectionError("refused")


NOTHING_TO_SEE = {"drop_pending_index_ops", "index_done_callback"}  # they give and change nothing
UNSEEN = {
    "vector": NOTHING_TO_SEE | {"delete_entity_relation"},  # for the other of the two
    "relations": NOTHING_TO_SEE | {"delete_entity"},
}


@pytest.mark.once
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", [nothing, refuse], ids=["nothing", "refuse"])
def test_a_method_that_behaves_differently_is_detected(
    embedded: Pair, kind: str, wrong: Callable[..., Any]
) -> None:
    unseen = UNSEEN.get(kind, NOTHING_TO_SEE) if wrong is nothing else set()
    looked_at = methods_of(kind) - LIFE - unseen
    assert {method for method in looked_at if not is_found(embedded, kind, method, wrong)} == set()


def is_found(pair: Pair, kind: str, method: str, wrong: Callable[..., Any]) -> bool:
    @FIRST
    @given(calls=sequences(kind))
    def search(calls: list[Call]) -> None:
        assert pair.difference(kind, calls, lambda storage: Wrong(storage, method, wrong)) == ""

    try:
        search()
    except AssertionError:
        return True
    return False
