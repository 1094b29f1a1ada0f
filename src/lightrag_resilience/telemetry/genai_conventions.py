"""Names of OpenTelemetry's semantic conventions for generative AI; names only, never content.

As in the conventions' repository of 2026: ``gen_ai.provider.name`` in place of
``gen_ai.system``, and one span for an operation with all its retries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["DURATION", "DURATION_BUCKETS", "attributes_of", "error_type", "span_name"]

DURATION = "gen_ai.client.operation.duration"
DURATION_BUCKETS = tuple(0.01 * 2**power for power in range(14))
"""Seconds, as the conventions advise: 0.01 to 81.92."""

_OPERATIONS = {"llm": "chat", "embedding": "embeddings", "rerank": "rerank"}
_PROVIDERS = {
    "azure_openai": "azure.ai.openai",
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "watsonx": "ibm.watsonx.ai",
    "xai": "x_ai",
}
"""Providers whose name there differs from LightRAG's binding."""
_LONGEST = 100  # characters


def attributes_of(
    dependency: str, function: Callable[..., Any] | None, kwargs: Mapping[str, Any]
) -> dict[str, str]:
    """Operation, provider and model of a call, as far as known; empty for other dependencies.

    The model is the argument of that name, or what the function's ``__resilience_model__`` says.
    """
    family, provider, *_ = [*dependency.split("."), ""]  # a host or a model may follow
    if (operation := _OPERATIONS.get(family)) is None:
        return {}
    found = {"gen_ai.operation.name": operation}
    if provider:
        found["gen_ai.provider.name"] = _PROVIDERS.get(provider, provider)
    model = kwargs.get("model") or getattr(function, "__resilience_model__", None)
    if isinstance(model, str) and 0 < len(model) <= _LONGEST:
        found["gen_ai.request.model"] = model
    return found


def span_name(dependency: str, attributes: Mapping[str, str]) -> str:
    """The name of a call's span: operation and model, or the dependency."""
    operation = attributes.get("gen_ai.operation.name")
    if operation is None:
        return dependency
    model = attributes.get("gen_ai.request.model")
    return f"{operation} {model}" if model else operation


def error_type(error: BaseException) -> str:
    """The full name of an error's class: few values, and nothing of its text."""
    module, name = type(error).__module__, type(error).__qualname__
    return name if module == "builtins" else f"{module}.{name}"
