"""Tests of this folder wait in virtual time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lightrag_resilience import (
    Guards,
)
from lightrag_resilience.config.settings import load_settings
from support.decorated import no_sleep
from support.virtual_time import anyio_backend


@pytest.fixture
def owner() -> Iterator[Guards]:
    made = Guards(settings=load_settings({}), sleep=no_sleep)
    yield made
    made.threads.close()


__all__ = ["anyio_backend"]
