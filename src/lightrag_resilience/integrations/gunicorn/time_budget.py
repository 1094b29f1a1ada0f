"""Times under Gunicorn: how long a drain may last, and whether what was set adds up."""

from __future__ import annotations

import logging
from typing import Any

from lightrag_resilience.config.settings import Settings, load_settings
from lightrag_resilience.draining.supervisor import supervisor

__all__ = ["OWN_WORKER", "check_budget", "grace_period_of", "log_beside", "log_gunicorn_limits"]

OWN_WORKER = "lightrag_resilience.integrations.gunicorn.DrainingWorker"

_SPARE = 2.0  # seconds between the end of a drain and Gunicorn's SIGKILL
_WITHOUT_LIFESPAN = ("sync", "gthread", "gevent", "eventlet", "tornado")


def grace_period_of(graceful_timeout: float) -> float:
    """Seconds that a drain may last in a worker that Gunicorn kills after so many."""
    return max(graceful_timeout - _SPARE, graceful_timeout / 2)


def check_budget(  # noqa: PLR0913 - all by name
    *,
    graceful_timeout: float = 30.0,
    timeout: float = 30.0,
    worker_class: str = OWN_WORKER,
    uvicorn_timeout: float | None = None,
    grace_period: float | None = None,
    pre_stop: float = 0.0,
    settings: Settings | None = None,
) -> list[str]:
    """What is wrong with the times at which who gives up, and what to set; nothing if all is well.

    Args:
        graceful_timeout: Gunicorn's: seconds from its signal to SIGKILL.
        timeout: Gunicorn's: seconds without a heartbeat after which it kills a worker.
        worker_class: Gunicorn's.
        uvicorn_timeout: Uvicorn's ``timeout_graceful_shutdown``, where something sets it.
        grace_period: Kubernetes' ``terminationGracePeriodSeconds``, where it is known.
        pre_stop: Seconds that its ``preStop`` takes.
        settings: Our own times; those of the environment by default.

    Raises:
        SettingsError: A ``RESILIENCE_*`` variable is wrong.
    """
    ours = load_settings() if settings is None else settings
    drain, patience = ours.shutdown_timeout, grace_period_of(graceful_timeout)
    afterwards = ours.shutdown_cancel_grace + ours.shutdown_close_timeout
    wrong = []
    if worker_class.rpartition(".")[2] in {"UvicornWorker", "UvicornH11Worker"}:
        wrong.append(
            f"The worker class {worker_class} ends at SIGTERM without worker_exit, sends no "
            f"heartbeat while it drains and ignores SIGQUIT: set worker_class to {OWN_WORKER!r}"
        )
    elif worker_class.rpartition(".")[2] in _WITHOUT_LIFESPAN:
        wrong.append(
            f"The worker class {worker_class} has no ASGI lifespan, so nothing is drained: set "
            f"worker_class to {OWN_WORKER!r} or to 'asgi'"
        )
    if drain > patience:
        wrong.append(
            f"Gunicorn kills its workers {graceful_timeout:g} s after the signal, so drains of "
            f"RESILIENCE_SHUTDOWN_TIMEOUT={drain:g} s are cut to {patience:g} s: set "
            f"graceful_timeout to {drain + _SPARE:g} or more, or the variable to {patience:g} or "
            "less"
        )
    if uvicorn_timeout is not None and uvicorn_timeout < drain - afterwards:
        wrong.append(
            f"Uvicorn cuts requests off after timeout_graceful_shutdown={uvicorn_timeout:g} s, "
            f"and the drain waits for them {drain - afterwards:g} s: set the first to "
            f"{drain - afterwards:g} or more"
        )
    if uvicorn_timeout is not None and uvicorn_timeout + afterwards + _SPARE > graceful_timeout:
        wrong.append(
            f"Uvicorn waits timeout_graceful_shutdown={uvicorn_timeout:g} s, and to cancel and "
            f"close takes {afterwards:g} s more, but Gunicorn kills after {graceful_timeout:g} s: "
            f"set graceful_timeout to {uvicorn_timeout + afterwards + _SPARE:g} or more"
        )
    if not timeout:
        wrong.append(
            "timeout=0 lets a worker whose event loop is blocked hang forever: set it to 30"
        )
    if grace_period is not None and grace_period <= pre_stop + graceful_timeout:
        wrong.append(
            f"Kubernetes kills {grace_period:g} s after it began with preStop ({pre_stop:g} s), "
            f"and Gunicorn may need {graceful_timeout:g} s after that: set "
            f"terminationGracePeriodSeconds to more than {pre_stop + graceful_timeout:g}"
        )
    if ours.shutdown_journal is None:
        wrong.append(
            "What does not end in time is written down nowhere: set RESILIENCE_SHUTDOWN_JOURNAL "
            "to a file"
        )
    return wrong


def log_gunicorn_limits(graceful_timeout: float) -> None:
    """Let this process's drains know who started it.

    Gunicorn's master says SIGTERM once a second to a worker that is one too many, as after SIGTTOU,
    and, an older one, after SIGHUP; its word for haste is SIGQUIT.
    """
    supervisor.grace_period = grace_period_of(graceful_timeout)
    supervisor.repeats_sigterm = True


def log_beside(worker: Any) -> None:
    """Let our lines appear in Gunicorn's log, where the application has no logging of its own."""
    logger = logging.getLogger("lightrag_resilience")
    if not logger.hasHandlers():
        logger.handlers = worker.log.error_log.handlers
        logger.setLevel(worker.log.error_log.level)
        logger.propagate = False
