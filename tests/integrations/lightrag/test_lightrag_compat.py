"""Private and undocumented parts of LightRAG exist, in the installed version, as they are used."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightrag.utils_pipeline", reason="LightRAG 1.4 lacks most of it")

import lightrag
from lightrag import LightRAG
from lightrag.base import DocProcessingStatus, DocStatus
from lightrag.constants import GRAPH_FIELD_SEP
from lightrag.kg import STORAGES, shared_storage
from lightrag.llm import openai
from lightrag.prompt import PROMPTS
from lightrag.utils_pipeline import CUSTOM_CHUNK_PATCH_METADATA_KEY

from lightrag_resilience.integrations.lightrag import compat
from support.lightrag_rig import Provider, lightrag_on

pytestmark = [pytest.mark.anyio, pytest.mark.lightrag]
COLUMNS: dict[str, list[Any]] = {"entity_names": ["Ada"], "relation_pairs": [["Ada", "Alderwick"]]}


def parameters(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


@pytest.mark.parametrize(
    ("name", "used"),
    [
        (compat.PROCESS_DOCUMENT, {"doc_id", "status_doc"}),
        (compat.MARK_CANCELLED, {"pipeline_status"}),
        (compat.IS_CANCELLED, set()),
        (compat.NEXT_STEP, set()),
        (compat.PURGE, {"doc_id"}),
        (compat.ADD_ANCHORS, {"doc_id", "entity_names", "relation_pairs"}),
    ],
)
def test_a_method_of_the_pipeline_takes_the_arguments_in_use(name: str, used: set[str]) -> None:
    method = getattr(LightRAG, name)
    assert inspect.iscoroutinefunction(method)
    assert used <= set(parameters(method))


def test_a_role_is_built_from_five_arguments() -> None:
    known = ["role_name", "raw_func", "max_async", "timeout", "model_kwargs"]
    assert parameters(getattr(LightRAG, compat.WRAP_ROLE)) == known


async def test_a_role_has_metadata_and_storages_have_a_status() -> None:
    async with lightrag_on(Provider()) as rag:
        for role in rag.role_llm_funcs:
            assert isinstance(compat.roles_of(rag)[role].metadata, dict)
            assert callable(compat.roles_of(rag)[role].function)
        assert compat.are_storages_initialized(rag)
    assert not compat.are_storages_initialized(rag)


async def test_an_ingest_writes_the_anchors_in_their_columns() -> None:
    async with lightrag_on(Provider()) as rag:
        await rag.ainsert("Ada founded Alderwick.", ids=["doc"])
        for storage, column in compat.ANCHORS.items():
            row = await getattr(rag, storage).get_by_id("doc")
            assert [part for part in COLUMNS[column] if part not in row[column]] == []


def test_lightrag_names_missing_anchors_in_the_words_in_use() -> None:
    assert compat.ANCHORS_MISSING in inspect.getsource(LightRAG)


async def test_a_reset_row_is_pending_without_an_error() -> None:
    row = DocProcessingStatus("", 0, "a.txt", DocStatus.FAILED, "", "", error_msg="broken")
    async with lightrag_on(Provider()) as rag:
        update = compat.pending_update(rag, row, {"content": "text"})
    assert update["status"] == DocStatus.PENDING
    assert not update.get("error_msg")


def test_a_document_of_a_custom_chunk_operation_is_recognized() -> None:
    row = DocProcessingStatus("", 0, "a.txt", DocStatus.FAILED, "", "")
    assert not compat.is_custom_chunk_patch(row)
    patched = dataclasses.replace(
        row, metadata={CUSTOM_CHUNK_PATCH_METADATA_KEY: {"state": "failed"}}
    )
    assert compat.is_custom_chunk_patch(patched)


def test_texts_of_lightrag_are_as_they_are_looked_for() -> None:
    assert compat.FIELD_SEPARATOR == GRAPH_FIELD_SEP
    assert compat.is_fail_response(PROMPTS["fail_response"])
    assert not compat.is_fail_response("Ada founded Alderwick.")


@pytest.mark.parametrize(
    "name",
    [
        compat.INITIALIZE_SHARED,
        compat.HOLDER_TABLE,
        compat.LOCK,
        compat.LOAD_LOCK,
        compat.LOAD_FLAGS,
        compat.START_BACKGROUND,
    ],
)
def test_workers_share_their_state_under_the_names_in_use(name: str) -> None:
    assert shared_storage.__name__ == compat.SHARED_STORAGE
    assert hasattr(shared_storage, name)


def source_of(module: str) -> str:
    """The text of a module of the server, whose import would read the command line."""
    return (Path(lightrag.__file__).parent / "api" / module).read_text(encoding="utf-8")


def test_an_upload_is_stored_by_a_function_of_the_name_in_use() -> None:
    text = source_of("routers/document_routes.py")
    assert f"async def {compat.UPLOAD_WORK}(started)" in text
    assert f"work={compat.UPLOAD_WORK}" in text


@pytest.mark.parametrize("used", ["import uvicorn", "= LightRAG(", "def create_app(", "def main("])
def test_the_server_makes_its_application_from_the_names_that_are_replaced(used: str) -> None:
    assert used in source_of("lightrag_server.py")


def test_a_background_task_takes_its_work_by_name() -> None:
    assert "work" in parameters(getattr(shared_storage, compat.START_BACKGROUND))


@pytest.mark.parametrize("name", [compat.SERVER, compat.GUNICORN_CONFIG, compat.GUNICORN_MAIN])
def test_a_module_of_the_server_exists(name: str) -> None:
    assert importlib.util.find_spec(name) is not None


def test_the_server_has_a_worker_of_its_own() -> None:
    assert compat.worker_class() is not object


def test_each_server_of_storages_and_each_kind_exists() -> None:
    modules = {f"lightrag{module}" for module in STORAGES.values()}
    assert [name for name in compat.STORAGE_SERVERS if name not in modules] == []
    base = importlib.import_module(compat.BASE_MODULE)
    assert [name for name in compat.STORAGE_KINDS if not hasattr(base, name)] == []


@pytest.mark.parametrize(("module", "cls", "attribute", "_"), compat.RETRYING_CLIENTS)
def test_a_client_that_retries_reads_the_attribute_in_use(
    module: str, cls: str, attribute: str, _: int
) -> None:
    client = getattr(pytest.importorskip(module), cls)
    assert f"self.{attribute} = " in inspect.getsource(client)


def test_a_function_of_lightrag_names_its_binding() -> None:
    assert compat.binding_of(openai.openai_complete) == "openai"
    assert compat.binding_of(openai.azure_openai_complete) == "azure_openai"
    rerank = importlib.import_module("lightrag.rerank")
    for name, binding in compat._RERANKERS.items():
        assert compat.binding_of(getattr(rerank, name)) == binding
    assert compat.binding_of(parameters) is None


async def test_the_queue_of_a_function_can_be_built_and_ended() -> None:
    provider = Provider()
    async with lightrag_on(provider) as rag:
        for slot in (compat.MODEL, compat.EMBEDDING, compat.RERANK):
            queued = slot.new_queue(rag, provider.embed)
            assert queued is not provider.embed
            assert compat.without_queue(queued) == provider.embed
            await (compat.abandon if slot is compat.MODEL else compat.retire)(queued)
            with pytest.raises(Exception, match="shut"):
                await queued(["text"])
