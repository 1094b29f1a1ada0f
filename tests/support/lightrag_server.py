"""LightRAG's server for tests, with a tokenizer that needs no download.

``python lightrag_server.py [--bare] [--gunicorn] [lightrag-server's own options]``
"""

from __future__ import annotations

import functools
import importlib
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lightrag.utils import Tokenizer

from lightrag_resilience.integrations.lightrag.server import serve
from support.lightrag_rig import Characters


def main() -> None:
    arguments = sys.argv[1:]
    is_bare, with_gunicorn = "--bare" in arguments, "--gunicorn" in arguments
    own = [argument for argument in arguments if argument not in {"--bare", "--gunicorn"}]
    sys.argv = ["lightrag-server", *own]
    server: Any = importlib.import_module("lightrag.api.lightrag_server")
    tokenizer = Tokenizer("characters", Characters())
    server.LightRAG = functools.partial(server.LightRAG, tokenizer=tokenizer)
    if is_bare and with_gunicorn:
        importlib.import_module("lightrag.api.run_with_gunicorn").main()
    elif is_bare:
        server.main()
    else:
        serve(own, gunicorn=with_gunicorn)


if __name__ == "__main__":
    main()
