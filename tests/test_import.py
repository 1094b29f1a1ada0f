"""What importing does and does not do, and which module may import which."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import lightrag_resilience
from lightrag_resilience import CallRejected, ResilienceError
from support.paths import ROOT
from support.scripts import output_of

PACKAGE = ROOT / "src" / "lightrag_resilience"
LAZY = ["QueryFailedError", "protect", "unprotect"]
READ_THE_ENVIRONMENT = {"config.settings", "config.process_environment", "testing.command_process"}

STATEFUL = {"Condition", "Guards", "Lock", "ProcessLock", "RLock", "WeakKeyDictionary", "WeakSet"}
STATEFUL |= {"WeakValueDictionary", "count", "defaultdict", "deque", "local"}


def name_of(path: Path) -> str:
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


# ---------------------------------------------------------------------- what importing does


def test_an_import_starts_nothing_and_loads_no_large_module() -> None:
    script = """
import asyncio, signal, sys, threading

def refuse(*args, **kwargs):
    raise AssertionError("an event loop was asked for")

asyncio.new_event_loop = asyncio.get_event_loop = refuse
handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
import lightrag_resilience
from lightrag_resilience import Policy, guard, guards, resilient
resilient("llm", Policy.llm())(len)

assert threading.enumerate() == [threading.main_thread()]
assert handlers == {number: signal.getsignal(number) for number in handlers}
big = "aiohttp lightrag numpy openai prometheus_client pydantic rich typer"
print(sorted({*big.split()} & {name.partition(".")[0] for name in sys.modules}))
"""
    assert output_of(script) == ("[]\n", "")


def test_an_import_reads_no_resilience_variable() -> None:
    script = """
import os
os.environ["RESILIENCE_LLM__RETRY__ATTEMPTS"] = "nonsense"
from lightrag_resilience import SettingsError, guard, guards
assert list(guards()) == []
try:
    guard("llm")
except SettingsError as error:
    print(len(error.problems))
"""
    assert output_of(script) == ("1\n", "")


def test_an_import_gives_no_warning() -> None:
    assert output_of("import lightrag_resilience", "-W", "error") == ("", "")


# ---------------------------------------------------------------------- what it offers


def test_public_names_are_sorted_and_unique() -> None:
    names = lightrag_resilience.__all__
    assert names == sorted(set(names))
    assert set(LAZY) < set(names)


@pytest.mark.parametrize("name", sorted({*lightrag_resilience.__all__} - {*LAZY}))
def test_a_public_name_can_be_imported(name: str) -> None:
    assert name in vars(lightrag_resilience)
    assert getattr(lightrag_resilience, name) is not None


@pytest.mark.parametrize("name", LAZY)
def test_names_that_need_lightrag_are_imported_on_first_use(name: str) -> None:
    pytest.importorskip("lightrag")
    found = getattr(lightrag_resilience, name)
    assert found is getattr(importlib.import_module(found.__module__), name)
    assert found.__module__.startswith("lightrag_resilience.integrations.lightrag")


@pytest.fixture
def miss(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes importing the integration fail for want of a module."""

    def arrange(missing: str) -> None:
        def ask(_: str) -> None:
            raise ModuleNotFoundError(f"no {missing} here", name=missing)

        fake = ModuleType("lightrag_resilience.integrations")
        vars(fake)["__getattr__"] = ask
        monkeypatch.setitem(sys.modules, fake.__name__, fake)

    return arrange


@pytest.mark.parametrize("name", LAZY)
def test_without_lightrag_the_error_says_what_to_install(
    name: str, miss: Callable[[str], None]
) -> None:
    miss("lightrag")
    with pytest.raises(ImportError) as caught:
        getattr(lightrag_resilience, name)
    how = "in a clone of the repository, pip install '.[lightrag]'"
    message = f"{name} needs LightRAG 1.4.16 or later: {how}"
    assert (str(caught.value), caught.value.name) == (message, "lightrag")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_another_missing_module_is_named_as_it_is(miss: Callable[[str], None]) -> None:
    miss("numpy")
    with pytest.raises(ModuleNotFoundError, match="no numpy here"):
        lightrag_resilience.protect  # noqa: B018 - asking for it is the test


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'lightrag_resilience' has no attribute 'protekt'"):
        lightrag_resilience.protekt  # noqa: B018 - asking for it is the test


def test_the_readmes_table_of_errors_names_what_exists() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[A-Z][^|]*)\|", readme, flags=re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert named
    assert set(named) <= set(lightrag_resilience.__all__)
    errors = [getattr(lightrag_resilience, name) for name in named if name not in LAZY]
    assert all(issubclass(error, ResilienceError) for error in errors)
    refusals = [error.__name__ for error in errors if issubclass(error, CallRejected)]
    assert named[:4] == refusals


# ---------------------------------------------------------------------- how it is built


@pytest.mark.no_cover
@pytest.mark.parametrize("module", MODULES)
def test_only_the_settings_read_the_environment(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used |= {node.name for node in ast.walk(tree) if isinstance(node, ast.alias)}
    reads = used & {"environ", "environb", "getenv", "getenvb"}
    assert reads == ({"environ"} if module in READ_THE_ENVIRONMENT else set())


@pytest.mark.no_cover
@pytest.mark.parametrize("module", MODULES)
def test_only_the_process_state_is_state_of_a_module(module: str) -> None:
    """Other state could neither be reset after a fork nor made anew for a test."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Global)]
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            is_constant = ast.unparse(node).partition(" ")[0].rstrip(":").isupper()
            assert is_constant or not is_state(node.value), ast.unparse(node)


def is_state(value: ast.expr) -> bool:
    """Whether a value begins empty, to be filled later, or is a lock, a counter or a registry."""
    if isinstance(value, ast.Call):
        made = ast.unparse(value.func).rpartition(".")[2]
        return made in STATEFUL or (made in {"dict", "list", "set"} and not value.args)
    return isinstance(value, ast.Dict | ast.List) and not ast.unparse(value)[1:-1]
