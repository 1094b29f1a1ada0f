"""Nothing that comes from Redis is trusted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightrag_resilience import BreakerPolicy, State
from lightrag_resilience.circuit.outcomes import OutcomeCounts
from lightrag_resilience.shared_state.messages import (
    Announcement,
    CooldownMessage,
    Description,
    Keys,
    Presence,
    Reply,
    WireError,
    policy_as_json,
)
from lightrag_resilience.text import as_duration

GOOD = [
    b"O",
    b"1795440408113",
    b"2500",
    b"2",
    b"after 5 failures in a row",
    b"held",
    b"-1",
    b"3500",
]
COUNTS: list[Any] = [b"12", b"5", b"0", b"3", b"1", b"2500"]
SEEN: list[Any] = [[b"HTTP 503", b"5", b"HTTP 401", b"2"], b"0", b"HTTP 401 (Odd)"]
words = st.one_of(
    st.binary(max_size=20),
    st.integers().map(lambda number: b"%d" % number),
    st.sampled_from([b"C", b"O", b"H", b"held", b"", b"\xff", b"1e3", b"+1", b" 1", "²".encode()]),
)
anything = st.one_of(words, st.none(), st.integers(), st.text(max_size=5), st.lists(words))


def is_sane(there: Announcement) -> bool:
    return (
        there.state in State
        and 0 <= there.version < 2**53
        and 0 <= there.remaining <= 7 * 86_400
        and 0 <= there.opens <= 1_000_000
        and len(there.reason) <= 200
        and (there.reason.isprintable() or not there.reason)
    )


def test_a_published_state_is_parsed() -> None:
    read = Announcement.parse(b"O 1795440408113 2500 2 after 5 failures in a row")
    assert read == Announcement(State.OPEN, 1795440408113, 2.5, 2, "after 5 failures in a row")
    assert Announcement.parse(b"C 7 0 0 ").reason == ""


@pytest.mark.parametrize("version", [8 * 10**12, 2**51 - 1, 2**51, 2**53 - 1])
def test_a_version_far_ahead_of_the_clock_is_malformed(version: int) -> None:
    with pytest.raises(WireError, match="ahead of the clock"):
        Announcement.parse(b"O %d 1000 1 x" % version)


@pytest.mark.parametrize("parse", [Announcement.parse, CooldownMessage.parse])
@pytest.mark.parametrize("digits", [17, 4301, 100_000])
def test_a_number_of_many_digits_is_malformed(parse: Any, digits: int) -> None:
    number = b"9" * digits
    with pytest.raises(WireError):
        parse(b"wait " + number if parse == CooldownMessage.parse else b"O 7 %b 1 x" % number)


def test_the_remaining_time_is_capped_at_the_longest_isolation() -> None:
    assert Announcement.parse(b"O 7 9000000000000000 1 x").remaining == as_duration("7d")


@given(st.one_of(anything, st.lists(words).map(b" ".join)))
def test_any_message_is_parsed_or_malformed(message: Any) -> None:
    try:
        read = Announcement.parse(message)
    except WireError:
        return
    assert is_sane(read)


@given(st.one_of(anything, st.lists(anything, min_size=8, max_size=8)))
def test_any_answer_is_parsed_or_malformed(answer: Any) -> None:
    try:
        read = Reply.parse(answer)
    except WireError:
        return
    assert is_sane(read.now)


@pytest.mark.parametrize("part", range(8))
@pytest.mark.parametrize(
    "wrong", [None, 7, "text", b"\xff\xff", b"-", b"1.5", b"9" * 16, b"9" * 17, b"9" * 5000]
)
def test_each_part_of_an_answer_is_checked(part: int, wrong: Any) -> None:
    assert is_sane(Reply.parse(GOOD).now)
    answer = [*GOOD[:part], wrong, *GOOD[part + 1 :]]
    if part == 4 and isinstance(wrong, bytes):  # a reason may be any text
        assert is_sane(Reply.parse(answer).now)
    else:
        with pytest.raises(WireError):
            Reply.parse(answer)


def test_a_reply_has_the_age_of_the_outage() -> None:
    assert Reply.parse(GOOD).now.outage == 3.5


def test_a_reason_is_printable_and_cut() -> None:
    answer = [*GOOD[:4], b"\x1b[31m" + b"x" * 1000, *GOOD[5:]]
    assert Reply.parse(answer).now.reason == "[31m" + "x" * 196


def test_a_description_is_parsed_and_checked() -> None:
    read = Description.parse([*GOOD, *COUNTS, *SEEN])
    assert (read.calls, read.failed, read.slow, read.workers, read.probes) == (12, 5, 0, 3, 1)
    assert read.since == 2.5
    causes = {"HTTP 503": 5, "HTTP 401": 2}
    assert read.tally == OutcomeCounts(14, 7, causes, 0, "HTTP 401 (Odd)", 2)
    assert Description.parse([*GOOD, *COUNTS[:-1], b"", *SEEN]).since is None
    for wrong in (
        [*GOOD, *COUNTS],
        [*GOOD, *COUNTS[:-1], b"-1", *SEEN],
        [*GOOD, *COUNTS, [b"HTTP 503"], *SEEN[1:]],
        [*GOOD, *COUNTS, [b"a", b"1"] * 1000, *SEEN[1:]],
        [*GOOD, *COUNTS, [b"a", b"-1"], *SEEN[1:]],
        [*GOOD, *COUNTS, b"a", *SEEN[1:]],
        GOOD,
        None,
    ):
        with pytest.raises(WireError):
            Description.parse(wrong)
    odd = Description.parse([*GOOD, *COUNTS, [b"\x1b[31m" + b"x" * 900, b"7"], b"1", b"y" * 900])
    assert odd.tally.causes == {"[31m" + "x" * 116: 7}
    assert len(odd.tally.last) == 120


@given(st.text(max_size=20), st.integers(0, 2**31), st.lists(st.text(max_size=8), max_size=30))
def test_a_presence_is_parsed_as_it_was_stored(host: str, pid: int, diverged: list[str]) -> None:
    def clean(text: str) -> str:
        return "".join(character for character in text if character.isprintable())

    kept = Presence(host, pid, tuple(diverged)).as_json().encode()
    shown = Presence.parse(kept)
    assert (shown.host, shown.pid) == (clean(host), pid)
    assert shown.diverged == tuple(map(clean, diverged[:20]))


@given(
    st.one_of(
        anything,
        st.recursive(st.none() | st.text() | st.integers(), st.lists).map(
            lambda value: json.dumps(value).encode()
        ),
    )
)
def test_any_presence_is_parsed_or_malformed(kept: Any) -> None:
    try:
        shown = Presence.parse(kept)
    except WireError:
        return
    assert all(text.isprintable() for text in (shown.host, *shown.diverged))


@pytest.mark.parametrize(
    "kept",
    [
        b'["here", ' + b"9" * 4000 + b"]",
        b'["here", -1]',
        b'["here", true]',
        b'["' + b"x" * 20_000 + b'", 1]',
    ],
)
def test_an_impossible_presence_is_malformed(kept: bytes) -> None:
    with pytest.raises(WireError):
        Presence.parse(kept)


@given(st.text(min_size=1, max_size=30))
def test_the_keys_of_any_name_share_one_slot(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        return
    keys = Keys("lr:", name)
    assert Keys.name_in_state(keys.state.encode(), "lr:") == name
    assert Keys.name_in_channel(keys.channel.encode(), "lr:") == name
    slots = {key[key.index("{") + 1 : key.index("}")] for key in (keys.state, keys.window)}
    assert len(slots) == 1
    assert slots.pop()


def test_a_policy_is_sent_in_milliseconds() -> None:
    sent = json.loads(policy_as_json(BreakerPolicy(open_for=1.5, probe_lease=0.25, quorum=2)))
    assert (sent["open_ms"], sent["lease_ms"], sent["quorum"]) == (1500, 250, 2)
