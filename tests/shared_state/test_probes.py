"""Half-open, the cluster lets exactly its quota of probes through."""

from __future__ import annotations

import time

from lightrag_resilience.testing.redis_server import RedisServer
from support.workers import Workers, workers

ROUNDS = 20
CALLERS = 100


def open_for(seconds: float, all_workers: Workers) -> None:
    all_workers[0].request("control", how="open", open_for=seconds)
    assert all(answer["at"] for answer in all_workers.each("until", state="open"))


def wait_for_probe(all_workers: Workers) -> None:
    """Until the first worker probes and the others know."""
    for worker in all_workers:
        assert worker.request("until", state="half-open")["at"]
    deadline = time.monotonic() + 10
    while not all_workers[0].request("snapshot")["probes"]:
        assert time.monotonic() < deadline


def test_four_processes_of_100_callers_send_exactly_the_probes_of_the_policy(
    server: RedisServer,
) -> None:
    with workers(server.url, PROBES="3") as four:
        four.each("behave", fails=0, takes=0.02)
        sent = []
        for _ in range(ROUNDS):
            open_for(0.2, four)
            four.each("go_on", callers=CALLERS, pause=0.01)
            assert all(answer["at"] for answer in four.each("until", state="closed"))
            counts = four.each("halt")
            assert sum(count["refused"] for count in counts) >= CALLERS
            sent.append(sum(count["probes"] for count in counts))
        assert sent == [3] * ROUNDS


def test_a_failed_probe_reopens_all_workers_and_no_second_is_sent(server: RedisServer) -> None:
    with workers(server.url, OPEN_FOR="20") as four:
        four.each("behave", fails=1, takes=0.02)
        open_for(0.1, four)
        four.each("go_on", callers=10, pause=0.01)
        for _ in range(500):
            answers = four.each("snapshot")
            if {answer["reason"] for answer in answers} == {"after a probe failed"}:
                break
            time.sleep(0.01)
        assert {answer["state"] for answer in answers} == {"open"}
        assert sum(count["ran"] for count in four.each("halt")) == 1


def test_the_permit_of_a_killed_prober_is_free_after_its_lease(server: RedisServer) -> None:
    with workers(server.url, number=2, PROBE_LEASE="1") as two:
        two[0].request("behave", fails=0, takes=60)
        open_for(0.1, two)
        began = time.monotonic()
        two[0].request("go_on", callers=3, pause=0.01)
        wait_for_probe(two)
        two[0].kill()
        two[1].request("go_on", callers=3, pause=0.01)
        ended = two[1].request("until", state="closed")["at"]
        counts = two[1].request("halt")
        assert counts["probes"] == 1
        assert ended - began >= 1.0


def test_the_permit_of_a_cancelled_probe_is_free_at_once(server: RedisServer) -> None:
    with workers(server.url, number=2, PROBE_LEASE="600") as two:
        two[0].request("behave", fails=0, takes=60)
        open_for(0.1, two)
        two[0].request("go_on", callers=1, pause=0.01)
        wait_for_probe(two)
        assert two[1].request("call", times=5)["refused"] == 5
        assert two[0].request("halt")["cancelled"] == 1
        two[1].request("go_on", callers=1, pause=0.01)
        assert two[1].request("until", state="closed")["at"]
        assert two[1].request("halt")["probes"] == 1


def test_a_stopping_worker_releases_its_unused_permit(
    server: RedisServer,
) -> None:
    with workers(server.url, number=2, PROBE_LEASE="600") as two:
        open_for(0.1, two)
        time.sleep(0.15)
        # The answer comes after its caller gave up, so no call uses the permit.
        server.pause()
        two[0].request("call", times=1)
        server.resume()
        two[0].request("close")
        two[1].request("go_on", callers=1, pause=0.01)
        assert two[1].request("until", state="closed")["at"]


def test_a_probe_longer_than_its_lease_keeps_its_permit_and_closes_the_circuit(
    server: RedisServer,
) -> None:
    with workers(server.url, number=2, PROBE_LEASE="1") as two:
        two[0].request("behave", fails=0, takes=3)
        open_for(0.1, two)
        two[0].request("go_on", callers=1, pause=0.01)
        wait_for_probe(two)
        two[1].request("go_on", callers=3, pause=0.01)
        assert two[1].request("until", state="closed")["at"]
        assert two[1].request("halt")["probes"] == 0
        assert two[0].request("until", state="closed")["at"]  # perhaps later than the other
        assert two[0].request("snapshot")["reason"] == "after its probes succeeded"
