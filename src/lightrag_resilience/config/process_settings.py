"""Settings of the process, which belong to no dependency: ``RESILIENCE_REDIS_URL`` and others."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le
from pydantic import SecretStr

from lightrag_resilience.errors import PolicyError

from .allowed_hosts import is_host_pattern
from .dependency_names import check_name
from .policies import Seconds, Wait
from .redis_url import problem_with_address
from .validation import TextFormat, setting

__all__ = ["ProcessSettings", "is_token"]

_PREFIX = "[A-Za-z0-9:._-]{1,64}"
_PREFIX_WORDS = "letters, digits, and any of : . _ -, up to 64 of them"
_TOKEN = "[!-~]{16,256}"  # noqa: S105 - a pattern
_TOKEN_WORDS = "16 to 256 ASCII characters without spaces"  # noqa: S105 - what they may be


def is_token(text: str) -> bool:
    """Whether an HTTP header can carry a token, and it is too long to be guessed."""
    return re.fullmatch(_TOKEN, text) is not None


def _redis_url(text: str) -> SecretStr:
    if problem := problem_with_address(text):
        raise ValueError(problem)
    return SecretStr(text)


def _redis_prefix(text: str) -> str:
    if not re.fullmatch(_PREFIX, text):
        raise ValueError(f"must be {_PREFIX_WORDS}")
    return text


def _token(text: str) -> SecretStr:
    if not is_token(text):
        raise ValueError(f"must be {_TOKEN_WORDS}")
    return SecretStr(text)


def _hosts(text: str) -> tuple[str, ...]:
    hosts = tuple(host.strip() for host in text.split(","))
    if not all(map(is_host_pattern, hosts)):
        raise ValueError("must be names of hosts")
    return hosts


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    try:
        for name in names:
            check_name(name)
    except PolicyError as error:
        raise ValueError(f"must be names of dependencies: {error}") from None
    return names


_Url = Annotated[
    SecretStr,
    TextFormat(
        "an address such as rediss://user:password@host:6379/0; see docs/operators.md",
        _redis_url,
        is_secret=True,
    ),
]
_Prefix = Annotated[str, TextFormat(_PREFIX_WORDS, _redis_prefix, _PREFIX)]
_Token = Annotated[SecretStr, TextFormat(_TOKEN_WORDS, _token, _TOKEN, is_secret=True)]
_Hosts = Annotated[
    tuple[str, ...],
    TextFormat(
        "host names with commas between, such as rag.example.com or *.example.com, or *", _hosts
    ),
]
_Names = Annotated[
    tuple[str, ...],
    TextFormat("names of dependencies with commas between, such as llm.openai", _names),
]
_Path = Annotated[str, TextFormat("the path of a file")]


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    """What one process does as a whole, whatever dependencies it has."""

    strict: bool = setting(
        False,
        "Whether `protect` and `lightrag-resilience serve` refuse to start with a LightRAG that "
        "they cannot guard everywhere. Otherwise one warning names what is not guarded.",
    )
    redis_url: _Url | None = setting(
        None,
        "Redis, where all workers share the state of their breakers. `none`: each process keeps "
        "its own.",
    )
    redis_prefix: _Prefix = setting("lr:", "What all keys and channels in Redis begin with.")
    ingest_patience: Wait = setting(
        600.0,
        "Seconds that the ingest of a protected LightRAG waits for an unavailable dependency.",
    )
    ingest_degraded_after: Wait | None = setting(
        None,
        "Seconds for which MinerU or Docling may be down before LightRAG's own parser reads its "
        "documents, as far as it can. Recovery has them parsed anew when it is back. `none`: they "
        "wait for it.",
    )
    query__patience: Wait = setting(
        12.0,
        "Seconds that a query of a protected LightRAG waits for dependencies that have just become "
        "unavailable, as long as LightRAG's own retries may take. They begin anew once a call that "
        "waited is answered. 0: it fails at once.",
    )
    query__max_outage: Wait = setting(
        60.0,
        "Seconds for which a circuit may have been open, for a query to wait for it. In a longer "
        "outage queries fail at once.",
    )
    query__timeout: Seconds | None = setting(
        None,
        "Seconds that a query of a protected LightRAG may take, with all its calls and waits; of a "
        "streamed answer, up to its first item. `none`: each call has its own deadline only.",
    )
    degrade: bool = setting(
        False,
        "Whether a protected LightRAG answers a query from the dependencies that still work, and "
        "says so in the answer. Otherwise the query fails.",
    )
    stale_answers: Wait = setting(
        0.0,
        "Seconds for which, with `RESILIENCE_DEGRADE`, an answer is kept in memory. While a "
        "dependency is unavailable it is served again, marked as old. 0 keeps none.",
    )
    recovery: bool = setting(
        True,
        "Whether a protected LightRAG resumes interrupted documents and those that failed because "
        "a dependency was unavailable: at its start, and when the dependency is back.",
    )
    recovery_attempts: Annotated[int, Ge(0), Le(100)] = setting(
        5, "How often a failed document is retried automatically."
    )
    recovery_delay: Wait = setting(
        5.0, "Seconds before documents are resumed. They double with each attempt in a row."
    )
    shutdown_timeout: Wait = setting(
        25.0,
        "Seconds from the signal to the end of the process. Keep it below Gunicorn's "
        "`graceful_timeout` and the grace period of Kubernetes, which are 30.",
    )
    shutdown_cancel_grace: Wait = setting(
        2.0, "Seconds of `RESILIENCE_SHUTDOWN_TIMEOUT` that cancelled work has to end."
    )
    shutdown_close_timeout: Wait = setting(
        5.0, "Seconds of `RESILIENCE_SHUTDOWN_TIMEOUT` for closing clients and writing storages."
    )
    shutdown_journal: _Path | None = setting(
        None, "The file that lists work which did not end in time. `none` writes nothing."
    )
    status: bool = setting(
        False,
        "Whether `lightrag-resilience serve` has the status page, at `/resilience`. Put it behind "
        "the authentication of your ingress: it shows the names of dependencies.",
    )
    status_token: _Token | None = setting(
        None,
        "The token that the status page requires to open, close or isolate a breaker. "
        "`none`: the page cannot change breakers.",
    )
    status_hosts: _Hosts | None = setting(
        None,
        "Host names under which the status page answers, besides IP addresses, names without a "
        "dot, and names that end in .localhost, .local, .internal or .test. Under any other name "
        "it answers 421, so that no web site can read it through DNS rebinding.",
    )
    ready_while_closed: _Names | None = setting(
        None,
        "Dependencies without which `lightrag-resilience serve` is not ready: `/readyz` answers "
        "503 while the circuit of one of them is not closed. `none`: only while it drains.",
    )
    metrics: bool = setting(
        False, "Whether `lightrag-resilience serve` answers `/metrics`, for Prometheus."
    )
