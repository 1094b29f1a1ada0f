"""Times of Gunicorn, uvicorn, Kubernetes and ours: what does not add up is said in sentences."""

from __future__ import annotations

from typing import Any

import pytest

from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.draining.supervisor import grace_period_of
from lightrag_resilience.integrations.gunicorn import check_budget
from lightrag_resilience.integrations.gunicorn.time_budget import OWN_WORKER

JOURNAL = {"RESILIENCE_SHUTDOWN_JOURNAL": "journal"}


def check(variables: dict[str, str] | None = None, **times: Any) -> list[str]:
    return check_budget(settings=load_settings(JOURNAL | (variables or {})), **times)


def test_the_defaults_add_up() -> None:
    assert check() == []
    assert check(uvicorn_timeout=18, grace_period=36, pre_stop=5, worker_class="asgi") == []


@pytest.mark.parametrize(
    ("times", "says"),
    [
        (
            {"graceful_timeout": 10},
            (
                "Gunicorn kills its workers 10 s after the signal, so drains of "
                "RESILIENCE_SHUTDOWN_TIMEOUT=25 s are cut to 8 s: set graceful_timeout to 27 or "
                "more, or the variable to 8 or less"
            ),
        ),
        (
            {"uvicorn_timeout": 5},
            (
                "Uvicorn cuts requests off after timeout_graceful_shutdown=5 s, and the drain "
                "waits for them 18 s: set the first to 18 or more"
            ),
        ),
        (
            {"uvicorn_timeout": 29},
            (
                "Uvicorn waits timeout_graceful_shutdown=29 s, and to cancel and close takes 7 s "
                "more, but Gunicorn kills after 30 s: set graceful_timeout to 38 or more"
            ),
        ),
        (
            {"timeout": 0},
            "timeout=0 lets a worker whose event loop is blocked hang forever: set it to 30",
        ),
        (
            {"grace_period": 30, "pre_stop": 5},
            (
                "Kubernetes kills 30 s after it began with preStop (5 s), and Gunicorn may need "
                "30 s after that: set terminationGracePeriodSeconds to more than 35"
            ),
        ),
        (
            {"worker_class": "uvicorn_worker.UvicornWorker"},
            (
                "The worker class uvicorn_worker.UvicornWorker ends at SIGTERM without "
                "worker_exit, sends no heartbeat while it drains and ignores SIGQUIT: set "
                f"worker_class to {OWN_WORKER!r}"
            ),
        ),
        (
            {"worker_class": "gthread"},
            (
                "The worker class gthread has no ASGI lifespan, so nothing is drained: set "
                f"worker_class to {OWN_WORKER!r} or to 'asgi'"
            ),
        ),
    ],
)
def test_times_that_do_not_add_up_are_named_with_what_to_set(
    times: dict[str, Any], says: str
) -> None:
    assert check(**times) == [says]


def test_a_missing_journal_is_named() -> None:
    (sentence,) = check_budget(settings=load_settings({}))
    assert "RESILIENCE_SHUTDOWN_JOURNAL" in sentence


@pytest.mark.parametrize(("graceful", "patience"), [(30, 28), (5, 3), (3, 1.5), (1, 0.5)])
def test_a_drain_ends_before_gunicorn_kills(graceful: float, patience: float) -> None:
    assert grace_period_of(graceful) == patience
