# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Delivery: conversations are taken one step at a time, each under a lease, by whichever ingress comes first.

A step looks at the head of a conversation, does what :func:`.decision.decide` says, and gives the lease back with the time of the next look. All that is
known between two steps is in Redis, so an ingress that dies costs the rest of its leases, and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import time

import aiohttp

from . import decision
from .primary import RedisAway

log = logging.getLogger("openclaw_ingress")

#: Seconds between two looks for conversations that another ingress has accepted something for.
_IDLE = 0.1
#: Conversations taken at once: others want some, too.
_AT_ONCE = 16
#: Seconds between two tries while Redis is away.
_AWAY = 0.5
#: Seconds until a conversation is looked at again for which no replica had room.
_FULL = 1.0
#: No bound.
_ANY = 2**31
#: Seconds in which steps end once their POST is called off.
_LAST = 3.0


class _Lost(Exception):
    """The lease is another one's now, or the event is gone."""


class Delivery:
    """The workers of this process; ``channels``: account's name -> :class:`.channels.Channel`."""

    def __init__(self, settings, channels, journal, replicas, session, metrics):
        self._settings, self._channels, self._journal = settings, channels, journal
        self._replicas, self._session, self._metrics = replicas, session, metrics
        self._limits = decision.Limits(
            max_age=settings["max_age_seconds"],
            max_attempts=settings["max_attempts"],
            quiet=settings["quiet_seconds"],
            gone=settings["gone_seconds"],
            poll=settings["poll_seconds"],
            pause=settings["pause_seconds"],
            pause_max=settings["pause_max_seconds"],
        )
        self._timeout = aiohttp.ClientTimeout(total=settings["post_timeout"])
        self._work, self._steps, self._posts = asyncio.Event(), set(), set()
        self._stopping = False

    def wake(self):
        """There is something to do now."""
        self._work.set()

    async def run(self):
        """Work until :meth:`stop`."""
        while not self._stopping:
            self._work.clear()
            wait = _IDLE
            free = self._settings["workers"] - len(self._steps)
            if free:
                try:
                    taken, due = await self._journal.take(min(free, _AT_ONCE))
                except RedisAway:
                    await asyncio.sleep(_AWAY)
                    continue
                except Exception:  # pylint: disable=broad-except
                    log.exception("What was taken cannot be read.")
                    await asyncio.sleep(_AWAY)
                    continue
                for one in taken:
                    step = asyncio.ensure_future(self._guarded(one))
                    self._steps.add(step)
                    step.add_done_callback(self._ended)
                wait = _IDLE if due is None else min(due, _IDLE)
            try:
                # Never without a pause: others on this loop have work too.
                await asyncio.wait_for(self._work.wait(), max(0.005, wait))
            except TimeoutError:
                pass

    def _ended(self, step):
        self._steps.discard(step)
        if len(self._steps) + 1 >= self._settings["workers"]:
            self.wake()

    async def stop(self):
        """Take nothing more; what is under way ends, or is called off after ``stop_seconds``. Leases are given back."""
        self._stopping = True
        self.wake()
        for seconds in (self._settings["stop_seconds"], _LAST):
            if self._steps:
                await asyncio.wait(set(self._steps), timeout=seconds)
            for post in self._posts:
                post.cancel()

    async def _guarded(self, taken):
        try:
            await self._step(taken)
        except _Lost:
            log.info("Somebody else goes on with a conversation, or its event was dropped.")
        except RedisAway:
            pass  # it is told where it is noticed; the lease ends by itself
        except Exception:  # pylint: disable=broad-except
            log.exception("A step of a delivery failed.")

    async def _step(self, taken):
        begun = time.monotonic()

        def now():
            return taken.now + time.monotonic() - begun

        plan = decision.decide(taken.batch, self._replicas.known, taken.now, self._limits)
        together = next((state.replica for action, state in plan if action == decision.WAIT and state.delivered is not None), "")
        changes, delays, blocked = [], [], False
        for event, meta, (action, state) in zip(taken.batch, taken.metas, plan):
            if action == decision.DELIVER and not blocked and not self._stopping:
                state, wait = await self._deliver(taken, event.id, meta, state, together, now)
                # A later one of the group must not overtake it, and its pause holds for all of them.
                blocked = state.delivered is None
                delays = [wait] if blocked else [*delays, wait]
                together = together or state.replica
            elif action == decision.WAIT and not blocked:
                delays.append(decision.look_again(state, now(), self._limits))
            verb = "dead" if action in decision.DEAD else "forget" if action in decision.FORGET else "keep" if state.held(now()) else "free"
            if verb != "keep" or state != event.state:
                changes.append((event.id, verb, state))
        delay = min(delays, default=0.0)
        ours, low = await self._journal.finish(taken, changes, delay)
        if not ours:
            raise _Lost
        self._tell(taken, plan)
        if low:
            log.warning("The journal has come down to its low-water mark.")
        if not delay:
            self.wake()

    def _tell(self, taken, plan):
        for event, meta, (action, state) in zip(taken.batch, taken.metas, plan):
            if action == decision.COMMITTED:
                self._metrics.committed.labels(meta.account).inc()
                self._metrics.seconds.labels(meta.account).observe(max(0.0, taken.now - event.at))
            elif action == decision.NO_TURN:
                self._metrics.no_turn.labels(meta.account).inc()
                log.info("Event %s of %s began no turn on %s; it is forgotten.", event.id, meta.account, state.replica)
            elif action in decision.DEAD:
                self._metrics.dead.labels(meta.account, action).inc()
                log.warning("Event %s of %s is a dead letter after %d deliveries: %s.", event.id, meta.account, state.attempts, action)

    async def _deliver(self, taken, identity, meta, state, together, now):
        """One POST. :returns: (state after it, seconds until the next look)

        :raises _Lost: when it must not go on
        """
        listening = self._replicas.listening(meta.account)
        usable = {one.id for one in listening if one.usable}
        channel = self._channels.get(meta.account)
        if not usable or channel is None:
            return state, self._limits.pause
        body = await self._journal.body(identity)
        if body is None:
            raise _Lost
        chosen = await self._room(taken, identity, meta.account, state, together if state.attempts == 0 and together in usable else None)
        if chosen is None:
            return state, _FULL
        state = state.sent(chosen)
        headers = [*meta.headers, *channel.credentials(body, time.time()).items()]
        post = asyncio.ensure_future(self._post(self._replicas.url(chosen, meta.account), headers, body))
        self._posts.add(post)
        try:
            while not (await asyncio.wait({post}, timeout=self._settings["lease_seconds"] / 3))[0]:
                await self._renew(taken)
        finally:
            self._posts.discard(post)
            post.cancel()
        failure = "the ingress stops" if post.cancelled() else post.result()
        if failure:
            self._metrics.failed.labels(meta.account, chosen).inc()
            log.warning("Event %s of %s was not delivered to %s (attempt %d): %s.", identity, meta.account, chosen, state.attempts, failure)
            return state, 0.0 if self._stopping else decision.pause(state.attempts, len(usable), self._limits)
        self._metrics.delivered.labels(meta.account).inc()
        if state.redelivered:
            self._metrics.redelivered.labels(meta.account).inc()
            log.warning("Event %s of %s was delivered again, to %s.", identity, meta.account, chosen)
        return state.accepted(now(), self._replicas.known[chosen].started), self._limits.poll

    async def _room(self, taken, identity, account, state, together):
        """The replica that the event is noted to go to, before it does: an ingress that dies now has tried. None when all have enough.

        :param together: the replica that has the rest of its group, and must get it; None when it is free
        """
        for replica in [together] if together else self._replicas.order(account, state.replica):
            found = await self._journal.send(taken, identity, state.sent(replica), replica, _ANY if together else self._settings["replica_events"])
            if not found:
                raise _Lost
            if found > 0:
                return replica
        return None

    async def _renew(self, taken):
        try:
            if not await self._journal.save(taken):
                raise _Lost
        except RedisAway:
            pass  # the POST cannot be taken back; its event will be delivered again

    async def _post(self, url, headers, body):
        """Why it was not taken, "" when it was."""
        try:
            async with self._session.post(url, data=body, headers=headers, timeout=self._timeout, allow_redirects=False) as response:
                return "" if 200 <= response.status < 300 else f"status {response.status}"
        except TimeoutError:
            return f"no answer within {self._settings['post_timeout']:g} s"
        except (aiohttp.ClientError, OSError) as error:
            return str(getattr(error, "os_error", None) or error) or type(error).__name__
