"""The call itself, with nothing around it."""

from __future__ import annotations

from benchmarks.stack import Call, Setup, Stack


def protect(function: Call, _setup: Setup) -> Call:
    return function


STACKS = [
    Stack(
        name="bare",
        protect=protect,
        refusal=None,
        timeout=None,
        retries=False,
        imports="asyncio",
    )
]
