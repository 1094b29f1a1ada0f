"""The thread that shares breakers and limits, with an event loop and a Redis client of its own.

It sends reports, receives published changes of state, and polls all states once a second, as
messages can be lost without an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import os
import random
import socket
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from redis.exceptions import ClusterError, RedisError

from lightrag_resilience.circuit.state_machine import State
from lightrag_resilience.config.policies import RENEWALS
from lightrag_resilience.redis_client.client import lost_connections, make_client, subscriptions
from lightrag_resilience.runtime.tasks import cancel_until_done, within

from .connection_status import ConnectionStatus, SharedObjects
from .messages import Announcement, CooldownMessage, Keys, Presence, Reply, WireError
from .script_runner import ScriptRunner
from .shared_breaker import FlushPriority, SharedBreaker
from .shared_rate_limiter import SharedRateLimiter

__all__ = ["SyncThread"]

_log = logging.getLogger("lightrag_resilience")

_BATCH = 0.1  # seconds between reports of successes
_GAP = 0.002  # seconds between two batches: bounds the rate of urgent reports
_POLL_EVERY = 1.0  # seconds, with a jitter of a fifth
_RETRY_EVERY = 0.25  # seconds, while Redis is unavailable or after a task failed
_BREAKERS_A_POLL = 256
_PRESENCE_TTL = 10.0  # seconds after its last heartbeat that a worker is listed
_POLLS_A_HEARTBEAT = 3
_RENEWALS_A_LEASE = 3
_SHORTEST_LEASE = 0.01  # seconds by which its renewals are timed
_UNUSED_AFTER = 1.0  # seconds after which a probe's permit that no call used is released
_FLUSH_TIMEOUT = 0.5  # seconds for the last reports, and as many to close the connections
_STOP_TIMEOUT = 5.0  # seconds that `stop` waits for the thread
_CORRUPT = "Malformed data in Redis for %s %r is replaced"
_REDIS_FAILURES = (RedisError, OSError, WireError, TimeoutError)


class SyncThread:
    """The thread. All methods but `start` and `stop` must be called on its loop.

    Args:
        url: Of Redis.
        prefix: Of keys and channels.
        shared: The objects to share.
        link: Gets the state of the connection, for other threads.
    """

    def __init__(
        self, url: str, prefix: str, shared: SharedObjects, link: ConnectionStatus
    ) -> None:
        self.loop = asyncio.new_event_loop()
        self._url = url
        self._prefix = prefix
        self._breakers = shared.breakers
        self._limits = shared.limits
        self._overrides = shared.overrides
        self._link = link
        self._worker_id = uuid.uuid4().hex[:16]
        self._tokens = itertools.count(1)
        self._to_report: dict[SharedBreaker, None] = {}  # in order, each once
        self._unused_probes: dict[str, SharedBreaker] = {}  # by token
        self._sending: set[SharedBreaker] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._cooldowns: dict[str, float] = {}  # not yet published; ends, by this loop's clock
        self._publishing: set[str] = set()
        self._forcing = asyncio.Lock()
        self._forced: Counter[SharedBreaker] = Counter()  # forced states on their way to Redis
        self._subscribing = asyncio.Lock()
        self._has_reports = asyncio.Event()
        self._urgent = asyncio.Event()
        self._poll_now = asyncio.Event()
        self._must_resubscribe = False
        self._malformed: set[str] = set()
        self._pubsub: Any = None
        self._stopped = asyncio.Event()
        self._thread = threading.Thread(
            target=self._serve, name="lightrag-resilience-redis", daemon=True
        )

    def start(self) -> None:
        """Start the thread; from any thread.

        Raises:
            RuntimeError: The system cannot start a thread.
        """
        try:
            self._thread.start()
        except RuntimeError:
            self.loop.close()
            raise

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Send what is due and end the thread; from another thread."""
        with contextlib.suppress(RuntimeError):  # the thread has ended by itself
            self.loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(_STOP_TIMEOUT)

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        work = self.loop.create_task(self._work())
        try:
            # SystemExit or KeyboardInterrupt in any task stops the loop: run it again.
            while not work.done():
                try:
                    self.loop.run_until_complete(work)
                except BaseException as error:  # noqa: BLE001 - see above
                    self._on_error(error)
        finally:
            self._link.is_up = False
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()

    async def _work(self) -> None:
        self._client = make_client(self._url)
        self._runner = ScriptRunner(self._client, self._worker_id)
        tasks = [
            self.loop.create_task(self._run_forever(part))
            for part in (self._send_reports, self._poll, self._receive_messages)
        ]
        stop = self.loop.create_task(self._stopped.wait())
        await asyncio.wait([stop, *tasks], return_when=asyncio.FIRST_COMPLETED)
        self._stopped.set()
        with contextlib.suppress(Exception):
            await within(_FLUSH_TIMEOUT, self._flush())
        await cancel_until_done([stop, *tasks, *self._tasks])
        with contextlib.suppress(Exception):
            await within(_FLUSH_TIMEOUT, self._client.aclose())

    async def _run_forever(self, part: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a part again whenever it ends or fails; only `stop` ends the sharing."""
        pause = 0.0
        while True:
            try:
                await asyncio.sleep(pause)
                await part()
            except BaseException as error:
                if self._stopped.is_set():
                    raise
                self._on_error(error)
            pause = _RETRY_EVERY

    async def _flush(self) -> None:
        await asyncio.gather(*self._tasks, *map(self._send, self._breakers.values()))
        for token in list(self._unused_probes):
            self._return_unused_probes(token)
        await asyncio.gather(*self._tasks)

    # ------------------------------------------------------------------ requests

    def add(self, breaker: SharedBreaker) -> None:
        """Share a new breaker."""
        if self._pubsub is not None:
            self._spawn(self._subscribe([breaker]))
        self._poll_now.set()

    def schedule_report(self, breaker: SharedBreaker, when: FlushPriority) -> None:
        """Send a breaker's report, as soon as `when` says."""
        if when is FlushPriority.IMMEDIATE:
            self._spawn(self._send(breaker))
            return
        self._to_report[breaker] = None
        self._has_reports.set()
        if when is FlushPriority.NEXT:
            self._urgent.set()

    def request_probe(
        self, breaker: SharedBreaker, lease: float, answered: Callable[[], None]
    ) -> None:
        """Request a probe's permit; `answered` is called when the breaker has the answer."""
        task = self._spawn(self._request_probe(breaker, lease))
        task.add_done_callback(lambda _: answered())

    def return_probe(self, breaker: SharedBreaker, token: str) -> None:
        """Release a probe's permit."""
        self._spawn(self._runner.release_probe(breaker.ref, token))

    def force_state(
        self, breaker: SharedBreaker, state: State, reason: str, open_for: float
    ) -> None:
        """Force the state of a breaker in all workers."""
        self._forced[breaker] += 1
        task = self._spawn(self._force_state(breaker, state, reason, open_for))
        task.add_done_callback(lambda _: self._forced.subtract([breaker]))

    def reserve(self, limit: SharedRateLimiter) -> None:
        """Reserve turns for the waiting callers."""
        self._spawn(self._reserve(limit))

    def cool_down(self, name: str, seconds: float) -> None:
        """Publish a cool-down; in an outage, when Redis is available again."""
        self._cooldowns[name] = max(self._cooldowns.get(name, 0.0), self.loop.time() + seconds)
        self._publish_cooldown(name)

    def _publish_cooldown(self, name: str) -> None:
        # One message at a time for each breaker, not one for each 429.
        if self._link.is_up and name not in self._publishing:
            self._publishing.add(name)
            task = self._spawn(self._publish(name))
            task.add_done_callback(lambda _: self._publishing.discard(name))

    async def _publish(self, name: str) -> None:
        published = 0.0

        def remaining() -> CooldownMessage:
            nonlocal published
            published = self._cooldowns[name]
            return CooldownMessage(max(published - self.loop.time(), 0.0))

        # A longer cool-down may come while a message is on its way.
        while self._cooldowns[name] > max(published, self.loop.time()):
            await self._runner.publish(Keys(self._prefix, name).channel, remaining)
        del self._cooldowns[name]

    async def _reserve(self, limit: SharedRateLimiter) -> None:
        while (request := limit.next_request()) is not None:
            try:
                reservation = await self._runner.reserve(limit, request)
            except BaseException:
                limit.on_reservation_lost(request)
                raise
            if reservation.found == "corrupt":
                _log.error(_CORRUPT, "limit", limit.name)
            limit.on_reserved(request, reservation)

    async def _request_probe(self, breaker: SharedBreaker, lease: float) -> None:
        token = f"{self._worker_id}:{next(self._tokens)}"
        reply = await self._runner.acquire_probe(breaker.ref, token, lease)
        granted = reply.extra >= 0
        breaker.on_probe_answer(reply.now, token, reply.extra / 1000.0 if granted else None)
        if granted:
            self._unused_probes[token] = breaker
            self.loop.call_later(_UNUSED_AFTER, self._return_unused_probes, token)
            lease = max(reply.extra / 1000.0, _SHORTEST_LEASE)
            longest = RENEWALS * breaker.circuit.policy.lease
            self._renew_later(breaker, token, lease, math.ceil(longest * _RENEWALS_A_LEASE / lease))

    def _renew_later(self, breaker: SharedBreaker, token: str, lease: float, times: int) -> None:
        """Renew a probe's lease while its call runs; the lease of a process that died just ends."""

        def renew() -> None:
            if breaker.holds_probe(token):
                self._spawn(self._runner.renew_probe(breaker.ref, token, lease))
                self._renew_later(breaker, token, lease, times - 1)

        if times > 0:
            self.loop.call_later(lease / _RENEWALS_A_LEASE, renew)

    def _return_unused_probes(self, token: str) -> None:
        breaker = self._unused_probes.pop(token, None)
        if breaker is not None and breaker.abandon_unused_probe(token):
            self.return_probe(breaker, token)

    async def _force_state(
        self, breaker: SharedBreaker, state: State, reason: str, open_for: float
    ) -> None:
        async with self._forcing:  # one at a time, in the order of the calls
            reply = await self._runner.force_state(breaker.ref, state, reason, open_for=open_for)
        breaker.apply_remote_state(reply.now)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[None]:
        task = self.loop.create_task(self._log_errors(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _log_errors(self, work: Coroutine[Any, Any, Any]) -> None:
        try:
            await work
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - the other tasks go on
            self._on_error(error)

    # ------------------------------------------------------------------ reports

    async def _send_reports(self) -> None:
        for breaker in list(self._breakers.values()):  # a previous thread may have left reports
            self.schedule_report(breaker, FlushPriority.BATCHED)
        while True:
            await self._has_reports.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_BATCH):
                    await self._urgent.wait()
            self._has_reports.clear()
            self._urgent.clear()
            breakers, self._to_report = self._to_report, {}
            await asyncio.gather(*map(self._send, breakers))
            await asyncio.sleep(_GAP)

    async def _send(self, breaker: SharedBreaker) -> None:
        if breaker in self._sending:  # one at a time: batch numbers must arrive in order
            self.schedule_report(breaker, FlushPriority.NEXT)
            return
        report = breaker.take_report()
        if report is None:
            return
        if not self._link.is_up:
            breaker.on_report_lost(report)
            return
        self._sending.add(breaker)
        try:
            reply = await self._runner.report(breaker.ref, report)
        except BaseException as error:
            breaker.on_report_lost(report)
            if not isinstance(error, Exception):
                raise
            self._on_error(error)
        else:
            self._log_if_corrupt(breaker, reply)
            breaker.apply_remote_state(reply.now, answers=report)
        finally:
            self._sending.discard(breaker)

    # ------------------------------------------------------------------ polling

    async def _poll(self) -> None:
        """Poll a slice of the breakers once a second; in an outage, try to reconnect."""
        slices: Iterator[list[SharedBreaker]] = iter(())
        for count in itertools.count():
            self._poll_now.clear()
            try:
                if self._link.is_up:
                    if (breakers := next(slices, None)) is None:
                        slices = self._slices()
                        breakers = next(slices, [])
                    await self._poll_breakers(breakers)
                    if count % _POLLS_A_HEARTBEAT == 0:
                        await self._heartbeat()
                    self._link.tick()
                else:
                    await self._reconnect()
            except _REDIS_FAILURES as error:
                self._on_redis_lost(error)
            self._link.round_trip = self._runner.round_trip
            # Jitter, or the workers of one start would all poll in the same moment.
            pause = _POLL_EVERY * random.uniform(0.8, 1.2) if self._link.is_up else _RETRY_EVERY  # noqa: S311
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._poll_now.wait()

    def _slices(self) -> Iterator[list[SharedBreaker]]:
        breakers = list(self._breakers.values())
        return (
            breakers[at : at + _BREAKERS_A_POLL] for at in range(0, len(breakers), _BREAKERS_A_POLL)
        )

    async def _poll_breakers(self, breakers: list[SharedBreaker], *, joining: bool = False) -> None:
        replies = await self._runner.read_states([breaker.ref for breaker in breakers])
        for breaker, reply in zip(breakers, replies, strict=True):
            self._log_if_corrupt(breaker, reply)
            await self._reconcile(breaker, reply, joining=joining)

    async def _reconcile(self, breaker: SharedBreaker, reply: Reply, *, joining: bool) -> None:
        """Take over the cluster's state, or restore the open state that Redis lost or missed."""
        ref = breaker.ref
        # After an outage an unchanged state is older than what this worker decided meanwhile.
        is_unchanged = joining and ref.version == reply.now.version
        is_newer = reply.found == "held" and not is_unchanged
        if self._forced[breaker] > 0:
            return  # a forced state is on its way: this reply is out of date
        if not is_newer and (held := breaker.open_state_to_restore()) is not None:
            reply = await self._runner.restore(ref, held.left, held.opens, held.reason)
        if reply.now.version or reply.found == "held":
            breaker.apply_remote_state(reply.now, rejoined=joining)

    async def _heartbeat(self) -> None:
        diverged = [
            breaker.name for breaker in list(self._breakers.values()) if breaker.is_diverged
        ]
        presence = Presence(socket.gethostname(), os.getpid(), tuple(diverged))
        await self._runner.heartbeat(self._prefix, presence, _PRESENCE_TTL)
        with contextlib.suppress(ClusterError):  # in a cluster only this key's node may be down
            self._link.workers = await self._runner.count_workers(self._prefix, _PRESENCE_TTL)
            await self._overrides.poll(self._runner)

    # ------------------------------------------------------------------ messages

    async def _receive_messages(self) -> None:
        """Receive messages until Redis is lost: a dead subscription raises no error."""
        self._must_resubscribe = False
        if not self._breakers:  # SUBSCRIBE needs a channel
            return
        async with subscriptions(self._client) as pubsub:
            self._pubsub = pubsub
            try:
                await self._subscribe(list(self._breakers.values()))
                self._poll_now.set()  # for changes published before the subscription
                while not self._must_resubscribe:
                    await self._receive(pubsub)
            finally:
                self._pubsub = None

    async def _subscribe(self, breakers: list[SharedBreaker]) -> None:
        async with self._subscribing:  # one at a time: each would open a connection of its own
            if (pubsub := self._pubsub) is not None:
                with lost_connections():
                    await pubsub.subscribe(*(breaker.ref.channel for breaker in breakers))

    async def _receive(self, pubsub: Any) -> None:
        with lost_connections():
            message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=_POLL_EVERY)
        if message is None:  # a timeout, which lets `_must_resubscribe` be checked
            return
        name = Keys.name_in_channel(message["channel"], self._prefix)
        breaker = self._breakers.get(name)
        if breaker is None:
            return
        try:
            if (cooldown := CooldownMessage.parse(message["data"])) is not None:
                if (limit := self._limits.get(name)) is not None:
                    limit.receive_cooldown(cooldown.seconds)
            else:
                breaker.apply_remote_state(Announcement.parse(message["data"]), announced=True)
        except WireError as error:
            if name not in self._malformed:
                text = "Malformed messages in Redis about breaker %r are ignored: %s"
                _log.error(text, breaker.name, error)
            self._malformed.add(name)

    # ------------------------------------------------------------------ the connection

    async def _reconnect(self) -> None:
        # First a write: a replica or a full Redis answers reads, but cannot be used.
        await self._heartbeat()
        for breakers in self._slices():
            await self._poll_breakers(breakers, joining=True)
        for limit in list(self._limits.values()):
            limit.on_redis_back()
        self._link.mark_up()
        for name in self._cooldowns:
            self._publish_cooldown(name)
        self._poll_now.set()

    def _on_redis_lost(self, error: BaseException) -> bool:
        self._must_resubscribe = True
        return self._link.mark_down(error)

    def _on_error(self, error: BaseException) -> None:
        if self._on_redis_lost(error) and not isinstance(error, _REDIS_FAILURES):
            _log.error("Sharing through Redis failed; it starts again", exc_info=error)

    def _log_if_corrupt(self, breaker: SharedBreaker, reply: Reply) -> None:
        if reply.found == "corrupt":
            _log.error(_CORRUPT, "breaker", breaker.name)
