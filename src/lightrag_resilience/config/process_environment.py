"""What variables of other programs say: LightRAG's, Gunicorn's, prometheus_client's, tiktoken's."""

from __future__ import annotations

import atexit
import codecs
import errno
import io
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dotenv import load_dotenv

from lightrag_resilience.errors import SettingsError
from lightrag_resilience.text import as_count

from .policies import LIGHTRAG_TIMEOUTS

__all__ = [
    "ProcessEnvironment",
    "address_of_binding",
    "chosen_storages",
    "lightrag_timeouts",
    "load_env_file",
    "read_process_environment",
    "share_metrics",
    "timeout_variable",
]

_TIMED = tuple(LIGHTRAG_TIMEOUTS)
_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_LARGEST = 1024 * 1024  # bytes of a file of variables
_PIPE_TIMEOUT = 5.0  # seconds for a pipe to be written
_GRACEFUL = 30.0  # seconds: Gunicorn's own default, and the grace period of Kubernetes
_LONGEST = 86_400  # seconds of a timeout that can be meant


_ADDRESSES = {
    "azure_openai": (("AZURE_OPENAI_ENDPOINT", "LLM_BINDING_HOST"), ""),
    "ollama": (("OLLAMA_HOST",), "http://localhost:11434"),
    "openai": (("OPENAI_API_BASE",), "https://api.openai.com/v1"),
}
"""The variables in which bindings of LightRAG look for their address, and their default."""
_STORAGES = {
    "kv": "JsonKVStorage",
    "vector": "NanoVectorDBStorage",
    "graph": "NetworkXStorage",
    "doc_status": "JsonDocStatusStorage",
}
"""LightRAG's own choice of storages."""


@dataclass(frozen=True, slots=True)
class ProcessEnvironment:
    """What variables of other programs say.

    Attributes:
        workers: Processes behind one address, as LightRAG, Gunicorn and uvicorn read it.
        graceful_timeout: Seconds from the signal until Gunicorn kills a worker.
        multiprocess_folder: Where prometheus_client adds up the metrics of processes, or "".
        tokenizer_folder: Where tiktoken keeps its downloads; None if it keeps none.
        unread_timeouts: Families whose timeout LightRAG cannot read, and has its own in its place.
    """

    workers: int = 1
    graceful_timeout: float = _GRACEFUL
    multiprocess_folder: str = ""
    tokenizer_folder: Path | None = None
    unread_timeouts: tuple[str, ...] = ()


def read_process_environment(environ: Mapping[str, str] | None = None) -> ProcessEnvironment:
    """Read the variables of other programs."""
    source = os.environ if environ is None else environ
    workers = (as_count(source.get(name, "")) for name in ("WORKERS", "WEB_CONCURRENCY"))
    options = source.get("GUNICORN_CMD_ARGS", "")
    graceful = re.findall(r"--graceful-timeout[= ]+([0-9]{1,15})", options)
    return ProcessEnvironment(
        workers=next((count for count in workers if count is not None), 1),
        graceful_timeout=float(graceful[-1]) if graceful else _GRACEFUL,
        multiprocess_folder=source.get(_FOLDER, ""),
        tokenizer_folder=_tokenizer_folder(source),
        unread_timeouts=tuple(it for it in _TIMED if _is_unread(source.get(timeout_variable(it)))),
    )


def _is_unread(value: str | None) -> bool:
    try:
        int(value or "0")
    except ValueError:
        return True
    return False


def lightrag_timeouts(environ: Mapping[str, str] | None = None) -> dict[str, float]:
    """Seconds of each of LightRAG's own timeouts that a variable sets, by family."""
    source = os.environ if environ is None else environ
    found = {family: as_count(source.get(timeout_variable(family), "")) for family in _TIMED}
    return {family: float(it) for family, it in found.items() if it and it <= _LONGEST}


def chosen_storages(environ: Mapping[str, str] | None = None) -> dict[str, tuple[str, str]]:
    """For each kind of LightRAG's storages the variable that chooses one, and what it chooses."""
    source = os.environ if environ is None else environ
    names = {kind: f"LIGHTRAG_{kind.upper()}_STORAGE" for kind in _STORAGES}
    return {kind: (name, source.get(name) or _STORAGES[kind]) for kind, name in names.items()}


def timeout_variable(family: str) -> str:
    """The variable of LightRAG's that sets the timeout of a family: ``LLM_TIMEOUT``."""
    return f"{family.upper()}_TIMEOUT"


def address_of_binding(binding: str) -> str:
    """Where functions of a binding of LightRAG call if no argument says it; "" if unknown."""
    names, default = _ADDRESSES.get(binding, ((), ""))
    return next(filter(None, map(os.environ.get, names)), default)


def _tokenizer_folder(source: Mapping[str, str]) -> Path | None:
    named = (source.get(name) for name in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"))
    folder = next((each for each in named if each is not None), None)
    if folder is None:
        return Path(tempfile.gettempdir()) / "data-gym-cache"
    return Path(folder) if folder else None


def load_env_file(file: Path) -> None:
    """Set the variables of a file, as LightRAG does with its ``.env``; none that is set changes.

    A pipe is read to its end, for up to 5 s: a shell's ``<(...)`` is one.

    Raises:
        OSError: The file cannot be read.
        SettingsError: It is not text in UTF-8.
    """
    load_dotenv(stream=io.StringIO(_text_of(file)))


def _text_of(file: Path) -> str:
    data = _bytes_of(file)
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data:
        raise SettingsError(
            f"{file} is in UTF-16, as PowerShell's > writes it, or no text at all: save it as "
            "UTF-8 (Set-Content -Encoding utf8)"
        )
    try:
        return data.decode("utf-8-sig")  # Windows marks UTF-8 in the first three bytes
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SettingsError(f"{file} is not in UTF-8, see line {line}: save it as UTF-8") from None


def _bytes_of(file: Path) -> bytes:
    """The bytes of a file or a pipe; a device, or a named pipe without a writer, does not block."""
    descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        kind = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(kind) and not stat.S_ISFIFO(kind):
            raise OSError(errno.EINVAL, "It is no file of variables")
        data, ends = b"", time.monotonic() + _PIPE_TIMEOUT
        while len(data) <= _LARGEST:
            try:
                part = os.read(descriptor, _LARGEST)
            except BlockingIOError:
                if time.monotonic() > ends:
                    raise OSError(errno.ETIMEDOUT, "Its writer does not write") from None
                time.sleep(0.01)
            else:
                if not part:
                    return data
                data += part
        raise OSError(errno.EFBIG, f"It has more than {_LARGEST} bytes")
    finally:
        os.close(descriptor)


def share_metrics() -> Path:
    """Empty the folder in which this process and its forks share their metrics.

    ``PROMETHEUS_MULTIPROC_DIR`` names it; else it is a new one, removed when this process ends.
    Call this before anything imports prometheus_client, which reads the variable at import.
    """
    if named := os.environ.get(_FOLDER):
        folder = Path(named)
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("*.db"):  # of ended processes, whose counters would be added
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
