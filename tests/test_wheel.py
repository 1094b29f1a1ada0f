"""What a stranger installs, and what is missing without the extras."""

from __future__ import annotations

import subprocess
import sys
from email.parser import Parser
from typing import Any
from zipfile import ZipFile

import pytest

from support.paths import ROOT
from support.scripts import run_script

pytestmark = pytest.mark.once
WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)  # noqa: S603
    return ZipFile(next(folder.glob("*.whl")))


def test_the_wheel_holds_the_package_and_nothing_else(wheel: ZipFile) -> None:
    names = [name for name in wheel.namelist() if ".dist-info/" not in name]
    modules = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*.py")}
    scripts = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*.lua")}
    package = ROOT / "src" / "lightrag_resilience"
    tables = {str(path.relative_to(ROOT / "src")) for path in package.rglob("*.txt")}
    page = package / "integrations" / "status" / "static"
    shown = {str(path.relative_to(ROOT / "src")) for path in page.iterdir()}
    assert len(scripts) > 5
    assert len(shown) > 4
    assert set(names) == modules | scripts | shown | tables | {"lightrag_resilience/py.typed"}


def test_the_wheel_says_what_it_needs(wheel: ZipFile) -> None:
    (metadata,) = (name for name in wheel.namelist() if name.endswith("METADATA"))
    fields = Parser().parsestr(wheel.read(metadata).decode())
    needed = [line for line in fields.get_all("Requires-Dist", []) if "extra ==" not in line]
    for library in ("tenacity", "pybreaker", "aiolimiter", "httpx", "redis", "anyio"):
        assert any(line.startswith(library) for line in needed)
    extras = set(fields.get_all("Provides-Extra", []))
    assert extras >= {"lightrag", "prometheus", "otel", "gunicorn", "cli", "embedded", "demo"}
    assert fields["License-Expression"] == "MIT"
    assert fields["Description-Content-Type"] == "text/markdown"


def without(*missing: str, then: str) -> subprocess.CompletedProcess[str]:
    return run_script(WITHOUT.format(missing=set(missing)) + then)


def test_the_core_works_without_any_extra() -> None:
    script = """
import asyncio
from lightrag_resilience import Policy, guard, resilient

@resilient("llm", Policy.llm(attempts=2))
async def complete() -> str:
    return "fine"

print(asyncio.run(complete()))
"""
    extras = [
        "lightrag",
        "openai",
        "aiohttp",
        "typer",
        "rich",
        "prometheus_client",
        "opentelemetry",
        "numpy",
    ]
    assert without(*extras, then=script).stdout == "fine\n"


def test_a_test_server_needs_no_aiohttp() -> None:
    script = "from lightrag_resilience.testing.redis_server import RedisServer"
    assert without("aiohttp", then=script).returncode == 0


@pytest.mark.parametrize(
    ("missing", "script", "extra"),
    [
        ("lightrag", "from lightrag_resilience import protect", "lightrag"),
        ("aiohttp", "from lightrag_resilience.testing import Simulator", "testing"),
        ("lightrag", "import lightrag_resilience.integrations.lightrag", "lightrag"),
        ("lightrag", "import lightrag_resilience.integrations.lightrag.storages", "lightrag"),
        ("httpx2", "import lightrag_resilience.integrations.httpx2", "httpx2"),
        (
            "uvicorn_worker",
            "from lightrag_resilience.integrations.gunicorn import DrainingWorker",
            "gunicorn",
        ),
        ("typer", "import lightrag_resilience.cli.app", "cli"),
        ("rich", "import lightrag_resilience.cli.app", "cli"),
        ("prometheus_client", "import lightrag_resilience.telemetry.prometheus", "prometheus"),
        ("opentelemetry", "import lightrag_resilience.telemetry.otel", "otel"),
        (
            "lightrag",
            "sys.argv[1:] = ['demo']\nfrom lightrag_resilience.cli.app import main\nmain()",
            "demo",
        ),
        (
            "fastapi",
            "sys.argv[1:] = ['serve']\nfrom lightrag_resilience.cli.app import main\nmain()",
            "server",
        ),
    ],
)
def test_a_missing_extra_is_named(missing: str, script: str, extra: str) -> None:
    ran = without(missing, then=script)
    assert ran.returncode != 0
    assert f"in a clone of the repository, pip install '.[{extra}]'" in ran.stderr


@pytest.mark.parametrize(
    ("example", "missing"),
    [
        ("decorated_function", "aiohttp"),
        ("fallback", "aiohttp"),
        ("http_client", "aiohttp"),
        ("http_client", "openai"),
        ("own_storage", "lightrag"),
        ("protect_lightrag", "lightrag"),
        ("protect_lightrag", "openai"),
        ("protect_lightrag", "aiohttp"),
        ("serve_lightrag", "lightrag"),
        ("serve_lightrag", "uvicorn"),
        ("serve_lightrag", "aiohttp"),
        ("serve_lightrag", "fastapi"),
    ],
)
def test_an_example_without_its_extra_says_so_in_one_sentence(example: str, missing: str) -> None:
    path = ROOT / "examples" / f"{example}.py"
    first, *_ = path.read_text(encoding="utf-8").splitlines()
    how = first.removeprefix('"""With ').partition(":")[0]
    assert how.startswith("pip install '.[")
    ran = without(missing, then=f"import runpy\nrunpy.run_path({str(path)!r}, run_name='__main__')")
    assert ran.returncode == 1
    assert ran.stderr == f"This example needs {missing}: in a clone, {how}\n"


def test_every_example_is_tried_without_its_extra() -> None:
    marks: Any = test_an_example_without_its_extra_says_so_in_one_sentence
    tried = {name for name, _ in marks.pytestmark[0].args[1]}
    assert tried == {path.stem for path in (ROOT / "examples").glob("*.py")}


def test_something_else_missing_is_not_mistaken_for_an_extra() -> None:
    ran = without("numpy", then="from lightrag_resilience import protect")
    assert "No module named 'numpy'" in ran.stderr
    assert "pip install" not in ran.stderr


def test_an_unknown_name_is_an_attribute_error() -> None:
    import lightrag_resilience  # noqa: PLC0415

    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = lightrag_resilience.nothing
