"""Gunicorn: hooks for its config file, a check of its times, and a worker class.

::

    # gunicorn.conf.py
    from lightrag_resilience.integrations.gunicorn import *

    worker_class = "lightrag_resilience.integrations.gunicorn.DrainingWorker"

Your own hooks call these first: ``resilience.child_exit(server, worker)``. If you use only some of
them, `pre_fork`, `post_fork`, `child_exit` and `on_exit` belong together.
"""

from typing import Any

from lightrag_resilience.runtime.extras import install

from . import hooks
from .hooks import *  # noqa: F403 - their list says which
from .time_budget import check_budget

__all__ = ["check_budget"]
__all__ += hooks.__all__


def __getattr__(name: str) -> Any:
    """Import the worker class on use: unlike the hooks, which the master runs, it needs uvicorn."""
    if name != "DrainingWorker":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from .draining_worker import DrainingWorker  # noqa: PLC0415 - see above
    except ModuleNotFoundError as error:
        message = f"{name} needs {error.name}: {install('gunicorn')}"
        raise ModuleNotFoundError(message, name=error.name) from error

    return DrainingWorker
