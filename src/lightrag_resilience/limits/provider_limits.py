"""Follows what a provider says of its rate limits: a 429, or the headers of any answer."""

from __future__ import annotations

import logging
import math
import re
import time
from collections import OrderedDict
from dataclasses import replace
from typing import Any, Protocol

from lightrag_resilience.config.policies import LimitPolicy, Policy
from lightrag_resilience.failures.classifier import Failure, root_cause
from lightrag_resilience.failures.rate_limit_headers import RateStates, rate_states
from lightrag_resilience.runtime.process_state import ProcessLock, process

__all__ = ["GrantedLimits", "lower_limits_from_headers", "on_throttled"]

_log = logging.getLogger("lightrag_resilience")

_MOST_MODELS = 32  # of one dependency
_MODEL_KEPT_FOR = 600.0  # seconds since the last answer for a model
_LOG_EVERY = 60.0  # seconds; some providers change a limit with each answer
_IN_PATH = re.compile(r"/(?:deployments|models?)/([^/:?]{1,128})")
_IN_BODY = re.compile(rb'"model"\s*:\s*"([^"\\]{1,128})"')


class _ApplyLock(ProcessLock):
    """One change at a time: a guard may have calls on several event loops.

    Limits that another loop has just applied would be taken for newly configured ones.
    """

    __slots__ = ()


class _Guard(Protocol):
    name: str
    policy: Policy
    clock: Any
    granted: GrantedLimits | None

    def update_policy(self, policy: Policy, reason: str) -> None: ...
    def cool_down(self, seconds: float) -> None: ...


class _Model:
    """Requests and tokens a minute that the last answer for a model granted, and when."""

    __slots__ = ("at", "requests", "tokens")

    def __init__(self) -> None:
        self.requests: int | None = None
        self.tokens: int | None = None
        self.at = -math.inf


class GrantedLimits:
    """The limits a provider grants each model of one dependency, up to the configured ones.

    The limits of a dependency hold for all its models together. A provider counts each model
    separately, so together they may send the sum of what it grants them.
    """

    __slots__ = ("_applied", "_configured", "_logged_at", "_models")

    def __init__(self, configured: LimitPolicy) -> None:
        self._configured = self._applied = configured
        self._models: OrderedDict[str, _Model] = OrderedDict()
        self._logged_at = -math.inf

    def after(
        self, current: LimitPolicy, model: str, reported: RateStates, now: float
    ) -> LimitPolicy:
        """The limits to apply after an answer for a model.

        Args:
            current: Those in force. If they differ from the last returned ones, they are newly
                configured.
            model: The model's name; empty if the request names none.
            reported: By the answer's headers.
            now: Monotonic seconds.
        """
        if current != self._applied:
            self._configured = current
        known = self._models.setdefault(model, _Model())
        known.requests = reported.requests.limit or known.requests
        known.tokens = reported.tokens.limit or known.tokens
        known.at = now
        self._models.move_to_end(model)
        while len(self._models) > _MOST_MODELS or self._oldest < now - _MODEL_KEPT_FOR:
            self._models.popitem(last=False)
        models = self._models.values()
        self._applied = replace(
            self._configured,
            rpm=_up_to(self._configured.rpm, [each.requests for each in models]),
            tpm=_up_to(self._configured.tpm, [each.tokens for each in models]),
        )
        return self._applied

    @property
    def _oldest(self) -> float:
        return next(iter(self._models.values())).at

    def should_log(self, now: float) -> bool:
        """Whether to log a change: not within a minute of another."""
        if now - self._logged_at < _LOG_EVERY:
            return False
        self._logged_at = now
        return True


def on_throttled(guard: _Guard, error: BaseException, failure: Failure) -> None:
    """Begin the cool-down that a 429 asks for, up to the policy's, and apply limits it names."""
    if failure.retry_after:
        guard.cool_down(min(failure.retry_after, guard.policy.retry.max_retry_after))
    cause = root_cause(error)  # LightRAG's own retries wrap it
    response = getattr(cause, "response", None)
    lower_limits_from_headers(
        guard, getattr(response, "headers", None), getattr(cause, "request", None)
    )


def lower_limits_from_headers(guard: _Guard, headers: Any, request: Any = None) -> None:
    """Lower a guard's rate limits to those that a provider reports; adds no limit of its own.

    Args:
        guard: The guard with the limits.
        headers: Of an answer, successful or not, in any mapping, or None.
        request: The request, of httpx or alike, if known: it names the model.
    """
    limit = guard.policy.limit
    if headers is None or not (limit.rpm or limit.tpm):
        return
    reported = rate_states(headers, now_wall=time.time())
    if reported.requests.limit is None and reported.tokens.limit is None:
        return
    model, now = _model_of(request), guard.clock()
    with process[_ApplyLock]:
        if guard.granted is None:
            guard.granted = GrantedLimits(guard.policy.limit)
        limit = guard.policy.limit
        granted = guard.granted.after(limit, model, reported, now)
        if granted == limit:
            return
        if guard.granted.should_log(now):
            text = "The limits of %r follow what its provider grants: %s"
            _log.warning(text, guard.name, _changes(limit, granted))
        guard.update_policy(replace(guard.policy, limit=granted), "as the provider says")


def _up_to(configured: float | None, granted: list[int | None]) -> float | None:
    known = [number for number in granted if number is not None]
    return configured if configured is None or not known else min(configured, float(sum(known)))


def _model_of(request: Any) -> str:
    """The model that a request names in its path or its body; the body is searched, not parsed."""
    try:
        if in_path := _IN_PATH.search(str(request.url.path)):
            return in_path[1]
        content: bytes = request.content
        for in_body in _IN_BODY.finditer(content):
            if not content.endswith(b"\\", 0, in_body.start()):  # escaped: inside a prompt
                return in_body[1].decode("utf-8", "replace")
    except Exception:  # noqa: BLE001 - no request, one that streams its body, or another library's
        return ""
    return ""


def _changes(before: LimitPolicy, after: LimitPolicy) -> str:
    pairs = (("LIMIT__RPM", before.rpm, after.rpm), ("LIMIT__TPM", before.tpm, after.tpm))
    return ", ".join(f"{name} {old:g} is {new:g}" for name, old, new in pairs if old != new)
