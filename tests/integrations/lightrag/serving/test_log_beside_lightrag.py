"""Where our lines go when LightRAG's server has set up its own logger."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("lightrag")

from lightrag_resilience.integrations.lightrag.serving.outage_log import log_beside_lightrag

theirs = logging.getLogger("lightrag")


@pytest.fixture
def loggers(tmp_path: Any) -> Iterator[tuple[logging.Logger, logging.Logger]]:
    """LightRAG's logger, as its server sets it up, and ours."""
    ours = logging.getLogger("lightrag_resilience")
    names = ("lightrag", "lightrag_resilience", "uvicorn.error", "uvicorn.access", "httpx")
    before = [
        (each, each.level, each.propagate, each.handlers, each.filters)
        for each in (logging.getLogger(), *map(logging.getLogger, (*names, "httpx2")))
    ]  # what other tests have left at the root decides, too
    for logger, *_ in before:
        logger.handlers, logger.filters, logger.propagate = [], [], True
    file = logging.FileHandler(tmp_path / "lightrag.log")
    theirs.handlers = [logging.StreamHandler(sys.stderr), file]
    theirs.setLevel(logging.INFO)
    yield theirs, ours
    file.close()
    for logger, level, propagates, handlers, filters in before:
        logger.setLevel(level)
        logger.propagate, logger.handlers, logger.filters = propagates, handlers, filters


def test_our_lines_are_in_lightrags_log_with_times(
    loggers: tuple[logging.Logger, logging.Logger], capsys: pytest.CaptureFixture[str]
) -> None:
    lightrag, ours = loggers
    lightrag.handlers[0] = logging.StreamHandler(sys.stderr)
    log_beside_lightrag()
    log_beside_lightrag()
    ours.info("Circuit 'llm.openai' is closed")
    assert lightrag.handlers[1] in ours.handlers
    (line,) = capsys.readouterr().err.splitlines()
    assert line[:2] == "20"
    assert line.endswith("[INFO] lightrag_resilience: Circuit 'llm.openai' is closed")
    assert [type(each).__name__ for each in lightrag.filters] == ["RepeatedErrorFilter"]


def test_our_logger_keeps_handlers_that_it_has(
    loggers: tuple[logging.Logger, logging.Logger],
) -> None:
    _, ours = loggers
    ours.handlers = [logging.NullHandler()]
    ours.propagate = True
    log_beside_lightrag()
    assert [type(each) for each in ours.handlers] == [logging.NullHandler]
    assert ours.propagate


def test_a_handler_that_is_no_stream_is_shared(
    loggers: tuple[logging.Logger, logging.Logger],
) -> None:
    lightrag, ours = loggers
    lightrag.handlers = [logging.NullHandler()]
    log_beside_lightrag()
    assert ours.handlers == lightrag.handlers
