"""The one place that talks to Redis: a thread with an event loop and a client of its own.

It sends what breakers report, listens for what the cluster decides, and looks at the breakers once
a second, since messages can be lost without a sign.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
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

_BATCH = 0.1  # seconds for which outcomes that are not urgent are gathered
_GAP = 0.002  # seconds between two batches: a trip right after one waits for it
_LOOK = 1.0  # seconds between two looks, give or take a fifth
_LOOK_AGAIN = 0.25  # seconds, while Redis is away
_AT_A_LOOK = 256  # breakers
_SHOWN = 10.0  # seconds for which a worker is seen without showing itself again
_SHOW_EVERY = 3  # looks
_RENEWALS_A_LEASE = 3
_UNUSED = 1.0  # seconds after which a probe's place that nobody took is given back
_FAREWELL = 0.5  # seconds for the last reports, and as many to close connections
_LONGEST_END = 5.0  # seconds for which another thread waits for the end of this one
_REPLACED = "What stood in Redis for %s %r was not ours and is replaced"
_FAILURES = (RedisError, OSError, WireError, TimeoutError)


class SyncThread:
    """What runs in the thread. Its methods run on its loop, but for `start` and `stop`.

    Args:
        url: Where Redis is.
        prefix: Of its keys and channels.
        members: What it serves.
        link: Where others see whether Redis is there.
    """

    def __init__(
        self, url: str, prefix: str, members: SharedObjects, link: ConnectionStatus
    ) -> None:
        self.loop = asyncio.new_event_loop()
        self._url = url
        self._prefix = prefix
        self._breakers = members.breakers
        self._limits = members.limits
        self._overrides = members.overrides
        self._link = link
        self._name = uuid.uuid4().hex[:16]
        self._tokens = itertools.count(1)
        self._waiting: dict[SharedBreaker, None] = {}
        self._unused: dict[str, SharedBreaker] = {}
        self._sending: set[SharedBreaker] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._cooling: dict[str, float] = {}
        self._publishing: set[str] = set()
        self._forcing = asyncio.Lock()
        self._forced: Counter[SharedBreaker] = Counter()
        self._subscribing = asyncio.Lock()
        self._something = asyncio.Event()
        self._urgent = asyncio.Event()
        self._poll_now = asyncio.Event()
        self._is_deaf = False
        self._malformed: set[str] = set()
        self._pubsub: Any = None
        self._stopped = asyncio.Event()
        self._thread = threading.Thread(
            target=self._serve, name="lightrag-resilience-redis", daemon=True
        )

    def start(self) -> None:
        """Begin; from any thread.

        Raises:
            RuntimeError: The system has no thread for it.
        """
        try:
            self._thread.start()
        except RuntimeError:
            self.loop.close()
            raise

    @property
    def is_alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Send what is due, and end; from another thread."""
        with contextlib.suppress(RuntimeError):  # it ended by itself
            self.loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(_LONGEST_END)

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        work = self.loop.create_task(self._work())
        try:
            while not work.done():
                try:
                    self.loop.run_until_complete(work)
                except BaseException as error:  # noqa: BLE001 - a SystemExit stops any loop
                    self._note(error)
        finally:
            self._link.is_up = False
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()

    async def _work(self) -> None:
        self._client = make_client(self._url)
        self._store = ScriptRunner(self._client, self._name)
        parts = [
            self.loop.create_task(self._loop_once(part))
            for part in (self._send_reports, self._poll, self._listen)
        ]
        stop = self.loop.create_task(self._stopped.wait())
        await asyncio.wait([stop, *parts], return_when=asyncio.FIRST_COMPLETED)
        self._stopped.set()
        with contextlib.suppress(Exception):
            await within(_FAREWELL, self._flush())
        await cancel_until_done([stop, *parts, *self._tasks])
        with contextlib.suppress(Exception):
            await within(_FAREWELL, self._client.aclose())

    async def _loop_once(self, part: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a part again and again: whatever ends it, only `stop` ends the sharing."""
        pause = 0.0
        while True:
            try:
                await asyncio.sleep(pause)
                await part()
            except BaseException as error:
                if self._stopped.is_set():
                    raise
                self._note(error)
            pause = _LOOK_AGAIN

    async def _flush(self) -> None:
        await asyncio.gather(*self._tasks, *map(self._send, self._breakers.values()))
        for token in list(self._unused):
            self._return_unused_probes(token)
        await asyncio.gather(*self._tasks)

    # ------------------------------------------------------------------ what breakers want

    def add(self, breaker: SharedBreaker) -> None:
        """A breaker is new."""
        if self._pubsub is not None:
            self._spawn(self._subscribe([breaker]))
        self._poll_now.set()

    def schedule_report(self, breaker: SharedBreaker, when: FlushPriority) -> None:
        """A breaker has something to report."""
        if when is FlushPriority.NOW:
            self._spawn(self._send(breaker))
            return
        self._waiting[breaker] = None
        self._something.set()
        if when is FlushPriority.NEXT:
            self._urgent.set()

    def request_probe(self, breaker: SharedBreaker, answered: Callable[[], None]) -> None:
        """A probe's place is wanted."""
        self._spawn(self._request_probe(breaker)).add_done_callback(lambda _: answered())

    def return_probe(self, breaker: SharedBreaker, token: str) -> None:
        """A probe's place is not wanted any more."""
        self._spawn(self._store.release_probe(breaker.subject, token))

    def force_state(
        self, breaker: SharedBreaker, state: State, reason: str, open_for: float
    ) -> None:
        """A breaker was changed by hand."""
        self._forced[breaker] += 1
        task = self._spawn(self._force_state(breaker, state, reason, open_for))
        task.add_done_callback(lambda _: self._forced.subtract([breaker]))

    def reserve(self, limit: SharedRateLimiter) -> None:
        """Callers wait for turns."""
        self._spawn(self._reserve(limit))

    def cool_down(self, name: str, seconds: float) -> None:
        """A provider asked to wait. What cannot be told now is kept for the return of Redis."""
        self._cooling[name] = max(self._cooling.get(name, 0.0), self.loop.time() + seconds)
        self._publish_cooldown(name)

    def _publish_cooldown(self, name: str) -> None:
        if (
            self._link.is_up and name not in self._publishing
        ):  # one message a breaker, not one a 429
            self._publishing.add(name)
            telling = self._spawn(self._publish(name))
            telling.add_done_callback(lambda _: self._publishing.discard(name))

    async def _publish(self, name: str) -> None:
        told = 0.0

        def what_is_left() -> CooldownMessage:
            nonlocal told
            told = self._cooling[name]
            return CooldownMessage(max(told - self.loop.time(), 0.0))

        while self._cooling[name] > max(told, self.loop.time()):
            await self._store.publish(Keys(self._prefix, name).channel, what_is_left)
        del self._cooling[name]

    async def _reserve(self, limit: SharedRateLimiter) -> None:
        while (demand := limit.next_request()) is not None:
            try:
                booking = await self._store.reserve(limit, demand)
            except BaseException:
                limit.on_reservation_lost(demand)
                raise
            if booking.found == "corrupt":
                _log.error(_REPLACED, "limit", limit.name)
            limit.on_reserved(demand, booking)

    async def _request_probe(self, breaker: SharedBreaker) -> None:
        token = f"{self._name}:{next(self._tokens)}"
        reply = await self._store.acquire_probe(breaker.subject, token)
        granted = reply.extra >= 0
        breaker.on_probe_answer(reply.now, token, reply.extra / 1000.0 if granted else None)
        if granted:
            self._unused[token] = breaker
            self.loop.call_later(_UNUSED, self._return_unused_probes, token)
            every = reply.extra / 1000.0 / _RENEWALS_A_LEASE
            self._renew_later(breaker, token, every, RENEWALS * _RENEWALS_A_LEASE)

    def _renew_later(self, breaker: SharedBreaker, token: str, every: float, times: int) -> None:
        """Keep a probe's place while its call goes on; that of a process that died lapses."""

        def renew() -> None:
            if breaker.keeps(token):
                self._spawn(self._store.renew_probe(breaker.subject, token))
                self._renew_later(breaker, token, every, times - 1)

        if times > 0:
            self.loop.call_later(every, renew)

    def _return_unused_probes(self, token: str) -> None:
        breaker = self._unused.pop(token, None)
        if breaker is not None and breaker.give_up_unused(token):
            self.return_probe(breaker, token)

    async def _force_state(
        self, breaker: SharedBreaker, state: State, reason: str, open_for: float
    ) -> None:
        async with self._forcing:  # one by one, in their order
            reply = await self._store.force_state(breaker.subject, state, reason, open_for=open_for)
        breaker.apply_remote_state(reply.now)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[None]:
        task = self.loop.create_task(self._quietly(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _quietly(self, work: Coroutine[Any, Any, Any]) -> None:
        try:
            await work
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - no other part of the sharing shall suffer
            self._note(error)

    # ------------------------------------------------------------------ reports

    async def _send_reports(self) -> None:
        for breaker in list(self._breakers.values()):  # what an earlier thread left unsent
            self.schedule_report(breaker, FlushPriority.SOON)
        while True:
            await self._something.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_BATCH):
                    await self._urgent.wait()
            self._something.clear()
            self._urgent.clear()
            waiting, self._waiting = self._waiting, {}
            await asyncio.gather(*map(self._send, waiting))
            await asyncio.sleep(_GAP)

    async def _send(self, breaker: SharedBreaker) -> None:
        if breaker in self._sending:  # reports of one breaker must arrive in their order
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
            reply = await self._store.report(breaker.subject, report)
        except BaseException as error:
            breaker.on_report_lost(report)
            if not isinstance(error, Exception):
                raise
            self._note(error)
        else:
            self._check(breaker, reply)
            breaker.apply_remote_state(reply.now, answers=report)
        finally:
            self._sending.discard(breaker)

    # ------------------------------------------------------------------ looks

    async def _poll(self) -> None:
        """Look at the breakers in turns, once a second; find out whether Redis is there again."""
        turns: Iterator[list[SharedBreaker]] = iter(())
        for count in itertools.count():
            self._poll_now.clear()
            try:
                if self._link.is_up:
                    if (turn := next(turns, None)) is None:
                        turns = self._turns()
                        turn = next(turns, [])
                    await self._poll_breaker(turn)
                    if count % _SHOW_EVERY == 0:
                        await self._heartbeat()
                    self._link.tick()
                else:
                    await self._reconnect()
            except _FAILURES as error:
                self._lost(error)
            self._link.round_trip = self._store.round_trip
            pause = _LOOK * random.uniform(0.8, 1.2) if self._link.is_up else _LOOK_AGAIN  # noqa: S311
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._poll_now.wait()

    def _turns(self) -> Iterator[list[SharedBreaker]]:
        breakers = list(self._breakers.values())
        return (breakers[at : at + _AT_A_LOOK] for at in range(0, len(breakers), _AT_A_LOOK))

    async def _poll_breaker(self, breakers: list[SharedBreaker], *, joining: bool = False) -> None:
        replies = await self._store.read_states([breaker.subject for breaker in breakers])
        for breaker, reply in zip(breakers, replies, strict=True):
            self._check(breaker, reply)
            await self._compare(breaker, reply, joining=joining)

    async def _compare(self, breaker: SharedBreaker, reply: Reply, *, joining: bool) -> None:
        """Take over what the cluster decided; let it have what it lost or could not hear."""
        subject = breaker.subject
        is_news = reply.found == "held"
        if joining and subject.version == reply.now.version:
            is_news = False
        if self._forced[breaker] > 0:
            return  # what is there is no longer so
        if not is_news and (held := breaker.open_state_to_restore()) is not None:
            reply = await self._store.restore(subject, held.left, held.opens, held.reason)
        if reply.now.version or reply.found == "held":
            breaker.apply_remote_state(reply.now, rejoined=joining)

    async def _heartbeat(self) -> None:
        alone = [breaker.name for breaker in list(self._breakers.values()) if breaker.is_diverged]
        presence = Presence(socket.gethostname(), os.getpid(), tuple(alone))
        await self._store.heartbeat(self._prefix, presence, _SHOWN)
        with contextlib.suppress(ClusterError):  # breakers may be on nodes that are there
            self._link.workers = await self._store.count_workers(self._prefix, _SHOWN)
            await self._overrides.poll(self._store)

    # ------------------------------------------------------------------ announcements

    async def _listen(self) -> None:
        """Hear what the cluster announces, until Redis is lost: a dead connection says nothing."""
        self._is_deaf = False
        if not self._breakers:  # there is no subscribing to nothing
            return
        async with subscriptions(self._client) as pubsub:
            self._pubsub = pubsub
            try:
                await self._subscribe(list(self._breakers.values()))
                self._poll_now.set()
                while not self._is_deaf:
                    await self._receive(pubsub)
            finally:
                self._pubsub = None

    async def _subscribe(self, breakers: list[SharedBreaker]) -> None:
        async with self._subscribing:  # one by one: each that comes too early would connect anew
            if (pubsub := self._pubsub) is not None:
                with lost_connections():
                    await pubsub.subscribe(*(breaker.subject.channel for breaker in breakers))

    async def _receive(self, pubsub: Any) -> None:
        with lost_connections():
            message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=_LOOK)
        if message is None:
            return
        name = Keys.name_in_channel(message["channel"], self._prefix)
        breaker = self._breakers.get(name)
        if breaker is None:
            return
        try:
            if (cooling := CooldownMessage.parse(message["data"])) is not None:
                if (limit := self._limits.get(name)) is not None:
                    limit.receive_cooldown(cooling.seconds)
            else:
                breaker.apply_remote_state(Announcement.parse(message["data"]), announced=True)
        except WireError as error:
            if name not in self._malformed:
                text = "A message in Redis about breaker %r is ignored, and others like it: %s"
                _log.error(text, breaker.name, error)
            self._malformed.add(name)

    # ------------------------------------------------------------------ whether Redis is there

    async def _reconnect(self) -> None:
        await self._heartbeat()
        for turn in self._turns():
            await self._poll_breaker(turn, joining=True)
        for limit in list(self._limits.values()):
            limit.on_redis_back()
        self._link.mark_up()
        for name in self._cooling:
            self._publish_cooldown(name)
        self._poll_now.set()

    def _lost(self, error: BaseException) -> bool:
        self._is_deaf = True
        return self._link.mark_down(error)

    def _note(self, error: BaseException) -> None:
        if self._lost(error) and not isinstance(error, _FAILURES):
            _log.error("Sharing through Redis failed; it begins again", exc_info=error)

    def _check(self, breaker: SharedBreaker, reply: Reply) -> None:
        if reply.found == "corrupt":
            _log.error(_REPLACED, "breaker", breaker.name)
