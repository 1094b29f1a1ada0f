"""The table of LightRAG's tokenizer, which tiktoken downloads at first use."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

__all__ = ["PRELOAD", "is_download_error", "is_missing_from"]

_URL = "https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken"
_MOST_CAUSES = 8  # of one error

PRELOAD = (
    "Without internet, run lightrag-download-cache --cache-dir tiktoken on a machine that has it, "
    "bring that folder here and set TIKTOKEN_CACHE_DIR to it"
)
"""Advice, as a sentence without its full stop."""


def is_missing_from(folder: Path | None) -> bool:
    """Whether LightRAG is installed and has to download the table at its next start.

    Args:
        folder: Where tiktoken keeps its downloads; None if it keeps none.
    """
    if any(find_spec(name) is None for name in ("lightrag", "tiktoken")):
        return False
    name = hashlib.sha1(_URL.encode(), usedforsecurity=False).hexdigest()  # as tiktoken names it
    return folder is None or not (folder / name).is_file()


def is_download_error(error: BaseException) -> bool:
    """Whether tiktoken raised this error, or one of its causes, while it downloaded a table."""
    cause: BaseException | None = error
    for _ in range(_MOST_CAUSES):
        if cause is None:
            return False
        trace = cause.__traceback__
        while trace is not None:
            if trace.tb_frame.f_globals.get("__name__") == "tiktoken.load":
                return True
            trace = trace.tb_next
        cause = cause.__cause__ or cause.__context__
    return False
