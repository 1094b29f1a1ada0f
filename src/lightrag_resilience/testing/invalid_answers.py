"""Answers with status 200 that are none: a gateway's page, no body, vectors of NaN and so on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["HTML_PAGE", "spoiled"]

HTML_PAGE = (
    "<!DOCTYPE html>\n<html><head><title>Maintenance</title></head>"
    "<body><h1>We will be back soon.</h1></body></html>\n"
)


def _without_choices(body: Any) -> Any:
    return body | {"choices": None} if "choices" in body else None


def _cut(body: Any) -> Any:
    """A completion whose JSON ends in the middle."""
    for choice in body.get("choices", ()):
        text = choice["message"]["content"]
        if not text.startswith("{"):
            return None
        choice["message"]["content"] = text[: len(text) // 2]
        return body
    return None


def _vectors(change: Callable[[list[Any]], list[Any]]) -> Callable[[Any], Any]:
    def spoil(body: Any) -> Any:
        data = body.get("data")
        is_vectors = body.get("object") == "list" and data and "embedding" in data[0]
        return body | {"data": change(data)} if is_vectors else None

    return spoil


def _each(change: Callable[[list[float]], list[float]]) -> Callable[[Any], Any]:
    return _vectors(lambda data: [it | {"embedding": change(it["embedding"])} for it in data])


def _of_others(body: Any) -> Any:
    """Ranks of documents that were not sent."""
    if "results" not in body:
        return None
    return {"results": [it | {"index": it["index"] + 1000} for it in body["results"]]}


_SPOIL: dict[str, Callable[[Any], Any]] = {
    "choices_null": _without_choices,
    "truncated_json": _cut,
    "nan": _each(lambda vector: [float("nan")] * len(vector)),
    "zeros": _each(lambda vector: [0.0] * len(vector)),
    "short_batch": _vectors(lambda data: data[:-1]),
    "wrong_dimension": _each(lambda vector: vector[: len(vector) // 2]),
    "bad_rank": _of_others,
}


def spoiled(kind: str, body: Any) -> Any:
    """The body of an answer, spoiled in its way; None where the answer cannot be."""
    return _SPOIL[kind](body) if kind in _SPOIL else None
