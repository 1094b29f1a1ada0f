"""The words and the tables of docs/performance.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.cluster_model import tables
from benchmarks.cluster_model.model import BATCHES, FULL
from benchmarks.figures import BARE
from benchmarks.goals import goals
from benchmarks.growth import LINEAR
from benchmarks.machine import describe_in_words
from benchmarks.sharing.__main__ import sharing_rows

__all__ = ["page"]

Data = Mapping[str, Any]

_MET = {True: "yes", False: "no", None: ""}
_CASES: dict[str, tuple[str, Callable[[Data], str]]] = {
    "happy": ("succeeds, µs", lambda one: f"{one['low']:.2f} ({one['median']:.2f})"),
    "refused": ("refused, µs", lambda one: f"{one['low']:.2f} ({one['median']:.2f})"),
    "failing": ("raises, µs", lambda one: f"{one['low']:.2f} ({one['median']:.2f})"),
    "retried": ("retried once, µs", lambda one: f"{one['low']:.1f} ({one['median']:.1f})"),
    "throughput": ("calls/s at once", lambda one: f"{one['high']:,.0f}"),
    "memory": ("bytes", lambda one: f"{one['median']:,.0f}"),
    "imports": ("import, ms", lambda one: f"{one['low'] * 1e3:.0f}"),
}


def page(data: Data, pictures: Sequence[str]) -> str:
    """The whole page."""
    parts = [
        *_head(data, pictures),
        *_calls(data),
        *_profile(data),
        *_litellm(data),
        *_streams(data["cases"]),
        *_growth(data, pictures),
        *_sharing(data),
        *_interpreters(data),
        *_ingests(data),
        *_cluster(data),
        *_soak(data),
        *_tail(data),
    ]
    return "\n\n".join(parts) + "\n"


def _head(data: Data, pictures: Sequence[str]) -> Iterator[str]:
    machine = data["machine"]
    yield "# What protection costs"
    yield "<!-- Written by the tool: make bench-page. Do not edit by hand. -->"
    yield (
        f"Measured in one run on a {describe_in_words(machine)}, which other programs used at the "
        "same time (load {load}). A cost is the lower quartile of interleaved rounds, with the "
        "median in brackets. Bytes are measured apart, as other programs do not change them. "
        "`make bench` repeats the run on your machine.".format(load=machine["load"][0])
    )
    rows = (
        (row.what, row.goal, f"**{row.ours}**", _MET[row.is_met], row.peers) for row in goals(data)
    )
    yield _table(("what", "goal", "ours", "met", "peers in the same run"), rows)
    yield f"![Bars: the cost of a call that succeeds, ours and the peers']({pictures[0]})"


def _calls(data: Data) -> Iterator[str]:
    cases = {**data["cases"], "memory": data["memory"]}
    yield "## A call"
    yield (
        "Costs are above the bare call. `bare` is the call itself; its memory is that of an empty "
        "wrapper by `functools.wraps`, which every stack has around a function. Every row of ours "
        "has breaker, retry with its budget, the timeout of an attempt, the deadline of the call, "
        "and the register of calls in flight for a drain. *Everything* adds limits of requests "
        "and tokens and a breaker, all shared through a real Redis, and a bulkhead: at every 64th "
        "call it waits for the next reservation from Redis, and the figure includes that wait. "
        "Each peer does as much of this as it can, and a check proves first that it does. "
        "pybreaker and aiobreaker query Redis with a blocking client. baldur's breaker counts "
        "every error, so it has no exception path."
    )
    rows = (
        (
            stack,
            *(
                show(cases[case][stack]) if stack in cases[case] else ""
                for case, (_, show) in _CASES.items()
            ),
        )
        for stack in cases["happy"]
    )
    yield _table(("stack", *(title for title, _ in _CASES.values())), rows)
    yield "![Bars: the cost of a refusal, ours and the peers'](performance-refused.svg)"


def _profile(data: Data) -> Iterator[str]:
    found = data.get("profile")
    if not found:
        return
    whole, steps = found["whole"], found["steps"]
    yield "## Where the time of a call goes"
    yield (
        "Instructions of a call that succeeds, counted by callgrind, which noise does not change. "
        "Each of these steps is measured by itself, and every guard of this kind needs them; the "
        "rest is the bytecode that checks breaker, gate and budget. `python -m benchmarks.profile "
        "--page` repeats the measurement."
    )
    rows = [(what, f"{count:,}", f"{count / whole:.0%}") for what, count in steps.items()]
    rest = whole - sum(steps.values())
    rows += [
        ("the rest", f"{rest:,}", f"{rest / whole:.0%}"),
        ("the whole, above the bare call", f"{whole:,}", ""),
    ]
    yield _table(("step", "instructions", "share"), rows)


def _litellm(data: Data) -> Iterator[str]:
    found = data.get("litellm")
    if not found:
        return
    happy, refused = found["happy"], found["refused"]
    yield "## litellm's Router"
    yield (
        "The Router protects only calls of litellm, so it is measured around a call that litellm "
        f"answers without a network, in a separate environment: `litellm.acompletion` takes "
        f"{happy['bare']['low']:,.0f} µs, guarded by ours {happy['ours']['low']:,.0f}, through the "
        f"Router {happy['litellm Router']['low']:,.0f}. While all its deployments cool down it "
        f"rejects a call in {refused['litellm Router']['low']:,.0f} µs, ours in "
        f"{refused['ours']['low']:.1f}. `scripts/bench-litellm --page` repeats the measurement."
    )


def _streams(cases: Data) -> Iterator[str]:
    yield "## A stream"
    names = list(cases["items of text"])
    rows = [
        (title, *(f"{cases[case][name]['low']:.2f}" for name in names))
        for case, title in (
            ("items of text", "text"),
            ("items of a model", "chunks of OpenAI's SDK, watched for their finish marker"),
        )
        if case in cases
    ]
    yield "µs for each item above a bare stream, with a timeout between any two items:"
    yield _table(("items", *names), rows)


def _growth(data: Data, pictures: Sequence[str]) -> Iterator[str]:
    yield "## How cost grows"
    yield (
        "Processor time of each, while their number grows; a flat curve is a linear cost. The "
        f"exponent is that of the total: 1 is linear, and more than {LINEAR} fails the check."
    )
    yield f"![Curves: the cost of each while their number grows]({pictures[-1]})"
    curves = data["growth"]
    sizes = max((curve["sizes"] for curve in curves), key=len)
    rows = []
    for curve in curves:
        cells = [f"{cost:,.1f}" for cost in curve["costs"]]
        cells += [""] * (len(sizes) - len(cells))
        rows.append((f"{curve['what']}, {curve['unit']}", *cells, f"{curve['exponent']:.2f}"))
    yield _table(("", *(f"{size:,}" for size in sizes), "exponent"), rows)


def _sharing(data: Data) -> Iterator[str]:
    if not data.get("sharing"):
        return
    yield "## Four processes that share through Redis"
    yield _table(("what", "measured", "goal"), sharing_rows(data["sharing"]))


def _interpreters(data: Data) -> Iterator[str]:
    found = data.get("interpreters")
    if not found:
        return
    yield "## Versions of Python, and event loops"
    yield "Each sample is a separate process, in turns; lower quartile of µs above the bare call."
    rows = [
        (
            name,
            stack,
            *(f"{cases[case][stack]['low']:.2f}" for case in ("happy", "refused", "failing")),
            f"{cases['throughput'][stack]['median']:,.0f}",
        )
        for name, cases in found.items()
        for stack in cases["happy"]
        if stack != BARE
    ]
    yield _table(
        ("Python, loop", "stack", "succeeds", "refused", "raises", "calls/s at once"), rows
    )


def _ingests(data: Data) -> Iterator[str]:
    took = data.get("ingests")
    if not took:
        return
    yield "## A real LightRAG"
    fastest = {name: min(seconds) for name, seconds in took.items()}
    yield (
        "Twenty documents, ingested by a real LightRAG from a provider that answers after 20 ms, "
        f"with no fault: the fastest of {len(took['bare'])} took {fastest['bare']:.3f} s bare and "
        f"{fastest['protected']:.3f} s protected, "
        f"{fastest['protected'] / fastest['bare'] - 1:+.1%}."
    )


def _cluster(data: Data) -> Iterator[str]:
    figures = data.get("cluster")
    if not figures:
        return
    costs = {name: seconds * 1e6 for name, seconds in figures["costs"].items()}
    idle = costs["poll"] + costs["heartbeat"] / 3
    busy = idle + BATCHES * costs["report"]
    yield "## A large cluster"
    yield (
        "Real synchronizers, several in each of four processes, with a real server. All share two "
        "cores, so most of a trip's time passes while all workers wake at the same moment."
    )
    yield _table(tables.MEASURED, tables.measured_rows(figures))
    yield tables.costs_in_words(figures)
    yield (
        "A worker polls each breaker once a second, with a jitter of a fifth, sends a heartbeat "
        "with every third poll, and reports at most ten times a second for each breaker that has "
        "calls. With one breaker that is\n\n"
        "```text\n"
        f"idle      1 x {costs['poll']:.1f} + 1/3 x {costs['heartbeat']:.1f}"
        f"             = {idle:6.0f} µs a second    2 commands\n"
        f"calling   {idle:.0f} + {BATCHES:.0f} x {costs['report']:.1f}"
        f"                    = {busy:6.0f} µs a second   12 commands\n"
        f"a trip    {costs['report']:.0f} + workers x {costs['delivery']:.1f}"
        f"               = {(costs['report'] + 10_000 * costs['delivery']) / 1e3:6.1f} ms for "
        "10,000 workers\n"
        "```\n\n"
        f"of one core of the server. With {FULL:.0%} of that core one Redis serves:"
    )
    yield _table(
        ("shared breakers", "workers, idle", "workers, all calling all of them"),
        (
            (str(one["breakers"]), f"{one['idle']:,}", f"{one['busy']:,}")
            for one in figures["capacity"]
        ),
    )
    yield "A simulation of single events: one breaker, one Redis, one trip:"
    yield _table(tables.SIMULATED, tables.simulated_rows(figures))
    last = figures["simulated"][-1]
    yield (
        f"Ten thousand workers that all call need {last['load']:.1f} cores for one breaker. Redis "
        "Cluster spreads breakers, not workers: both keys of a breaker have its name in braces, so "
        "they are in one slot, on one node, and its scripts stay atomic. N nodes serve N times as "
        "many breakers; one breaker has the core of its node and no more, and the message of a "
        "trip goes to every node, each of which sends it to the workers that subscribed there. "
        "Workers do not yet report less often where there are many, so at most "
        f"{figures['capacity'][0]['busy']:,} workers can call one breaker on such a core: give "
        "parts of a larger fleet separate prefixes (`RESILIENCE_REDIS_PREFIX`) or separate names. "
        "Where Redis cannot keep up, no call waits: a worker without an answer for 1 s decides "
        "locally."
    )


def _soak(data: Data) -> Iterator[str]:
    soak = data.get("soak")
    if not soak:
        return
    yield "## A soak"
    yield (
        f"{soak['minutes']:g} minutes of calls of every kind ({soak['calls']:,} in all: good, "
        "failing, retried, refused, cancelled, streamed, cut off, queued) with Redis and "
        f"Prometheus: after a first quarter to warm up, traced memory went from "
        f"{soak['traced'][0] / 1e6:.2f} to {soak['traced'][1] / 1e6:.2f} MB and the process from "
        f"{soak['rss'][0] / 1e6:.1f} to {soak['rss'][1] / 1e6:.1f} MB."
    )


def _tail(data: Data) -> Iterator[str]:
    versions = ", ".join(f"{name} {one}" for name, one in data["machine"]["versions"].items())
    yield "## How it was measured"
    yield (
        "Each round runs all stacks in a new order, in one process, without garbage collection "
        "during a sample; the cost of the bare call in the same round is subtracted. `python -m "
        "benchmarks.page` writes this page from [the figures](performance.json), and a test "
        "compares them. Measured with " + versions + "."
    )


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
