"""The headline of the status page, and the history of outages."""

from __future__ import annotations

from typing import Any

import pytest

from lightrag_resilience.events import AttemptFailed, CallSucceeded, StateChanged
from lightrag_resilience.integrations.status.headline import headline, health_of_row
from lightrag_resilience.integrations.status.outage_history import OutageHistory

NOON = 1_790_000_000.0


def row(name: str = "llm.openai", state: str = "closed", **other: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": name,
        "state": state,
        "mode": "enforce",
        "by_hand": False,
        "cooldown": 0.0,
        "calls": 0,
        "failed": 0,
        "diverged": 0,
        "since": None if state == "closed" else NOON,
        "first_reason": "" if state == "closed" else "after 5 failures in a row",
        **other,
    }
    return {**made, "condition": health_of_row(made).condition}


def said(*rows: dict[str, Any]) -> str:
    parts = headline(rows)["sentence"]
    return "".join("NOON" if part == NOON else str(part) for part in parts)


ONE = "calls to it are rejected at once, and it is probed automatically."
MORE = "calls to them are rejected at once, and they are probed automatically."
MET_401 = "The last probe of llm.openai met HTTP 401 (AuthenticationError): check its key."
PROBING = "it is being probed, and other calls follow if the probes succeed."
BY_HAND = "calls to it are rejected until the time is over or the breaker is closed by hand."


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([], "No dependency has been called yet, so there is nothing to report."),
        ([row()], "All is well: the only dependency works."),
        ([row(), row("b")], "All is well: all 2 dependencies work."),
        ([row(state="open")], f"llm.openai has been down since NOON; {ONE}"),
        (
            [row(state="open", reason="after a probe met HTTP 401 (AuthenticationError)")],
            f"llm.openai has been down since NOON; {ONE} {MET_401}",
        ),
        (
            [row(state="open", reason="after a probe met Odd")],
            f"llm.openai has been down since NOON; {ONE} The last probe of llm.openai met Odd.",
        ),
        (
            [row(state="open", since=NOON + 9), row("b", "open"), row("c")],
            f"llm.openai and b have been down since NOON; {MORE}",
        ),
        (
            [row(state="open"), row("b", "half-open"), row("c", "open")],
            f"llm.openai and 2 others have been down since NOON; {MORE}",
        ),
        ([row(state="half-open")], f"llm.openai has been down since NOON; {PROBING}"),
        (
            [row(state="open", by_hand=True)],
            f"llm.openai has been isolated by hand since NOON; {BY_HAND}",
        ),
        (
            [row(state="open"), row("b", "open", by_hand=True)],
            f"llm.openai has been down since NOON; {ONE} Isolated by hand: b.",
        ),
        (
            [row(cooldown=3.0), row("b")],
            "llm.openai asked for a pause; calls wait until it ends, then one goes first.",
        ),
        (
            [row(calls=50, failed=5)],
            "llm.openai works, but at least one call in ten fails; failed calls are retried.",
        ),
        (
            [row(diverged=1)],
            "llm.openai works for most workers; the others reject calls by their own breakers.",
        ),
        ([row(calls=50, failed=4)], "All is well: the only dependency works."),
        ([row(calls=2, failed=2)], "All is well: the only dependency works."),
        ([row(calls=3, failed=3)], "llm.openai fails in all calls."),
        (
            [row(calls=155, failed=155, causes={"HTTP 401": 155}, last="HTTP 401 (Odd)")],
            "llm.openai answers 401 to all calls: check its key.",
        ),
        (
            [row(calls=50, failed=9, causes={"HTTP 503": 9})],
            ("llm.openai works, but answers 503 to some calls: check its own status page or log."),
        ),
        (
            [row(state="open"), row("b", calls=9, failed=8, causes={"ReadError": 8})],
            f"llm.openai has been down since NOON; {ONE} b fails in most calls with ReadError.",
        ),
        (
            [row(name, calls=9, failed=9) for name in "abc"],
            "a and 2 others fail most calls in a way that opens no breaker.",
        ),
        ([row(mode="disabled", calls=50, failed=50)], "All is well: the only dependency works."),
    ],
)
def test_the_headline_says_what_is_wrong_since_when_and_what_is_done(
    rows: list[dict[str, Any]], sentence: str
) -> None:
    assert said(*rows) == sentence


def test_the_headline_has_at_most_three_reasons() -> None:
    shown = headline([row(str(number), "open") for number in range(9)])
    assert shown["reasons"] == [
        {"name": str(number), "reason": "after 5 failures in a row"} for number in range(3)
    ]


# ---------------------------------------------------------------------- what it remembers


class Clock:
    now = NOON

    def __call__(self) -> float:
        return self.now


def changed(old: str, new: str, reason: str = "why", name: str = "llm") -> StateChanged:
    return StateChanged(name, old, new, reason, 1)


def test_a_long_outage_is_one_entry_that_counts_failed_probes() -> None:
    clock = Clock()
    record = OutageHistory(clock)
    record.on_event(CallSucceeded("llm", 0.1))
    record.on_event(changed("closed", "open", "after 5 failures in a row"))
    record.on_event(changed("closed", "open", name="other"))
    for _ in range(1000):
        clock.now += 5
        record.on_event(changed("open", "half-open"))
        record.on_event(changed("half-open", "open", "after a probe failed"))
    other, llm = record.to_json()
    assert (llm["at"], llm["reason"], llm["failed_probes"]) == (
        NOON,
        "after 5 failures in a row",
        1000,
    )
    assert (other["name"], other["failed_probes"]) == ("other", 0)
    outage = record.outage("llm", clock.now, "open", "after a probe failed")
    assert (outage.since, outage.reason) == (NOON, "after 5 failures in a row")

    record.on_event(changed("half-open", "closed", "after its probes succeeded"))
    assert record.to_json()[0]["lasted"] == 5000
    assert "llm" not in record._outages


def test_an_isolation_differs_from_a_breaker_opened_by_hand() -> None:
    record = OutageHistory(Clock())
    record.on_event(changed("closed", "open", "by Ada on host (isolated): they migrate"))
    record.on_event(changed("closed", "open", "by Ada on host: they migrate", name="other"))
    assert [change["isolated"] for change in record.to_json()] == [False, True]


def test_history_keeps_only_the_last_changes() -> None:
    record = OutageHistory()
    for number in range(500):
        record.on_event(changed("closed", "open", name=str(number)))
    names = [change["name"] for change in record.to_json()]
    assert names == [str(number) for number in range(499, 449, -1)]


def test_history_bounds_the_number_of_outages() -> None:
    record = OutageHistory()
    for number in range(2000):
        record.on_event(changed("closed", "open", name=str(number)))
    assert len(record._outages) == 1000


def test_the_last_failure_of_a_dependency_is_kept_for_ten_minutes() -> None:
    clock = Clock()
    record = OutageHistory(clock)
    for number in range(1500):
        record.on_event(AttemptFailed(str(number), "transient", "ConnectError", 0.1))
    record.on_event(AttemptFailed("1499", "fatal", "AuthenticationError", 0.1))
    assert record.last_failure("499") is None
    assert record.last_failure("500") is not None
    last = {"at": NOON, "error": "AuthenticationError", "kind": "fatal"}
    assert record.last_failure("1499") == last
    clock.now += 601
    assert record.last_failure("1499") is None


def test_an_outage_counts_from_its_earliest_reported_start() -> None:
    record = OutageHistory(Clock())
    assert record.outage("llm", NOON - 60, "open", "after 5 failures in a row").since == NOON - 60
    assert record.to_json()[0]["at"] == NOON - 60
    # Other workers report it with small differences, or with an earlier begin.
    assert record.outage("llm", NOON - 61, "open", "").since == NOON - 60
    assert record.outage("llm", NOON - 90, "open", "").since == NOON - 90
    assert record.outage("llm", NOON, "half-open", "").reason == "after 5 failures in a row"
    record.ended("llm", "after its probes succeeded")
    record.ended("llm", "after its probes succeeded")
    assert [change["new"] for change in record.to_json()] == ["closed", "open"]
    assert record.to_json()[0]["lasted"] == 90


def test_a_breaker_first_seen_half_open_has_an_outage() -> None:
    record = OutageHistory(Clock())
    record.on_event(changed("half-open", "open", "after a probe failed"))
    assert [change["reason"] for change in record.to_json()] == ["after a probe failed"]
