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


def per_second(metric: str, by: str, chosen: str = "", lately: str = "$__rate_interval") -> str:
    """So many a second, by labels."""
    return f"sum by ({by}) (rate({P}{metric}{{{chosen}}}[{lately}]))"


def seconds(share: float, metric: str, chosen: str, lately: str = "$__rate_interval") -> str:
    """Seconds within which this share of all is done."""
    return f"histogram_quantile({share}, {per_second(metric + '_bucket', 'le', chosen, lately)})"


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
        about="Dependencies that are left alone now. Which: below.",
        limits=((1, RED),),
    )
    yield number(
        "Which share of queries is answered?",
        f"1 - ({failed} or {queries} * 0) / {queries}",
        unit="percentunit",
        about="In the last 5 minutes. The goal is 99.5 %. Empty: nobody asks.",
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
        about="1 uses up a month's budget in a month; above 14.4 somebody is woken.",
        limits=BUDGET,
    )
    yield number(
        "How many documents failed?",
        f'sum(max by (workspace) ({P}documents{{status="failed"}}))',
        about="Those whom an outage failed are taken up again. The goal is 1 % at most.",
        limits=((1, YELLOW),),
    )
    yield number(
        "Are breakers shared through Redis?",
        f"min({P}redis_up)",
        about="No: each process finds out alone. Empty: no Redis is set.",
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
        "What is refused before it is sent?",
        {"{{dependency}} {{reason}}": per_second("refusals_total", "dependency, reason", ONE)},
        unit="reqps",
        about="CircuitOpenError: the dependency failed. RateLimited, QueueFull: our own limits.",
    )
    yield Panel(
        "How do queries end?",
        {"{{outcome}}": per_second("query_duration_seconds_count", "outcome")},
        unit="reqps",
        about="degraded: answered without something that is away.",
    )
    yield Panel(
        "What state are documents in?",
        {"{{workspace}} {{status}}": f"max by (workspace, status) ({P}documents)"},
        about="Counted twice a minute. pending and processing should fall, processed should grow.",
    )


def one_dependency() -> Iterator[Panel]:
    """What is the matter with this one, and what does the layer do about it?"""
    yield states(
        "Is its circuit open?", f"max by (dependency) ({P}breaker_state{{{ONE}}})", LEGEND, CIRCUIT
    )
    yield Panel(
        "Which share of its last calls failed?",
        {LEGEND: f"max by (dependency) ({P}breaker_failure_ratio{{{ONE}}})"},
        unit="percentunit",
        about="Of those a breaker remembers; of several processes the worst. Half of them open it.",
        limits=((0.5, RED),),
    )
    yield Panel(
        "How do attempts end?",
        {"{{outcome}}": per_second("attempt_duration_seconds_count", "outcome", ONE)},
        unit="reqps",
        about="Each success is a call that succeeded; a failure may have been retried.",
    )
    yield Panel(
        "How long do good attempts take?",
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
            "calls that failed all the same": per_second("call_failures_total", "dependency", ONE),
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
        "What is refused, and why?",
        {"{{reason}}": per_second("refusals_total", "reason", ONE)},
        unit="reqps",
    )
    yield Panel(
        "Is there room?",
        {
            "under way": f"sum by (dependency) ({P}in_flight{{{ONE}}})",
            "in line": f"sum by (dependency) ({P}queue_depth{{{ONE}}})",
            "limit": f"sum by (dependency) ({P}concurrency_limit{{{ONE}}})",
        },
        about="In line for long: raise CONCURRENCY__MAX_CONCURRENT, if the provider stands it.",
    )
    yield Panel(
        "How long do calls wait for their turn?",
        {"95 of 100": seconds(0.95, "line_wait_seconds", ONE)},
        unit="s",
        about="Only where a limit is set.",
    )
    yield Panel(
        "How many tokens a minute?",
        {
            "booked": f"60 * {per_second('tokens_reserved_total', 'dependency', ONE)}",
            "used": f"60 * {per_second('tokens_used_total', 'dependency', ONE)}",
        },
        about="Booked much more than used: lower LIMIT__ANSWER_TOKENS.",
    )
    yield Panel(
        "How often does the circuit change?",
        {
            "{{state}}": per_second("breaker_transitions_total", "state", ONE),
            "probes": per_second("probes_total", "dependency", ONE),
        },
        unit="reqps",
        about="Open and half-open by turns: its probes fail.",
    )
    yield Panel(
        "What else answered?",
        {
            "the next of a chain": per_second("fallbacks_total", "dependency", ONE),
            "a second request": per_second("hedges_total", "dependency", ONE),
            "an old answer": per_second("stale_answers_total", "dependency", ONE),
        },
        unit="reqps",
    )


def cluster() -> Iterator[Panel]:
    """Do the workers agree, and do they hear of each other?"""
    worst = f"max by (dependency) ({P}breaker_state)"
    yield number(
        "How many workers share breakers?",
        f"max({P}redis_workers)",
        about="As they count each other. Fewer than run: some cannot reach Redis.",
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
        about="There and back, the slowest worker. No call waits for it; news travels as fast.",
    )
    yield number(
        "How many servers answer Prometheus?",
        'sum(up{job="lightrag"})',
        about="Workers of one Gunicorn answer as one.",
    )
    yield number(
        "On how many circuits do servers differ?",
        f"count({worst} - min by (dependency) ({P}breaker_state) > 0) or vector(0)",
        about="For longer than a scrape: one of them is alone, or has a network of its own.",
        limits=((1, YELLOW),),
    )
    yield number(
        "How many probes are out?",
        f"sum({P}breaker_probes)",
        about="For each half-open circuit as many as its policy says, over all workers together.",
    )
    yield states(
        "Who reaches Redis?", f"{P}redis_up", "{{instance}}", YES_NO, about="One band a server."
    )
    yield states(
        "What does each server think of the circuit?",
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
        "Who refuses?",
        {"{{instance}} {{reason}}": per_second("refusals_total", "instance, reason", ONE)},
        unit="reqps",
    )
    yield Panel(
        "How long does Redis take, for each?",
        {"{{instance}}": f"{P}redis_round_trip_seconds"},
        unit="s",
        limits=((0.01, YELLOW), (0.1, RED)),
    )
    yield Panel(
        "How many calls are under way?",
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
        about="Calls, streams and tasks under way in processes that end.",
    )
    yield number(
        "How much ended by itself?",
        f"sum(max_over_time({P}drained_total[1h])) or vector(0)",
        about="In the last hour.",
    )
    yield number(
        "How much was given up?",
        f"sum(max_over_time({P}abandoned_total[1h])) or vector(0)",
        limits=((1, RED),),
        about="In the last hour, as far as it was scraped; `lightrag-resilience journal` has all.",
    )
    yield number(
        "How many documents were taken up again?",
        f"sum(increase({P}recovered_documents_total[1h])) or vector(0)",
        about="In the last hour: left in the middle, or failed for want of a dependency.",
    )
    yield number(
        "How many documents were given up?",
        f"sum(max by (workspace) ({P}documents_given_up)) or vector(0)",
        limits=((1, YELLOW),),
        about="Failed, and left: waiting does not mend them, or they were tried too often.",
    )
    yield states("How far is each server?", f"{P}drain_phase", "{{instance}}", PHASES)
    yield Panel("What is left?", {"{{instance}}": f"{P}drain_in_flight"})
    yield Panel(
        "What was given up?",
        {"{{kind}}": f"sum by (kind) ({P}abandoned_total)"},
        about="Of which kind: calls, streams, tracked tasks.",
    )
    yield Panel(
        "Who is sent away meanwhile?",
        {LEGEND: per_second("refusals_total", "dependency", 'reason="ShuttingDownError"')},
        unit="reqps",
        about="New calls in a process that ends. Many: it still gets requests, see /readyz.",
    )


DASHBOARDS = {
    "overview": ("LightRAG: is it well?", overview),
    "dependency": ("LightRAG: one dependency", one_dependency),
    "cluster": ("LightRAG: the cluster", cluster),
    "drain": ("LightRAG: shutting down", drain),
}


def texts() -> dict[Path, str]:
    """What each file holds."""
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
