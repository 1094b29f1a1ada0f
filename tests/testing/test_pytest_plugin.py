"""The pytest plugin as its users meet it: in runs of pytest of their own."""

from __future__ import annotations

import re
from importlib.metadata import entry_points

import pytest

from support.paths import ROOT
from support.scripts import output_of

pytest_plugins = ["pytester"]

MY_APP = """
import httpx
from collections.abc import AsyncIterator
from lightrag_resilience import Policy, resilient

@resilient("llm.openai", Policy.llm(attempts=4))
async def ask(question: str) -> str:
    return "Because."

@resilient("llm.openai")
async def pieces() -> AsyncIterator[str]:
    yield "one"

@resilient("llm.simulated")
def ask_provider(base_url: str) -> str:
    sent = {"messages": [{"role": "user", "content": "Why?"}]}
    answer = httpx.post(f"{base_url}/chat/completions", json=sent)
    answer.raise_for_status()
    return answer.text
"""
ASYNCIO = """
import pytest

@pytest.fixture
def anyio_backend():
    return "asyncio"
"""


@pytest.fixture
def tester(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """Runs pytest with this plugin and anyio's alone, whether or not they are installed."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.plugins = ["_lightrag_resilience_pytest", "anyio"]
    pytester.makepyfile(my_app=MY_APP)
    pytester.makeconftest(ASYNCIO)
    pytester.makeini("[pytest]\nanyio_mode = auto\n")
    return pytester


def run(tester: pytest.Pytester, *arguments: str, passed: int, failed: int = 0) -> None:
    plugins = [f"-p{name}" for name in tester.plugins]
    tester.plugins = []
    ran = tester.runpytest_inprocess("-q", *plugins, *arguments)
    ran.assert_outcomes(passed=passed, failed=failed)


def test_the_plugin_is_found_by_its_entry_point() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (declared,) = re.findall(r"\.pytest11\]\nlightrag_resilience = \"(\w+)\"", project)
    assert (ROOT / "src" / f"{declared}.py").is_file()
    found = [each.value for each in entry_points(group="pytest11") if "resilience" in each.name]
    assert found in ([], [declared])  # none in an environment that was installed before


@pytest.mark.processes
def test_the_page_for_developers_says_what_is_so(tester: pytest.Pytester) -> None:
    page = (ROOT / "docs" / "developers.md").read_text(encoding="utf-8")
    section = page.partition("## Test your own code")[2].partition("\n## ")[0]
    (code,) = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    tester.makepyfile(test_page=code)
    run(tester, passed=code.count("def test_"))
    named = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    tester.runpytest_inprocess(
        "-p_lightrag_resilience_pytest", "--fixtures"
    ).stdout.fnmatch_lines_random([f"{name} -- *" for name in named])


def test_functions_of_every_kind_decorated_at_import_are_reached(tester: pytest.Pytester) -> None:
    tester.makepyfile("""
        import asyncio, threading
        import httpx, pytest
        from my_app import ask, ask_provider, pieces

        NOWHERE = "http://127.0.0.1:1"

        async def test_on_a_loop(outage, resilience_fast, recorded):
            with outage("llm.openai"):
                with pytest.raises(ConnectionError):
                    await ask("Why?")
            assert recorded.attempts("llm.openai") == 4

        async def test_as_a_stream(outage, resilience_off):
            with outage("llm"), pytest.raises(ConnectionError):
                async for _ in pieces():
                    raise AssertionError
            assert [each async for each in pieces()] == ["one"]

        def test_without_a_loop(outage, resilience_fast, recorded):
            with outage("llm.simulated"), pytest.raises(ConnectionError):
                ask_provider(NOWHERE)
            assert recorded.attempts("llm.simulated") == 4

        def test_in_a_loop_of_its_own(outage, resilience_off):
            with outage("llm.openai"), pytest.raises(ConnectionError):
                asyncio.run(ask("Why?"))
            assert asyncio.run(ask("Why?")) == "Because."

        def test_in_threads(open_circuit, recorded):
            def caller():
                with pytest.raises(Exception, match="is open by a test"):
                    ask_provider(NOWHERE)
            with open_circuit("llm.simulated"):
                threads = [threading.Thread(target=caller) for _ in range(3)]
                [each.start() for each in threads], [each.join() for each in threads]
            assert recorded.rejections("llm.simulated") == ["CircuitOpenError"] * 3
    """)
    run(tester, passed=5)


@pytest.mark.parametrize("mode", ["fresh", "fast", "off"])
def test_the_configuration_gives_every_test_a_fixture(mode: str, tester: pytest.Pytester) -> None:
    tester.makeini(f"[pytest]\nresilience = {mode}\nanyio_mode = auto\n")
    tester.makepyfile(f"""
        import pytest
        from my_app import ask
        from lightrag_resilience import guard, guards

        @pytest.mark.parametrize("time", range(2))
        async def test_nothing_is_left_of_the_test_before(time, monkeypatch):
            monkeypatch.setenv("RESILIENCE_LLM__RETRY__ATTEMPTS", str(7 + time))
            assert list(guards()) == []
            assert await ask("Why?") == "Because."
            mode, attempts = {mode!r}, guard("llm.openai").policy.retry.attempts
            assert attempts == (1 if mode == "off" else 7 + time)
            guard("llm.openai").breaker.open()

        def test_the_fixture_is_there(request):
            assert "resilience_{mode}" in request.fixturenames
    """)
    run(tester, passed=3)


def test_a_wrong_configuration_is_one_sentence(tester: pytest.Pytester) -> None:
    tester.makeini("[pytest]\nresilience = quick\n")
    ran = tester.runpytest_inprocess("-p_lightrag_resilience_pytest")
    assert ran.ret == pytest.ExitCode.USAGE_ERROR
    ran.stderr.fnmatch_lines(["ERROR: resilience is 'quick', not one of fresh, fast, off"])


def test_without_the_fixtures_guards_are_as_they_are(tester: pytest.Pytester) -> None:
    tester.makepyfile("""
        from lightrag_resilience import guard, guards

        def test_one():
            guard("llm.openai").breaker.open()

        def test_two():
            assert guard("llm.openai").breaker.outage is not None
    """)
    run(tester, passed=2)


@pytest.mark.processes
def test_the_simulator_serves_tests_of_any_kind_at_once(tester: pytest.Pytester) -> None:
    tester.makepyfile("""
        import asyncio
        import httpx
        from my_app import ask_provider
        from lightrag_resilience.testing import Fault

        def test_sync(simulator):
            assert "choices" in ask_provider(simulator.base_url)
            assert simulator.count("200") == 1

        async def test_async(simulator, resilience_off):
            simulator.set_faults([Fault.status(418)])
            async with httpx.AsyncClient() as http:
                assert (await http.get(f"{simulator.base_url}/models")).status_code == 418
    """)
    run(tester, passed=2)


@pytest.mark.processes
def test_workers_of_xdist_have_guards_of_their_own(tester: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    tester.makepyfile("""
        import pytest
        from my_app import ask

        @pytest.mark.parametrize("time", range(4))
        async def test_it(time, resilience_fast, outage, recorded):
            with outage("llm.openai"), pytest.raises(ConnectionError):
                await ask("Why?")
            assert recorded.attempts("llm.openai") == 4
    """)
    plugins = [f"-p{name}" for name in (*tester.plugins, "xdist")]
    tester.plugins = []
    tester.runpytest_subprocess("-q", "-n2", *plugins).assert_outcomes(passed=4)


@pytest.mark.processes
def test_a_run_that_uses_none_of_it_imports_no_package(tester: pytest.Pytester) -> None:
    tester.makepyfile("""
        import sys

        def test_it():
            assert "_lightrag_resilience_pytest" in sys.modules
            assert not [name for name in sys.modules if name.startswith("lightrag_resilience")]
    """)
    plugins = [f"-p{name}" for name in tester.plugins]
    tester.plugins = []
    tester.runpytest_subprocess("-q", *plugins).assert_outcomes(passed=1)


@pytest.mark.processes
def test_without_pytest_the_same_switches_are_with_blocks() -> None:
    script = """
import sys
sys.modules["pytest"] = None
from lightrag_resilience.testing import Recorder, outage, resilience_fast, resilience_off
from lightrag_resilience import resilient

@resilient("llm.openai")
def ask():
    return "answer"

with resilience_fast(), Recorder() as recorded:
    try:
        with outage("llm.openai"):
            ask()
    except ConnectionError as error:
        print(recorded.attempts("llm.openai"), error)
with resilience_off():
    print(ask())
print("aiohttp" in sys.modules)
"""
    told = "4 llm.openai is down, as a test demands\nanswer\nFalse\n"
    assert output_of(script) == (told, "")
