#!/usr/bin/env python3
"""Write deploy/prometheus/rules.yml: recording rules for each window, and the alerts.

Fatal failures are the caller's mistakes and count against no dependency. The burn rates are those
of the SRE Workbook, chapter 5: the long window shows that the loss matters, the short one that it
continues.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TARGET = Path(__file__).parent.parent / "deploy" / "prometheus" / "rules.yml"
WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
P = "lightrag_resilience_"
D = f"dependency:{P}"
Q = f"queries:{P}"

AVAILABLE = 0.005  # of all may fail
ERRORS = 0.001  # of calls may end in an error
SLOW = 0.05  # of queries may take longer than 2 s
UNPROCESSED = 0.01  # of documents may fail
FEW = 2.5  # failures in an hour: fewer are noise, whatever their share

HEADER = """\
# Written by scripts/write_rules.py (`make docs`).
# Goals: 99.5 % of queries are answered, 95 of 100 in less than 2 s, fewer than 0.1 % of calls end
# in an error, a circuit is closed again within 15 minutes, 99 % of documents are processed.
groups:
"""


@dataclass(frozen=True)
class Alert:
    """One alert.

    Attributes:
        name: Without the prefix ``Lightrag``.
        severity: ``page`` wakes the person on call; ``ticket`` waits for the day.
        when: PromQL expression.
        summary: A sentence for the person on call.
        lasting: How long the expression must hold.
    """

    name: str
    severity: str
    when: str
    summary: str
    lasting: str = ""


def rate(metric: str, window: str, by: str = "") -> str:
    """PromQL: events a second, summed over all processes."""
    return f"sum{by} (rate({P}{metric}[{window}]))"


def recorded() -> Iterator[tuple[str, str]]:
    """Yield names and expressions of the recording rules."""
    by = " by (dependency)"
    none = f"sum{by} ({P}breaker_state) * 0"
    for w in WINDOWS:
        failed, rejected, succeeded = (
            f"{D}{what}:rate{w}" for what in ("failed", "rejected", "succeeded")
        )
        bad = 'call_failures_total{outcome!="fatal"}'
        good = 'attempt_duration_seconds_count{outcome="success"}'
        yield failed, f"{rate(bad, w, by)} or {none}"
        yield rejected, f"{rate('rejections_total', w, by)} or {none}"
        yield succeeded, f"{rate(good, w, by)} or {none}"
        yield (
            f"{D}unavailable:ratio_rate{w}",
            f"({failed} + {rejected}) / ({failed} + {rejected} + {succeeded} > 0)",
        )
        if w in {"5m", "1h"}:
            everything = f"({failed} + {rejected} + {succeeded} > 0)"
            yield f"{D}errors:ratio_rate{w}", f"{failed} / {everything}"
    for w in WINDOWS:
        everything = rate("query_duration_seconds_count", w)
        failed = rate('query_duration_seconds_count{outcome="failed"}', w)
        yield f"{Q}failed:ratio_rate{w}", f"({failed} or {everything} * 0) / ({everything} > 0)"
        if w in {"5m", "30m"}:
            answered = rate('query_duration_seconds_count{outcome!="failed"}', w)
            quick = rate('query_duration_seconds_bucket{outcome!="failed",le="2.0"}', w)
            yield f"{Q}slow:ratio_rate{w}", f"1 - {quick} / ({answered} > 0)"


def burns(ratio: str, factor: float, long: str, short: str, goal: float) -> str:
    """PromQL: the budget burns `factor` times as fast as allowed, in both windows."""
    limit = f"{factor:g} * {goal:g}" if factor != 1 else f"{goal:g}"
    return f"({ratio}:ratio_rate{long} > {limit} and {ratio}:ratio_rate{short} > {limit})"


def fast(ratio: str) -> str:
    """PromQL for a page: 2 % of a month's budget in an hour, or 5 % in six."""
    first = burns(ratio, 14.4, "1h", "5m", AVAILABLE)
    return f"({first} or {burns(ratio, 6, '6h', '30m', AVAILABLE)})"


def slowly(ratio: str) -> str:
    """PromQL for a ticket: 10 % of a month's budget in a day, or all of it in a month."""
    return f"({burns(ratio, 3, '1d', '2h', AVAILABLE)} or {burns(ratio, 1, '3d', '6h', AVAILABLE)})"


def in_an_hour(metric: str, by: str = "") -> str:
    """PromQL: how many events the last hour had."""
    return f"sum{by} (increase({P}{metric}[1h]))"


def alerts() -> Iterator[Alert]:
    """Yield all alerts, the worst first."""
    by = " by (dependency)"
    queries = f"on () (sum(increase({P}query_duration_seconds_count[1h])) > 0)"
    bad_calls = f"({D}failed:rate1h + {D}rejected:rate1h)"
    failed_queries = in_an_hour('query_duration_seconds_count{outcome="failed"}')
    yield Alert(
        "ServerDown",
        "page",
        'up{job="lightrag"} == 0',
        "{{ $labels.instance }} does not answer Prometheus: no metrics, and perhaps no server",
        "5m",
    )
    yield Alert(
        "QueriesFail",
        "page",
        f"{fast(Q + 'failed')} and {failed_queries} > {FEW:g}",
        "So many queries fail that the error budget is soon used up",
    )
    yield Alert(
        "BudgetBurnsFast",
        "page",
        f"{fast(D + 'unavailable')} and {bad_calls} * 3600 > {FEW:g} unless {queries}",
        "{{ $labels.dependency }}: so many calls fail that the error budget is soon used up",
    )
    yield Alert(
        "NotRecovered",
        "page",
        f"max{by} ({P}breaker_state) > 0 and sum{by} (increase({P}rejections_total[15m])) > 0",
        "{{ $labels.dependency }}: its circuit has not been closed for 15 minutes",
        "15m",
    )
    health, closed = f"max{by} ({P}dependency_health)", f"max{by} ({P}breaker_state) == 0"
    yield Alert(
        "CallsFail",
        "page",
        f"{health} == 2 and {closed}",
        "{{ $labels.dependency }}: most calls fail in a way that opens no circuit, such as with a "
        "wrong key",
        "2m",
    )
    yield Alert(
        "SomeCallsFail",
        "ticket",
        f"{health} == 1 and {closed}",
        "{{ $labels.dependency }}: some calls fail, or wait for its Retry-After",
        "30m",
    )
    yield Alert(
        "QueriesFailSlowly",
        "ticket",
        slowly(Q + "failed"),
        "Fewer than 99.5 % of queries will be answered",
    )
    yield Alert(
        "BudgetBurnsSlowly",
        "ticket",
        f"{slowly(D + 'unavailable')} unless {queries}",
        "{{ $labels.dependency }}: fewer than 99.5 % of calls will succeed",
    )
    failed = in_an_hour('call_failures_total{outcome!="fatal"}', by)
    yield Alert(
        "Errors",
        "ticket",
        f"{burns(D + 'errors', 1, '1h', '5m', ERRORS)} and {failed} > {FEW:g}",
        "{{ $labels.dependency }}: more than 0.1 % of calls end in an error",
        "15m",
    )
    yield Alert(
        "Slow",
        "ticket",
        burns(Q + "slow", 1, "30m", "5m", SLOW),
        "More than 5 % of queries take longer than 2 s",
        "15m",
    )
    documents = f"sum by (workspace) ({P}documents"
    ended = f'{documents}{{status=~"processed|failed"}})'
    yield Alert(
        "DocumentsFail",
        "ticket",
        f'{documents}{{status="failed"}}) / ({ended} > 0) > {UNPROCESSED:g}',
        "{{ $labels.workspace }}: more than 1 % of documents failed and were not resumed",
        "30m",
    )
    waiting = f'{documents}{{status=~"pending|parsing|analyzing|processing"}})'
    done = f'sum by (workspace) (delta({P}documents{{status="processed"}}[30m]))'
    yield Alert(
        "IngestStalled",
        "ticket",
        f"{waiting} > 0 and {done} <= 0",
        "{{ $labels.workspace }}: documents wait, and none was processed for half an hour",
        "30m",
    )
    # increase() needs two samples of a series; a process that ends is often scraped only once more.
    abandoned = f"sum by (kind) (max_over_time({P}drain_abandoned_total[1h]))"
    before = f"sum by (kind) ({P}drain_abandoned_total offset 1h)"
    yield Alert(
        "WorkAbandoned",
        "ticket",
        f"{abandoned} > {before} or ({abandoned} > 0 unless {before})",
        "A shutdown cancelled work of the kind {{ $labels.kind }}",
    )
    yield Alert(
        "RetryBudgetExhausted",
        "ticket",
        f"min{by} ({P}retry_budget_ratio) < 0.05 and max{by} ({P}breaker_state) == 0",
        "{{ $labels.dependency }}: the retry budget is used up, and retries have stopped",
        "10m",
    )
    yield Alert(
        "RedisDown",
        "ticket",
        f"min({P}redis_up) == 0",
        "Redis cannot be used, so workers do not share their breakers",
        "5m",
    )


def texts() -> dict[Path, str]:
    """Return the text of each file."""
    lines = ["  - name: lightrag_resilience_recording", "    rules:"]
    for name, expression in recorded():
        lines += [f"      - record: {name}", f"        expr: {expression}"]
    lines += ["  - name: lightrag_resilience_alerts", "    rules:"]
    for alert in alerts():
        name = f"Lightrag{alert.name}"
        lines += [f"      - alert: {name}", f"        expr: {alert.when}"]
        if alert.lasting:
            lines.append(f"        for: {alert.lasting}")
        lines += [
            "        labels:",
            f"          severity: {alert.severity}",
            "        annotations:",
            f'          summary: "{alert.summary}"',
            f"          runbook: docs/runbooks.md#{name.lower()}",
        ]
    return {TARGET: HEADER + "\n".join(lines) + "\n"}


if __name__ == "__main__":
    for path, content in texts().items():
        path.write_text(content, encoding="utf-8")
