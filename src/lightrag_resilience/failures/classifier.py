"""What a failure of a dependency means: whether to try again, and who is to blame.

SDKs are recognised by their attributes and by the names of their classes, never imported. To add
one, write a table like those in `_failure_providers.py` under its top-level module: a class is
given a verdict, or a function that reads the exception; subclasses inherit it.

An exception that knows better carries a `Failure` as ``__resilience_failure__``, on the instance or
on its class, and that wins; after it what was told by `classify_as`. An error of an unknown class
is judged by the known one it was raised over; else nothing says that the call was not carried out:
UNKNOWN_OUTCOME.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from inspect import iscoroutinefunction
from typing import Any, NamedTuple, TypeVar

from lightrag_resilience.config.validation import shown
from lightrag_resilience.errors import AllFailedError, UnsupportedCallError
from lightrag_resilience.runtime.fork_safety import ProcessLock

from .database_errors import DATABASES
from .http_errors import STATUS_NAMES, by_status, may_tell_status, status_of
from .kinds import (
    FATAL,
    LOCAL,
    TRANSIENT,
    UNKNOWN,
    Failure,
    FailureKind,
    Reader,
    Rule,
    Table,
    package_of,
)
from .sdk_errors import OURS, PROVIDERS
from .tracebacks import exhaustion_of, raised_over
from .transport_errors import TRANSPORTS, by_origin

__all__ = ["Failure", "FailureKind", "classify", "classify_as", "root_cause"]

_log = logging.getLogger("lightrag_resilience")

_E = TypeVar("_E", bound=Exception)
_Verdict = Failure | FailureKind
_Registered = Callable[[Any], _Verdict | None]
_MOST_CLASSES = 512  # that are remembered
_DEEPEST = 16  # retries around retries, and errors beneath an error


def classify(exc: BaseException) -> Failure:
    """What a failure means.

    Raises:
        TypeError: `exc` is no `Exception`: a cancellation or an exit has no verdict.
    """
    if not isinstance(exc, Exception):
        raise TypeError(f"{type(exc).__name__} is no failure of a dependency and must be raised on")
    try:
        answer = _answer(exc)
        return answer if isinstance(answer, Failure) else _judge(exc, set())
    except RecursionError:  # groups within groups, without end
        return UNKNOWN


def root_cause(exc: BaseException) -> BaseException:
    """What a `tenacity.RetryError` gave up on, also through several of them; else `exc` itself."""
    if _rules.of(exc.__class__).rule is not _by_last_attempt:
        return exc  # most often
    for _ in range(_DEEPEST):
        if _rules.of(exc.__class__).rule is not _by_last_attempt:
            break
        attempt: Any = getattr(exc, "last_attempt", None)
        # An unfinished attempt would block here, and a cancelled one has no verdict.
        if attempt is None or not attempt.done() or attempt.cancelled():
            break
        inner = attempt.exception()
        if not isinstance(inner, Exception):
            break
        exc = inner
    return exc


def classify_as(
    cls: type[_E], verdict: _Verdict | Callable[[_E], _Verdict | None]
) -> Callable[[], None]:
    """Tell what an exception of your own means; it holds for its subclasses too.

    It goes before what this library knows of the class, an HTTP status included, and after
    ``__resilience_failure__``. Of two verdicts on a class the later holds.

    Args:
        cls: A class of exceptions, more precise than `Exception`.
        verdict: A `FailureKind`, a `Failure`, or a function that is given the exception and
            returns one of them, or None to leave it to what this library knows.

    Returns:
        A function that takes it back. Safe in any thread, and when called again.

    Raises:
        UnsupportedCallError: `cls` is no such class, or `verdict` is none of these.
    """
    is_error = isinstance(cls, type) and issubclass(cls, Exception) and cls is not Exception
    if not is_error:
        raise UnsupportedCallError(f"classify_as needs a subclass of Exception, not {shown(cls)}")
    if not _is_verdict(verdict):
        raise UnsupportedCallError(
            f"classify_as needs a FailureKind, a Failure or a function for {cls.__name__}, "
            f"not {shown(verdict)}"
        )
    return _rules.register(cls, verdict)


def _is_verdict(verdict: object) -> bool:
    if isinstance(verdict, type) or iscoroutinefunction(verdict):
        return False
    return isinstance(verdict, _Verdict) or callable(verdict)


# ---------------------------------------------------------------------- the judgement


def _judge(exc: Exception, seen: set[int]) -> Failure:
    """The verdict on an error, or the worst on those beneath it; each is judged once."""
    if id(exc) in seen:
        return TRANSIENT
    seen.add(id(exc))
    answer = _answer(exc)
    if isinstance(answer, Failure):
        return answer
    # For a retry, all must be worth one; the longest wait is theirs all.
    return max((_judge(inner, seen) for inner in answer), key=_badness, default=TRANSIENT)


def _answer(exc: Exception) -> Failure | tuple[Exception, ...]:
    cls = exc.__class__
    known = _rules.known.get(id(cls)) or _rules.learn(cls)
    try:
        own = getattr(exc, "__resilience_failure__", None)
        if own is not None and isinstance(own, Failure):
            return own
        if known.registered is not None:
            told = _told(exc, known.registered)
            if told is not None:
                return told
        if known.may_be_http and (
            known.may_tell_status
            or ((attributes := exc.__dict__) and not STATUS_NAMES.isdisjoint(attributes))
        ):
            status = status_of(exc)
            if status is not None:
                return by_status(exc, status)
    except Exception:  # noqa: BLE001, S110 - its odd attributes must not hide what its class tells
        pass
    rule, alone = known.rule, known.alone
    try:
        if alone is not None and exc.__cause__ is None and exc.__context__ is None:  # most often
            used_up = known.used_up if known.counts else None
            return alone if used_up is None or not used_up(exc) else LOCAL
        answer = rule if isinstance(rule, Failure) else rule(exc)
        counts = answer is not FATAL and isinstance(answer, Failure) and answer.counts
        return LOCAL if counts and _is_of_used_up(exc, known, _DEEPEST) else answer
    except Exception:  # noqa: BLE001 - an error's odd attributes must not hide the error
        return rule if isinstance(rule, Failure) else UNKNOWN


def _is_of_used_up(exc: BaseException, known: _Known, deepest: int) -> bool:
    """Whether something of this process was used up: connections, descriptors, ports, threads.

    Nothing was sent then, and the dependency is not to blame.
    """
    for depth in range(deepest):
        if isinstance(exc, BaseExceptionGroup):  # of attempts on several addresses
            inner, left = exc.exceptions[:_DEEPEST], deepest - depth - 1
            return all(_is_of_used_up(one, _rules.of(one.__class__), left) for one in inner)
        if known.rule is LOCAL or (known.used_up is not None and known.used_up(exc)):
            return True
        below = exc.__cause__
        if below is None and (exc.__context__ is None or (below := raised_over(exc)) is None):
            return False
        exc, cls = below, below.__class__
        known = _rules.known.get(id(cls)) or _rules.learn(cls)
    return False


def _told(exc: Exception, registered: _Verdict | _Registered) -> Failure | None:
    verdict: object = registered
    if callable(registered):
        try:
            verdict = registered(exc)
        except Exception as mistake:  # noqa: BLE001 - it must not hide the error
            verdict = mistake
    if isinstance(verdict, FailureKind):
        return Failure(verdict)
    if verdict is None or isinstance(verdict, Failure):
        return verdict
    # Names only: an error's words may hold a prompt.
    names = (type(exc).__name__, type(verdict).__name__)
    _log.error("The function given to classify_as for %s gave no verdict but %s", *names)
    return None


def _badness(failure: Failure) -> tuple[int, bool, float]:
    return _BADNESS.index(failure.kind), failure.counts, failure.retry_after or 0.0


_BADNESS = (
    FailureKind.TRANSIENT,
    FailureKind.THROTTLED,
    FailureKind.UNKNOWN_OUTCOME,
    FailureKind.FATAL,
)


def _by_last_attempt(exc: BaseException) -> Failure | tuple[Exception, ...]:
    inner = root_cause(exc)
    return UNKNOWN if inner is exc or not isinstance(inner, Exception) else (inner,)


def _by_known_beneath(exc: BaseException) -> Failure | tuple[Exception, ...]:
    """A wrapper of an unknown class says what the driver's error beneath it says."""
    below = raised_over(exc)
    if not isinstance(below, Exception):
        return UNKNOWN
    return (below,) if _is_known(below) else UNKNOWN


def _is_known(error: BaseException) -> bool:
    """Whether an error is of a class that speaks for a call, and not of the caller's own code."""
    return isinstance(error, OSError) or any(
        package_of(base) in _SPEAK_FOR_A_CALL for base in type(error).__mro__
    )


def _by_cause_or(rule: Reader) -> Reader:
    """What was raised from a known error on purpose is judged by that; else by `rule`."""

    def read(exc: BaseException) -> Failure | tuple[Exception, ...]:
        cause = exc.__cause__
        return rule(exc) if cause is None or not _is_known(cause) else _by_known_beneath(exc)

    return read


def _by_best_member(exc: AllFailedError) -> Failure:
    """A chain succeeds as soon as one of its functions does."""
    verdicts = [classify(member) for member in exc.errors] or [TRANSIENT]
    unsure = (verdict for verdict in verdicts if verdict.kind is FailureKind.UNKNOWN_OUTCOME)
    # Whatever the others say, one of them may have done it.
    return next(unsure, min(verdicts, key=_badness))


# ---------------------------------------------------------------------- what the type tells

_TABLES: Mapping[str, Table] = {
    **TRANSPORTS,
    "builtins": {
        **TRANSPORTS["builtins"],
        "ValueError": _by_cause_or(by_origin),
        "Exception": _by_known_beneath,
    },
    **PROVIDERS,
    **DATABASES,
    "lightrag_resilience": {**OURS, "AllFailedError": _by_best_member},
    "tenacity": {"RetryError": _by_last_attempt},
}
_SPEAK_FOR_A_CALL = _TABLES.keys() - {"builtins", "json", "pydantic", "pydantic_core"}


class _Known(NamedTuple):
    """What a class of exceptions is known for.

    Attributes:
        cls: The class, which lives as long as something is known by its id.
        rule: Its verdict, or what reads it off the exception.
        alone: The verdict where no other error is beneath; None where the exception must be read.
        used_up: Tells whether something of this process was used up; None where it never tells.
        counts: Whether a breaker counts one that is alone.
        may_be_http: Whether it may have an HTTP status.
        may_tell_status: Whether that may be with nothing in its ``__dict__``.
        registered: What `classify_as` was given for it.
    """

    cls: type[BaseException]
    rule: Rule
    alone: Failure | None
    used_up: Callable[[Any], bool] | None
    counts: bool
    may_be_http: bool
    may_tell_status: bool
    registered: _Verdict | _Registered | None


class _Registration(NamedTuple):
    cls: type[Exception]
    verdict: _Verdict | _Registered


class _Rules:
    """The rules of all classes: the tables, and what was registered.

    What is registered is never changed, but replaced together with what is known: whoever is just
    looking a class up writes it where nobody asks any more.

    Attributes:
        known: What is known of classes by their ids: a metaclass that compares its classes may have
            made them unhashable.
    """

    def __init__(self) -> None:
        self._lock = ProcessLock()
        self._replace(())

    def register(self, cls: type[Exception], verdict: _Verdict | _Registered) -> Callable[[], None]:
        mine = _Registration(cls, verdict)
        with self._lock:
            self._replace((*self._registrations, mine))

        def take_back() -> None:
            with self._lock:
                self._replace(tuple(one for one in self._registrations if one is not mine))

        return take_back

    def _replace(self, registrations: tuple[_Registration, ...]) -> None:
        self._registrations = registrations
        told = {id(cls): verdict for cls, verdict in registrations}
        self.known: dict[int, _Known] = {}
        self._state = self.known, told

    def learn(self, cls: type[BaseException]) -> _Known:
        known, told = self._state
        if len(known) >= _MOST_CLASSES:
            known.clear()
        known[id(cls)] = found = _find(told, cls)
        return found

    def of(self, cls: type[BaseException]) -> _Known:
        return self.known.get(id(cls)) or self.learn(cls)


def _find(told: Mapping[int, _Verdict | _Registered], cls: type[BaseException]) -> _Known:
    """The rule of the nearest class that has one: every `Exception`, but no cancellation."""
    registered = next((told[id(base)] for base in cls.__mro__ if id(base) in told), None)
    rules = (
        (package, _TABLES.get(package, {}).get(base.__name__))
        for base in cls.__mro__
        for package in (package_of(base),)
    )
    found = ((package, rule) for package, rule in rules if rule is not None)
    package, rule = next(found, ("builtins", UNKNOWN))
    alone = UNKNOWN if rule is _by_known_beneath else rule if isinstance(rule, Failure) else None
    used_up = exhaustion_of(cls)
    return _Known(
        cls,
        rule,
        alone=alone,
        used_up=used_up,
        counts=alone is not None and alone.counts,
        may_be_http=package not in DATABASES,
        may_tell_status=may_tell_status(cls),
        registered=registered,
    )


_rules = _Rules()
