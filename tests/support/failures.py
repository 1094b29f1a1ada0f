"""Failures to expect, and errors of clients to classify."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import pytest

from lightrag_resilience.failures.classifier import Failure, FailureKind

TRANSIENT = Failure(FailureKind.TRANSIENT)
THROTTLED = Failure(FailureKind.THROTTLED)
LOCAL = Failure(FailureKind.TRANSIENT, is_local=True)
FATAL = Failure(FailureKind.FATAL)
UNKNOWN = Failure(FailureKind.UNKNOWN_OUTCOME)
LIBRARIES = ["httpx", "httpx2"]


async def error_of(call: Awaitable[object]) -> Exception:
    try:
        await call
    except Exception as error:  # noqa: BLE001 - whichever it is, the test looks at it
        return error
    raise AssertionError("it did not fail")


# ---------------------------------------------------------------------- statuses


def status_error(library: str, status: int, headers: Any = None) -> Exception:
    module = pytest.importorskip(library)
    transport = module.MockTransport(lambda _: module.Response(status, headers=headers))
    with module.Client(transport=transport) as client, pytest.raises(Exception) as caught:  # noqa: PT011
        client.get("http://provider/").raise_for_status()
    return caught.value


STATUSES = [
    *((status, {}, TRANSIENT) for status in (408, 409, 424, 425, 444, 449, 460, 498, 499)),
    *(
        (status, {}, TRANSIENT)
        for status in (500, 502, 503, 504, 509, 520, 524, 529, 530, 598, 599)
    ),
    *((status, {}, FATAL) for status in (400, 401, 402, 403, 404, 405, 413, 422)),
    *((status, {}, FATAL) for status in (440, 463, 464, 494, 495, 496, 497, 561)),
    (420, {}, THROTTLED),
    (429, {}, THROTTLED),
    (429, {"retry-after": "20"}, Failure(FailureKind.THROTTLED, 20.0)),
    (429, {"x-ratelimit-reset-tokens": "6m0s"}, Failure(FailureKind.THROTTLED, 30.0)),
    (503, {"retry-after": "7"}, Failure(FailureKind.TRANSIENT, 7.0)),
    (503, {"x-ratelimit-reset-tokens": "6m0s"}, TRANSIENT),
    (404, {"retry-after": "7"}, FATAL),
    (400, {"x-should-retry": "true"}, TRANSIENT),
    (400, {"x-should-retry": "true", "retry-after": "1"}, Failure(FailureKind.TRANSIENT, 1.0)),
    (429, {"x-should-retry": "true"}, THROTTLED),
    (429, {"x-should-retry": "false", "retry-after": "1"}, FATAL),
    (500, {"x-should-retry": "false"}, FATAL),
    (500, {"x-should-retry": "perhaps"}, TRANSIENT),
]
