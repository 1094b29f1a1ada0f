"""Admission as a whole: what an attempt holds while it waits, and gives back if it is rejected."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lightrag_resilience import CallRejected, Guard, LimitPolicy, Policy, State
from lightrag_resilience.limits.admission import AdmissionController


async def answer() -> str:
    return "answer"


def test_a_probe_that_is_rejected_before_any_wait_gives_its_permit_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def reject(self: AdmissionController, call: Any, question: Any) -> bool:
        raise CallRejected("llm", None, "for once")

    async def scenario() -> None:
        guard = Guard("llm", Policy(limit=LimitPolicy(rpm=600.0)))
        guard.breaker.half_open()
        with monkeypatch.context() as patched:
            patched.setattr(AdmissionController, "try_acquire", reject)
            for _ in range(2):  # the only probe: a lost permit would reject the second otherwise
                with pytest.raises(CallRejected, match="for once"):
                    await guard.call(answer)
        assert await guard.call(answer) == "answer"
        assert guard.breaker.state is State.CLOSED

    asyncio.run(scenario())
