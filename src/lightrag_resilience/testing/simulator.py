"""A provider of the OpenAI kind, on a real socket, that fails on command.

``lightrag-resilience simulate`` runs it by itself.
"""

from __future__ import annotations

import array
import asyncio
import base64
import hmac
import json
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from aiohttp import web

from lightrag_resilience.runtime.background_loop import BackgroundLoop

from .faults import INVALID, Fault, Script
from .invalid_answers import HTML_PAGE, spoiled
from .simulated_model import complete, count_message_tokens, count_tokens, embed, relevance

__all__ = ["SeenCall", "Simulator"]

_DIMENSIONS = 64
_LARGEST_BODY = 32 * 1024 * 1024  # bytes
_REMEMBERED = 100_000  # calls
_BEGUN = frozenset({"truncate", "stall", "end_early", "error_event"})
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(slots=True)
class SeenCall:
    """A call that reached the provider.

    Attributes:
        at: Seconds since `Simulator.begin`.
        path: The path that was called, such as ``/v1/chat/completions``.
        outcome: The HTTP status, or the fault that came instead; ``gone`` if the caller left.
        duration: Seconds until it was over, or its caller left; 0 until then.
        tokens: Of its prompt and answer; 0 where it got no answer.
    """

    at: float
    path: str
    outcome: str = "pending"
    duration: float = 0.0
    tokens: int = 0


class Simulator:
    """Chat (plain and streaming), embeddings, rerank and models, on a free port of 127.0.0.1.

    ``async with Simulator(seed=1) as provider:`` serves at ``provider.base_url`` until the end, on
    the loop of its caller; ``with`` does so in a thread of its own, for tests of any kind.

    Args:
        seed: For the faults' shares: the same seed fails the same calls.
        latency: Seconds before any answer.
        faults: What goes wrong, from the beginning.
        port: Where to listen; 0 takes a free one.
        control_token: Turns on control over HTTP (``/_sim/…``) with this bearer token.

    Attributes:
        headers: Of each answer that is no stream, such as a provider's rate limits.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        latency: float = 0.0,
        faults: Sequence[Fault] = (),
        port: int = 0,
        control_token: str | None = None,
    ) -> None:
        self.latency = latency
        self.headers: dict[str, str] = {}
        self.port = port
        self._script = Script(seed, faults)
        self._token = control_token
        self._seen: deque[SeenCall] = deque(maxlen=_REMEMBERED)
        self._began = time.monotonic()
        self._runner: web.AppRunner | None = None
        self._thread = BackgroundLoop()

    @property
    def base_url(self) -> str:
        """What to give an OpenAI client as its base URL."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def calls(self) -> list[SeenCall]:
        """The last calls, oldest first; at most 100 000."""
        return list(self._seen)

    def count(self, outcome: str | None = None) -> int:
        """How many calls came, or ended so."""
        return sum(outcome in {None, call.outcome} for call in self.calls)

    def set_faults(self, faults: Sequence[Fault]) -> None:
        """From now on, these go wrong and no others."""
        self._script.faults = tuple(faults)

    def begin(self) -> None:
        """Count the seconds of faults and calls from now on."""
        self._began = time.monotonic()

    def reset_calls(self) -> None:
        """Forget the calls, also for the faults' draws."""
        self._seen.clear()
        self._script.reset()

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=_LARGEST_BODY)
        app.add_routes(
            [
                web.post("/v1/chat/completions", self._guarded(_chat)),
                web.post("/v1/embeddings", self._guarded(_embeddings)),
                web.post("/v1/rerank", self._guarded(_rerank)),
                web.get("/v1/models", self._guarded(_models)),
                web.post("/api/chat", self._guarded(_ollama_chat)),
                web.post("/api/embed", self._guarded(_ollama_embed)),
                web.get("/_sim/calls", self._control_calls),
                web.put("/_sim/faults", self._control_faults),
                web.post("/_sim/reset", self._control_reset),
            ]
        )
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0.05
        )
        await self._runner.setup()
        listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        await web.SockSite(self._runner, listener).start()
        self.begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def __enter__(self) -> Self:
        return self._thread.run(self.__aenter__())

    def __exit__(self, *_: object) -> None:
        self._thread.run(self.__aexit__())
        self._thread.close()

    # ------------------------------------------------------------------ one call

    def _guarded(
        self, answer: Callable[[Any], _SimulatedAnswer]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            arrived = time.monotonic()
            seen = SeenCall(round(arrived - self._began, 6), request.path)
            self._seen.append(seen)
            try:
                response = await self._respond(request, answer, seen)
                if not response.prepared:  # a stream is
                    response.headers.update(self.headers)
                return response  # noqa: TRY300
            except (asyncio.CancelledError, ConnectionError):
                if seen.outcome == "pending":
                    seen.outcome = "gone"
                raise
            finally:
                seen.duration = time.monotonic() - arrived

        return handle

    async def _respond(
        self, request: web.Request, answer: Callable[[Any], _SimulatedAnswer], seen: SeenCall
    ) -> web.StreamResponse:
        body = await request.read()
        fault = self._script.fault_for(request.path, body, seen.at)
        await asyncio.sleep(self.latency)
        match fault:
            case Fault(action="status"):
                seen.outcome = str(fault.code)
                return _failure(fault)
            case Fault(action="hang"):
                seen.outcome = "hang"
                await asyncio.Event().wait()
            case Fault(action="reset"):
                seen.outcome = "reset"
                _reset(request)
                return web.Response()
            case Fault(action="slow"):
                await asyncio.sleep(fault.seconds)
            case Fault(action="html_200"):
                seen.outcome = fault.action
                return web.Response(text=HTML_PAGE, content_type="text/html")
            case Fault(action="empty_200"):
                seen.outcome = fault.action
                return web.Response(content_type="application/json")
        try:
            asked = json.loads(body) if body else {}
            given, outcome = answer(asked), "200"
            if fault is not None and fault.action in INVALID:
                plain = answer({**asked, "encoding_format": "float"})  # numbers, to be spoiled
                if (changed := _spoiled(fault.action, plain)) is not None:
                    given, outcome = changed, fault.action
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            seen.outcome = "400"
            return _error(400, f"This request makes no sense: {type(error).__name__}")
        begun = fault if fault and fault.action in _BEGUN else None
        return await _send(request, given, seen, begun, outcome)

    # ------------------------------------------------------------------ control over HTTP

    def _check(self, request: web.Request) -> None:
        if self._token is None:
            raise web.HTTPNotFound(text="Control over HTTP is off: give Simulator a control_token")
        sent = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(sent.encode(), self._token.encode()):
            raise web.HTTPUnauthorized(text="Send the control token: Authorization: Bearer …")

    async def _control_calls(self, request: web.Request) -> web.Response:
        self._check(request)
        return web.json_response([asdict(call) for call in self._seen])

    async def _control_faults(self, request: web.Request) -> web.Response:
        self._check(request)
        try:
            faults = Fault.from_json(await request.read())
        except ValueError as error:
            raise web.HTTPBadRequest(text=str(error)) from error
        self.set_faults(faults)
        self.begin()
        return web.json_response({"faults": len(faults)})

    async def _control_reset(self, request: web.Request) -> web.Response:
        self._check(request)
        self.set_faults([])
        self.reset_calls()
        self.begin()
        return web.json_response({"faults": 0})


# ---------------------------------------------------------------------- answers as HTTP


@dataclass(frozen=True, slots=True)
class _SimulatedAnswer:
    """A JSON body, or the events of a stream."""

    body: Any = None
    events: tuple[str, ...] = ()
    tokens: int = 0
    content_type: str = "text/event-stream"


def _chat(asked: Any) -> _SimulatedAnswer:
    as_json = (asked.get("response_format") or {}).get("type") in {"json_object", "json_schema"}
    text = complete(asked["messages"], as_json=as_json)
    frame = {"id": "chatcmpl-simulated", "created": 0, "model": str(asked.get("model", ""))}
    usage = _usage(count_message_tokens(asked["messages"]), count_tokens(text))
    tokens = usage["total_tokens"]
    if asked.get("stream"):
        with_usage = (asked.get("stream_options") or {}).get("include_usage")
        events = tuple(_events(frame, text, usage if with_usage else None))
        return _SimulatedAnswer(events=events, tokens=tokens)
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    frame |= {"object": "chat.completion", "choices": [choice], "usage": usage}
    return _SimulatedAnswer(frame, tokens=tokens)


def _ollama_chat(asked: Any) -> _SimulatedAnswer:
    text = complete(asked["messages"], as_json=bool(asked.get("format")))
    sent, made = count_message_tokens(asked["messages"]), count_tokens(text)
    end = {"done": True, "done_reason": "stop", "prompt_eval_count": sent, "eval_count": made}
    frame = {"model": str(asked.get("model", "")), "created_at": "1970-01-01T00:00:00Z"}
    if not asked.get("stream", True):
        body = frame | {"message": {"role": "assistant", "content": text}} | end
        return _SimulatedAnswer(body, tokens=sent + made)
    words = [*text.replace(" ", " \0").split("\0"), ""]
    parts = [
        frame | {"message": {"role": "assistant", "content": it}, "done": False} for it in words
    ]
    parts[-1] |= end
    lines = tuple(json.dumps(part) + "\n" for part in parts)
    return _SimulatedAnswer(events=lines, tokens=sent + made, content_type="application/x-ndjson")


def _ollama_embed(asked: Any) -> _SimulatedAnswer:
    texts = _texts(asked["input"])
    vectors = [embed(text, int(asked.get("dimensions") or _DIMENSIONS)) for text in texts]
    tokens = sum(map(count_tokens, texts))
    body = {"model": asked.get("model"), "embeddings": vectors, "prompt_eval_count": tokens}
    return _SimulatedAnswer(body, tokens=tokens)


def _texts(asked: Any) -> list[str]:
    return [asked] if isinstance(asked, str) else list(asked)


def _events(frame: Any, text: str, usage: Any) -> list[str]:
    """A stream's events: a role, a word each, an end, and the usage if it is asked for."""
    deltas: list[dict[str, str]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": word} for word in text.replace(" ", " \0").split("\0")]
    frame = frame | {"object": "chat.completion.chunk"}
    chunks = [
        frame | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        for delta in deltas
    ]
    chunks.append(frame | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    if usage is not None:
        chunks.append(frame | {"choices": [], "usage": usage})
    return [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"]


def _embeddings(asked: Any) -> _SimulatedAnswer:
    texts = _texts(asked["input"])
    vectors = [embed(text, int(asked.get("dimensions") or _DIMENSIONS)) for text in texts]
    as_bytes = asked.get("encoding_format") == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _packed(v) if as_bytes else v}
        for index, v in enumerate(vectors)
    ]
    usage = _usage(sum(map(count_tokens, texts)), 0)
    return _SimulatedAnswer(
        {"object": "list", "data": data, "model": asked.get("model"), "usage": usage},
        tokens=usage["total_tokens"],
    )


def _packed(vector: list[float]) -> str:
    numbers = array.array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode()


def _rerank(asked: Any) -> _SimulatedAnswer:
    scores = [relevance(asked["query"], document) for document in asked["documents"]]
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    best = order[: asked.get("top_n") or len(order)]
    return _SimulatedAnswer({"results": [{"index": i, "relevance_score": scores[i]} for i in best]})


def _models(_: Any) -> _SimulatedAnswer:
    return _SimulatedAnswer({"object": "list", "data": [{"id": "simulated", "object": "model"}]})


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def _spoiled(kind: str, answer: _SimulatedAnswer) -> _SimulatedAnswer | None:
    """An answer spoiled in its way; None where it cannot be."""
    if answer.events:
        chunk = {"object": "chat.completion.chunk", "choices": None}
        events = (f"data: {json.dumps(chunk)}\n\n", "data: [DONE]\n\n")
        return replace(answer, events=events) if kind == "choices_null" else None
    body = spoiled(kind, answer.body)
    return None if body is None else replace(answer, body=body)


async def _send(
    request: web.Request,
    answer: _SimulatedAnswer,
    seen: SeenCall,
    fault: Fault | None,
    outcome: str,
) -> web.StreamResponse:
    """Send an answer, or as much of it as comes before its fault."""
    seen.tokens = answer.tokens
    if not answer.events and fault is None:
        seen.outcome = outcome
        return web.json_response(answer.body)
    parts = answer.events or _cut(json.dumps(answer.body))
    if fault is not None and fault.pieces >= len(parts):
        fault = None
    response = web.StreamResponse()
    response.content_type = answer.content_type if answer.events else "application/json"
    await response.prepare(request)
    for part in parts[: fault.pieces if fault else None]:
        await response.write(part.encode())
    seen.outcome = fault.action if fault else outcome
    match fault:
        case Fault(action="truncate"):
            _reset(request)
            return response
        case Fault(action="stall"):
            await asyncio.Event().wait()
        case Fault(action="error_event"):
            word = fault.word or "server_error"
            error = {"error": {"message": "simulated", "type": word, "code": word}}
            await response.write(f"data: {json.dumps(error)}\n\n".encode())
    await response.write_eof()
    return response


def _cut(text: str) -> tuple[str, ...]:
    length = max(len(text) // 4, 1)
    return tuple(text[at : at + length] for at in range(0, len(text), length))


def _failure(fault: Fault) -> web.Response:
    response = _error(fault.code, "simulated failure", fault.word)
    if fault.retry_after is not None:
        response.headers["Retry-After"] = f"{fault.retry_after:g}"
    return response


def _error(code: int, message: str, word: str = "") -> web.Response:
    kind = word or ("rate_limit_exceeded" if code == 429 else "simulated")  # noqa: PLR2004
    body = {"error": {"message": message, "type": kind, "code": kind}}
    return web.json_response(body, status=code)


def _reset(request: web.Request) -> None:
    """Lose the connection as a crashing peer does: what is written to it now goes nowhere."""
    if request.transport is not None:
        link = request.transport.get_extra_info("socket")
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        request.transport.abort()
