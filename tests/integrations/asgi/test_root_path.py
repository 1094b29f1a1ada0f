"""Probes, metrics and the status page of an application that is mounted below a path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.routing import Mount

from lightrag_resilience import Guards
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.integrations.asgi import DrainMiddleware
from lightrag_resilience.integrations.asgi.messages import route_path
from lightrag_resilience.integrations.asgi.request_task import request_label
from lightrag_resilience.integrations.metrics import Metrics
from lightrag_resilience.integrations.status import StatusPage
from support.status_app import nothing_here

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("path", "root", "route"),
    [
        ("/livez", "", "/livez"),
        ("/rag/livez", "/rag", "/livez"),
        ("/rag/livez", "/rag/", "/livez"),
        ("/rag//livez", "/rag/", "/livez"),
        ("/a/b/livez", "/a/b", "/livez"),
        ("/livez", "/rag", "/livez"),  # a server that leaves it out of the path
        ("/ragout/livez", "/rag", "/ragout/livez"),
        ("/rag", "/rag", "/"),
        ("/rag/rag/livez", "/rag", "/rag/livez"),
    ],
)
def test_a_path_is_routed_without_the_root_path(path: str, root: str, route: str) -> None:
    assert route_path({"path": path, "root_path": root}) == route


def test_a_scope_without_a_root_path_is_routed_by_its_path() -> None:
    assert route_path({"path": "/livez"}) == "/livez"
    assert request_label(
        {"path": "/rag/documents/text", "root_path": "/rag", "method": "POST"}
    ) == ("POST /documents/…")


def at_root_path(app: Any) -> httpx.ASGITransport:
    """As ``uvicorn --root-path /ops`` calls it."""

    async def called(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "root_path": "/ops", "path": f"/ops{scope['path']}"}, receive, send)

    return httpx.ASGITransport(called)


def mounted(app: Any) -> httpx.ASGITransport:
    return httpx.ASGITransport(Starlette(routes=[Mount("/ops", app)]))


@pytest.mark.parametrize(("serve", "prefix"), [(at_root_path, ""), (mounted, "/ops")])
async def test_probes_metrics_and_status_page_respond_below_a_root_path(
    serve: Callable[[Any], httpx.ASGITransport], prefix: str
) -> None:
    guards = Guards(settings=load_settings({}))
    status = StatusPage(nothing_here, registry=guards)
    app = DrainMiddleware(
        Metrics(status, registry=guards, collected=CollectorRegistry()), registry=guards
    )
    async with httpx.AsyncClient(transport=serve(app), base_url="http://app") as client:
        paths = ["/livez", "/readyz", "/metrics", "/resilience/data"]
        answers = {path: await client.get(prefix + path) for path in paths}
        beside = await client.get(f"{prefix}/metricsandmore")
    assert {path: answer.status_code for path, answer in answers.items()} == dict.fromkeys(
        paths, 200
    )
    assert beside.text == "the application"
