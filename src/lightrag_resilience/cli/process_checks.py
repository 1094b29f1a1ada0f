"""Settings of the process that contradict each other, or the server around it. No I/O."""

from __future__ import annotations

from collections.abc import Iterator

from lightrag_resilience.config.policies import LIGHTRAG_TIMEOUTS
from lightrag_resilience.config.process_environment import ProcessEnvironment, timeout_variable
from lightrag_resilience.config.settings import Settings
from lightrag_resilience.draining.supervisor import grace_period_of

from .policy_checks import Finding, Level

__all__ = ["examine_process"]

_ROOM = 1.0  # seconds for calls in flight; with less, nearly all are cancelled
_Found = Iterator[tuple[Level, str, str, str]]


def examine_process(settings: Settings, environment: ProcessEnvironment) -> list[Finding]:
    """Find contradictions between the settings of the process and its environment.

    Args:
        settings: From the ``RESILIENCE_*`` variables.
        environment: From the variables of other programs.
    """
    found = [
        *_shutdown(settings, environment),
        *_workers(settings, environment),
        *_given_timeouts(environment),
    ]
    return [Finding(level, subject, problem, advice) for level, subject, problem, advice in found]


def _shutdown(settings: Settings, environment: ProcessEnvironment) -> _Found:
    timeout = settings.shutdown_timeout
    room = timeout - settings.shutdown_cancel_grace - settings.shutdown_close_timeout
    if room < 0:
        yield (
            Level.ERROR,
            "shutdown",
            (
                f"of {timeout:g} s to end, {settings.shutdown_cancel_grace:g} s are for what is "
                f"cancelled and {settings.shutdown_close_timeout:g} s for clients, which is more "
                "than there is"
            ),
            "raise SHUTDOWN_TIMEOUT, or lower SHUTDOWN_CANCEL_GRACE and SHUTDOWN_CLOSE_TIMEOUT",
        )
    elif room < _ROOM:
        yield (
            Level.WARNING,
            "shutdown",
            f"calls under way get {room:g} s to end before they are cancelled",
            "raise SHUTDOWN_TIMEOUT",
        )
    if timeout > grace_period_of(graceful := environment.graceful_timeout):
        yield (
            Level.ERROR,
            "shutdown",
            (
                f"a drain may take {timeout:g} s, and Gunicorn kills a worker {graceful:g} s "
                "after the signal, with what is in flight"
            ),
            (
                "lower SHUTDOWN_TIMEOUT, or start Gunicorn with a longer --graceful-timeout "
                "(in GUNICORN_CMD_ARGS, so that it is seen here)"
            ),
        )


def _workers(settings: Settings, environment: ProcessEnvironment) -> _Found:
    if (workers := environment.workers) > 1 and settings.redis_url is None:
        yield (
            Level.WARNING,
            "workers",
            (
                f"each of {workers} workers has breakers, limits and retry budgets of its own: "
                f"a limit holds {workers} times, and each finds an outage out by itself"
            ),
            "set RESILIENCE_REDIS_URL",
        )


def _given_timeouts(environment: ProcessEnvironment) -> _Found:
    for family in environment.unread_timeouts:
        name = timeout_variable(family)
        yield (
            Level.WARNING,
            family,
            (
                f"{name} is no whole number of seconds, so LightRAG and its guards have the "
                f"default of {LIGHTRAG_TIMEOUTS[family]:g} s"
            ),
            f"set {name} to a number, or remove it",
        )
