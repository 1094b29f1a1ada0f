"""Times under Gunicorn: whether they add up, and what a worker takes from them."""

from __future__ import annotations

import logging
from typing import Any

from lightrag_resilience.config.settings import Settings, load_settings
from lightrag_resilience.draining.supervisor import SPARE, grace_period_of, supervisor

__all__ = ["OWN_WORKER", "apply_gunicorn_limits", "check_budget", "share_gunicorn_log"]

OWN_WORKER = "lightrag_resilience.integrations.gunicorn.DrainingWorker"

_WITHOUT_LIFESPAN = ("sync", "gthread", "gevent", "eventlet", "tornado")


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
    """Check that the times of a shutdown add up.

    Args:
        graceful_timeout: Gunicorn's seconds from its signal to SIGKILL.
        timeout: Gunicorn's seconds without a heartbeat after which it kills a worker.
        worker_class: Gunicorn's.
        uvicorn_timeout: Uvicorn's ``timeout_graceful_shutdown``, if it is set.
        grace_period: Kubernetes' ``terminationGracePeriodSeconds``, if it is known.
        pre_stop: Seconds that its ``preStop`` takes.
        settings: Our own times; those of the environment by default.

    Returns:
        A sentence for each problem, with what to set.

    Raises:
        SettingsError: A ``RESILIENCE_*`` variable is wrong.
    """
    ours = load_settings() if settings is None else settings
    drain, longest = ours.shutdown_timeout, grace_period_of(graceful_timeout)
    after_wait = ours.shutdown_cancel_grace + ours.shutdown_close_timeout
    problems = []
    if worker_class.rpartition(".")[2] in {"UvicornWorker", "UvicornH11Worker"}:
        problems.append(
            f"The worker class {worker_class} ends at SIGTERM without worker_exit, sends no "
            f"heartbeat while it drains and ignores SIGQUIT: set worker_class to {OWN_WORKER!r}"
        )
    elif worker_class.rpartition(".")[2] in _WITHOUT_LIFESPAN:
        problems.append(
            f"The worker class {worker_class} has no ASGI lifespan, so nothing is drained: set "
            f"worker_class to {OWN_WORKER!r} or to 'asgi'"
        )
    if drain > longest:
        problems.append(
            f"Gunicorn kills its workers {graceful_timeout:g} s after the signal, so drains of "
            f"RESILIENCE_SHUTDOWN_TIMEOUT={drain:g} s are cut to {longest:g} s: set "
            f"graceful_timeout to {drain + SPARE:g} or more, or the variable to {longest:g} or "
            "less"
        )
    if uvicorn_timeout is not None and uvicorn_timeout < drain - after_wait:
        problems.append(
            f"Uvicorn cuts requests off after timeout_graceful_shutdown={uvicorn_timeout:g} s, "
            f"and the drain waits for them {drain - after_wait:g} s: set the first to "
            f"{drain - after_wait:g} or more"
        )
    if uvicorn_timeout is not None and uvicorn_timeout + after_wait + SPARE > graceful_timeout:
        problems.append(
            f"Uvicorn waits timeout_graceful_shutdown={uvicorn_timeout:g} s, and to cancel and "
            f"close takes {after_wait:g} s more, but Gunicorn kills after {graceful_timeout:g} s: "
            f"set graceful_timeout to {uvicorn_timeout + after_wait + SPARE:g} or more"
        )
    if not timeout:
        problems.append(
            "timeout=0 lets a worker whose event loop is blocked hang forever: set it to 30"
        )
    if grace_period is not None and grace_period <= pre_stop + graceful_timeout:
        problems.append(
            f"Kubernetes kills {grace_period:g} s after it began with preStop ({pre_stop:g} s), "
            f"and Gunicorn may need {graceful_timeout:g} s after that: set "
            f"terminationGracePeriodSeconds to more than {pre_stop + graceful_timeout:g}"
        )
    if ours.shutdown_journal is None:
        problems.append(
            "Work that does not end in time is recorded nowhere: set RESILIENCE_SHUTDOWN_JOURNAL "
            "to a file"
        )
    return problems


def apply_gunicorn_limits(graceful_timeout: float) -> None:
    """Set the supervisor of this process to Gunicorn.

    Its master sends SIGTERM once a second to a surplus worker, after SIGTTOU and, in old versions,
    SIGHUP. It sends SIGQUIT for a fast stop.
    """
    manager = supervisor()
    manager.grace_period = grace_period_of(graceful_timeout)
    manager.repeats_sigterm = True


def share_gunicorn_log(worker: Any) -> None:
    """Log to Gunicorn's log if the application has configured no logging."""
    logger = logging.getLogger("lightrag_resilience")
    if not logger.hasHandlers():
        logger.handlers = worker.log.error_log.handlers
        logger.setLevel(worker.log.error_log.level)
        logger.propagate = False
