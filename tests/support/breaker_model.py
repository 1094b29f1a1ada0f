"""What the Lua scripts decide, once more and plainly: the reference that they must agree with."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from lightrag_resilience import BreakerPolicy
from lightrag_resilience.circuit.evidence import Evidence

SLICES = 10


def policy_of(*, probes: int = 1, quorum: int = 1) -> BreakerPolicy:
    return BreakerPolicy(
        min_calls=4,
        failure_rate=0.5,
        window_seconds=10.0,
        open_for=4.0,
        open_growth=2.0,
        open_max=12.0,
        probes=probes,
        quorum=quorum,
    )


@dataclass
class Held:
    st: str = "C"
    ver: int = 0
    till: int = 0
    opens: int = 0
    proven: int = 0


@dataclass
class Model:
    """One breaker in Redis. Times are whole milliseconds."""

    policy: BreakerPolicy
    held: Held | None = None
    outcomes: list[tuple[int, int, int, int, str]] = field(default_factory=list)
    leases: dict[str, int] = field(default_factory=dict)
    batches: dict[str, int] = field(default_factory=dict)
    evidence: Evidence = field(default_factory=Evidence)

    def _slice(self, now: int) -> int:
        return math.floor(now / (round(self.policy.window_seconds * 1000) / SLICES))

    def _enter(self, st: str, till: int, *, known: int, now: int) -> None:
        assert self.held is not None
        held = self.held
        held.ver = max(held.ver + 1, known + 1, now)
        held.st, held.till, held.proven = st, till, 0
        if st == "C":
            held.opens = 0
        self.outcomes, self.leases, self.batches = [], {}, {}
        self.evidence.end_run()

    def _open(self, *, known: int, now: int) -> None:
        assert self.held is not None
        self.held.opens += 1
        length = self.policy.breaks().length(self.held.opens) * 1000
        self._enter("O", now + math.floor(length), known=known, now=now)

    def _current(self, *, known: int, now: int) -> tuple[Held, bool]:
        """The state to go on with, and whether it is the newest that anybody knew."""
        is_held = self.held is not None and known <= self.held.ver
        self.held = self.held or Held()
        if not is_held:
            self.held.ver = max(known + 1, now) if known > 0 else 0
        return self.held, is_held

    def _drop_lapsed(self, now: int) -> None:
        self.leases = {token: till for token, till in self.leases.items() if till > now}

    def forget(self) -> None:
        """Redis lost everything."""
        self.held = None
        self.outcomes, self.leases, self.batches = [], {}, {}
        self.evidence = Evidence()

    def report(  # noqa: PLR0913 - what the script takes
        self,
        worker: str,
        *,
        known: int,
        now: int,
        batch: int,
        counts: tuple[int, int, int],
        tripped: bool,
        verdicts: dict[str, str],
        left: int = 0,
        opens: int = 0,
    ) -> None:
        held, is_held = self._current(known=known, now=now)
        is_newest = not is_held or known == held.ver
        is_current = is_newest or known == 0
        calls, failed, slow = counts
        if left > 0 and is_newest and held.st != "O":
            held.opens = opens
            self._enter("O", now + left, known=known, now=now)
        elif not is_held and verdicts and held.st != "O":
            if set(verdicts.values()) == {"ok"}:
                self._enter("C", 0, known=known, now=now)
            else:
                bad = next(verdict for verdict in verdicts.values() if verdict != "ok")
                self._conclude(bad, known=known, now=now)
        elif held.st == "H":
            self._judge_probes(verdicts, known=known, now=now)
        elif held.st == "C" and is_current and (calls or tripped):
            if batch <= self.batches.get(worker, -1):
                return
            self.batches[worker] = batch
            self.outcomes.append((self._slice(now), calls, failed, slow, worker))
            self._judge(tripped=tripped, known=known, now=now)

    def _judge(self, *, tripped: bool, known: int, now: int) -> None:
        policy, oldest = self.policy, self._slice(now) - SLICES
        is_down = policy.decides_by_evidence and self._weigh(*self.outcomes[-1][1:3], now / 1000)
        if tripped and policy.quorum <= 1:
            self._open(known=known, now=now)
            return
        recent = [outcome for outcome in self.outcomes if outcome[0] > oldest]
        calls = sum(outcome[1] for outcome in recent)
        failed = sum(outcome[2] for outcome in recent)
        slow = sum(outcome[3] for outcome in recent)
        witnesses = {outcome[4] for outcome in recent if outcome[2] or outcome[3]}
        if len(witnesses) < policy.quorum:
            return
        is_bad = policy.failure_rate is not None and failed / calls >= policy.failure_rate
        is_bad = calls >= policy.min_calls and (is_bad or slow / calls >= policy.slow_rate)
        if is_down or is_bad:
            self._open(known=known, now=now)

    def weighed(self, now: int) -> list[int]:
        it = Evidence() if self.evidence.is_stale(now / 1000) else self.evidence
        return [it.calls, it.failed, it.run, it.successes]

    def _weigh(self, calls: int, failed: int, now: float) -> bool:
        """Whether the run of failures, of all workers together, shows that it is down."""
        if self.evidence.is_stale(now):
            self.evidence = Evidence()
        evidence = self.evidence
        if failed:
            evidence.failed_at = now
        if failed == calls:
            for _ in range(failed):
                evidence.on_failure()
        elif evidence.calls or evidence.run or failed:
            before = evidence.successes
            evidence.end_run(calls, failed)
            evidence.successes = 0 if failed else before + calls
            if evidence.is_over:
                self.evidence = Evidence()
        return self.evidence.shows_down

    def _judge_probes(self, verdicts: dict[str, str], *, known: int, now: int) -> None:
        assert self.held is not None
        self._drop_lapsed(now)
        for token, verdict in verdicts.items():
            if self.leases.pop(token, None) is None or self.held.st != "H":
                continue
            self._conclude(verdict, known=known, now=now)

    def _conclude(self, verdict: str, *, known: int, now: int) -> None:
        assert self.held is not None
        if verdict.startswith("met "):
            pause = min(int(verdict.split(" ")[1]), round(self.policy.breaks().longest * 1000))
            self._enter("O", now + pause, known=known, now=now)
        elif verdict != "ok":
            self._open(known=known, now=now)
        else:
            self.held.proven += 1
            if self.held.proven >= self.policy.probes:
                self._enter("C", 0, known=known, now=now)

    def admit(self, token: str, *, known: int, now: int) -> int:
        """-2 closed, -1 refused, else the lease."""
        held, is_held = self._current(known=known, now=now)
        if held.st == "C" and is_held:
            return -2
        if held.st == "O" and held.till > now:
            return -1
        if held.st != "H":
            self._enter("H", 0, known=known, now=now)
        self._drop_lapsed(now)
        if len(self.leases) + held.proven >= self.policy.probes:
            return -1
        lease = round(self.policy.lease * 1000)
        self.leases[token] = now + lease
        return lease

    def release(self, token: str) -> None:
        self.leases.pop(token, None)

    def force(self, st: str, *, open_for: int, known: int, now: int) -> None:
        held, _ = self._current(known=known, now=now)
        if st == "O":
            held.opens += held.st != "O"
            self._enter("O", now + open_for, known=known, now=now)
        else:
            self._enter(st, 0, known=known, now=now)
        if st == "C":
            self.evidence = Evidence()

    def shown(self, now: int) -> tuple[str, int, int, int]:
        """State, version, milliseconds left, breaks in a row; as a snapshot shows them."""
        if self.held is None:
            return "C", 0, 0, 0
        held = self.held
        return held.st, held.ver, max(held.till - now, 0), held.opens
