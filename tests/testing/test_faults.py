"""Which calls a simulated fault hits, and that a run can be repeated."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pydantic import ValidationError

from lightrag_resilience.testing import Fault
from lightrag_resilience.testing.faults import Script

CHAT = "/v1/chat/completions"
BODIES = [f"body {number}".encode() for number in range(2000)]


def hits(script: Script, bodies: list[bytes] = BODIES, at: float = 0.0) -> set[bytes]:
    return {body for body in bodies if script.fault_for(CHAT, body, at)}


def test_a_share_of_the_calls_is_hit() -> None:
    assert len(hits(Script(1, [Fault.status(500, share=0.3)]))) == pytest.approx(600, abs=80)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Fault.invalid("na"), r"no fault 'na'; there are bad_rank, .* nan, "),  # type: ignore[arg-type]
        (lambda: Fault.invalid("nan", share=30), "share is 30, but must be above 0"),
        (lambda: Fault.status(200), "code is 200, but must be a status"),
    ],
)
def test_a_fault_that_would_do_nothing_is_refused(make: Callable[[], Fault], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_the_same_seed_hits_the_same_calls_in_any_order() -> None:
    fault = Fault.status(500, share=0.3)
    backwards = hits(Script(1, [fault]), BODIES[::-1])
    assert hits(Script(1, [fault])) == backwards
    assert hits(Script(2, [fault])) != backwards


def test_asking_again_draws_again() -> None:
    script = Script(1, [Fault.status(500, share=0.5)])
    drawn = [script.fault_for(CHAT, b"same", 0.0) is not None for _ in range(200)]
    assert 60 < sum(drawn) < 140
    script.reset()
    assert [script.fault_for(CHAT, b"same", 0.0) is not None for _ in range(200)] == drawn


def test_a_fault_has_its_time_and_its_path() -> None:
    script = Script(1, [Fault.hang(start=1, end=2, path="embeddings")])
    assert script.fault_for("/v1/embeddings", b"", 1.0)
    assert not script.fault_for("/v1/embeddings", b"", 2.0)
    assert not script.fault_for("/v1/embeddings", b"", 0.9)
    assert not script.fault_for(CHAT, b"", 1.5)


def test_the_first_fault_that_hits_happens() -> None:
    reset, status = Fault.reset(end=1), Fault.status(503)
    script = Script(1, [reset, status])
    assert script.fault_for(CHAT, b"", 0.5) is reset
    assert script.fault_for(CHAT, b"", 1.5) is status


def test_faults_come_as_json_too() -> None:
    text = '[{"action": "status", "code": 429, "retry_after": 2, "share": 0.5}]'
    assert Fault.from_json(text) == [Fault.throttle(retry_after=2, share=0.5)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1]",
        "[{}]",
        '[{"action": "burn"}]',
        '[{"action": "status", "code": 200}]',
        '[{"action": "hang", "share": 0}]',
        '[{"action": "hang", "shares": 1}]',
    ],
)
def test_json_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        Fault.from_json(text)
