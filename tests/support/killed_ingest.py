"""A LightRAG in processes of their own, each killed after so many writes to the disk.

Run as a program it forks a process for each line that it reads, since importing LightRAG takes
seconds: a folder, the parser's engine, after how many writes to kill it (0: never), and for what
to wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import itertools
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any, Self

SETTINGS = {
    "RESILIENCE_PARSER__RETRY__INITIAL_BACKOFF": "0.01",
    "RESILIENCE_PARSER__BREAKER__CONSECUTIVE_FAILURES": "1",
    "RESILIENCE_RECOVERY_DELAY": "0.01",
    "RESILIENCE_INGEST_DEGRADED_AFTER": "0",
}
_LONGEST = 30  # seconds


class Processes:
    """Runs LightRAG on a folder, in one process after the other."""

    def __init__(self, **environment: str) -> None:
        self._program = Popen(
            [sys.executable, "-m", "support.killed_ingest"],
            env=os.environ | SETTINGS | environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=PIPE,
            stdout=PIPE,
            text=True,
        )

    async def run(self, folder: Path, engine: str, until: str, *, kill_after: int = 0) -> Any:
        """Run until all documents have a format; what they are then, or None if it was killed."""
        return await asyncio.to_thread(self._run, str(folder), engine, until, kill_after)

    def _run(self, *request: Any) -> Any:
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.write(f"{json.dumps(request)}\n")
        self._program.stdin.flush()
        return json.loads(self._program.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._program:
            self._program.terminate()


def _serve() -> None:
    # Before the first fork.
    for module in ("lightrag.parser.registry", "support.lightrag_rig"):
        importlib.import_module(module)

    for line in sys.stdin:
        read, write = os.pipe()
        if (process := os.fork()) == 0:
            signal.alarm(_LONGEST)
            folder, engine, until, kill_after = json.loads(line)
            with _killed_after(kill_after):
                state = asyncio.run(_ingest(folder, engine, until))
            os.write(write, json.dumps(state).encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            state = pipe.read()
        _, status = os.waitpid(process, 0)
        ended = os.waitstatus_to_exitcode(status)
        problem = json.dumps(f"ended with {ended}")
        answer = state if ended == 0 else "null" if ended == -signal.SIGKILL else problem
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


@contextlib.contextmanager
def _killed_after(writes: int) -> Iterator[None]:
    """A block in which this process is killed after so many files were written or moved."""
    left = itertools.count(writes - 1, -1)
    replace = os.replace

    def replace_and_die(*args: Any, **kwargs: Any) -> None:
        replace(*args, **kwargs)
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = os.rename = replace_and_die  # only this process, which was forked for it
    yield


async def _ingest(folder: str, engine: str, until: str) -> Any:
    from lightrag_resilience.integrations.lightrag import protect  # noqa: PLC0415

    from .lightrag_rig import Provider, lightrag_on  # noqa: PLC0415

    inputs = Path(folder) / "inputs"
    os.environ["INPUT_DIR"] = str(inputs)
    async with lightrag_on(Provider(), working_dir=folder, workspace="books") as rag:
        await protect(rag)
        rows, _ = await rag.doc_status.get_docs_paginated()
        known = {row.file_path for _, row in rows}
        for file in sorted(it for it in inputs.iterdir() if it.is_file()):
            if file.name in known:
                continue
            await rag.apipeline_enqueue_documents(
                "", file_paths=str(file), docs_format="pending_parse", parse_engine=engine
            )
        await rag.apipeline_process_enqueue_documents()
        while True:
            rows, _ = await rag.doc_status.get_docs_paginated()
            found = [(row.status, row.metadata.get("parse_format")) for _, row in rows]
            if set(found) == {("processed", until)}:
                break
            await asyncio.sleep(0.02)
        nodes = await rag.chunk_entity_relation_graph.get_all_nodes()
        return {
            "documents": [
                [row.status, row.metadata["parse_format"], row.metadata["parse_engine"]]
                for _, row in rows
            ],
            "texts": sorted(row["content"] for row in rag.text_chunks._data.values()),
            "vectors": len((await rag.chunks_vdb.client_storage)["data"]),
            "sources": sorted(len(node["source_id"].split("<SEP>")) for node in nodes),
        }


if __name__ == "__main__":
    _serve()
