"""What the variables of others say of the process: LightRAG's, Gunicorn's, prometheus_client's."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dotenv import dotenv_values

__all__ = ["Surroundings", "share_metrics", "surroundings", "take_from"]

_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
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
        multiprocess_folder=source.get(_FOLDER, ""),
    )


def take_from(file: Path) -> None:
    """Set the variables of a file, as LightRAG does those of its ``.env``; what is set stays.

    Raises:
        OSError: It cannot be read.
    """
    with file.open(encoding="utf-8") as lines:
        for name, value in dotenv_values(stream=lines).items():
            if value is not None:
                os.environ.setdefault(name, value)


def share_metrics() -> Path:
    """Let this process and those it forks keep their metrics in one folder, from now on empty.

    It is what ``PROMETHEUS_MULTIPROC_DIR`` names, or else one that ends with this process. Call it
    before anything imports prometheus_client.
    """
    if named := os.environ.get(_FOLDER):
        folder = Path(named)
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("*.db"):  # of processes that ended: their counters would count on
            left.unlink(missing_ok=True)
        return folder
    folder = Path(tempfile.mkdtemp(prefix="lightrag-resilience-metrics-"))
    os.environ[_FOLDER] = str(folder)
    owner = os.getpid()

    @atexit.register
    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    return folder
