"""Actions of the status page: the token, the bodies, the breakers."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from lightrag_resilience.integrations.status import page as page_module
from lightrag_resilience.integrations.status.actions import Rejected, check_token
from support.status_requests import (
    TOKEN,
    Answer,
    Watcher,
    act,
    ask,
    made,
    page,
    scope_of,
)

pytestmark = pytest.mark.anyio


# ---------------------------------------------------------------------- what can be done


@pytest.mark.parametrize("token", [None, "wrong", "", f"{TOKEN}x", TOKEN[:-1], "ü"])
async def test_an_action_without_the_right_token_is_rejected(token: str | None) -> None:
    guards = made()
    guards.get("llm")
    answer = await act(page(guards), {"action": "open", "name": "llm"}, token)
    assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert TOKEN not in answer.json["detail"]
    assert guards.get("llm").breaker.state.value == "closed"


@pytest.mark.parametrize(
    ("given", "is_let_through"),
    [
        ([f"Bearer {TOKEN}"], True),
        ([f"BEARER {TOKEN}"], True),
        ([f"bearer   {TOKEN} "], True),
        (["Bearer ", TOKEN], False),
        ([f"Bearer {TOKEN[:5]}", TOKEN[5:]], False),
        ([f"Bearer {TOKEN}", "Basic eDp5"], False),
        ([f"Bearer {TOKEN}"] * 2, False),
        ([TOKEN], False),
        ([f"Basic {TOKEN}"], False),
        ([f"Bearer{TOKEN}"], False),
        ([f"Bearer\t{TOKEN}"], False),
        ([f"Bearer {TOKEN} {TOKEN}"], False),
        ([], False),
    ],
)
def test_the_authorization_scheme_is_case_insensitive_and_strict(
    given: list[str], *, is_let_through: bool
) -> None:
    headers = [(b"Authorization", value.encode()) for value in given]
    rejected: Any
    with contextlib.nullcontext() if is_let_through else pytest.raises(Rejected) as rejected:
        check_token(headers, TOKEN)
    assert is_let_through or rejected.value.status == 401


async def test_actions_are_off_without_a_configured_token() -> None:
    guards = made()
    guards.get("llm")
    for token in (None, "", "None"):
        answer = await act(page(guards, None), {"action": "open", "name": "llm"}, token)
        assert answer.status == 403
    assert guards.get("llm").breaker.state.value == "closed"


async def test_the_token_may_come_from_the_environment() -> None:
    guards = made(STATUS_TOKEN="environmental-token")  # noqa: S106 - it protects nothing
    guards.get("llm")
    app = page(guards, None)
    content = {"action": "open", "name": "llm"}
    assert (await act(app, content, "environmental-token")).status == 200
    data = await ask(app, "/resilience/data")
    assert data.json["can_act"]
    assert b"environmental-token" not in data.body


@pytest.mark.parametrize("token", ["", "short", "with spaces in between", "tökens-are-of-ascii"])
def test_an_invalid_configured_token_is_an_error(token: str) -> None:
    with pytest.raises(ValueError, match="A token has 16 to 256"):
        page(made(), token)


async def test_a_breaker_is_opened_isolated_and_closed_in_this_process(
    caplog: pytest.LogCaptureFixture,
) -> None:
    guards = made(LLM__BREAKER__OPEN_FOR="20")
    breaker = guards.get("llm").breaker
    app = page(guards)
    answer = await act(app, {"action": "open", "name": "llm", "reason": "a\x1b test"})
    assert answer.json == {
        "done": "llm is open in this process for 20 s: by the status page: a test"
    }
    assert breaker.snapshot().reason == "by the status page: a test"
    answer = await act(app, {"action": "isolate", "name": "llm", "minutes": 10})
    assert "for 10 m: by the status page (isolated)" in answer.json["done"]
    assert 590 < (breaker.snapshot().retry_after or 0) <= 600
    answer = await act(app, {"action": "close", "name": "llm"})
    assert answer.json == {"done": "llm is closed in this process: by the status page"}
    assert breaker.state.value == "closed"
    assert "'llm' is closed in this process: by the status page" in caplog.text


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"{", "must be JSON"),
        (b"[" * 4000, "must be JSON"),
        (b"\xff", "must be JSON"),
        ([], "must be an object"),
        ({}, "action must be one of"),
        ({"action": ["open"], "name": "llm"}, "action must be one of"),
        ({"action": "destroy", "name": "llm"}, "action must be one of"),
        ({"action": "open"}, "name must be"),
        ({"action": "open", "name": ""}, "name must be"),
        ({"action": "open", "name": "x" * 201}, "name must be"),
        ({"action": "open", "name": "llm", "reason": 1}, "reason must be"),
        ({"action": "open", "name": "llm", "minutes": 1}, "Unknown field 'minutes'"),
        ({"action": "open", "name": "llm", "x": 1}, "Unknown field 'x'"),
        ({"action": "isolate", "name": "llm"}, "minutes must be"),
        *(
            ({"action": "isolate", "name": "llm", "minutes": minutes}, "minutes must be")
            for minutes in (0, -1, 10081, True, "10", None, float("nan"), float("inf"))
        ),
    ],
)
async def test_an_invalid_action_is_rejected(content: Any, problem: str) -> None:
    guards = made()
    guards.get("llm")
    answer = await act(page(guards), content)
    assert answer.status == 400
    assert problem in answer.json["detail"]
    assert guards.get("llm").breaker.state.value == "closed"


async def test_a_request_body_is_bounded_in_size_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    app = page(made())
    assert (await act(app, b" " * 5000)).status == 413
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert (await act(app, {}, kind=kind)).status == 415
    assert (await act(app, {}, body_breaks_off=True)).status == 400
    monkeypatch.setattr(page_module, "_BODY_TIMEOUT", 0.05)
    headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
    answer, watcher = Answer(), Watcher()
    await app(scope_of("/resilience/actions", "POST", headers), watcher.receive, answer.send)
    assert answer.status == 408


async def test_an_action_on_an_unknown_breaker_is_404() -> None:
    guards = made()
    answer = await act(page(guards), {"action": "open", "name": "lmm"})
    assert answer.status == 404
    assert list(guards) == []
