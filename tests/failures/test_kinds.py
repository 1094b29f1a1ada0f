"""What a failure is called: by its status and its class, and never by its text."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from lightrag_resilience import InvalidResultError
from lightrag_resilience.failures.classifier import classify
from lightrag_resilience.failures.kinds import FATAL, THROTTLED, TRANSIENT, Failure, symptom
from lightrag_resilience.text import symptom_of

REQUEST = httpx.Request("POST", "http://user:secret@provider/v1")


def answered(status: int, **headers: str) -> openai.APIStatusError:
    response: Any = httpx.Response(status, request=REQUEST, headers=headers)
    return openai.APIStatusError("secret text", response=response, body=None)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 429, 500, 503])
def test_a_verdict_has_the_status_that_led_to_it(status: int) -> None:
    error = answered(status)
    verdict = classify(error)
    assert verdict.status == status
    assert symptom(error, verdict) == f"HTTP {status} (APIStatusError)"


def test_a_status_is_no_part_of_the_verdict() -> None:
    assert classify(answered(401)) == FATAL
    assert classify(answered(503)) == TRANSIENT
    assert classify(answered(429)) == THROTTLED
    assert classify(answered(503, **{"retry-after": "3"})) == Failure(TRANSIENT.kind, 3.0)
    assert classify(answered(503, **{"retry-after": "3"})).status == 503


def test_a_symptom_without_a_status_is_the_class() -> None:
    assert symptom(httpx.ConnectError("secret"), TRANSIENT) == "ConnectError"
    odd = type("Line\nbreak (and more)" + "x" * 200, (Exception,), {})
    assert symptom(odd(), TRANSIENT).startswith("Linebreak and more")
    assert len(symptom(odd(), TRANSIENT)) == 60
    assert symptom(type("\n", (Exception,), {})(), TRANSIENT) == "an error"


def test_the_symptom_of_an_invalid_result_says_why_in_one_clause() -> None:
    error = InvalidResultError("llm", None, "with 3 rows, (two; odd)\n" + "x" * 200, TRANSIENT)
    said = symptom(error, TRANSIENT)
    assert said.startswith("InvalidResultError (with 3 rows two oddxxx")
    assert len(said) == len("InvalidResultError ()") + 90
    assert symptom_of(f"after 6 failures in a row, the last {said}") == said


def test_the_symptom_of_a_fatal_429_names_the_quota() -> None:
    body = {"code": "insufficient_quota"}
    response: Any = httpx.Response(429, request=REQUEST)
    error = openai.RateLimitError("no money", response=response, body=body)
    said = symptom(error, classify(error))
    assert said == "HTTP 429 of a used-up quota (RateLimitError)"


def test_the_next_probe_follows_a_bad_request_at_once() -> None:
    assert classify(answered(400)).pause == FATAL.pause == 0.0
    assert classify(answered(401)).pause == THROTTLED.pause == 1.0
    assert classify(answered(429, **{"retry-after": "7"})).pause == 7.0
