"""What importing does and does not do, and which module may import which."""

from __future__ import annotations

import ast
import graphlib
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

import lightrag_resilience
from lightrag_resilience import CallRejected, ResilienceError
from support.scripts import output_of

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "lightrag_resilience"
LAZY = ["QueryFailedError", "protect", "unprotect"]
LAYERS = [
    ["_words"],
    ["_bounds", "_forks", "_tasks", "_within", "errors", "shared", "shared.address"],
    ["shared.redis_compat"],
    [
        "_allowed_hosts",
        "_extras",
        "_version",
        "_hints",
        "_identity",
        "_in_threads",
        "_ledger",
        "_outcomes",
        "_threads",
        "_tokenizer",
        "budget",
        "events",
        "journal",
    ],
    ["_gate", "_host", "_kinds", "_phases", "_signals", "_surroundings", "_task_accounts"],
    ["_in_flight", "_report", "_roots"],
    ["_accounts", "_ending"],
    ["adaptive", "health", "priority"],
    ["_finish", "_opened", "_verdicts"],
    ["_failure_http", "_failure_traces"],
    ["_failure_transports"],
    ["_failure_databases", "_failure_providers"],
    ["failures", "policy", "stale", "timeouts"],
    ["_gaps", "_names", "_homes", "_waiters"],
    ["_elsewhere", "_variables", "_windows", "concurrency", "cooldown", "limits", "retry", "usage"],
    ["turnstile"],
    ["_diagnosis", "line", "throttling"],
    ["_circuit", "_loops", "settings"],
    ["breakers", "_diagnosis_code", "_diagnosis_process"],
    ["shared.scripts", "shared.wire"],
    ["shared.booking", "shared.client"],
    ["shared.limit"],
    ["shared.store", "shared.trouble"],
    ["shared.breaker", "shared.overrides"],
    ["shared.link"],
    ["shared.worker"],
    ["shared.sync"],
    ["shared.overview"],
    ["_steering"],
    ["_call"],
    ["_tell"],
    ["_again", "_lateness", "_line_up"],
    ["_block"],
    [
        "_reading",
        "integrations",
        "integrations._asgi_scope",
        "integrations._replaced",
        "integrations.lightrag._inner_retries",
    ],
    ["streams"],
    ["gathering", "guard", "integrations.sdks"],
    ["patience", "registry"],
    ["shutdown"],
    ["integrations._asgi_work", "integrations._gunicorn"],
    ["integrations._gunicorn_worker", "integrations.asgi"],
    ["integrations.gunicorn"],
    ["integrations._status_record", "integrations._status_words"],
    ["integrations._status_rows"],
    ["integrations._status_watch"],
    ["integrations._status_actions"],
    ["integrations.status"],
    ["telemetry", "telemetry._bounded", "telemetry._genai", "telemetry._metrics"],
    ["telemetry._measures", "telemetry._tally", "telemetry.correlation"],
    ["telemetry._spans", "telemetry.logs", "telemetry.prometheus"],
    ["telemetry.otel"],
    ["decorators", "fallback", "hedging", "integrations.metrics"],
    ["integrations.lightrag._ingest"],
    [
        "integrations.lightrag._ladder",
        "integrations.lightrag._queues",
        "integrations.lightrag._storage_methods",
        "integrations.lightrag._work",
    ],
    [
        "integrations.lightrag._documents",
        "integrations.lightrag._outage_log",
        "integrations.lightrag._user_sentences",
        "integrations.lightrag.storages",
    ],
    ["integrations.lightrag._answers", "integrations.lightrag._standins"],
    [
        "integrations.lightrag._degradation",
        "integrations.lightrag._queries",
        "integrations.lightrag._requests",
    ],
    ["shared.lease"],
    ["integrations.lightrag._failed_documents"],
    ["integrations.lightrag._contributions", "integrations.lightrag._left_documents"],
    ["integrations.lightrag._anchors"],
    ["integrations.lightrag._recovery"],
    ["integrations.lightrag._protection"],
    ["integrations.lightrag"],
    [
        "integrations.lightrag._metrics",
        "integrations.lightrag._serving",
        "integrations.lightrag._shared_locks",
    ],
    [
        "integrations.lightrag._worker",
        "integrations.lightrag.by_name",
        "integrations.lightrag.server",
    ],
    ["integrations._http_bodies", "integrations._http_names"],
    ["integrations._http_exchange"],
    ["integrations.httpx", "integrations.httpx2"],
    ["_terminal", "shared.checkup"],
    ["_pages"],
    ["examination", "operate"],
    ["__init__", "testing"],
    ["demo"],
    ["cli"],
    ["__main__"],
]
READ_THE_ENVIRONMENT = {"settings", "_surroundings", "testing.commanded"}
RANKS = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}


def name_of(path: Path) -> str:
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def unit_of(module: str) -> str:
    """The demo and the testing tools are one unit each, any other module stands for itself."""
    package = module.partition(".")[0]
    return package if package in {"demo", "testing"} else module


def run_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """The parts of a module that run when it is imported, outside of functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            yield from (part for other in child.orelse for part in ast.walk(other))
            continue
        yield child
        yield from run_at_import(child)


def targets(module: str, node: ast.AST) -> Iterator[str]:
    """Modules of this package that a node imports, as names inside of it."""
    if isinstance(node, ast.Import):
        yield from (inside(alias.name) for alias in node.names if is_inside(alias.name))
    if not isinstance(node, ast.ImportFrom):
        return
    start = node.module or ""
    if node.level:
        parts = ["lightrag_resilience", *module.split(".")]
        if MODULES[module].name == "__init__.py" and module != "__init__":
            parts.append("")
        start = ".".join([*parts[: -node.level], *([node.module] if node.module else [])])
    if is_inside(start):
        for alias in node.names:
            whole = inside(f"{start}.{alias.name}")
            yield whole if whole in MODULES else inside(start)


def is_inside(name: str) -> bool:
    return name.partition(".")[0] == "lightrag_resilience"


def inside(name: str) -> str:
    return name.removeprefix("lightrag_resilience").removeprefix(".") or "__init__"


def imports_of(module: str) -> set[str]:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    return {name for node in run_at_import(tree) for name in targets(module, node)}


# ---------------------------------------------------------------------- what importing does


def test_importing_starts_nothing_and_needs_nothing_big() -> None:
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
big = "aiohttp lightrag numpy openai prometheus_client pydantic pydantic_settings rich typer"
print(sorted({*big.split()} & {name.partition(".")[0] for name in sys.modules}))
"""
    assert output_of(script) == ("[]\n", "")


def test_importing_reads_no_variable_of_ours() -> None:
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


def test_no_warning_is_given() -> None:
    assert output_of("import lightrag_resilience", "-W", "error") == ("", "")


# ---------------------------------------------------------------------- what it offers


def test_the_public_names_are_sorted_and_none_is_twice() -> None:
    names = lightrag_resilience.__all__
    assert names == sorted(set(names))
    assert set(LAZY) < set(names)


@pytest.mark.parametrize("name", sorted({*lightrag_resilience.__all__} - {*LAZY}))
def test_a_public_name_is_there(name: str) -> None:
    assert name in vars(lightrag_resilience)
    assert getattr(lightrag_resilience, name) is not None


@pytest.mark.parametrize("name", LAZY)
def test_what_needs_lightrag_is_imported_when_asked_for(name: str) -> None:
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


def test_every_module_has_a_layer_and_every_layer_has_modules() -> None:
    assert set(map(unit_of, MODULES)) == set(RANKS)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_lower_layers(module: str) -> None:
    unit = unit_of(module)
    others = set(map(unit_of, imports_of(module))) - {unit}
    assert {other for other in others if RANKS[other] >= RANKS[unit]} == set()


def test_no_modules_import_each_other_in_a_circle() -> None:
    order = graphlib.TopologicalSorter({name: imports_of(name) for name in MODULES})
    assert set(order.static_order()) == set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_only_the_settings_read_the_environment(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used |= {node.name for node in ast.walk(tree) if isinstance(node, ast.alias)}
    reads = used & {"environ", "environb", "getenv", "getenvb"}
    assert reads == ({"environ"} if module in READ_THE_ENVIRONMENT else set())
