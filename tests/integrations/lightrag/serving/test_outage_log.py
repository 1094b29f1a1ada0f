"""What LightRAG's server writes to its log in an outage: few lines, each with its cause."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("lightrag")

from lightrag_resilience import CircuitOpenError, Guards
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.integrations.lightrag.serving.http_errors import DependencyErrorMiddleware
from lightrag_resilience.integrations.lightrag.serving.outage_log import (
    FailedRequest,
    RepeatedErrorFilter,
    StateChangeFilter,
)
from lightrag_resilience.integrations.lightrag.work.context import (
    Stage,
    WorkContext,
    call_guarded,
    current_work,
    reached,
)
from lightrag_resilience.telemetry.correlation import correlated
from lightrag_resilience.testing.virtual_time import VirtualTimeLoop

OF_SUCCESSES = {"Query edges: founded", "POST /query 200"}
Step = Callable[[], Awaitable[None]]
theirs = logging.getLogger("lightrag")


@pytest.fixture
def written() -> Iterator[list[logging.LogRecord]]:
    """What is written under `serve`, by all its loggers."""
    records: list[logging.LogRecord] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    names = ("lightrag", "lightrag_resilience", "uvicorn.access", "uvicorn.error", "httpx")
    kept, quiet, before = Kept(), RepeatedErrorFilter(), []
    for logger in map(logging.getLogger, names):
        before.append((logger, logger.level, logger.propagate, logger.handlers, logger.filters))
        logger.setLevel(logging.INFO)
        logger.propagate, logger.handlers, logger.filters = False, [kept], []
        if logger.name != "lightrag_resilience":
            logger.addFilter(quiet)
    yield records
    for logger, level, propagates, handlers, filters in before:
        logger.setLevel(level)
        logger.propagate, logger.handlers, logger.filters = propagates, handlers, filters


def lines(written: list[logging.LogRecord]) -> list[str]:
    texts = [record.getMessage() for record in written]
    return [
        line for text in texts if not text.startswith("Breakers are") for line in text.splitlines()
    ]


class Server:
    """LightRAG's server, as it answers a query: with its own lines of what fails."""

    def __init__(self, guards: Guards, step: Step) -> None:
        self.guard = guards.get("llm.openai")
        self.step = step
        self.answered: list[int] = []
        self.stops = asyncio.Event()
        self.app = DependencyErrorMiddleware(self.answer, registry=guards)

    async def answer(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.stops.wait()
            return
        work = current_work.set(WorkContext())
        theirs.info("Query edges: founded")
        try:
            await call_guarded(self.guard, lambda: self.guard.call(self.call))
        except Exception as error:  # noqa: BLE001 - as LightRAG does
            theirs.error("Error processing query: %s", error, exc_info=True)
            theirs.error("Returning HTTP 500 to client")
            await send({"type": "http.response.start", "status": 500, "headers": []})
        else:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        finally:
            current_work.reset(work)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def call(self) -> None:
        try:
            await self.step()
        except Exception as error:
            theirs.error("OpenAI API Call Failed,\nModel: m,\nGot: %s", error)
            raise

    async def ask(self, identity: str = "r-1") -> None:
        async def send(message: Any) -> None:
            if "status" in message:
                self.answered.append(message["status"])
                logging.getLogger("uvicorn.access").info("POST /query %d", message["status"])

        scope = {"type": "http", "method": "POST", "path": "/query", "client": ("10.0.0.7", 1)}
        with correlated(identity):
            await self.app(scope, None, send)  # type: ignore[arg-type]

    async def live(self, life: Callable[[], Awaitable[None]]) -> None:
        server = asyncio.create_task(self.app({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        try:
            await life()
        finally:
            self.stops.set()
            await server


def in_virtual_time(
    live: Callable[[Server, VirtualTimeLoop], Awaitable[None]], step: Step | None = None
) -> None:
    async def refused() -> None:
        raise ConnectionRefusedError

    loop = VirtualTimeLoop()
    guards = Guards(settings=load_settings({}), clock=loop.time, sleep=asyncio.sleep)
    server = Server(guards, step or refused)
    loop.run_until_complete(server.live(lambda: live(server, loop)))
    loop.close()


@pytest.mark.no_cover
def test_an_hour_of_outage_with_a_query_a_second_writes_at_most_60_lines(
    written: list[logging.LogRecord],
) -> None:
    async def live(server: Server, loop: VirtualTimeLoop) -> None:
        for number in range(3600):
            await server.ask(f"r-{number}")
            await asyncio.sleep(1.0)
        assert loop.time() >= 3600
        assert set(server.answered) == {503}

    in_virtual_time(live)
    logged = lines(written)
    assert 10 <= len(logged) <= 30
    assert not any("Traceback" in line or "HTTP 500" in line for line in logged)
    sums = [line for line in logged if "more requests failed with a dependency" in line]
    assert len(sums) >= 5
    assert "times 503, 'llm.openai'" in sums[0]
    counted = sum(int(line.split()[0]) for line in sums)
    singles = [line for line in logged if line.startswith("POST /query from 10.0.0.7 got 503")]
    assert counted + len(singles) == 3600
    assert "(request r-3599)" in sums[-1]


@pytest.mark.no_cover
def test_a_flapping_dependency_writes_at_most_60_lines_in_an_hour(
    written: list[logging.LogRecord],
) -> None:
    async def step() -> None:
        if asyncio.get_running_loop().time() % 30 < 15:
            raise ConnectionRefusedError

    async def live(server: Server, _: VirtualTimeLoop) -> None:
        for _second in range(3600):
            await server.ask()
            await asyncio.sleep(1.0)
        assert set(server.answered) == {200, 503}

    in_virtual_time(live, step)
    logged = [line for line in lines(written) if line not in OF_SUCCESSES]
    assert len(logged) <= 60
    assert len([line for line in logged if line.startswith("Circuit")]) <= 12
    sums = [line for line in logged if "more lines about dependencies" in line]
    assert len(sums) >= 10
    assert "times open, 'llm.openai'" in sums[0]
    assert ". The last one: Circuit 'llm.openai' is " in sums[0]


@pytest.mark.no_cover
@pytest.mark.parametrize("period", [30, 7200])
def test_four_workers_without_redis_write_at_most_60_lines_in_an_hour(
    period: int, written: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKERS", "4")

    async def step() -> None:
        if asyncio.get_running_loop().time() % period < period / 2:
            raise ConnectionRefusedError

    async def live(server: Server, _: VirtualTimeLoop) -> None:
        for second in range(3600):
            await server.ask()
            if second == 0:
                assert any("got 503" in line for line in lines(written))  # at once
            await asyncio.sleep(1.0)

    in_virtual_time(live, step)
    logged = [line for line in lines(written) if line not in OF_SUCCESSES]
    assert 4 * len(logged) <= 60


def test_lines_from_other_threads_are_summed_up_with_the_rest(
    written: list[logging.LogRecord],
) -> None:
    ours = logging.getLogger("lightrag_resilience")

    def log_state(state: str = "open") -> None:
        ours.warning("it is %s", state, extra={"dependency": "llm", "state": state})

    async def live() -> None:
        changes = StateChangeFilter()
        ours.addFilter(changes)
        left.append(changes)
        for _ in range(11):
            await asyncio.to_thread(log_state)
        await asyncio.to_thread(log_state, "closed")
        await asyncio.to_thread(log_state)
        await asyncio.sleep(0)
        changes.end()

    left: list[StateChangeFilter] = []
    try:
        asyncio.run(live())
        *singles, summed, closed, last = lines(written)
        assert singles == ["it is open"] * 9
        assert summed.startswith("2 more lines about dependencies within 0 s (2 times open, 'llm')")
        assert closed == "it is closed"  # what has not been there before, and after what was
        assert last == "it is open"
        written.clear()
        log_state()  # its loop is closed
        assert lines(written) == ["it is open"]
    finally:
        ours.removeFilter(left[0])


def test_states_forced_by_hand_are_never_summed_up(written: list[logging.LogRecord]) -> None:
    async def live(server: Server, _: VirtualTimeLoop) -> None:
        breaker = server.guard.breaker
        for number in range(20):
            breaker.open("after 5 failures in a row")
            breaker.close(f"by jo on vm: {number}")

    in_virtual_time(live)
    by_hand = [line for line in lines(written) if "is closed by jo on vm" in line]
    assert len(by_hand) == 20
    # Each has first written what came before it.
    assert "is open after 5 failures" in lines(written)[lines(written).index(by_hand[-1]) - 1]


def test_three_outages_within_minutes_are_logged_at_once(
    written: list[logging.LogRecord],
) -> None:
    async def live(server: Server, _: VirtualTimeLoop) -> None:
        breaker = server.guard.breaker
        for _outage in range(3):
            for change in ("open", "half_open", "close"):
                getattr(breaker, change)()
                assert "Circuit 'llm.openai' is " in lines(written)[-1]
                assert lines(written)[-1].split()[3].startswith(change[:4])
            await asyncio.sleep(20.0)

    in_virtual_time(live)


def test_a_rejected_query_has_one_line_with_its_status_and_id(
    written: list[logging.LogRecord],
) -> None:
    async def live(server: Server, _: VirtualTimeLoop) -> None:
        server.guard.breaker.open("after 5 failures in a row")
        written.clear()
        await server.ask("r-1")
        await server.ask("r-2")

    in_virtual_time(live)
    assert [line for line in lines(written) if "Query edges" not in line] == [
        f"POST /query from 10.0.0.7 got 503 (request r-{number}): Circuit 'llm.openai' is open "
        "after 5 failures in a row; next probe in 5.0 s"
        for number in (1, 2)
    ]
    record = written[-1]
    assert vars(record)["status"] == 503
    assert vars(record)["correlation_id"] == "r-2"
    assert vars(record)["dependency"] == "llm.openai"


def test_tracebacks_are_written_at_debug(written: list[logging.LogRecord]) -> None:
    theirs.setLevel(logging.DEBUG)

    async def live(server: Server, _: VirtualTimeLoop) -> None:
        server.guard.breaker.open("by hand")
        await server.ask()

    in_virtual_time(live)
    shown = next(record for record in written if "Error processing" in record.getMessage())
    assert shown.exc_info is not None
    assert shown.levelname == "DEBUG"


@pytest.mark.parametrize(("count", "last"), [(4, "POST"), (5, "2 mo")])
def test_after_a_quiet_minute_requests_have_their_own_lines_again(
    count: int, last: str, written: list[logging.LogRecord]
) -> None:
    async def live(server: Server, _: VirtualTimeLoop) -> None:
        for _round in range(2):
            for _query in range(count):
                await server.ask()
            await asyncio.sleep(200.0)

    in_virtual_time(live)
    logged = [record.getMessage()[:4] for record in written if "got 503" in record.getMessage()]
    assert logged == ["POST", "POST", "POST", last] * 2


def test_a_request_that_succeeds_in_an_outage_keeps_its_lines_and_their_order(
    written: list[logging.LogRecord],
) -> None:
    is_down = True

    async def step() -> None:
        if is_down:
            raise ConnectionRefusedError

    async def live(server: Server, _: VirtualTimeLoop) -> None:
        nonlocal is_down
        await server.ask("r-1")
        server.guard.breaker.close()
        is_down = False
        written.clear()
        await server.ask("r-2")
        assert server.answered == [503, 200]

    in_virtual_time(live, step)
    assert lines(written) == ["Query edges: founded", "POST /query 200"]


# ---------------------------------------------------------------------- single records


def log_in_except(error: Exception, *, name: str = "lightrag", level: int = logging.ERROR) -> None:
    try:
        raise error
    except Exception:  # noqa: BLE001 - as LightRAG does
        logging.getLogger(name).log(level, "it failed")


def test_a_record_without_a_line_of_ours_is_written(written: list[logging.LogRecord]) -> None:
    log_in_except(KeyError("a mistake"))
    log_in_except(ConnectionRefusedError())
    document = CircuitOpenError("llm.openai")
    reached(document, Stage.RAISED)
    log_in_except(document)  # of a document, outside of any request
    theirs.error("no error at hand")
    assert len(written) == 4


def test_repetitions_by_lightrags_queue_and_uvicorn_are_not_written(
    written: list[logging.LogRecord],
) -> None:
    queued = ConnectionRefusedError()
    reached(queued, Stage.QUEUED)
    log_in_except(queued)
    wrapped = RuntimeError()
    wrapped.__cause__ = queued
    log_in_except(wrapped, name="uvicorn.error")
    assert written == []


def test_ingest_started_by_a_request_keeps_its_lines(written: list[logging.LogRecord]) -> None:
    async def live(server: Server, _: VirtualTimeLoop) -> None:
        async def upload(scope: Any, receive: Any, send: Any) -> None:
            del scope, receive
            work = current_work.set(WorkContext(ingest_patience=60.0))
            log_in_except(CircuitOpenError("llm.openai"))
            current_work.reset(work)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            log_in_except(CircuitOpenError("llm.openai"))

        server.app = DependencyErrorMiddleware(upload)
        await server.ask()

    in_virtual_time(live)
    assert [line for line in lines(written) if "it failed" in line] == ["it failed"] * 2


async def in_a_call(step: Callable[[], None]) -> None:
    async def call() -> None:
        step()

    await Guards(settings=load_settings({})).get("llm.openai").call(call)


def test_an_error_that_opens_no_breaker_is_shown_in_full_once_an_hour(
    written: list[logging.LogRecord],
) -> None:
    def wrong_key() -> None:
        log_in_except(ValueError("401"))

    for _ in range(3):
        asyncio.run(in_a_call(wrong_key))
    assert lines(written) == ["it failed"]


def test_http_clients_log_answers_that_are_no_failures(written: list[logging.LogRecord]) -> None:
    def two_answers() -> None:
        for status in (200, 500):
            text = 'HTTP Request: %s %s "%s %d %s"'
            logging.getLogger("httpx").info(text, "POST", "http://p", "HTTP/1.1", status, "-")
        logging.getLogger("httpx").info("no status")

    asyncio.run(in_a_call(two_answers))
    answered, other = lines(written)
    assert "200" in answered
    assert other == "no status"


def test_the_remembered_lines_are_bounded(
    written: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RepeatedErrorFilter.filter.__globals__, "_MAX_SHOWN", 1)

    def odd() -> None:
        for error in (ValueError(), TypeError(), ValueError()):
            log_in_except(error)

    asyncio.run(in_a_call(odd))
    assert lines(written) == ["it failed"] * 3


def test_a_request_cannot_forge_a_log_line() -> None:
    failed = FailedRequest(
        "GET /\nERROR \x1b[31m" + "x" * 500,
        client=None,
        status=None,
        dependency="llm.openai",
        cause="why",
        identity=None,
    )
    assert str(failed).startswith("GET /ERROR [31m")
    assert str(failed).endswith(" got no answer: why")
    assert len(str(failed)) < 250
    assert failed.fields() == {"dependency": "llm.openai", "status": None}
