"""The seams of LightRAG's server module, on a made-up one; `test_server` has the real one."""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
from multiprocessing import process
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("lightrag")

from lightrag.base import StoragesStatus
from lightrag.utils import EmbeddingFunc

from lightrag_resilience import (
    Guards,
    ResilienceError,
    SettingsError,
    UnsupportedCallError,
    unprotect,
)
from lightrag_resilience.config.settings import Settings, load_settings
from lightrag_resilience.integrations import gunicorn as hooks
from lightrag_resilience.integrations.asgi import DrainMiddleware
from lightrag_resilience.integrations.lightrag import coverage, is_protected, protect
from lightrag_resilience.integrations.lightrag import server as module
from lightrag_resilience.integrations.lightrag.compat import PrivateName
from lightrag_resilience.integrations.lightrag.serving import gunicorn_worker as worker_module
from lightrag_resilience.integrations.lightrag.serving import server_config as serving
from lightrag_resilience.integrations.lightrag.serving.health_report import HealthReport
from lightrag_resilience.integrations.lightrag.serving.http_errors import DependencyErrorMiddleware
from lightrag_resilience.integrations.lightrag.serving.server_config import (
    answer_when_stored,
    configure_gunicorn,
    configure_uvicorn,
)
from lightrag_resilience.integrations.lightrag.work.ingest import on_stored
from lightrag_resilience.integrations.status import StatusPage
from lightrag_resilience.shutdown import Coordinator
from lightrag_resilience.telemetry.correlation import CorrelationMiddleware
from support.lightrag_rig import Provider, lightrag_on

pytestmark = [pytest.mark.anyio, pytest.mark.lightrag]


class App:
    def __init__(self) -> None:
        self.middleware: list[type] = []
        self.options: dict[type, dict[str, Any]] = {}

    def add_middleware(self, kind: type, **options: Any) -> None:
        self.middleware.append(kind)
        self.options[kind] = options


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
    server.uvicorn = SimpleNamespace(run=lambda *_, **options: server.ran.append(options))
    server.main = lambda: server.ran.append(list(sys.argv))
    return server


def test_applications_get_our_middleware_and_instances_are_protected() -> None:
    server = made_up()
    take_back = module.protect_server(server)
    assert server.create_app(None).middleware == [
        HealthReport,
        DependencyErrorMiddleware,
        DrainMiddleware,
        CorrelationMiddleware,
    ]
    made = server.LightRAG(workspace="w")
    assert made.options == {"workspace": "w"}
    assert "initialize_storages" in vars(made)
    take_back()
    assert server.LightRAG is Rag
    assert server.create_app().middleware == []


def test_the_log_budget_is_divided_by_the_workers_of_the_command_line() -> None:
    server = made_up()
    take_back = module.protect_server(server)
    made = server.create_app(SimpleNamespace(workers=4))
    take_back()
    assert made.options[DependencyErrorMiddleware] == {"workers": 4}


def test_the_status_page_is_served_if_it_is_turned_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = Guards(settings=load_settings({"RESILIENCE_STATUS": "true"}))
    monkeypatch.setattr(module, "guards", lambda: wanted)
    server = made_up()
    take_back = module.protect_server(server)
    assert server.create_app(None).middleware == [
        HealthReport,
        DependencyErrorMiddleware,
        DrainMiddleware,
        StatusPage,
        CorrelationMiddleware,
    ]
    take_back()


@pytest.mark.parametrize("strict", ["true", "false"])
def test_a_server_that_cannot_be_protected_is_refused_if_strict(
    strict: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gone = PrivateName("api/lightrag_server.py", "gone", ("server.app",), "", "it has no guard")
    monkeypatch.setattr(coverage, "PRIVATE_NAMES", (gone,))
    settings = load_settings({"RESILIENCE_STRICT": strict})
    monkeypatch.setattr(module, "guards", lambda: Guards(settings=settings))
    server = made_up()
    monkeypatch.setitem(sys.modules, "lightrag.api", ModuleType("lightrag.api"))
    monkeypatch.setitem(sys.modules, "lightrag.api.lightrag_server", server)
    monkeypatch.setattr(sys, "argv", ["before"])
    if strict == "true":
        with pytest.raises(UnsupportedCallError, match=r"server\.app: it has no guard"):
            module.serve([])
        assert server.ran == []
    else:
        module.serve([])
        assert server.ran == [["lightrag-server"]]
        assert "server.app: it has no guard" in caplog.text
        assert server.LightRAG is Rag


async def test_an_instance_is_protected_when_its_storages_are_initialized() -> None:
    async with lightrag_on(Provider()) as rag:
        await rag.finalize_storages()
        module.protect_on_start(rag)
        assert not is_protected(rag)
        await rag.initialize_storages()
        assert is_protected(rag)
        await unprotect(rag)


@pytest.mark.parametrize("gunicorn", [False, True])
def test_serve_passes_options_to_lightrag(
    gunicorn: bool,  # noqa: FBT001 - a parameter of the test
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, starter = made_up(), made_up()
    config = ModuleType("lightrag.api.gunicorn_config")
    monkeypatch.setitem(sys.modules, "lightrag.api.gunicorn_config", config)
    monkeypatch.setitem(sys.modules, "lightrag.api", ModuleType("lightrag.api"))
    monkeypatch.setitem(sys.modules, "lightrag.api.lightrag_server", server)
    monkeypatch.setitem(sys.modules, "lightrag.api.run_with_gunicorn", starter)
    monkeypatch.setattr(sys, "argv", ["before"])
    module.serve(["--port", "1"], gunicorn=gunicorn)
    name = "lightrag-gunicorn" if gunicorn else "lightrag-server"
    assert (starter if gunicorn else server).ran == [[name, "--port", "1"]]
    assert server.LightRAG is not Rag
    assert hasattr(config, "worker_class") == gunicorn


def test_a_missing_tokenizer_table_is_one_clear_error() -> None:
    download: dict[str, Any] = {"__name__": "tiktoken.load"}
    exec("def read_file():\n    raise ConnectionError('no route')", download)  # noqa: S102

    class Offline(Rag):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            try:
                download["read_file"]()
            except ConnectionError as error:
                raise RuntimeError from error

    class Broken(Rag):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            raise RuntimeError

    server = made_up()
    server.LightRAG = Offline
    module.protect_server(server)
    with pytest.raises(ResilienceError, match=r"run lightrag-download-cache .* TIKTOKEN_CACHE_DIR"):
        server.LightRAG()
    server.LightRAG = Broken
    module.protect_server(server)
    with pytest.raises(RuntimeError):
        server.LightRAG()


def test_providers_are_named_after_the_servers_bindings() -> None:
    async def embed() -> None: ...

    async def rerank() -> None: ...

    options = SimpleNamespace(embedding_binding="ollama", rerank_binding="jina")
    functions = {"embedding_func": SimpleNamespace(func=embed), "rerank_model_func": rerank}
    server = made_up()

    def create_app(options: Any) -> App:
        del options
        server.LightRAG(**functions)
        return App()

    server.create_app = create_app
    take_back = module.protect_server(server)
    server.create_app(options)
    take_back()
    assert vars(embed)["__resilience_provider__"] == "ollama"
    assert vars(rerank)["__resilience_provider__"] == "jina"


@pytest.mark.parametrize(
    ("module_name", "function", "name"),
    [
        ("lightrag.llm.openai", "openai_embed", "embedding.openai"),
        ("lightrag.llm.openai", "azure_openai_embed", "embedding.azure_openai"),
        ("lightrag.llm.ollama", "ollama_embed", "embedding.ollama"),
        ("lightrag.rerank", "cohere_rerank", "rerank.cohere"),
        ("lightrag.rerank", "ali_rerank", "rerank.aliyun"),
        ("lightrag.rerank", "generic_rerank_api", "rerank"),
        ("my_application", "openai_embed", "embedding"),
    ],
)
async def test_protect_names_guards_after_the_same_bindings(
    module_name: str, function: str, name: str
) -> None:
    family = name.partition(".")[0]
    provider = Provider()

    async def called(*args: Any, **kwargs: Any) -> Any: ...

    called.__module__, called.__name__ = module_name, function
    changes: dict[str, Any] = {"rerank_model_func": called}
    if family == "embedding":
        changes = {"embedding_func": EmbeddingFunc(embedding_dim=8, func=called)}
    registry = Guards(settings=load_settings({}))
    async with lightrag_on(provider, **changes) as rag:
        await protect(rag, registry=registry)
        assert name in [guard.name for guard in registry]
        await unprotect(rag)


async def test_a_coordinator_finalizes_the_storages_of_an_instance() -> None:
    async with lightrag_on(Provider()) as rag:
        module.protect_on_start(rag)
        async with Coordinator(handle_signals=False) as coordinator:
            await rag.initialize_storages()
            assert rag._storages_status is StoragesStatus.INITIALIZED
            report = await coordinator.drain()
            assert rag._storages_status is StoragesStatus.FINALIZED
        assert report.failed_to_close == ()
        await unprotect(rag)


# ---------------------------------------------------------------------- times and hooks


def settings(**variables: str) -> Settings:
    return load_settings(variables)


def test_uvicorn_waits_for_requests_as_long_as_a_drain() -> None:
    server = made_up()
    before = server.uvicorn
    take_back = configure_uvicorn(
        server,
        settings(RESILIENCE_SHUTDOWN_TIMEOUT="60.5", RESILIENCE_SHUTDOWN_CLOSE_TIMEOUT="10"),
    )
    logger = logging.getLogger("lightrag_resilience")
    handlers, level = logger.handlers, logger.level
    try:
        server.uvicorn.run(port=1)
    finally:
        logger.handlers = handlers
        logger.setLevel(level)
    assert server.ran == [{"port": 1, "timeout_graceful_shutdown": 51}]
    take_back()
    assert server.uvicorn is before


def test_gunicorn_kills_after_a_drain_and_calls_both_hooks() -> None:
    config: Any = ModuleType("lightrag.api.gunicorn_config")
    exited: list[str] = []
    config.on_exit = lambda server: exited.append(server.name)
    configure_gunicorn(config, settings(RESILIENCE_SHUTDOWN_TIMEOUT="60.5"))
    assert config.graceful_timeout == 66
    module_name, _, name = config.worker_class.rpartition(".")
    worker = getattr(importlib.import_module(module_name), name)
    assert issubclass(worker, hooks.DrainingWorker)
    config.on_exit(SimpleNamespace(WORKERS={}, name="master"))
    assert exited == ["master"]
    assert config.child_exit is hooks.child_exit
    assert not hasattr(config, "post_worker_init")  # LightRAG does not hand it on


def test_a_worker_does_not_join_its_masters_children(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Any] = []

    def begin(worker: Any) -> None:
        begun.append(worker)

    monkeypatch.setattr(hooks.DrainingWorker, "init_process", begin)
    monkeypatch.setattr(process, "_children", {"LightRAG's manager"}, raising=False)
    worker = worker_module.Worker.__new__(worker_module.Worker)
    worker.init_process()
    assert begun == [worker]
    assert process._children == set()  # type: ignore[attr-defined]


# ---------------------------------------------------------------------- uploads


class Uploads:
    """LightRAG's way to begin work in the background, with an upload of one document."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, store: Any) -> None:
        shared: Any = ModuleType("lightrag.kg.shared_storage")
        shared.start_reserved_background_task = self.start
        monkeypatch.setitem(sys.modules, "lightrag.kg.shared_storage", shared)
        self.undo = answer_when_stored()
        self.shared = shared
        self.store = store
        self.tasks: set[asyncio.Task[None]] = set()

    async def start(self, tasks: Any, *, work: Any) -> asyncio.Task[None]:
        started = asyncio.Event()
        task = asyncio.create_task(work(started))
        tasks.add(task)
        waits = asyncio.create_task(started.wait())
        await asyncio.wait([waits, task], return_when=asyncio.FIRST_COMPLETED)
        waits.cancel()
        if not started.is_set():
            raise RuntimeError("reserved background task failed to start")
        return task

    async def _indexing_work(self, started: asyncio.Event) -> None:
        started.set()
        await self.store()

    async def other_work(self, started: asyncio.Event) -> None:
        await self._indexing_work(started)

    async def upload(self, work: Any = None) -> asyncio.Task[None]:
        begin = self.shared.start_reserved_background_task
        task: asyncio.Task[None] = await begin(self.tasks, work=work or self._indexing_work)
        return task


async def test_an_upload_is_answered_once_its_documents_are_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored: list[str] = []

    async def store() -> None:
        await asyncio.sleep(0.05)
        stored.append("stored")
        notify = on_stored.get()
        assert notify is not None
        notify()
        await asyncio.Event().wait()  # what is done with them takes longer

    uploads = Uploads(monkeypatch, store)
    task = await uploads.upload()
    assert stored == ["stored"]
    assert not task.done()
    task.cancel()


async def test_an_upload_that_cannot_be_stored_is_not_accepted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def store() -> None:
        raise ConnectionRefusedError

    with pytest.raises(RuntimeError, match="failed to start"):
        await Uploads(monkeypatch, store).upload()


async def test_an_upload_is_answered_in_time_whatever_the_storages_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serving, "_ANSWER_TIMEOUT", 0.05)

    async def store() -> None:
        await asyncio.Event().wait()

    task = await Uploads(monkeypatch, store).upload()
    assert not task.done()
    task.cancel()


async def test_other_background_work_starts_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    async def store() -> None:
        assert on_stored.get() is None
        await asyncio.Event().wait()

    uploads = Uploads(monkeypatch, store)
    (await uploads.upload(uploads.other_work)).cancel()
    uploads.undo()
    assert uploads.shared.start_reserved_background_task == uploads.start


def test_a_lightrag_without_background_uploads_is_unchanged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    empty = ModuleType("lightrag.kg.shared_storage")
    monkeypatch.setitem(sys.modules, "lightrag.kg.shared_storage", empty)
    answer_when_stored()()
    assert not hasattr(empty, "start_reserved_background_task")


def test_a_wrong_variable_ends_the_server_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
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
