"""What the log of LightRAG's own server says of an outage: few lines, and each with its cause.

LightRAG, and the libraries below it, write dozens of lines and a traceback for each query that
fails with a dependency. Here each request has one line at most, and many requests one sum.
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

_EACH = 3  # of many lines those that are written, before they are summed up
_EACH_CHANGE = 9  # as many make three outages
_LOOK = 60.0  # seconds between two looks at whether there is something to sum up
_KINDS = 50  # outcomes and dependencies that are told apart
_SUMMED = {"is_summed": True}  # what has been through here
_LONGEST_PATH = 200  # characters

_ACCESS = "uvicorn.access"
_CLIENTS = frozenset({"httpx", "httpx2"})
_QUIETED = ("lightrag", "uvicorn.error", _ACCESS, *sorted(_CLIENTS))
_LEAST_ERROR = 400
_HIDES = 3600.0  # seconds for which a line is not repeated
_REMEMBERED = 200  # lines
_HELD = 100  # lines of one request
_WITH_TIME = "%(asctime)s [%(levelname)s] %(name)s: %(message)s"


# ---------------------------------------------------------------------- our own lines


@dataclass(frozen=True, slots=True)
class FailedRequest:
    """A request in which a guarded call failed.

    Attributes:
        request: Its method and path, as they came.
        client: The address that it came from; None where the server does not know.
        status: Of its answer; None where it got none.
        dependency: What failed in it last.
        cause: How.
        identity: The request's id; None where it has none.
    """

    request: str
    client: str | None
    status: int | None
    dependency: str
    cause: str
    identity: str | None

    is_for_itself = False

    @property
    def kind(self) -> tuple[str, str]:
        """What it has in common with others: its outcome, and the dependency."""
        return ("no answer" if self.status is None else str(self.status)), self.dependency

    def __str__(self) -> str:
        asked = printable(self.request, _LONGEST_PATH)
        client = "" if self.client is None else f" from {self.client}"
        identity = "" if self.identity is None else f" (request {self.identity})"
        return f"{asked}{client} got {self.kind[0]}{identity}: {self.cause}"

    def fields(self) -> dict[str, Any]:
        """What a log for machines keeps besides."""
        known = {"dependency": self.dependency, "status": self.status}
        return known if self.identity is None else known | {"correlation_id": self.identity}

    def write(self) -> None:
        """Write it."""
        _log.warning("%s", self, extra=self.fields() | _SUMMED)


@dataclass(frozen=True, slots=True)
class _Change:
    """A line of ours about a dependency: its circuit is in another state, or it works again."""

    record: logging.LogRecord

    @property
    def kind(self) -> tuple[str, str]:
        about = vars(self.record)
        return str(about.get("state", "told")), str(about["dependency"])

    @property
    def is_for_itself(self) -> bool:
        """Whether it is never summed up: what somebody did by hand."""
        return is_by_hand(str(vars(self.record).get("reason", "")))

    def __str__(self) -> str:
        return self.record.getMessage()

    def fields(self) -> dict[str, Any]:
        names = ("dependency", "state", "reason")
        return {name: value for name in names if (value := vars(self.record).get(name)) is not None}

    def write(self) -> None:
        _log.callHandlers(self.record)


class LogSummary:
    """Tells the log of what happens many times: the first ones each, then in sums.

    The first sum follows within a minute, the next ones after two minutes, four and so on, each of
    these times the number of workers, and one at the end. What has not happened before has a line
    of its own. Lines keep their order. Belongs to one event loop.

    Args:
        what: What is summed up.
        each: How many have a line of their own.
        longest: Minutes from one sum to the next at the most.
        calm: Minutes without any after which all begins anew.
        workers: Processes that write to one log: with several, each writes less.
    """

    def __init__(
        self, what: str, *, longest: int, calm: int, each: int = _EACH, workers: int = 1
    ) -> None:
        self._what = what
        self._each = max(each // workers, 1)
        self._first = workers
        self._longest = longest * workers
        self._calm = calm
        self._timer: asyncio.TimerHandle | None = None
        self._begin()

    def _begin(self) -> None:
        self._kinds: set[tuple[str, str]] = set()
        self._singles = 0
        self._sum: Counter[tuple[str, str]] = Counter()
        self._last: FailedRequest | _Change | None = None
        self._summed_since = 0.0
        self._looks = 0
        self._looks_between = self._first
        self._quiet_looks = 0

    def tell(self, it: FailedRequest | _Change) -> None:
        """One more. Called on the event loop."""
        if self._timer is None:
            self._begin()
            self._wait()
        self._quiet_looks = -1  # the next one ends with this
        is_new = it.kind not in self._kinds and len(self._kinds) < _KINDS
        if it.is_for_itself or is_new or self._singles < self._each:
            if not it.is_for_itself:
                self._kinds.add(it.kind)
                self._singles += 1
            self._tell_sum()  # what came before it
            it.write()
            return
        if self._last is None:
            self._summed_since = _now()
        self._sum[it.kind] += 1
        self._last = it

    @property
    def are_going_on(self) -> bool:
        """Whether there were some lately."""
        return self._timer is not None

    def end(self) -> None:
        """Tell what is left to tell. Called on the event loop."""
        self._tell_sum()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_LOOK, self._look)

    def _look(self) -> None:
        self._looks += 1
        self._quiet_looks += 1
        if self._quiet_looks or self._looks >= self._looks_between:
            self._tell_sum()
        if self._quiet_looks < self._calm:
            self._wait()
        else:
            self._timer = None

    def _tell_sum(self) -> None:
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
        self._looks = 0
        self._looks_between = min(self._looks_between * 2, self._longest)


class StateChangeFilter(logging.Filter):
    """Sums up our own lines about dependencies, where one comes and goes for hours.

    Each call on another thread than the event loop's is handed over to it.
    """

    def __init__(self, *, workers: int = 1) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._sums = LogSummary(
            "lines about dependencies", longest=4, calm=10, each=_EACH_CHANGE, workers=workers
        )

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is to be written here and now."""
        about = vars(record)
        if record.levelno < logging.INFO or "dependency" not in about or about.keys() & _SUMMED:
            return True
        if asyncio._get_running_loop() is self._loop:  # noqa: SLF001 - the other one raises
            self._sums.tell(_Change(record))
            return False
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._sums.tell, _Change(record))
            return False
        return True

    def end(self) -> None:
        """Tell what is left to tell."""
        self._sums.end()


def _now() -> float:
    return asyncio.get_running_loop().time()


# ---------------------------------------------------------------------- other loggers


class RepeatedErrorFilter(logging.Filter):
    """Takes down to debug what others write of a failure that a line of ours tells.

    That is, of a request what LightRAG writes of errors of guarded calls, since the request has a
    line; of a call what is written inside it, and by LightRAG's queue, since the breaker has one.
    An error that counts against no breaker, such as a wrong key, is shown in full once an hour.
    While requests fail, all that LightRAG writes of one waits until it is known how it ends.
    """

    def __init__(self) -> None:
        super().__init__()
        self._shown: dict[tuple[str, int, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is to be written, and now."""
        if self._is_told(record):
            record.levelno, record.levelname = logging.DEBUG, logging.getLevelName(logging.DEBUG)
            return logging.getLogger(record.name).isEnabledFor(logging.DEBUG)
        return not _is_held(record)

    def _is_told(self, record: logging.LogRecord) -> bool:
        if record.name == _ACCESS:
            request = current_request.get()
            return request is not None and request.is_refused
        if record.name in _CLIENTS:
            return _is_in_a_call() and _status_in(record.args) >= _LEAST_ERROR
        error = record.exc_info[1] if record.exc_info else sys.exc_info()[1]
        if record.levelno < logging.WARNING or not isinstance(error, Exception):
            return False
        stage = stage_of(error)
        if stage is None and not isinstance(error, DependencyError):
            return _is_in_a_call() and self._is_known(record, error)
        return stage is Stage.QUEUED or not record.name.startswith("lightrag") or _is_in_a_request()

    def _is_known(self, record: logging.LogRecord, error: Exception) -> bool:
        """Whether an error inside a call counts against a breaker, or has been shown."""
        if classify(error).kind is not FailureKind.FATAL:
            return True
        line, now = (record.pathname, record.lineno, type(error).__name__), time.monotonic()
        shown = self._shown.pop(line, None)
        if shown is not None and now < shown + _HIDES:
            self._shown[line] = shown
            return True
        while len(self._shown) >= _REMEMBERED:
            del self._shown[next(iter(self._shown))]
        self._shown[line] = now
        return False


def _is_in_a_call() -> bool:
    call = current_call.get()
    return call is not None and call.guard is not None


def _is_in_a_request() -> bool:
    """Whether what runs is an HTTP request's, and not the ingest that one has begun."""
    request, work = current_request.get(), current_work.get()
    if request is None or request.is_over:
        return False
    return work is None or work.patience is None


def _is_held(record: logging.LogRecord) -> bool:
    """Whether a record waits for the end of its request."""
    request = current_request.get()
    if request is None or request.held is None or record.name == _ACCESS:
        return False
    if not _is_in_a_request() or len(request.held) >= _HELD:
        return False
    request.held.append(record)
    return True


def release(request: Request) -> None:
    """Write what was held of a request, or drop it: what failed has a line that says so."""
    held, request.held = request.held or (), None
    for record in held:
        logger = logging.getLogger(record.name)
        if request.last is None or logger.isEnabledFor(logging.DEBUG):
            logger.callHandlers(record)


def _status_in(args: object) -> int:
    """The status in ``HTTP Request: %s %s "%s %d %s"``."""
    numbers = args if isinstance(args, tuple) else ()
    return next((each for each in numbers if isinstance(each, int)), 0)


# ---------------------------------------------------------------------- where it is written


def log_beside_lightrag() -> None:
    """Write our lines where LightRAG's server writes its own, with times, and quiet the others.

    To be called once LightRAG's logging is set up. A logger of ours that has handlers is left
    alone.
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
    """LightRAG's handler; for a terminal, one that writes times as those of files do."""
    if isinstance(handler, logging.FileHandler) or not isinstance(handler, logging.StreamHandler):
        return handler
    mine = copy.copy(handler)
    mine.setFormatter(logging.Formatter(_WITH_TIME))
    return mine
