"""Which failed documents are tried again: what is known of them, and the plan."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("lightrag")

from lightrag.base import DocStatus

from lightrag_resilience import CircuitOpenError
from lightrag_resilience.integrations.lightrag.recovery.failed_documents import (
    FailureRecord,
    FailureRecords,
    cause_of,
    is_failed,
    is_refused,
    plan,
)
from lightrag_resilience.integrations.lightrag.work.context import WorkContext

ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def work_with(*errors: Exception) -> WorkContext:
    work = WorkContext(ingest_patience=1.0)
    for error in errors:
        work.failed("llm", error)
    return work


@given(ANYTHING | st.fixed_dictionaries({"resilience": ANYTHING}))
def test_a_malformed_record_is_empty(metadata: Any) -> None:
    record = FailureRecord.of(metadata)
    assert record.cause in {"", "transient", "fatal"}
    assert record.requeues >= 0


@given(st.sampled_from(["", "transient", "fatal"]), st.integers(0, 99), ANYTHING)
def test_a_record_survives_the_metadata(cause: str, requeues: int, metadata: Any) -> None:
    record = FailureRecord(cause, requeues)
    assert FailureRecord.of(record.put_into(metadata)) == record
    if isinstance(metadata, dict):
        assert {**metadata, "resilience": 0} == {**record.put_into(metadata), "resilience": 0}


@pytest.mark.parametrize(
    ("message", "errors", "cause"),
    [
        ("C[1/3]: no route to host", [ConnectionRefusedError("no route to host")], "transient"),
        ("no route to host", [], ""),
        ("the key is wrong", [ValueError("the key is wrong")], "fatal"),
        ("the key is wrong", [ConnectionRefusedError("no route to host")], ""),
        ("User cancelled", [ConnectionRefusedError("no route to host")], ""),
        ("User cancelled", [ConnectionRefusedError()], ""),
        ("", [ConnectionRefusedError()], ""),
        (
            "Cancelled by internal error: flush: no route to host during merge",
            [ValueError("x" * 9), ConnectionRefusedError("no route to host")],
            "transient",
        ),
    ],
)
def test_the_cause_is_what_a_guard_saw(message: str, errors: list[Exception], cause: str) -> None:
    assert cause_of(message, work_with(*errors)) == cause


def test_a_rejected_call_is_a_transient_cause() -> None:
    refusal = CircuitOpenError("llm", 3.0, "after 5 failures")
    assert cause_of(f"chunk 1: {refusal}", work_with(refusal)) == "transient"
    assert cause_of("anything", None) == ""


def test_only_transient_failures_are_retried_and_only_so_often() -> None:
    failed = [
        ("a", FailureRecord("transient", 0).put_into({})),
        ("b", FailureRecord("transient", 2).put_into({})),
        ("c", FailureRecord("transient", 3).put_into({})),
        ("d", FailureRecord("fatal", 0).put_into({})),
        ("e", {}),
        ("f", None),
    ]
    assert plan(failed, attempts=3) == {
        "a": FailureRecord("transient", 1),
        "b": FailureRecord("transient", 3),
    }
    assert plan(failed, attempts=0) == {}


def test_a_rebuilt_document_is_retried_whatever_its_cause_and_only_so_often() -> None:
    failed = [
        ("a", {}),
        ("b", FailureRecord("fatal", 1).put_into({})),
        ("c", FailureRecord("", 2).put_into({})),
        ("d", {}),
    ]
    planned = plan(failed, attempts=2, rebuilt={"a", "b", "c"})
    assert planned == {"a": FailureRecord("transient", 1), "b": FailureRecord("transient", 2)}


def test_a_document_that_lightrag_refuses_wants_a_run() -> None:
    refusal = "Refusing to purge document doc-1: recovery anchor row(s) missing or unusable (…)"
    assert is_refused(refusal)
    assert not is_refused(None)
    row: dict[str, Any] = {"status": "failed", "error_msg": refusal}
    assert FailureRecords().annotate({"a": row}, None)
    assert FailureRecord.of(row["metadata"]) == FailureRecord("", 0)
    assert not FailureRecords().annotate(
        {"a": {"status": "failed", "error_msg": "no such file"}}, None
    )


def test_a_failed_row_is_recognized_by_text_and_by_enum() -> None:
    assert is_failed({"status": "failed"})
    assert is_failed({"status": DocStatus.FAILED})
    assert not any(map(is_failed, ({"status": "pending"}, {"status": DocStatus.PENDING}, {}, None)))


def test_the_number_of_retries_survives_rows_that_lightrag_writes() -> None:
    records = FailureRecords()
    work = work_with(ConnectionRefusedError("no route to host"))
    row: dict[str, Any] = {"status": "failed", "error_msg": "no route to host"}
    assert records.annotate({"a": row}, work)
    assert FailureRecord.of(row["metadata"]) == FailureRecord("transient", 0)

    records.requeued("a", 1)
    rows: dict[str, dict[str, Any]] = {
        "a": {"status": "processing", "metadata": {"kept": 1}},
        "b": {"status": "processing"},
    }
    assert not records.annotate(rows, work)
    assert FailureRecord.of(rows["a"]["metadata"]) == FailureRecord("transient", 1)
    assert rows["a"]["metadata"]["kept"] == 1
    assert rows["b"] == {"status": "processing"}


def test_the_remembered_retries_are_bounded() -> None:
    records = FailureRecords()
    for number in range(10_050):
        records.requeued(f"{number}", 1)
    assert len(records._requeues) == 10_000
