"""What can be done with the token on the status page, and what is asked of a request for it."""

from __future__ import annotations

import hmac
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lightrag_resilience.circuit.state_machine import State
from lightrag_resilience.pipeline.registry import Guards
from lightrag_resilience.shared_state.operator_control import (
    REDIS_FAILURES,
    UnknownBreakerError,
    force_known_breaker,
    open_cluster,
    trouble_with_redis,
    with_author,
)
from lightrag_resilience.text import LONGEST_OPEN, as_words

from .observer import breaker_policy

__all__ = ["LARGEST_BODY", "Action", "Refused", "act", "check_token", "read_action"]

_log = logging.getLogger("lightrag_resilience")

LARGEST_BODY = 4096  # bytes
_LONGEST_NAME = 200  # characters
_LONGEST = round(LONGEST_OPEN / 60)  # minutes
_STATES = {"open": State.OPEN, "close": State.CLOSED, "isolate": State.OPEN}
_WHO = "the status page"


class Refused(Exception):  # noqa: N818 - it is an answer, and no mistake of ours
    """A request that is not done: an HTTP status, why, and headers that say more."""

    def __init__(self, status: int, why: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(why)
        self.status = status
        self.headers = headers


@dataclass(frozen=True, slots=True)
class Action:
    """A change of one breaker: ``open``, ``close``, or ``isolate`` for so many seconds."""

    what: str
    name: str
    reason: str
    seconds: float | None = None


def check_token(headers: Iterable[tuple[bytes, bytes]], token: str | None) -> None:
    """Let nobody else through. The header is one that no other site's page can send.

    Raises:
        Refused: The token is another, or none was given, or nobody may.
    """
    if token is None:
        raise Refused(403, "Nothing can be changed here: RESILIENCE_STATUS_TOKEN is not set")
    given = [value for name, value in headers if name.lower() == b"authorization"]
    scheme, _, credentials = b" ".join(given).strip(b" \t").partition(b" ")
    is_right = hmac.compare_digest(credentials.lstrip(b" "), token.encode())
    if len(given) != 1 or scheme.lower() != b"bearer" or not is_right:
        problem = "The token is missing, or not the one that RESILIENCE_STATUS_TOKEN says"
        raise Refused(401, problem, [(b"www-authenticate", b"Bearer")])


def read_action(body: bytes) -> Action:
    """Read what is to be done.

    Raises:
        Refused: It is not clear.
    """
    try:
        asked: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "The body must be JSON") from None
    if not isinstance(asked, dict):
        raise Refused(400, "The body must be an object")
    what, name, reason = asked.get("action"), asked.get("name"), asked.get("reason", "")
    if not isinstance(what, str) or what not in _STATES:
        raise Refused(400, f"action must be one of {', '.join(_STATES)}")
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME:
        raise Refused(400, "name must be that of a breaker")
    if not isinstance(reason, str):
        raise Refused(400, "reason must be a text")
    allowed = {"action", "name", "reason"} | ({"minutes"} if what == "isolate" else set())
    if unknown := sorted(set(asked) - allowed):
        raise Refused(400, f"What is {unknown[0][:_LONGEST_NAME]!r}?")
    seconds = _seconds(asked.get("minutes")) if what == "isolate" else None
    return Action(what, name, reason, seconds)


def _seconds(minutes: Any) -> float:
    if type(minutes) in {int, float} and 0 < minutes <= _LONGEST:
        return 60.0 * float(minutes)
    raise Refused(400, f"minutes must be a number above 0 and at most {_LONGEST}")


async def act(action: Action, registry: Guards) -> str:
    """Do it in all workers; where nothing is shared, in this process. Returns what was done.

    Raises:
        Refused: There is no such breaker, or Redis cannot be used.
    """
    why = with_author(action.reason, _WHO, isolates=action.what == "isolate")
    is_shared = registry.settings.redis_url is not None
    done = await (_in_all if is_shared else _here)(action, registry, why)
    _log.warning("%r %s", action.name, done)
    return f"{action.name} {done}"


async def _in_all(action: Action, registry: Guards, why: str) -> str:
    state, name = _STATES[action.what], action.name
    try:
        async with open_cluster(
            registry.settings, lambda name: breaker_policy(registry, name)
        ) as cluster:
            now = (
                await force_known_breaker(cluster, name, state, why, open_for=action.seconds)
            ).now
    except UnknownBreakerError:
        raise Refused(404, f"No worker has reported a breaker {name!r} lately") from None
    except REDIS_FAILURES as error:
        problem = trouble_with_redis(registry.settings, error)
        raise Refused(503, f"Nothing was changed: Redis cannot be used ({problem})") from None
    return _told(now.state, now.remaining, "all workers", why)


async def _here(action: Action, registry: Guards, why: str) -> str:
    breaker = next((guard.breaker for guard in registry if guard.name == action.name), None)
    if breaker is None:
        raise Refused(404, f"This process has no breaker {action.name!r}")
    if action.what == "close":
        breaker.close(why)
    else:
        breaker.open(why, open_for=action.seconds)
    seen = breaker.snapshot()
    return _told(seen.state, seen.retry_after or 0.0, "this process", why)


def _told(state: State, remaining: float, where: str, why: str) -> str:
    until = f" for {as_words(remaining)}" if remaining else ""
    return f"is {state.value} in {where}{until}: {why}"
