"""What the variables of others say of the process: LightRAG's, Gunicorn's, prometheus_client's."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Surroundings", "surroundings"]

_GRACEFUL = 30.0  # seconds: Gunicorn's own default, and the grace period of Kubernetes


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What others' variables say of the process.

    Attributes:
        workers: Processes behind one address, as LightRAG, Gunicorn and uvicorn read it.
        graceful_timeout: Seconds from the signal until Gunicorn kills a worker.
        multiprocess_folder: Where prometheus_client adds up the metrics of processes, or "".
    """

    workers: int = 1
    graceful_timeout: float = _GRACEFUL
    multiprocess_folder: str = ""


def surroundings(environ: Mapping[str, str] | None = None) -> Surroundings:
    """Read what others' variables say."""
    source = os.environ if environ is None else environ
    workers = (source.get(name, "").strip() for name in ("WORKERS", "WEB_CONCURRENCY"))
    options = source.get("GUNICORN_CMD_ARGS", "")
    graceful = re.findall(r"--graceful-timeout[= ]+(\d+)", options)
    return Surroundings(
        workers=next((int(text) for text in workers if text.isdigit()), 1),
        graceful_timeout=float(graceful[-1]) if graceful else _GRACEFUL,
        multiprocess_folder=source.get("PROMETHEUS_MULTIPROC_DIR", ""),
    )
