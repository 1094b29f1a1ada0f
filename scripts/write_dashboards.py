#!/usr/bin/env python3
"""Write deploy/grafana/*.json: each panel is a question, and a query that answers it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from _grafana import GREEN, Panel, dashboard, number, states

FOLDER = Path(__file__).parent.parent / "deploy" / "grafana"
P = "lightrag_resilience_"

YELLOW, RED = "yellow", "red"
CIRCUIT = {0: ("closed", GREEN), 1: ("half-open", YELLOW), 2: ("open", RED)}
YES_NO = {0: ("no", RED), 1: ("yes", GREEN)}
PHASES = {
    0: ("none", GREEN),
    1: ("draining", YELLOW),
    2: ("cancelling", RED),
    3: ("closing", YELLOW),
    4: ("ended", "blue"),
}


def per_second(metric: str, by: str, chosen: str = "", window: str = "$__rate_interval") -> str:
    """PromQL: events a second, by labels."""
    return f"sum by ({by}) (rate({P}{metric}{{{chosen}}}[{window}]))"


def seconds(share: float, metric: str, chosen: str, window: str = "$__rate_interval") -> str:
    """PromQL: seconds within which this share of a histogram's events lies."""
    return f"histogram_quantile({share}, {per_second(metric + '_bucket', 'le', chosen, window)})"


ONE = 'dependency=~"$dependency"'
LEGEND = "{{dependency}}"
BUDGET = ((1.0, YELLOW), (14.4, RED))
GOOD = per_second("attempt_duration_seconds_count", "dependency", f'outcome="success",{ONE}')


def overview() -> Iterator[Panel]:
    """Is all well? If not: what, and since when?"""
    queries = f"sum(rate({P}query_duration_seconds_count[5m]))"
    failed = f'sum(rate({P}query_duration_seconds_count{{outcome="failed"}}[5m]))'
    yield number(
        "How many circuits are not closed?",
        f"count(max by (dependency) ({P}breaker_state) > 0) or vector(0)",
        about="Dependencies that get no calls now; listed below.",
        limits=((1, RED),),
    )
    yield number(
        "Which share of queries is answered?",
        f"1 - ({failed} or {queries} * 0) / {queries}",
        unit="percentunit",
        about="In the last 5 minutes. The goal is 99.5 %. Empty: no queries.",
        limits=((0, RED), (0.995, GREEN)),
    )
    yield number(
        "How long do 95 of 100 queries take at most?",
        seconds(0.95, "query_duration_seconds", 'outcome!="failed"', "5m"),
        unit="s",
        about="In the last 5 minutes; of a stream, to its first words. The goal is 2 s.",
        limits=((2, RED),),
    )
    yield number(
        "How fast is the error budget used up?",
        f"queries:{P}failed:ratio_rate1h / 0.005",
        about="1 uses up a month's budget in a month; above 14.4 it pages.",
        limits=BUDGET,
    )
    yield number(
        "How many documents failed?",
        f'sum(max by (workspace) ({P}documents{{status="failed"}}))',
        about="Documents that failed in an outage are resumed. The goal is 1 % at most.",
        limits=((1, YELLOW),),
    )
    yield number(
        "Are breakers shared through Redis?",
        f"min({P}redis_up)",
        about="No: each process has its own breakers. Empty: no Redis is set.",
        words=YES_NO,
    )
    yield states(
        "Which circuits are open, and since when?",
        f"max by (dependency) ({P}breaker_state{{{ONE}}})",
        LEGEND,
        CIRCUIT,
        width=24,
        about="Of several processes the worst.",
    )
    yield Panel(
        "Which alerts fire?",
        {
            "{{alertname}} {{dependency}}": "count by (alertname, dependency) "
            '(ALERTS{alertname=~"Lightrag.*",alertstate="firing"})'
        },
        about="Each has a runbook: see the link above.",
    )
    yield Panel("How much succeeds?", {LEGEND: GOOD}, unit="reqps")
    yield Panel(
        "What fails, after its retries?",
        {
            "{{dependency}} {{outcome}}": per_second(
                "call_failures_total", "dependency, outcome", ONE
            )
        },
        unit="reqps",
        about="transient: down or overloaded. throttled: 429. unknown: timeouts. fatal: our error.",
    )
    yield Panel(
        "What is rejected before it is sent?",
        {"{{dependency}} {{reason}}": per_second("rejections_total", "dependency, reason", ONE)},
        unit="reqps",
        about="CircuitOpenError: it failed. RateLimitedError, BulkheadFullError: our limits.",
    )
    yield Panel(
        "How do queries end?",
        {"{{outcome}}": per_second("query_duration_seconds_count", "outcome")},
        unit="reqps",
        about="degraded: answered without an unavailable dependency.",
    )
    yield Panel(
        "What state are documents in?",
        {"{{workspace}} {{status}}": f"max by (workspace, status) ({P}documents)"},
        about="Counted twice a minute. pending and processing should fall, processed should grow.",
    )


def one_dependency() -> Iterator[Panel]:
    """What is wrong with this dependency, and what is done about it?"""
    yield states(
        "Is its circuit open?", f"max by (dependency) ({P}breaker_state{{{ONE}}})", LEGEND, CIRCUIT
    )
    yield Panel(
        "Which share of its last calls failed?",
        {LEGEND: f"max by (dependency) ({P}breaker_failure_ratio{{{ONE}}})"},
        unit="percentunit",
        about="In the breaker's window; of several processes the worst. Half of them open it.",
        limits=((0.5, RED),),
    )
    yield Panel(
        "How do attempts end?",
        {"{{outcome}}": per_second("attempt_duration_seconds_count", "outcome", ONE)},
        unit="reqps",
        about="Each success is a call that succeeded; a failure may have been retried.",
    )
    yield Panel(
        "How long do successful attempts take?",
        {
            f"{round(100 * share)} of 100": seconds(
                share, "attempt_duration_seconds", f'outcome="success",{ONE}'
            )
            for share in (0.5, 0.95, 0.99)
        },
        unit="s",
    )
    yield Panel(
        "Do retries help?",
        {
            "retries": per_second("retries_total", "dependency", ONE),
            "calls that failed after retries": per_second("call_failures_total", "dependency", ONE),
        },
        unit="reqps",
        about="Many retries and few failures: yes.",
    )
    yield Panel(
        "How much of the retry budget is left?",
        {LEGEND: f"min by (dependency) ({P}retry_budget_ratio{{{ONE}}})"},
        unit="percentunit",
        about="At 0 every call gets one attempt. Successes refill it.",
        limits=((0, RED), (0.05, YELLOW), (0.5, GREEN)),
    )
    yield Panel(
        "What is rejected, and why?",
        {"{{reason}}": per_second("rejections_total", "reason", ONE)},
        unit="reqps",
    )
    yield Panel(
        "Is the bulkhead full?",
        {
            "in flight": f"sum by (dependency) ({P}in_flight{{{ONE}}})",
            "queued": f"sum by (dependency) ({P}queue_depth{{{ONE}}})",
            "limit": f"sum by (dependency) ({P}concurrency_limit{{{ONE}}})",
        },
        about="Queued for long: raise CONCURRENCY__MAX_CONCURRENT, if the provider allows it.",
    )
    yield Panel(
        "How long do calls wait for admission?",
        {"95 of 100": seconds(0.95, "admission_wait_seconds", ONE)},
        unit="s",
        about="For the rate limit and the bulkhead. Only where a limit is set.",
    )
    yield Panel(
        "How many tokens a minute?",
        {
            "reserved": f"60 * {per_second('tokens_reserved_total', 'dependency', ONE)}",
            "used": f"60 * {per_second('tokens_used_total', 'dependency', ONE)}",
        },
        about="Reserved much more than used: lower LIMIT__ANSWER_TOKENS.",
    )
    yield Panel(
        "How often does the circuit change?",
        {
            "{{state}}": per_second("breaker_transitions_total", "state", ONE),
            "probes": per_second("probes_total", "dependency", ONE),
        },
        unit="reqps",
        about="Open and half-open in turns: the probes fail.",
    )
    yield Panel(
        "What answered instead?",
        {
            "fallback": per_second("fallbacks_total", "dependency", ONE),
            "hedged request": per_second("hedges_total", "dependency", ONE),
            "stale answer": per_second("stale_answers_total", "dependency", ONE),
        },
        unit="reqps",
    )


def cluster() -> Iterator[Panel]:
    """Do all workers see the same state?"""
    worst = f"max by (dependency) ({P}breaker_state)"
    yield number(
        "How many workers share breakers?",
        f"max({P}redis_workers)",
        about="Counted through Redis. Fewer than are running: some cannot reach Redis.",
    )
    yield number(
        "Does each of them reach Redis?",
        f"min({P}redis_up)",
        words=YES_NO,
        about="No: that one has breakers of its own until it can.",
    )
    yield number(
        "How long does Redis take?",
        f"max({P}redis_round_trip_seconds)",
        unit="s",
        limits=((0.01, YELLOW), (0.1, RED)),
        about="Round trip of the slowest worker. No call waits for it; state changes take as long.",
    )
    yield number(
        "How many servers answer Prometheus?",
        'sum(up{job="lightrag"})',
        about="Workers of one Gunicorn answer as one.",
    )
    yield number(
        "On how many circuits do servers differ?",
        f"count({worst} - min by (dependency) ({P}breaker_state) > 0) or vector(0)",
        about="For longer than a scrape: one cannot reach Redis, or only its own network fails.",
        limits=((1, YELLOW),),
    )
    yield number(
        "How many probes are in flight?",
        f"sum({P}breaker_probes)",
        about="At most as many for each half-open circuit as its policy allows, over all workers.",
    )
    yield states(
        "Which servers reach Redis?",
        f"{P}redis_up",
        "{{instance}}",
        YES_NO,
        about="One band a server.",
    )
    yield states(
        "What state does each server see?",
        f"{P}breaker_state{{{ONE}}}",
        "{{instance}} {{dependency}}",
        CIRCUIT,
        about="All change within milliseconds where Redis is shared.",
    )
    yield Panel(
        "How is the work spread?",
        {"{{instance}}": per_second("attempt_duration_seconds_count", "instance", ONE)},
        unit="reqps",
    )
    yield Panel(
        "Which servers reject calls?",
        {"{{instance}} {{reason}}": per_second("rejections_total", "instance, reason", ONE)},
        unit="reqps",
    )
    yield Panel(
        "How long does Redis take, for each server?",
        {"{{instance}}": f"{P}redis_round_trip_seconds"},
        unit="s",
        limits=((0.01, YELLOW), (0.1, RED)),
    )
    yield Panel(
        "How many calls are in flight?",
        {"{{instance}}": f"sum by (instance) ({P}in_flight)"},
    )


def drain() -> Iterator[Panel]:
    """Does a shutdown lose anything?"""
    yield number(
        "Is anything shutting down?",
        f"max({P}drain_phase) or vector(0)",
        words=PHASES,
        about="Of several processes the furthest.",
    )
    yield number(
        "What does it wait for?",
        f"sum({P}drain_in_flight) or vector(0)",
        about="Calls, streams and tasks in flight in processes that shut down.",
    )
    yield number(
        "How much ended by itself?",
        f"sum(max_over_time({P}drain_completed_total[1h])) or vector(0)",
        about="In the last hour.",
    )
    yield number(
        "How much was abandoned?",
        f"sum(max_over_time({P}drain_abandoned_total[1h])) or vector(0)",
        limits=((1, RED),),
        about="Cancelled in the last hour, if scraped; `lightrag-resilience journal` lists all.",
    )
    yield number(
        "How many documents were resumed?",
        f"sum(increase({P}recovered_documents_total[1h])) or vector(0)",
        about="In the last hour: interrupted in process, or failed while a dependency was down.",
    )
    yield number(
        "How many documents were given up?",
        f"sum(max by (workspace) ({P}documents_given_up)) or vector(0)",
        limits=((1, YELLOW),),
        about="Failed and not retried: waiting does not help, or too many attempts were made.",
    )
    yield states("Which phase is each server in?", f"{P}drain_phase", "{{instance}}", PHASES)
    yield Panel("What is left?", {"{{instance}}": f"{P}drain_in_flight"})
    yield Panel(
        "What was abandoned?",
        {"{{kind}}": f"sum by (kind) ({P}drain_abandoned_total)"},
        about="By kind: calls, streams, tracked tasks.",
    )
    yield Panel(
        "Which calls are rejected meanwhile?",
        {LEGEND: per_second("rejections_total", "dependency", 'reason="ShuttingDownError"')},
        unit="reqps",
        about="New calls in a process that shuts down. Many: it still gets requests, see /readyz.",
    )


DASHBOARDS = {
    "overview": ("LightRAG: is it well?", overview),
    "dependency": ("LightRAG: one dependency", one_dependency),
    "cluster": ("LightRAG: the cluster", cluster),
    "drain": ("LightRAG: shutting down", drain),
}


def texts() -> dict[Path, str]:
    """Return the text of each file."""
    made = {
        name: dashboard(name, title, panels, of_one=name == "dependency")
        for name, (title, panels) in DASHBOARDS.items()
    }
    return {
        FOLDER / f"{name}.json": json.dumps(content, indent=1) + "\n"
        for name, content in made.items()
    }


if __name__ == "__main__":
    for path, content in texts().items():
        path.write_text(content, encoding="utf-8")
