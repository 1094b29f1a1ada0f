"""The backend of tests that wait: a loop whose time passes only when nothing is left to do."""

from __future__ import annotations

from typing import Any

import pytest

from lightrag_resilience.testing import VirtualTimeLoop


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}
