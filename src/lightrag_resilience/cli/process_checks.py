"""Settings of a whole process that fight each other, or what starts and ends it. No I/O."""

from __future__ import annotations

from collections.abc import Iterator

from lightrag_resilience.config.process_environment import Surroundings
from lightrag_resilience.config.settings import Settings

from .policy_checks import Finding, Level

__all__ = ["examine_process"]

_SPARE = 2.0  # seconds that a server needs besides
_ROOM = 1.0  # seconds for what is in flight; less is as good as none
_Found = Iterator[tuple[Level, str, str, str]]


def examine_process(settings: Settings, around: Surroundings) -> list[Finding]:
    """What fights in the variables that belong to no dependency.

    Args:
        settings: What the ``RESILIENCE_*`` variables say.
        around: What others' variables say.
    """
    found = [
        *_shutdown(settings, around),
        *_workers(settings, around),
    ]
    return [Finding(level, subject, problem, advice) for level, subject, problem, advice in found]


def _shutdown(settings: Settings, around: Surroundings) -> _Found:
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
    if timeout + _SPARE > (graceful := around.graceful_timeout):
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


def _workers(settings: Settings, around: Surroundings) -> _Found:
    if (workers := around.workers) > 1 and settings.redis_url is None:
        yield (
            Level.WARNING,
            "workers",
            (
                f"each of {workers} workers has breakers, limits and retry budgets of its own: "
                f"a limit holds {workers} times, and each finds an outage out by itself"
            ),
            "set RESILIENCE_REDIS_URL",
        )
