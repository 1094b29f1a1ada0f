"""Few log lines about an outage in LightRAG's server, each with its cause.

LightRAG and its libraries log dozens of lines and a traceback for each query whose dependency
fails. Here each request has at most one line, and many requests have one summary.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from lightrag_resilience.calls.call_context import current_call
from lightrag_resilience.errors import DependencyError
from lightrag_resilience.failures.classifier import FailureKind, classify
from lightrag_resilience.integrations.lightrag.work.context import (
    Request,
    Stage,
    current_request,
    current_work,
    stage_of,
)
from lightrag_resilience.runtime.asyncio_compat import running_loop
from lightrag_resilience.text import is_by_hand, printable

__all__ = [
    "FailedRequest",
    "LogSummary",
    "RepeatedErrorFilter",
    "StateChangeFilter",
    "log_beside_lightrag",
    "release",
]

_log = logging.getLogger("lightrag_resilience")

_SINGLES = 3  # lines of their own before a summary
_SINGLE_CHANGES = 9  # the lines of three outages
_TICK = 60.0  # seconds between two checks for a due summary
_MAX_KINDS = 50  # pairs of outcome and dependency that are distinguished
_SUMMED = {"is_summed": True}  # marks records that StateChangeFilter must pass
_MAX_PATH = 200  # characters

_ACCESS = "uvicorn.access"
_CLIENTS = frozenset({"httpx", "httpx2"})
_QUIETED = ("lightrag", "uvicorn.error", _ACCESS, *sorted(_CLIENTS))
_MIN_ERROR = 400
_REPEAT_AFTER = 3600.0  # seconds until a line may be written again
_MAX_SHOWN = 200  # lines to remember
_MAX_HELD = 100  # records of one request
_WITH_TIME = "%(asctime)s [%(levelname)s] %(name)s: %(message)s"


# ---------------------------------------------------------------------- our own lines


@dataclass(frozen=True, slots=True)
class FailedRequest:
    """A request in which a guarded call failed.

    Attributes:
        request: Its method and path, unescaped.
        client: The address that it came from; None if unknown.
        status: Of its answer; None if it got none.
        dependency: The dependency that failed last.
        cause: The error of that dependency, as text.
        identity: The request's id; None without one.
    """

    request: str
    client: str | None
    status: int | None
    dependency: str
    cause: str
    identity: str | None

    is_never_summed = False

    @property
    def kind(self) -> tuple[str, str]:
        """What is summed up together: the outcome and the dependency."""
        return ("no answer" if self.status is None else str(self.status)), self.dependency

    def __str__(self) -> str:
        request = printable(self.request, _MAX_PATH)
        client = "" if self.client is None else f" from {self.client}"
        identity = "" if self.identity is None else f" (request {self.identity})"
        return f"{request}{client} got {self.kind[0]}{identity}: {self.cause}"

    def fields(self) -> dict[str, Any]:
        """Additional fields for structured logs."""
        known = {"dependency": self.dependency, "status": self.status}
        return known if self.identity is None else known | {"correlation_id": self.identity}

    def write(self) -> None:
        """Write the line."""
        _log.warning("%s", self, extra=self.fields() | _SUMMED)


@dataclass(frozen=True, slots=True)
class _Change:
    """One of our log records about a dependency: its circuit changed state, or it works again."""

    record: logging.LogRecord

    @property
    def kind(self) -> tuple[str, str]:
        about = vars(self.record)
        return str(about.get("state", "recovered")), str(about["dependency"])

    @property
    def is_never_summed(self) -> bool:
        """Whether it has a line of its own in any case: a state forced by an operator."""
        return is_by_hand(str(vars(self.record).get("reason", "")))

    def __str__(self) -> str:
        return self.record.getMessage()

    def fields(self) -> dict[str, Any]:
        names = ("dependency", "state", "reason")
        return {name: value for name in names if (value := vars(self.record).get(name)) is not None}

    def write(self) -> None:
        _log.callHandlers(self.record)


class LogSummary:
    """Logs repeated events: the first ones singly, then in summaries.

    The first summary follows within a minute, the next ones after two minutes, four and so on, each
    multiplied by the number of workers, and one at the end. An event of a new kind has a line of
    its own. Lines keep their order. Belongs to one event loop.

    Args:
        what: What is summed up, as words for the log.
        singles: How many have a line of their own.
        longest: Most minutes between two summaries.
        calm: Minutes without an event after which the next one counts as the first.
        workers: Processes that write to one log: with several, each writes less.
    """

    def __init__(
        self, what: str, *, longest: int, calm: int, singles: int = _SINGLES, workers: int = 1
    ) -> None:
        self._what = what
        self._max_singles = max(singles // workers, 1)
        self._first = workers
        self._longest = longest * workers
        self._calm = calm
        self._timer: asyncio.TimerHandle | None = None
        self._reset()

    def _reset(self) -> None:
        self._kinds: set[tuple[str, str]] = set()
        self._singles = 0
        self._sum: Counter[tuple[str, str]] = Counter()
        self._last: FailedRequest | _Change | None = None
        self._summed_since = 0.0
        self._ticks = 0
        self._ticks_between = self._first
        self._quiet_ticks = 0

    def add(self, it: FailedRequest | _Change) -> None:
        """Log one event, now or in the next summary. Called on the event loop."""
        if self._timer is None:
            self._reset()
            self._start_timer()
        self._quiet_ticks = -1  # 0 at the next tick: this interval is not quiet
        is_new = it.kind not in self._kinds and len(self._kinds) < _MAX_KINDS
        if it.is_never_summed or is_new or self._singles < self._max_singles:
            if not it.is_never_summed:
                self._kinds.add(it.kind)
                self._singles += 1
            self._write_summary()  # older events first
            it.write()
            return
        if self._last is None:
            self._summed_since = _now()
        self._sum[it.kind] += 1
        self._last = it

    @property
    def is_active(self) -> bool:
        """Whether there were events in the last minutes."""
        return self._timer is not None

    def end(self) -> None:
        """Write the last summary. Called on the event loop."""
        self._write_summary()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_TICK, self._tick)

    def _tick(self) -> None:
        self._ticks += 1
        self._quiet_ticks += 1
        if self._quiet_ticks or self._ticks >= self._ticks_between:
            self._write_summary()
        if self._quiet_ticks < self._calm:
            self._start_timer()
        else:
            self._timer = None

    def _write_summary(self) -> None:
        if self._last is None:
            return
        total = self._sum.total()
        if total == 1:
            self._last.write()
        else:
            parts = [f"{n} times {what}, {name!r}" for (what, name), n in self._sum.most_common()]
            _log.warning(
                "%d more %s within %.0f s (%s). The last one: %s",
                *(total, self._what, _now() - self._summed_since, "; ".join(parts), self._last),
                extra=self._last.fields() | _SUMMED,
            )
        self._sum.clear()
        self._last = None
        self._ticks = 0
        self._ticks_between = min(self._ticks_between * 2, self._longest)


class StateChangeFilter(logging.Filter):
    """Sums up our own lines about dependencies that fail and recover for hours.

    Records from other threads are handed over to the event loop.
    """

    def __init__(self, *, workers: int = 1) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._summary = LogSummary(
            "lines about dependencies", longest=4, calm=10, singles=_SINGLE_CHANGES, workers=workers
        )

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write a record at once; others go into a `LogSummary`."""
        about = vars(record)
        if record.levelno < logging.INFO or "dependency" not in about or about.keys() & _SUMMED:
            return True
        if running_loop() is self._loop:
            self._summary.add(_Change(record))
            return False
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._summary.add, _Change(record))
            return False
        return True

    def end(self) -> None:
        """Write the last summary."""
        self._summary.end()


def _now() -> float:
    return asyncio.get_running_loop().time()


# ---------------------------------------------------------------------- other loggers


class RepeatedErrorFilter(logging.Filter):
    """Lowers records of other loggers to debug if one of our lines says the same.

    In a request, these are LightRAG's records about errors of guarded calls: the request has a line
    of ours. In a call, they are all warnings inside it and those of LightRAG's queue: the breaker
    has a line. An error that counts against no breaker, such as a wrong key, is shown in full once
    an hour. While requests fail, LightRAG's records about a request are held until it has ended.
    """

    def __init__(self) -> None:
        super().__init__()
        self._shown: dict[tuple[str, int, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write a record now."""
        if self._is_repeated(record):
            record.levelno, record.levelname = logging.DEBUG, logging.getLevelName(logging.DEBUG)
            return logging.getLogger(record.name).isEnabledFor(logging.DEBUG)
        return not _hold(record)

    def _is_repeated(self, record: logging.LogRecord) -> bool:
        if record.name == _ACCESS:
            request = current_request.get()
            return request is not None and request.is_refused
        if record.name in _CLIENTS:
            return _is_in_a_call() and _status_in(record.args) >= _MIN_ERROR
        error = record.exc_info[1] if record.exc_info else sys.exc_info()[1]
        if record.levelno < logging.WARNING or not isinstance(error, Exception):
            return False
        stage = stage_of(error)
        if stage is None and not isinstance(error, DependencyError):
            return _is_in_a_call() and self._is_known(record, error)
        return stage is Stage.QUEUED or not record.name.startswith("lightrag") or _is_in_a_request()

    def _is_known(self, record: logging.LogRecord, error: Exception) -> bool:
        """Whether an error inside a call counts against a breaker, or was shown recently."""
        if classify(error).kind is not FailureKind.FATAL:
            return True
        line, now = (record.pathname, record.lineno, type(error).__name__), time.monotonic()
        shown = self._shown.pop(line, None)
        if shown is not None and now < shown + _REPEAT_AFTER:
            self._shown[line] = shown
            return True
        while len(self._shown) >= _MAX_SHOWN:
            del self._shown[next(iter(self._shown))]
        self._shown[line] = now
        return False


def _is_in_a_call() -> bool:
    call = current_call.get()
    return call is not None and call.guard is not None


def _is_in_a_request() -> bool:
    """Whether the current code serves an HTTP request, and is not ingest that a request started."""
    request, work = current_request.get(), current_work.get()
    if request is None or request.is_over:
        return False
    return work is None or not work.is_ingest


def _hold(record: logging.LogRecord) -> bool:
    """Hold a record until its request has ended; whether it is held."""
    request = current_request.get()
    if request is None or request.held is None or record.name == _ACCESS:
        return False
    if not _is_in_a_request() or len(request.held) >= _MAX_HELD:
        return False
    request.held.append(record)
    return True


def release(request: Request) -> None:
    """Write the held records of a request; drop them if it failed and has a line of ours."""
    held, request.held = request.held or (), None
    for record in held:
        logger = logging.getLogger(record.name)
        if request.last is None or logger.isEnabledFor(logging.DEBUG):
            logger.callHandlers(record)


def _status_in(args: object) -> int:
    """The status in ``HTTP Request: %s %s "%s %d %s"``."""
    numbers = args if isinstance(args, tuple) else ()
    return next((each for each in numbers if isinstance(each, int)), 0)


# ---------------------------------------------------------------------- handlers


def log_beside_lightrag() -> None:
    """Write our lines where LightRAG's server writes its own, with times, and lower repetitions.

    Call this after LightRAG has set up its logging. If our logger has handlers, it keeps them.
    """
    ours, theirs = logging.getLogger("lightrag_resilience"), logging.getLogger("lightrag")
    if not ours.handlers:
        ours.handlers = list(map(_with_time, theirs.handlers))
        ours.setLevel(theirs.level)
        ours.propagate = False
    quiet = RepeatedErrorFilter()
    for name in _QUIETED:
        logger = logging.getLogger(name)
        if not any(isinstance(each, RepeatedErrorFilter) for each in logger.filters):
            logger.addFilter(quiet)


def _with_time(handler: logging.Handler) -> logging.Handler:
    """LightRAG's handler, or for a terminal a copy that also writes times."""
    if isinstance(handler, logging.FileHandler) or not isinstance(handler, logging.StreamHandler):
        return handler
    mine = copy.copy(handler)
    mine.setFormatter(logging.Formatter(_WITH_TIME))
    return mine
