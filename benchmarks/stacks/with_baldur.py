"""baldur-framework: its decorator for coroutine functions, with all that it composes but its DLQ.

Its timeout bounds the attempts together, it has no bulkhead, and its breaker counts every error.
It wants no server: state is in memory, and in a file, which would else be in the working directory.
"""

from __future__ import annotations

import itertools
import os
import tempfile

from baldur import aprotected
from baldur.core.exceptions import TimeoutPolicyError
from baldur.protect_facade import RetryPolicyConfig
from baldur.services.circuit_breaker.exceptions import CircuitBreakerOpenError

from benchmarks.stack import TRANSIENT, Call, Setup, Stack

_folder = tempfile.TemporaryDirectory(prefix="baldur-")
os.environ["BALDUR_SYSTEM_CONTROL_DIR"] = _folder.name
os.environ["BALDUR_CB_RECOVERY_TIMEOUT"] = "3600"  # seconds, as `Setup.open_for`
_names = (f"llm.{number}" for number in itertools.count())


def protect(function: Call, setup: Setup) -> Call:
    retry = RetryPolicyConfig(
        max_attempts=4,
        backoff_base=0.0,
        backoff_max=0.0,
        jitter_percent=0.0,
        retryable_exceptions=TRANSIENT,
    )
    decorate = aprotected(next(_names), retry=retry, circuit_breaker=True, timeout=setup.timeout)
    return decorate(function)


STACKS = [
    Stack(
        name="baldur",
        protect=protect,
        refusal=CircuitBreakerOpenError,
        timeout=TimeoutPolicyError,
        counts_all_errors=True,
        imports="baldur.protect_facade",
        window=100,
    )
]
