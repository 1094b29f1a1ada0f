"""The table of LightRAG's tokenizer, which tiktoken downloads when it is first needed."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

__all__ = ["PRELOAD", "is_missing_from", "was_not_downloaded"]

_URL = "https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken"
_DEEPEST = 8  # causes

PRELOAD = (
    "Without internet, run lightrag-download-cache --cache-dir tiktoken on a machine that has it, "
    "bring that folder here and set TIKTOKEN_CACHE_DIR to it"
)
"""What to do, as a sentence without its end."""


def is_missing_from(folder: Path | None) -> bool:
    """Whether LightRAG is there, and will download the table at its next start.

    Args:
        folder: Where tiktoken keeps what it has downloaded; None where it keeps nothing.
    """
    if any(find_spec(name) is None for name in ("lightrag", "tiktoken")):
        return False
    name = hashlib.sha1(_URL.encode(), usedforsecurity=False).hexdigest()  # as tiktoken names it
    return folder is None or not (folder / name).is_file()


def was_not_downloaded(error: BaseException) -> bool:
    """Whether an error comes from tiktoken's attempt to download a table."""
    cause: BaseException | None = error
    for _ in range(_DEEPEST):
        if cause is None:
            return False
        trace = cause.__traceback__
        while trace is not None:
            if trace.tb_frame.f_globals.get("__name__") == "tiktoken.load":
                return True
            trace = trace.tb_next
        cause = cause.__cause__ or cause.__context__
    return False
