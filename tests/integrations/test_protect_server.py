"""The seams of LightRAG's server module, on a made-up one; `test_server` has the real one."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("lightrag")

from lightrag_resilience import Guards, SettingsError, unprotect
from lightrag_resilience.integrations.lightrag import is_protected
from lightrag_resilience.integrations.lightrag import server as module
from lightrag_resilience.integrations.lightrag._requests import HonestRequests
from lightrag_resilience.integrations.status import StatusPage
from lightrag_resilience.settings import load_settings
from support.lightrag_rig import Provider, lightrag_on

pytestmark = [pytest.mark.anyio, pytest.mark.lightrag]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class App:
    def __init__(self) -> None:
        self.middleware: list[type] = []

    def add_middleware(self, kind: type) -> None:
        self.middleware.append(kind)


class Rag:
    def __init__(self, **options: Any) -> None:
        self.options = options
        self.is_initialized = False

    async def initialize_storages(self) -> None:
        self.is_initialized = True


def made_up() -> Any:
    server: Any = ModuleType("lightrag.api.lightrag_server")
    server.LightRAG = Rag
    server.create_app = lambda *_: App()
    server.ran = []
    server.main = lambda: server.ran.append(list(sys.argv))
    return server


def test_its_applications_answer_honestly_and_its_instances_protect_themselves() -> None:
    server = made_up()
    take_back = module.protect_server(server)
    assert server.create_app(None).middleware == [HonestRequests]
    made = server.LightRAG(workspace="w")
    assert made.options == {"workspace": "w"}
    assert "initialize_storages" in vars(made)
    take_back()
    assert server.LightRAG is Rag
    assert server.create_app().middleware == []


def test_the_status_page_is_there_where_the_operator_wants_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = Guards(settings=load_settings({"RESILIENCE_STATUS": "true"}))
    monkeypatch.setattr(module, "guards", lambda: wanted)
    server = made_up()
    module.protect_server(server)
    assert server.create_app(None).middleware == [HonestRequests, StatusPage]


async def test_an_instance_is_protected_when_its_storages_are_initialized() -> None:
    async with lightrag_on(Provider()) as rag:
        await rag.finalize_storages()
        module.protect_on_start(rag)
        assert not is_protected(rag)
        await rag.initialize_storages()
        assert is_protected(rag)
        await unprotect(rag)


@pytest.mark.parametrize("gunicorn", [False, True])
def test_serving_hands_lightrags_options_on(
    gunicorn: bool,  # noqa: FBT001 - a parameter of the test
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, starter = made_up(), made_up()
    monkeypatch.setitem(sys.modules, "lightrag.api", ModuleType("lightrag.api"))
    monkeypatch.setitem(sys.modules, "lightrag.api.lightrag_server", server)
    monkeypatch.setitem(sys.modules, "lightrag.api.run_with_gunicorn", starter)
    monkeypatch.setattr(sys, "argv", ["before"])
    module.serve(["--port", "1"], gunicorn=gunicorn)
    name = "lightrag-gunicorn" if gunicorn else "lightrag-server"
    assert (starter if gunicorn else server).ran == [[name, "--port", "1"]]
    assert server.LightRAG is not Rag


def test_a_wrong_variable_ends_it_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    server = made_up()

    class Wrong:
        @property
        def settings(self) -> Any:
            raise SettingsError("wrong")

    monkeypatch.setitem(sys.modules, "lightrag.api.lightrag_server", server)
    monkeypatch.setitem(sys.modules, "lightrag.api", ModuleType("lightrag.api"))
    monkeypatch.setattr(module, "guards", Wrong)
    monkeypatch.setattr(sys, "argv", ["before"])
    with pytest.raises(SettingsError):
        module.serve([])
    assert server.ran == []
