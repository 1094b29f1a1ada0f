"""Actions of the status page, and the checks of their requests."""

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

__all__ = ["LARGEST_BODY", "Action", "Rejected", "act", "check_token", "read_action"]

_log = logging.getLogger("lightrag_resilience")

LARGEST_BODY = 4096  # bytes
_LONGEST_NAME = 200  # characters
_MOST_MINUTES = round(LONGEST_OPEN / 60)
_STATES = {"open": State.OPEN, "close": State.CLOSED, "isolate": State.OPEN}
_AUTHOR = "the status page"


class Rejected(Exception):  # noqa: N818 - an answer, and no error of this code
    """A request that is not carried out: HTTP status, reason and headers of the answer."""

    def __init__(
        self, status: int, reason: str, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        super().__init__(reason)
        self.status = status
        self.headers = headers


@dataclass(frozen=True, slots=True)
class Action:
    """A change of one breaker: ``open``, ``close``, or ``isolate`` for `seconds`."""

    what: str
    name: str
    reason: str
    seconds: float | None = None


def check_token(headers: Iterable[tuple[bytes, bytes]], token: str | None) -> None:
    """Check the token in ``Authorization``, a header that another site's page cannot send.

    Raises:
        Rejected: The token is wrong or missing, or none is configured.
    """
    if token is None:
        raise Rejected(403, "Nothing can be changed here: RESILIENCE_STATUS_TOKEN is not set")
    given = [value for name, value in headers if name.lower() == b"authorization"]
    scheme, _, credentials = b" ".join(given).strip(b" \t").partition(b" ")
    is_right = hmac.compare_digest(credentials.lstrip(b" "), token.encode())
    if len(given) != 1 or scheme.lower() != b"bearer" or not is_right:
        problem = "The token is missing, or not the one that RESILIENCE_STATUS_TOKEN says"
        raise Rejected(401, problem, [(b"www-authenticate", b"Bearer")])


def read_action(body: bytes) -> Action:
    """Parse the body of a request.

    Raises:
        Rejected: It is not a valid action.
    """
    try:
        fields: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise Rejected(400, "The body must be JSON") from None
    if not isinstance(fields, dict):
        raise Rejected(400, "The body must be an object")
    what, name, reason = fields.get("action"), fields.get("name"), fields.get("reason", "")
    if not isinstance(what, str) or what not in _STATES:
        raise Rejected(400, f"action must be one of {', '.join(_STATES)}")
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME:
        raise Rejected(400, "name must be that of a breaker")
    if not isinstance(reason, str):
        raise Rejected(400, "reason must be a text")
    allowed = {"action", "name", "reason"} | ({"minutes"} if what == "isolate" else set())
    if unknown := sorted(set(fields) - allowed):
        raise Rejected(400, f"Unknown field {unknown[0][:_LONGEST_NAME]!r}")
    seconds = _seconds(fields.get("minutes")) if what == "isolate" else None
    return Action(what, name, reason, seconds)


def _seconds(minutes: Any) -> float:
    if type(minutes) in {int, float} and 0 < minutes <= _MOST_MINUTES:
        return 60.0 * float(minutes)
    raise Rejected(400, f"minutes must be a number above 0 and at most {_MOST_MINUTES}")


async def act(action: Action, registry: Guards) -> str:
    """Change the breaker in all workers, or without Redis in this process. Returns what was done.

    Raises:
        Rejected: The breaker does not exist, or Redis cannot be used.
    """
    reason = with_author(action.reason, _AUTHOR, isolates=action.what == "isolate")
    is_shared = registry.settings.redis_url is not None
    done = await (_in_all_workers if is_shared else _in_process)(action, registry, reason)
    _log.warning("%r %s", action.name, done)
    return f"{action.name} {done}"


async def _in_all_workers(action: Action, registry: Guards, reason: str) -> str:
    state, name = _STATES[action.what], action.name
    try:
        async with open_cluster(
            registry.settings, lambda name: breaker_policy(registry, name)
        ) as cluster:
            now = (
                await force_known_breaker(cluster, name, state, reason, open_for=action.seconds)
            ).now
    except UnknownBreakerError:
        raise Rejected(
            404, f"No worker has reported a breaker {name!r} in the last ten minutes"
        ) from None
    except REDIS_FAILURES as error:
        problem = trouble_with_redis(registry.settings, error)
        raise Rejected(503, f"Nothing was changed: Redis cannot be used ({problem})") from None
    return _sentence(now.state, now.remaining, "all workers", reason)


async def _in_process(action: Action, registry: Guards, reason: str) -> str:
    breaker = next((guard.breaker for guard in registry if guard.name == action.name), None)
    if breaker is None:
        raise Rejected(404, f"This process has no breaker {action.name!r}")
    if action.what == "close":
        breaker.close(reason)
    else:
        breaker.open(reason, open_for=action.seconds)
    seen = breaker.snapshot()
    return _sentence(seen.state, seen.retry_after or 0.0, "this process", reason)


def _sentence(state: State, remaining: float, where: str, reason: str) -> str:
    until = f" for {as_words(remaining)}" if remaining else ""
    return f"is {state.value} in {where}{until}: {reason}"
