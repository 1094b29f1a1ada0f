"""Classifies failures: whether to retry, and whether the breaker counts them.

SDKs are recognised by attributes and class names, never imported. To add one, write a table like
those in `sdk_errors.py` under its top-level module: each class has a verdict, or a function that
reads the exception; subclasses inherit it.

An exception may carry a `Failure` as ``__resilience_failure__``, on the instance or on its class:
that goes first, then what `classify_as` was given. An error of an unknown class is classified by
the known error that it was raised for; else it is UNKNOWN_OUTCOME, as the call may have been
carried out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from inspect import iscoroutinefunction
from typing import Any, NamedTuple, TypeVar

from lightrag_resilience.config.validation import shown
from lightrag_resilience.errors import AllFailedError, UnsupportedCallError
from lightrag_resilience.runtime.process_state import ProcessLock, process

from .database_errors import DATABASES
from .http_errors import STATUS_NAMES, by_status, may_have_status, status_of
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

__all__ = ["Failure", "FailureKind", "classify", "classify_as", "is_recognized", "root_cause"]

_log = logging.getLogger("lightrag_resilience")

_E = TypeVar("_E", bound=Exception)
_Verdict = Failure | FailureKind
_Registered = Callable[[Any], _Verdict | None]
_MOST_KNOWN_CLASSES = 512  # in the cache
_MOST_LEVELS = 16  # of errors inside each other


def classify(exc: BaseException) -> Failure:
    """The verdict on an exception.

    Raises:
        TypeError: `exc` is no `Exception`: a cancellation or an exit has no verdict.
    """
    if not isinstance(exc, Exception):
        raise TypeError(f"{type(exc).__name__} is no failure of a dependency and must be raised on")
    try:
        answer = _answer(exc)
        return answer if isinstance(answer, Failure) else _judge(exc, set())
    except RecursionError:  # exception groups, nested too deep
        return UNKNOWN


def is_recognized(exc: BaseException | None) -> bool:
    """Whether a rule, or a verdict of its own, judges an error or what it was raised for.

    Any other is an UNKNOWN_OUTCOME only because nothing is known of it.
    """
    for _ in range(_MOST_LEVELS):
        if exc is None:
            return False
        known = process[_Rules].of(exc.__class__)
        has_verdict = known.registered is not None or hasattr(exc, "__resilience_failure__")
        if has_verdict or known.rule is not _by_known_beneath or status_of(exc) is not None:
            return True
        exc = raised_over(exc)
    return False


def root_cause(exc: BaseException) -> BaseException:
    """The last failure of a `tenacity.RetryError`, also of nested ones; else `exc` itself."""
    if process[_Rules].of(exc.__class__).rule is not _by_last_attempt:
        return exc  # the usual case
    for _ in range(_MOST_LEVELS):
        if process[_Rules].of(exc.__class__).rule is not _by_last_attempt:
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
    """Set the verdict on an exception class of your own, and on its subclasses.

    It overrides the rules of this library, an HTTP status included, but not
    ``__resilience_failure__``. Of two verdicts on a class the later holds.

    Args:
        cls: A subclass of `Exception`.
        verdict: A `FailureKind`, a `Failure`, or a function that gets the exception and returns
            one of them, or None to leave it to the rules of this library.

    Returns:
        A function that removes the verdict. Safe in any thread, and to call again.

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
    return process[_Rules].register(cls, verdict)


def _is_verdict(verdict: object) -> bool:
    if isinstance(verdict, type) or iscoroutinefunction(verdict):
        return False
    return isinstance(verdict, _Verdict) or callable(verdict)


# ---------------------------------------------------------------------- the judgement


def _judge(exc: Exception, seen: set[int]) -> Failure:
    """The verdict on an error, or the worst of its inner errors; each is classified once."""
    if id(exc) in seen:
        return TRANSIENT
    seen.add(id(exc))
    answer = _answer(exc)
    if isinstance(answer, Failure):
        return answer
    # The worst decides: a retry needs all of them to be worth one, after the longest wait.
    return max((_judge(inner, seen) for inner in answer), key=_severity, default=TRANSIENT)


def _answer(exc: Exception) -> Failure | tuple[Exception, ...]:
    cls, rules = exc.__class__, process[_Rules]
    known = rules.known.get(id(cls)) or rules.add(cls)
    try:
        own = getattr(exc, "__resilience_failure__", None)
        if own is not None and isinstance(own, Failure):
            return own
        if known.registered is not None:
            verdict = _registered_verdict(exc, known.registered)
            if verdict is not None:
                return verdict
        if known.may_be_http and (
            known.may_have_status
            or ((attributes := exc.__dict__) and not STATUS_NAMES.isdisjoint(attributes))
        ):
            status = status_of(exc)
            if status is not None:
                return by_status(exc, status)
    except Exception:  # noqa: BLE001, S110 - odd attributes must not hide the verdict on the class
        pass
    rule, alone = known.rule, known.alone
    try:
        if alone is not None and exc.__cause__ is None and exc.__context__ is None:  # usual case
            exhausted = known.exhausted if known.counts else None
            return alone if exhausted is None or not exhausted(exc) else LOCAL
        answer = rule if isinstance(rule, Failure) else rule(exc)
        counts = answer is not FATAL and isinstance(answer, Failure) and answer.counts
        return LOCAL if counts and _is_of_exhaustion(exc, known, _MOST_LEVELS) else answer
    except Exception:  # noqa: BLE001 - an error's odd attributes must not hide the error
        return rule if isinstance(rule, Failure) else UNKNOWN


def _is_of_exhaustion(exc: BaseException, known: _Known, levels: int) -> bool:
    """Whether a resource of this process is exhausted: connections, descriptors, ports, threads.

    Nothing was sent then, and the dependency is not to blame.
    """
    for depth in range(levels):
        if isinstance(exc, BaseExceptionGroup):  # of attempts on several addresses
            rules, left = process[_Rules], levels - depth - 1
            inner = exc.exceptions[:_MOST_LEVELS]
            return all(_is_of_exhaustion(one, rules.of(one.__class__), left) for one in inner)
        if known.rule is LOCAL or (known.exhausted is not None and known.exhausted(exc)):
            return True
        below = exc.__cause__
        if below is None and (exc.__context__ is None or (below := raised_over(exc)) is None):
            return False
        exc, known = below, process[_Rules].of(below.__class__)
    return False


def _registered_verdict(exc: Exception, registered: _Verdict | _Registered) -> Failure | None:
    verdict: object = registered
    if callable(registered):
        try:
            verdict = registered(exc)
        except Exception as mistake:  # noqa: BLE001 - a bug in a verdict must not hide the error
            verdict = mistake
    if isinstance(verdict, FailureKind):
        return Failure(verdict)
    if verdict is None or isinstance(verdict, Failure):
        return verdict
    # Names only: an error's words may hold a prompt.
    names = (type(exc).__name__, type(verdict).__name__)
    _log.error("The function given to classify_as for %s gave no verdict but %s", *names)
    return None


def _severity(failure: Failure) -> tuple[int, bool, float]:
    return _BY_SEVERITY.index(failure.kind), failure.counts, failure.retry_after or 0.0


_BY_SEVERITY = (
    FailureKind.TRANSIENT,
    FailureKind.THROTTLED,
    FailureKind.UNKNOWN_OUTCOME,
    FailureKind.FATAL,
)


def _by_last_attempt(exc: BaseException) -> Failure | tuple[Exception, ...]:
    inner = root_cause(exc)
    return UNKNOWN if inner is exc or not isinstance(inner, Exception) else (inner,)


def _by_known_beneath(exc: BaseException) -> Failure | tuple[Exception, ...]:
    """A wrapper of an unknown class is classified by the driver's error that it was raised for."""
    below = raised_over(exc)
    if not isinstance(below, Exception):
        return UNKNOWN
    return (below,) if _is_known(below) else UNKNOWN


def _is_known(error: BaseException) -> bool:
    """Whether an error is of a library that makes calls, and not of the caller's own code."""
    return isinstance(error, OSError) or any(
        package_of(base) in _LIBRARIES for base in type(error).__mro__
    )


def _by_cause_or(rule: Reader) -> Reader:
    """By the known error that it was explicitly raised from; else by `rule`."""

    def read(exc: BaseException) -> Failure | tuple[Exception, ...]:
        cause = exc.__cause__
        return rule(exc) if cause is None or not _is_known(cause) else _by_known_beneath(exc)

    return read


def _by_best_member(exc: AllFailedError) -> Failure:
    """A chain succeeds as soon as one of its functions does."""
    verdicts = [classify(member) for member in exc.errors] or [TRANSIENT]
    unsure = (verdict for verdict in verdicts if verdict.kind is FailureKind.UNKNOWN_OUTCOME)
    # If any outcome is unknown, the call may have been carried out.
    return next(unsure, min(verdicts, key=_severity))


# ---------------------------------------------------------------------- rules by class

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
_LIBRARIES = _TABLES.keys() - {"builtins", "json", "pydantic", "pydantic_core"}


class _Known(NamedTuple):
    """The cached rule of a class of exceptions, as far as the class decides it.

    Attributes:
        cls: The class; kept alive, since the cache is by its id.
        rule: Its verdict, or the function that reads one off the exception.
        alone: The verdict on one without an inner error; None if the exception must be read.
        exhausted: Whether an exception is of an exhausted resource; None if it never is.
        counts: Whether a breaker counts one without an inner error.
        may_be_http: Whether it may have an HTTP status.
        may_have_status: Whether it may have one with nothing in its ``__dict__``.
        registered: The verdict given to `classify_as`.
    """

    cls: type[BaseException]
    rule: Rule
    alone: Failure | None
    exhausted: Callable[[Any], bool] | None
    counts: bool
    may_be_http: bool
    may_have_status: bool
    registered: _Verdict | _Registered | None


class _Registration(NamedTuple):
    cls: type[Exception]
    verdict: _Verdict | _Registered


class _Rules(ProcessLock):
    """The rules of all classes in this process: the tables, and the registered verdicts.

    Registrations and cache are replaced together, never changed: a thread that is looking a class
    up by earlier registrations then writes into a cache that no longer is in use.

    Attributes:
        known: The cache, by ids: a metaclass with ``__eq__`` may make its classes unhashable.
    """

    def __init__(self) -> None:
        super().__init__()
        self._replace(())

    def register(self, cls: type[Exception], verdict: _Verdict | _Registered) -> Callable[[], None]:
        mine = _Registration(cls, verdict)
        with self:
            self._replace((*self._registrations, mine))

        def take_back() -> None:
            with self:
                self._replace(tuple(one for one in self._registrations if one is not mine))

        return take_back

    def _replace(self, registrations: tuple[_Registration, ...]) -> None:
        self._registrations = registrations
        verdicts = {id(cls): verdict for cls, verdict in registrations}
        self.known: dict[int, _Known] = {}
        self._state = self.known, verdicts

    def add(self, cls: type[BaseException]) -> _Known:
        known, verdicts = self._state
        if len(known) >= _MOST_KNOWN_CLASSES:
            known.clear()
        known[id(cls)] = found = _find(verdicts, cls)
        return found

    def of(self, cls: type[BaseException]) -> _Known:
        return self.known.get(id(cls)) or self.add(cls)


def _find(verdicts: Mapping[int, _Verdict | _Registered], cls: type[BaseException]) -> _Known:
    """The rule of the nearest base class that has one, as `Exception` has."""
    registered = next((verdicts[id(base)] for base in cls.__mro__ if id(base) in verdicts), None)
    rules = (
        (package, _TABLES.get(package, {}).get(base.__name__))
        for base in cls.__mro__
        for package in (package_of(base),)
    )
    found = ((package, rule) for package, rule in rules if rule is not None)
    package, rule = next(found, ("builtins", UNKNOWN))
    alone = UNKNOWN if rule is _by_known_beneath else rule if isinstance(rule, Failure) else None
    exhausted = exhaustion_of(cls)
    return _Known(
        cls,
        rule,
        alone=alone,
        exhausted=exhausted,
        counts=alone is not None and alone.counts,
        may_be_http=package not in DATABASES,
        may_have_status=may_have_status(cls),
        registered=registered,
    )
