"""`resilient`: a guarded function stays what it is, and its guard is found when it is called."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import pickle
import traceback
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from lightrag_resilience import (
    CircuitOpenError,
    Guard,
    Guards,
    Policy,
    PolicyError,
    SettingsError,
    UnsupportedCallError,
    guards,
    resilient,
)
from lightrag_resilience.calls.call_context import inside_guarded_call
from lightrag_resilience.config.settings import Settings, load_settings
from lightrag_resilience.runtime.process_state import process
from support.decorated import POLICY, Flaky, drain, in_thread, no_sleep, role
from support.scripts import output_of


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@resilient("llm.module")
async def module_level(prompt: str, *, times: int = 1) -> str:
    """Repeat."""
    return prompt * times


@resilient("llm.module")
async def module_generator(prompt: str) -> AsyncIterator[str]:
    """Repeat as a stream."""
    yield prompt


@resilient("llm.module")
def module_iterator(prompt: str) -> AsyncIterator[str]:
    """Repeat as an iterator."""
    return module_generator(prompt)


@resilient("llm.module")
def module_sync(prompt: str) -> str:
    """Repeat at once."""
    return prompt


MODULE_LEVEL: list[Any] = [module_level, module_generator, module_iterator, module_sync]


# ---------------------------------------------------------------------- what stays


@pytest.mark.parametrize("function", MODULE_LEVEL, ids=lambda function: function.__name__)
def test_a_guarded_function_keeps_its_signature_name_and_text(function: Any) -> None:
    original = function.__wrapped__
    assert inspect.signature(function) == inspect.signature(original)
    for name in ("__name__", "__qualname__", "__module__", "__doc__", "__annotations__"):
        assert getattr(function, name) == getattr(original, name)
    assert function is not original
    assert function.__name__.startswith("module_")


@pytest.mark.parametrize("function", MODULE_LEVEL, ids=lambda function: function.__name__)
def test_a_guarded_function_stays_of_its_kind(function: Any) -> None:
    is_coroutine, is_stream = (
        function is module_level,
        function in (module_generator, module_iterator),
    )
    assert inspect.iscoroutinefunction(function) == is_coroutine
    assert asyncio.iscoroutinefunction(function) == is_coroutine
    assert inspect.isasyncgenfunction(function) == is_stream


@pytest.mark.parametrize("function", MODULE_LEVEL, ids=lambda function: function.__name__)
def test_a_guarded_function_can_be_copied_and_pickled(function: Any) -> None:
    assert copy.copy(function) is function
    assert copy.deepcopy(function) is function
    assert copy.deepcopy({"llm": [function]}) == {"llm": [function]}
    assert pickle.loads(pickle.dumps(function)) is function  # noqa: S301 - made in the line itself


def test_the_attributes_of_a_function_stay() -> None:
    async def embed(texts: list[str]) -> list[float]:
        return [0.0 for _ in texts]

    vars(embed)["embedding_dim"] = 1024
    guarded: Any = resilient("embedding")(embed)
    assert guarded.embedding_dim == 1024


@pytest.mark.anyio
async def test_a_partial_and_an_object_can_be_guarded(owner: Guards) -> None:
    class Model:
        async def __call__(self, prompt: str) -> str:
            return prompt.upper()

    decorate = resilient("llm.partial", registry=owner)
    assert await decorate(functools.partial(Model(), "hello"))() == "HELLO"
    assert await decorate(Model())("hello") == "HELLO"


# ---------------------------------------------------------------------- coroutine functions


@pytest.mark.anyio
async def test_a_guard_is_resolved_on_the_first_call_only() -> None:
    class Counting(Guards):
        looks = 0

        def get(self, name: str, policy: Policy | None = None) -> Guard:
            self.looks += 1
            return super().get(name, policy)

    owner = Counting(settings=Settings())

    @resilient("llm", registry=owner)
    async def answer(number: int) -> int:
        return number

    assert owner.looks == 0
    assert await asyncio.gather(*(answer(number) for number in range(3))) == [0, 1, 2]
    looks = owner.looks
    assert [await answer(number) for number in range(3)] == [0, 1, 2]
    assert owner.looks == looks


@pytest.mark.anyio
async def test_a_failed_coroutine_function_is_retried(owner: Guards) -> None:
    flaky = Flaky(2)

    @resilient("llm.coroutine", POLICY, registry=owner)
    async def complete(word: str, *, end: str = "!") -> str:
        return flaky.answer(word) + end

    assert await complete("hello", end="?") == "HELLO?"
    assert flaky.calls == 3


@pytest.mark.anyio
async def test_an_error_keeps_its_identity_and_its_traceback(owner: Guards) -> None:
    original = LookupError("of the function")

    @resilient("llm.error", registry=owner)
    async def complete() -> None:
        raise original

    with pytest.raises(LookupError) as caught:
        await complete()
    assert caught.value is original
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "complete"


@pytest.mark.anyio
async def test_a_guarded_function_runs_inside_its_call(owner: Guards) -> None:
    @resilient("llm.inside", registry=owner)
    async def complete() -> bool:
        return inside_guarded_call()

    assert await complete()
    assert not inside_guarded_call()


@pytest.mark.anyio
async def test_context_variables_pass_into_a_coroutine_function_and_out(owner: Guards) -> None:
    @resilient("llm.context", registry=owner)
    async def complete() -> str:
        seen = role.get()
        role.set("callee")
        return seen

    token = role.set("caller")
    assert (await complete(), role.get()) == ("caller", "callee")
    role.reset(token)


# ---------------------------------------------------------------------- methods


class Client:
    """Has one method of each kind, all guarded."""

    owner = Guards(settings=load_settings({}), sleep=no_sleep)

    def __init__(self, word: str) -> None:
        self.word = word

    @resilient("llm.method", registry=owner)
    async def complete(self, end: str) -> str:
        return self.word + end

    @resilient("llm.method", registry=owner)
    async def stream(self, end: str) -> AsyncIterator[str]:
        yield self.word
        yield end

    @resilient("llm.method", registry=owner)
    def iterate(self, end: str) -> AsyncIterator[str]:
        return self.stream(end)

    @classmethod
    @resilient("llm.method", registry=owner)
    async def of_class(cls, end: str) -> str:
        return cls.__name__ + end

    @staticmethod
    @resilient("llm.method", registry=owner)
    async def static(end: str) -> str:
        return end


@pytest.mark.anyio
async def test_methods_of_every_kind_can_be_guarded() -> None:
    one, other = Client("one"), Client("other")
    assert await one.complete("!") == "one!"
    assert await other.complete("?") == "other?"
    assert [item async for item in one.stream("!")] == ["one", "!"]
    assert [item async for item in other.iterate("!")] == ["other", "!"]
    assert await Client.of_class("!") == "Client!"
    assert await Client.static("!") == await one.static("!") == "!"
    assert inspect.iscoroutinefunction(one.complete)
    assert [guard.name for guard in Client.owner] == ["llm.method"]


def test_a_bound_method_is_copied_with_its_object() -> None:
    client = Client("one")
    copied: Any = copy.deepcopy(client.complete)
    assert copied.__self__ is not client
    assert copied.__func__ is Client.complete


# ---------------------------------------------------------------------- whose guard, and when


@pytest.mark.anyio
async def test_the_same_name_is_the_same_guard_and_the_same_breaker(owner: Guards) -> None:
    @resilient("llm.shared", Policy(), registry=owner)
    async def broken() -> None:
        raise ConnectionError("down")

    @resilient("llm.shared", registry=owner)
    async def sound() -> str:
        return "never reached"

    for _ in range(2):
        with pytest.raises(Exception, match=r"down|is open"):
            await broken()
    with pytest.raises(CircuitOpenError):
        await sound()
    assert owner.get("llm.shared").breaker.state.value == "open"
    assert [guard.name for guard in owner] == ["llm.shared"]


@pytest.mark.anyio
async def test_without_a_registry_the_guards_of_the_process_are_used(
    owner: Guards, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = guards()
    monkeypatch.setitem(process, Guards, owner)

    @resilient("llm.process")
    async def complete() -> str:
        return "done"

    assert await complete() == "done"
    assert [guard.name for guard in owner] == ["llm.process"]
    assert "llm.process" not in [guard.name for guard in before]


def test_decorating_makes_no_guard_and_reads_no_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read(environ: object = None) -> Settings:
        raise AssertionError("the environment was read")

    monkeypatch.setattr("lightrag_resilience.config.settings.load_settings", read)
    lazy = Guards()
    for function in MODULE_LEVEL:
        resilient("llm.lazy", POLICY, registry=lazy)(function.__wrapped__)
    assert list(lazy) == []


CALLS: list[tuple[Any, Callable[[Any], Any]]] = [
    (module_level, lambda function: asyncio.run(function("x"))),
    (module_generator, lambda function: asyncio.run(drain(function("x")))),
    (module_iterator, lambda function: asyncio.run(drain(function("x")))),
    (module_sync, lambda function: function("x")),
]


@pytest.mark.parametrize(("function", "call"), CALLS, ids=["coroutine", "stream", "it", "sync"])
def test_a_wrong_variable_is_reported_by_the_first_call(
    function: Any, call: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESILIENCE_LLM__RETRY__ATTEMPTS", "many")
    lazy = Guards(sleep=no_sleep)
    guarded = resilient("llm.wrong", registry=lazy)(function.__wrapped__)
    for _ in range(2):
        with pytest.raises(SettingsError, match="RESILIENCE_LLM__RETRY__ATTEMPTS is 'many'"):
            call(guarded)
    monkeypatch.delenv("RESILIENCE_LLM__RETRY__ATTEMPTS")
    assert "x" in call(guarded)
    lazy.threads.close()


@pytest.mark.parametrize(("function", "call"), CALLS, ids=["coroutine", "stream", "it", "sync"])
def test_a_second_policy_for_a_name_is_reported_by_the_first_call(
    function: Any, call: Callable[[Any], Any], owner: Guards
) -> None:
    owner.get("llm.twice", POLICY)
    guarded = resilient("llm.twice", Policy(), registry=owner)(function.__wrapped__)
    with pytest.raises(PolicyError, match=r"'llm\.twice' exists with another policy"):
        call(guarded)


def test_a_guarded_function_works_on_one_loop_after_the_other(owner: Guards) -> None:
    guarded = resilient("llm.loops", registry=owner)(module_level.__wrapped__)  # type: ignore[attr-defined]
    assert [asyncio.run(guarded("x", times=times)) for times in (1, 2)] == ["x", "xx"]


# ---------------------------------------------------------------------- without a loop


def test_importing_and_decorating_need_no_event_loop() -> None:
    script = """
import asyncio, threading

def refuse(*args):
    raise AssertionError("an event loop was asked for")

kept = asyncio.new_event_loop, asyncio.get_event_loop
asyncio.new_event_loop = asyncio.get_event_loop = refuse
from lightrag_resilience import resilient

@resilient("llm")
async def complete(prompt: str) -> str:
    return prompt

@resilient("llm")
async def stream(prompt: str):
    yield prompt

@resilient("llm")
def sync(prompt: str) -> str:
    return prompt

assert threading.active_count() == 1
asyncio.new_event_loop, asyncio.get_event_loop = kept
assert asyncio.run(complete("a")) + sync("b") == "ab"
print("fine")
"""
    assert output_of(script) == ("fine\n", "")


@pytest.mark.parametrize("wrapped", [staticmethod(in_thread), classmethod(in_thread), 7, None])
def test_what_is_no_function_is_refused_when_it_is_decorated(wrapped: Any) -> None:
    with pytest.raises(UnsupportedCallError, match=f"not a {type(wrapped).__name__}"):
        resilient("llm")(wrapped)
