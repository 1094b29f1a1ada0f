"""With pip install '.[lightrag]': a storage of your own, guarded: a dead one is refused.

Run it: python examples/own_storage.py
"""

import asyncio
import sys
from dataclasses import dataclass
from typing import Any

try:
    from lightrag.base import BaseKVStorage

    from lightrag_resilience import CircuitOpenError, guard
    from lightrag_resilience.integrations.lightrag.storages import guard_storage
except ImportError as error:
    sys.exit(f"This example needs {error.name}: in a clone, pip install '.[lightrag]'")


@dataclass
class Cupboard(BaseKVStorage):  # type: ignore[misc]
    """Keeps texts in a dictionary, behind a connection that may be lost."""

    resilience_name = "storage.cupboard"

    def __post_init__(self) -> None:
        """Begin empty, and connected."""
        self.texts: dict[str, dict[str, Any]] = {}
        self.losses = 0

    def _connect(self) -> None:
        if self.losses > 0:
            self.losses -= 1
            print("  (the connection is lost)")
            raise ConnectionRefusedError

    async def get_by_id(self, id: str) -> dict[str, Any] | None:  # noqa: A002 - LightRAG's name
        """One text; None where there is none."""
        self._connect()
        return self.texts.get(id)

    async def get_by_ids(self, ids: list[str]) -> list[dict[str, Any] | None]:
        """Several texts."""
        return [await self.get_by_id(each) for each in ids]

    async def filter_keys(self, keys: set[str]) -> set[str]:
        """Those that are not there."""
        self._connect()
        return keys - self.texts.keys()

    async def upsert(self, data: dict[str, dict[str, Any]]) -> None:
        """Keep texts."""
        self._connect()
        self.texts |= data

    async def delete(self, ids: list[str]) -> None:
        """Forget texts."""
        self._connect()
        for each in ids:
            self.texts.pop(each, None)

    async def is_empty(self) -> bool:
        """Whether there are none."""
        self._connect()
        return not self.texts

    async def index_done_callback(self) -> None:
        """Nothing to write."""

    async def drop(self) -> dict[str, str]:
        """Forget everything."""
        self._connect()
        self.texts.clear()
        return {"status": "success", "message": "dropped"}


async def main() -> None:
    """Lose the connection for a moment, then for good."""
    cupboard = Cupboard("texts", "example", {}, None)
    guard_storage(cupboard)  # protect(rag) does this for all storages of a LightRAG
    await cupboard.upsert({"ada": {"content": "Ada founded Alderwick."}})

    print("Twice lost, and read all the same:")
    cupboard.losses = 2
    print(" ", await cupboard.get_by_id("ada"))

    print("Lost for good:")
    cupboard.losses = 1000
    while guard("storage.cupboard").breaker.state.value == "closed":
        try:
            await cupboard.get_by_id("ada")
        except ConnectionRefusedError as error:
            print("  failed:", type(error).__name__)
        except CircuitOpenError:
            break
    try:
        await cupboard.get_by_id("ada")
    except CircuitOpenError as error:
        print("  refused:", error)


if __name__ == "__main__":
    asyncio.run(main())
