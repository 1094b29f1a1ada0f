"""Single requests to parsers: which answers make sense, and where their health is."""

from __future__ import annotations

import json

import httpx
import pytest

pytest.importorskip("lightrag")

from lightrag_resilience.integrations.lightrag.parsing.requests import _makes_sense, health_probe

pytestmark = pytest.mark.lightrag


@pytest.mark.parametrize(
    ("method", "body", "makes_sense"),
    [
        ("POST", b'{"task_id": "1"}', True),
        ("POST", b'{"code": 0, "data": {"batch_id": "1"}}', True),
        ("POST", b'{"task_id": ""}', False),
        ("POST", b'{"message": "hello"}', False),
        ("POST", b"", False),
        ("POST", b"[1]", False),
        ("GET", b'{"status": "processing"}', True),
        ("GET", b'{"task_status": "started"}', True),
        ("GET", b'{"code": 0}', True),
        ("GET", b'{"document": {"json_content": {}}, "status": "success"}', True),
        ("GET", b"<html>Maintenance</html>", False),
        ("GET", b"PK\x03\x04, and then the connection ended", False),
        ("GET", b"[" * 100_000, False),
        ("GET", json.dumps({"text": "x" * 2**20}).encode(), True),
        ("PUT", b"", True),
    ],
)
def test_an_answer_makes_sense_if_lightrag_finds_in_it_what_it_looks_for(
    method: str, body: bytes, *, makes_sense: bool
) -> None:
    assert _makes_sense(method, body) is makes_sense


@pytest.mark.parametrize(
    "upload", ["https://mineru.net/api/v4/file-urls/batch", "https://storage/bucket/file"]
)
def test_a_service_whose_health_is_not_known_has_no_probe(upload: str) -> None:
    assert health_probe(httpx.URL(upload)) is None
