"""The status page as a server calls it, without one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lightrag_resilience import BreakerPolicy, Guards, State
from lightrag_resilience.config.settings import Settings, load_settings
from lightrag_resilience.errors import SettingsError
from lightrag_resilience.integrations import status
from lightrag_resilience.integrations.status import StatusPage
from lightrag_resilience.integrations.status import observer as _status_watch
from lightrag_resilience.integrations.status.actions import Refused, check_token
from lightrag_resilience.integrations.status.dependency_rows import rows
from lightrag_resilience.integrations.status.outage_history import Record
from lightrag_resilience.redis_client.client import make_client
from lightrag_resilience.shared_state.messages import Keys, policy_as_json
from lightrag_resilience.shared_state.script_runner import Store, Subject
from lightrag_resilience.shutdown import Coordinator
from lightrag_resilience.testing.redis_server import RedisServer
from support.status_app import nothing_here
from support.workers import workers

pytestmark = pytest.mark.anyio

TOKEN = "a-token-for-tests-alone"  # noqa: S105 - it protects nothing
PATIENCE = 20.0  # seconds
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


def made(**variables: str) -> Guards:
    environ = {f"RESILIENCE_{name}": value for name, value in variables.items()}
    return Guards(settings=load_settings({"RESILIENCE_DEFAULT__RETRY__ATTEMPTS": "1", **environ}))


class Answer:
    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.news = asyncio.Event()

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        self.news.set()

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        found = re.findall(rb"^data: (.*)$", self.body, re.MULTILINE)
        return [json.loads(event) for event in found]

    @property
    def has_ended(self) -> bool:
        return bool(self.sent[1:]) and not self.sent[-1].get("more_body")


def scope_of(path: str, method: str = "GET", headers: dict[str, str] | None = None) -> Any:
    pairs = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    return {"type": "http", "path": path, "method": method, "headers": pairs, "root_path": ""}


async def ask(app: StatusPage, path: str, method: str = "GET", **other: Any) -> Answer:
    answer = Answer()

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    await app({**scope_of(path, method), **other}, receive, answer.send)
    return answer


async def act(
    app: StatusPage,
    content: Any,
    token: str | None = TOKEN,
    *,
    kind: str = "application/json",
    body_breaks_off: bool = False,
) -> Answer:
    headers = {"content-type": kind}
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    parts = [body[:10], body[10:]]
    answer = Answer()

    async def receive() -> Any:
        if body_breaks_off and len(parts) == 1:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    await app(scope_of("/resilience/actions", "POST", headers), receive, answer.send)
    return answer


async def test_it_answers_under_private_names_and_those_of_the_variable_alone() -> None:
    page = StatusPage(
        nothing_here, registry=made(STATUS_HOSTS="rag.example.com, *.ops.example.com")
    )
    allowed = ["127.0.0.1:9621", "rag.example.com", "a.ops.example.com:80"]
    for hosts in ([], *([host] for host in allowed)):
        headers = [(b"host", host.encode()) for host in hosts]
        assert (await ask(page, "/resilience/data", headers=headers)).status == 200
    refused = await ask(page, "/resilience/data", headers=[(b"host", b"evil.com")])
    assert refused.status == 421
    assert "RESILIENCE_STATUS_HOSTS" in refused.json["detail"]
    two = [(b"host", b"localhost"), (b"host", b"evil.com")]
    assert (await ask(page, "/resilience", headers=two)).status == 400
    assert (await ask(page, "/elsewhere", headers=two)).status == 404  # the application's own
    own = StatusPage(nothing_here, registry=made(), hosts=["rag.example.com"])
    assert (await ask(own, "/resilience", headers=[(b"host", b"rag.example.com")])).status == 200


def test_hosts_that_are_none_are_one_clear_error() -> None:
    with pytest.raises(SettingsError, match="RESILIENCE_STATUS_HOSTS is 'a b', but must be host"):
        made(STATUS_HOSTS="a b")


class Watcher(Answer):
    """Who reads the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.leaves = asyncio.Event()

    async def receive(self) -> Any:
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def until(self, condition: Callable[[Any], Any]) -> Any:
        """The first event of which it is so."""
        async with asyncio.timeout(PATIENCE):
            while True:
                for event in self.events:
                    if condition(event):
                        return event
                self.news.clear()
                await self.news.wait()


@contextlib.asynccontextmanager
async def watching(app: StatusPage) -> AsyncIterator[tuple[Watcher, asyncio.Task[None]]]:
    watcher = Watcher()
    task = asyncio.ensure_future(app(scope_of("/resilience/events"), watcher.receive, watcher.send))
    try:
        yield watcher, task
    finally:
        watcher.leaves.set()
        await asyncio.wait_for(task, PATIENCE)


async def elsewhere(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def page(guards: Guards, token: str | None = TOKEN) -> StatusPage:
    return StatusPage(elsewhere, registry=guards, token=token)


async def trip(guards: Guards, name: str, times: int = 5) -> None:
    async def fail() -> None:
        raise ConnectionRefusedError("made up")

    for _ in range(times):
        with contextlib.suppress(ConnectionRefusedError):
            await guards.get(name).call(fail)


def of(data: Any, name: str) -> Any:
    return next((row for row in data["dependencies"] if row["name"] == name), {"state": None})


# ---------------------------------------------------------------------- what is served


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/resilience", "text/html; charset=utf-8"),
        ("/resilience/page.css", "text/css; charset=utf-8"),
        ("/resilience/live.js", "text/javascript; charset=utf-8"),
        ("/resilience/render.js", "text/javascript; charset=utf-8"),
        ("/resilience/actions.js", "text/javascript; charset=utf-8"),
        ("/resilience/icon.svg", "image/svg+xml"),
        ("/resilience/data", "application/json"),
    ],
)
async def test_each_part_forbids_all_that_it_does_not_need(path: str, kind: str) -> None:
    answer = await ask(page(made()), path)
    assert (answer.status, answer.headers["content-type"]) == (200, kind)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-store"
    assert int(answer.headers["content-length"]) == len(answer.body) > 0


def test_the_page_has_no_code_or_style_of_its_own_and_takes_nothing_from_elsewhere() -> None:
    folder = Path(status.__file__).with_name("static")
    markup = (folder / "page.html").read_text()
    assert not re.search(
        r"\son\w+=|style=|<style|javascript:|<script(?! type=\"module\" src=)", markup
    )
    for file in folder.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//cdn|@import", text), file
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)


@pytest.mark.parametrize(
    ("path", "method", "expected"),
    [
        ("/", "GET", 204),
        ("/resilience-page", "GET", 204),
        ("/resilience/nothing", "GET", 404),
        ("/resilience/../live.js", "GET", 404),
        ("/resilience", "POST", 405),
        ("/resilience/actions", "GET", 405),
        ("/resilience/", "GET", 307),
    ],
)
async def test_other_paths_and_methods_are_not_its_own(
    path: str, method: str, expected: int
) -> None:
    answer = await ask(page(made()), path, method)
    assert answer.status == expected
    if expected == 405:
        assert answer.headers["allow"] in {"GET", "POST"}
    if expected == 307:
        assert answer.headers["location"] == "../resilience"


async def test_below_a_root_path_it_is_found_as_well() -> None:
    answer = await ask(page(made()), "/rag/resilience", root_path="/rag")
    assert answer.status == 200


async def test_what_is_no_request_passes() -> None:
    answer = await ask(page(made()), "/resilience", type="websocket")
    assert answer.status == 204


# ---------------------------------------------------------------------- what it shows


async def test_it_shows_state_limits_and_work_of_this_process() -> None:
    guards = made(
        LLM__LIMIT__RPM="5000", LLM__LIMIT__TPM="900000", LLM__CONCURRENCY__MAX_CONCURRENT="2"
    )
    app = page(guards, None)
    assert (await ask(app, "/resilience/data")).json["headline"]["look"] == "works"
    begun = asyncio.Event()

    async def slow() -> None:
        begun.set()
        await asyncio.sleep(PATIENCE)

    async def stream() -> AsyncIterator[str]:
        yield "one"
        await asyncio.sleep(PATIENCE)

    guard = guards.get("llm.openai")
    running = [asyncio.ensure_future(guard.call(slow))]
    reading = await guards.get("llm.other").call(stream)
    await reading.__anext__()
    await begun.wait()
    running += [asyncio.ensure_future(guard.call(slow)) for _ in range(2)]
    async with asyncio.timeout(PATIENCE):
        while guard.occupancy.waiting < 1:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)
    await trip(guards, "storage.neo4j", times=3)
    data = (await ask(app, "/resilience/data")).json
    row = of(data, "llm.openai")
    assert (row["rpm"], row["tpm"]) == (5000, 900000)
    assert row["places"] == {"limit": 2, "in_use": 2, "waiting": 1}
    assert row["in_flight"] == {"calls": 2, "not sent": 1}
    assert of(data, "llm.other")["in_flight"] == {"streams": 1}
    assert of(data, "storage.neo4j")["failed"] == 3
    assert of(data, "storage.neo4j")["last_failure"]["error"] == "ConnectionRefusedError"
    assert of(data, "storage.neo4j")["budget"] == 1.0
    assert data["redis"] is None
    assert data["can_act"] is False
    for each in running:
        each.cancel()
    await asyncio.wait(running)
    await reading.aclose()
    after = (await ask(app, "/resilience/data")).json
    assert {str(each["in_flight"]) for each in after["dependencies"]} == {"{}"}


async def test_what_is_down_comes_first_with_its_reason_and_time() -> None:
    guards = made()
    app = page(guards)
    began = time.time()
    await trip(guards, "storage.neo4j")
    for name in ("a", "z"):
        guards.get(name)
    guards.get("llm.openai").breaker.open("by Ada: they migrate", open_for=600)
    data = (await ask(app, "/resilience/data")).json
    names = [row["name"] for row in data["dependencies"]]
    assert names[:2] == ["storage.neo4j", "llm.openai"]
    down, isolated = data["dependencies"][:2]
    assert (down["look"], isolated["look"]) == ("down", "isolated")
    assert down["why"] == "after 5 failures in a row, the last ConnectionRefusedError"
    assert began - 1 <= down["since"] <= time.time() + 1
    assert 595 < isolated["next"] <= 600
    assert down["since"] in data["headline"]["sentence"]
    assert [change["name"] for change in data["changes"]] == ["llm.openai", "storage.neo4j"]
    guards.get("llm.openai").breaker.close("by Ada")
    guards.get("storage.neo4j").breaker.set_mode("forced-open", "until tomorrow")
    data = (await ask(app, "/resilience/data")).json
    assert of(data, "llm.openai")["look"] == "works"
    forced = of(data, "storage.neo4j")
    assert (forced["look"], forced["next"], forced["why"]) == ("isolated", None, "until tomorrow")


async def test_a_pause_that_a_provider_asked_for_is_shown() -> None:
    guards = made()
    app = page(guards)
    guards.get("llm.openai").cool_down(30)
    row = of((await ask(app, "/resilience/data")).json, "llm.openai")
    assert row["look"] == "paused"
    assert 25 < row["standstill"] <= 30


async def test_of_very_many_dependencies_the_worst_are_shown() -> None:
    guards = made()
    app = page(guards)
    for number in range(250):
        guards.get(f"host.{number:03}")
    guards.get("host.249").breaker.open("after 5 failures in a row")
    data = (await ask(app, "/resilience/data")).json
    assert (len(data["dependencies"]), data["left_out"]) == (200, 50)
    assert data["dependencies"][0]["name"] == "host.249"


# ---------------------------------------------------------------------- the stream


async def test_a_change_is_told_at_once_to_all_who_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "_EVERY", 10 * PATIENCE)  # it is the change that wakes them
    guards = made()
    app = page(guards)
    async with watching(app) as (one, _), watching(app) as (other, _):
        await one.until(lambda data: not data["dependencies"])
        await trip(guards, HOSTILE)
        for watcher in (one, other):
            data = await watcher.until(lambda data: of(data, HOSTILE)["state"] == "open")
            assert (
                data["changes"][0]["reason"]
                == "after 5 failures in a row, the last ConnectionRefusedError"
            )
        assert one.headers["content-type"] == "text/event-stream"
        assert "default-src 'none'" in one.headers["content-security-policy"]
    assert app._watch.watchers == 0


async def test_a_stream_in_which_nothing_happens_beats_like_a_heart_and_ends_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(status, "_HEARTBEAT", 0.3)
    monkeypatch.setattr(status, "_LONGEST", 1.5)
    async with watching(page(made())) as (watcher, task):
        await asyncio.wait_for(asyncio.shield(task), PATIENCE)
        assert watcher.has_ended
        assert 2 <= len(watcher.events) <= 6


async def test_who_takes_nothing_any_more_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "_SLOWEST", 0.05)
    app = page(made())

    async def stuck(message: Any) -> None:
        if message.get("body", b"").startswith(b"data"):
            await asyncio.sleep(PATIENCE * 2)

    watcher = Watcher()
    async with asyncio.timeout(PATIENCE):
        await app(scope_of("/resilience/events"), watcher.receive, stuck)
    assert app._watch.watchers == 0


async def test_there_is_an_end_to_the_number_of_watchers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "_MOST_WATCHERS", 1)
    app = page(made())
    async with watching(app) as (watcher, _):
        await watcher.until(bool)
        for path in ("/resilience/events", "/resilience/data"):
            answer = await ask(app, path)
            assert (answer.status, "watching" in answer.json["detail"]) == (503, True)
    assert (await ask(app, "/resilience/data")).status == 200


async def test_a_stream_lasts_while_a_drain_waits_for_work_and_no_longer() -> None:
    guards = made()
    app = page(guards)
    goes_on = asyncio.Event()
    async with Coordinator(registry=guards, hears_signals=False, timeout=PATIENCE + 10) as ours:
        call = asyncio.ensure_future(guards.get("llm").call(goes_on.wait))
        async with watching(app) as (watcher, task):
            task.set_name("GET /resilience/…")  # as where requests are waited for, too
            ours.track(task)
            await watcher.until(lambda data: of(data, "llm").get("in_flight") == {"calls": 1})
            drain = asyncio.ensure_future(ours.drain("SIGTERM"))
            data = await watcher.until(lambda data: data["drain"])
            assert data["drain"]["phase"] == "draining"
            assert data["drain"]["reason"] == "SIGTERM"
            assert data["drain"]["work"] == 1
            assert data["drain"]["left"] > 0
            goes_on.set()
            await asyncio.wait_for(asyncio.shield(task), PATIENCE)
            assert watcher.has_ended
        await asyncio.gather(call, drain)


async def test_without_a_coordinator_a_closed_gate_ends_a_stream() -> None:
    guards = made()
    guards.gate.close()
    async with watching(page(guards)) as (watcher, task):
        await asyncio.wait_for(asyncio.shield(task), PATIENCE)
        assert watcher.events[0]["drain"]["phase"] == "draining"


# ---------------------------------------------------------------------- what can be done


@pytest.mark.parametrize("token", [None, "wrong", "", f"{TOKEN}x", TOKEN[:-1], "ü"])
async def test_without_the_token_nothing_is_done(token: str | None) -> None:
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
def test_the_scheme_is_read_as_its_standard_has_it(
    given: list[str], *, is_let_through: bool
) -> None:
    headers = [(b"Authorization", value.encode()) for value in given]
    refused: Any
    with contextlib.nullcontext() if is_let_through else pytest.raises(Refused) as refused:
        check_token(headers, TOKEN)
    assert is_let_through or refused.value.status == 401


async def test_where_no_token_is_set_nobody_can_do_anything() -> None:
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
def test_a_token_that_is_none_is_refused(token: str) -> None:
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
        ({"action": "open", "name": "llm", "minutes": 1}, "What is 'minutes'?"),
        ({"action": "open", "name": "llm", "x": 1}, "What is 'x'?"),
        ({"action": "isolate", "name": "llm"}, "minutes must be"),
        *(
            ({"action": "isolate", "name": "llm", "minutes": minutes}, "minutes must be")
            for minutes in (0, -1, 10081, True, "10", None, float("nan"), float("inf"))
        ),
    ],
)
async def test_what_is_not_clear_is_not_done(content: Any, problem: str) -> None:
    guards = made()
    guards.get("llm")
    answer = await act(page(guards), content)
    assert answer.status == 400
    assert problem in answer.json["detail"]
    assert guards.get("llm").breaker.state.value == "closed"


async def test_bodies_have_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    app = page(made())
    assert (await act(app, b" " * 5000)).status == 413
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert (await act(app, {}, kind=kind)).status == 415
    assert (await act(app, {}, body_breaks_off=True)).status == 400
    monkeypatch.setattr(status, "_BODY_WITHIN", 0.05)
    headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
    answer, watcher = Answer(), Watcher()
    await app(scope_of("/resilience/actions", "POST", headers), watcher.receive, answer.send)
    assert answer.status == 408


async def test_an_unknown_breaker_is_not_made_by_a_slip_of_the_pen() -> None:
    guards = made()
    answer = await act(page(guards), {"action": "open", "name": "lmm"})
    assert answer.status == 404
    assert list(guards) == []


# ---------------------------------------------------------------------- with Redis


async def test_breakers_of_other_processes_are_shown_and_steered(redis: RedisServer) -> None:
    guards = made(REDIS_URL=redis.url)
    app = page(guards)
    made_up = "llm.made-up"
    with workers(redis.url, number=2) as two:
        assert all(answer["at"] for answer in two.each("until", connected=True))
        two[0].ask("call", times=3)
        async with watching(app) as (watcher, _):
            await watcher.until(lambda data: of(data, made_up)["state"] == "closed")
            two[0].ask("behave", fails=5)
            two[0].ask("call", times=5)
            data = await watcher.until(lambda data: of(data, made_up)["state"] == "open")
            row = of(data, made_up)
            assert (row["look"], row["why"]) == (
                "down",
                "after 5 failures in a row, the last ConnectionRefusedError",
            )
            assert abs(row["since"] - time.time()) < PATIENCE
            assert not row["here"]
            assert {worker["pid"] for worker in data["workers"]} >= {w.process.pid for w in two}
            assert not data["redis"]["trouble"]

            # A process that has not begun to share yet shows what the others have decided.
            idle = made(REDIS_URL=redis.url)
            await asyncio.to_thread(idle.get, made_up)
            row = of((await ask(page(idle), "/resilience/data")).json, made_up)
            assert (row["here"], row["state"]) == (True, "open")
            assert idle.get(made_up).breaker.state.value == "closed"

            content = {"action": "isolate", "name": made_up, "minutes": 10, "reason": "they move"}
            done = (await act(app, content)).json["done"]
            assert done.startswith("llm.made-up is open in all workers for 10 m: by the status")
            for answer in two.each("until", state="open"):
                assert answer["at"]
            isolated = await watcher.until(lambda data: of(data, made_up).get("by_hand"))
            assert isolated["headline"]["look"] == "isolated"
            assert (await act(app, {"action": "close", "name": made_up})).status == 200
            assert all(answer["at"] for answer in two.each("until", state="closed"))
            over = await watcher.until(
                lambda data: [each["new"] for each in data["changes"][:1]] == ["closed"]
            )
            assert over["changes"][0]["lasted"] >= 0
            unknown = await act(app, {"action": "close", "name": "llm.made-upp"})
            assert (unknown.status, "llm.made-upp" in unknown.json["detail"]) == (404, True)
    guards.close()


async def test_a_breaker_of_this_process_is_counted_over_all(redis: RedisServer) -> None:
    guards = made(REDIS_URL=redis.url, REDIS_PREFIX="counted:")
    app = page(guards)
    async with watching(app) as (watcher, _):
        async with asyncio.timeout(PATIENCE):
            while not (guards.link and guards.link.is_up):
                await guards.get("llm").call(asyncio.sleep, 0)
                await asyncio.sleep(0.01)
        data = await watcher.until(lambda data: of(data, "llm").get("workers") == 1)
        assert data["redis"]["round_trip"] is not None
        await trip(guards, "llm")
        data = await watcher.until(lambda data: of(data, "llm")["state"] == "open")
        assert of(data, "llm")["here"]
        guards.get("llm").breaker.set_mode("forced-open", "until tomorrow")
        data = await watcher.until(lambda data: of(data, "llm")["mode"] == "forced-open")
        assert of(data, "llm")["why"] == "until tomorrow"
    guards.close()


async def test_where_a_search_takes_too_long_it_shows_the_breakers_of_this_process(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_status_watch, "_SEARCH_PATIENCE", -1.0)
    guards = made(REDIS_URL=redis.url, REDIS_PREFIX="vast:")
    guards.get("llm")
    data = (await ask(page(guards), "/resilience/data")).json
    assert [row["name"] for row in data["dependencies"]] == ["llm"]
    assert not data["redis"]["trouble"]
    guards.close()


async def test_without_redis_it_shows_this_process_and_says_so() -> None:
    guards = made(REDIS_URL="redis://127.0.0.1:1/0")
    guards.get("llm")
    app = page(guards)
    data = (await ask(app, "/resilience/data")).json
    assert data["redis"]["trouble"] == "nothing answers at 127.0.0.1:1"
    assert [row["name"] for row in data["dependencies"]] == ["llm"]
    answer = await act(app, {"action": "open", "name": "llm"})
    assert answer.status == 503
    assert "Nothing was changed: Redis cannot be used" in answer.json["detail"]
    assert guards.get("llm").breaker.state.value == "closed"
    guards.close()


async def test_of_very_many_breakers_in_redis_those_in_trouble_are_shown(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_status_watch, "_FRESH", 0.0)
    monkeypatch.setattr(_status_watch, "_LONGEST_REST", 0.0)
    made_for: list[str] = []
    policy_for = Settings.policy_for

    def noted(settings: Settings, name: str, base: Any = None) -> Any:
        made_for.append(name)
        return policy_for(settings, name, base)

    monkeypatch.setattr(Settings, "policy_for", noted)
    guards = made(REDIS_URL=redis.url, REDIS_PREFIX="many:")
    async with make_client(redis.url) as client:
        filled = client.pipeline(transaction=False)
        for number in range(1200):
            state: Any = {"st": "C", "ver": number + 1, "till": 0, "opens": 0, "proven": 0}
            filled.hset(Keys("many:", f"host.{number:04}").state, mapping=state)
        await filled.execute()
        policy = policy_as_json(BreakerPolicy())
        subject = Subject("many:", "host.1199", policy)
        await Store(client, "one").steer(subject, State.OPEN, "they move", open_for=600.0)
    app = page(guards)
    data: Any = {}
    async with app._watch.watching():
        for _ in range(100):
            data = (await ask(app, "/resilience/data")).json
            if data["dependencies"][0]["name"] == "host.1199":
                break
        again = (await ask(app, "/resilience/data")).json
    for seen in (data, again):
        assert seen["redis"]["trouble"] == ""
        assert (seen["dependencies"][0]["name"], seen["left_out"]) == ("host.1199", 1000)
    assert len(made_for) == len(set(made_for)) == 1200
    guards.close()


async def test_a_change_of_the_settings_is_a_change_of_how_breakers_of_others_are_read(
    redis: RedisServer,
) -> None:
    guards = made(REDIS_URL=redis.url, REDIS_PREFIX="policies:")
    watch = page(guards)._watch
    before = watch._policy_of("llm.other")
    assert watch._policy_of("llm.other") is before
    guards.override({"RESILIENCE_LLM__BREAKER__WINDOW_SECONDS": "7"})
    assert watch._policy_of("llm.other").window_seconds == 7.0
    assert watch._policy_of("llm") is not guards.get("storage").policy.circuit
    assert watch._policy_of("storage") is guards.get("storage").policy.circuit
    guards.close()


async def test_the_loop_goes_on_while_rows_are_made_and_the_worst_are_among_them() -> None:
    guards = made()
    for number in range(1100):
        guards.get(f"host.{number:04}")
    guards.get("host.1099").breaker.open("they move")
    making = asyncio.ensure_future(rows(guards, None, Record()))
    steps = 0
    while not making.done():
        steps += 1
        await asyncio.sleep(0)
    assert steps >= 1000 // 100
    assert len(making.result()) == 1000
    assert making.result()[0]["name"] == "host.1099"
