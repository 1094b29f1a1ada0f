"""Both libraries, in virtual time."""

from __future__ import annotations

from typing import Any

import httpx
import httpx2
import pytest

from support.virtual_time import anyio_backend


@pytest.fixture(params=[httpx, httpx2], ids=["httpx", "httpx2"])
def library(request: pytest.FixtureRequest) -> Any:
    return request.param


__all__ = ["anyio_backend", "library"]
