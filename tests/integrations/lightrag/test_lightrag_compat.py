"""Private parts of LightRAG do what they are used for; `test_coverage` finds each of them."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightrag.utils_pipeline", reason="LightRAG 1.4 lacks most of it")

from lightrag import LightRAG
from lightrag.base import DocProcessingStatus, DocStatus
from lightrag.constants import GRAPH_FIELD_SEP
from lightrag.llm import openai
from lightrag.prompt import PROMPTS
from lightrag.utils_pipeline import CUSTOM_CHUNK_PATCH_METADATA_KEY

from lightrag_resilience.integrations.lightrag import compat
from support.lightrag_rig import Provider, lightrag_on

pytestmark = [pytest.mark.anyio, pytest.mark.lightrag]
COLUMNS: dict[str, list[Any]] = {"entity_names": ["Ada"], "relation_pairs": [["Ada", "Alderwick"]]}


def parameters(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


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


@pytest.mark.parametrize("name", [compat.SERVER, compat.GUNICORN_CONFIG, compat.GUNICORN_MAIN])
def test_a_module_of_the_server_exists(name: str) -> None:
    assert importlib.util.find_spec(name) is not None


def test_the_server_has_a_worker_of_its_own() -> None:
    assert compat.worker_class() is not object


def test_each_storage_of_lightrag_is_embedded_or_named_after_its_server() -> None:
    modules = compat.registered_storages()
    servers = {name: compat.server_of(module) for name, module in modules.items()}
    assert servers["PGKVStorage"] == servers["PGTableGraphStorage"] == "postgres"
    assert servers["Neo4JStorage"] == "neo4j"
    assert {name for name, server in servers.items() if server is None} == {
        *("JsonKVStorage", "JsonDocStatusStorage", "NetworkXStorage"),
        *("NanoVectorDBStorage", "FaissVectorDBStorage", "NoopVectorDBStorage"),
    }
    assert compat.server_of("lightrag.kg.later_impl") == "later"
    assert compat.server_of("an_application.storages") is None


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


def test_a_parser_that_calls_a_service_is_known_by_its_engine_and_its_client() -> None:
    registry = pytest.importorskip("lightrag.parser.registry")
    assert parameters(getattr(LightRAG, compat.PARSE_WORKER))[-1] == "ctx"
    specs = registry.parser_specs_snapshot()
    external = {name for name, it in specs.items() if it.impl.startswith(compat.EXTERNAL_PARSERS)}
    assert external == compat.PARSER_CLIENTS.keys()
    for engine, module in compat.PARSER_CLIENTS.items():
        parser = registry.get_parser(engine)
        assert parser.engine_name == engine
        assert parameters(getattr(parser, compat.DOWNLOAD))[:2] == ["raw_dir", "source_path"]
        assert getattr(importlib.import_module(module), compat.PARSER_HTTP).AsyncClient


def test_what_an_upload_has_left_is_removed_and_its_result_has_a_limit(tmp_path: Path) -> None:
    (tmp_path / "left").write_text("half")
    compat.clear_folder(tmp_path)
    assert [*tmp_path.iterdir()] == []
    assert compat.largest_download() in {None, 512 * 1024 * 1024}
