# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal in Redis: events are accepted, taken under a lease, and forgotten. Every method is one script; all raise RedisAway."""

from __future__ import annotations

import json
import urllib.parse
from dataclasses import dataclass

from . import scripts
from .channels import Event
from .decision import Queued, State

#: Most events of a group that are looked at together; an album of Telegram has ten.
GROUP = 20
#: Milliseconds for confirmations where not all came the last time: else a host that is gone would hold up every event for the whole time.
SHORT_WAIT = 50
#: Events of a page of the list.
PAGE = 200


@dataclass(frozen=True)
class Accepted:
    """status: accepted, duplicate or full; confirmed: enough replicas of Redis have it; crossed: it reached the high-water mark."""

    status: str
    id: str = ""
    confirmed: bool = False
    crossed: bool = False


@dataclass(frozen=True)
class Meta:
    """What is known of an event beside its body. account: ``channel/account``; event: the provider's id; headers: list of (name, value)."""

    account: str
    event: str
    headers: tuple = ()

    @classmethod
    def parse(cls, text):
        found = json.loads(text)
        return cls(found["account"], found["event"], tuple((name, value) for name, value in found["headers"]))

    def text(self):
        return json.dumps({"account": self.account, "event": self.event, "headers": self.headers}, separators=(",", ":"))


@dataclass(frozen=True)
class Taken:
    """A conversation under a lease: ``batch`` are its first event and those that go with it, ``now`` is Redis's time in seconds."""

    conversation: str
    lease: str
    now: float
    batch: tuple = ()
    metas: tuple = ()


@dataclass(frozen=True)
class Entry:
    """An event as the list shows it; ``at``: when it was accepted or died, ``now``: Redis's time, in seconds."""

    id: str
    at: float
    now: float
    meta: Meta
    state: State
    conversation: str
    bytes: int


@dataclass(frozen=True)
class Size:
    """What the journal holds; ``oldest``: age in seconds of the oldest event that waits."""

    events: int = 0
    bytes: int = 0
    conversations: int = 0
    dead: int = 0
    dead_bytes: int = 0
    oldest: float = 0.0
    high: bool = False


class Journal:
    """See :mod:`.scripts` for the keys."""

    def __init__(self, settings, primary, owner):
        self._settings, self._primary, self._owner = settings, primary, owner
        self._prefix = settings["key_prefix"]
        self._low = [int(settings[f"max_{one}"] * settings["low_ratio"]) for one in ("events", "bytes")]
        self._high = [int(settings[f"max_{one}"] * settings["high_ratio"]) for one in ("events", "bytes")]
        self._dead = [settings["dead_max_events"], settings["dead_max_bytes"], int(settings["dead_max_age_seconds"] * 1000)]
        self._lease = int(settings["lease_seconds"] * 1000)
        self._complete = True

    def _arguments(self, script, arguments):
        return script, 2, f"{self._prefix}ingress:", f"{self._prefix}events", *arguments

    async def _run(self, script, *arguments):
        return await self._primary.run(lambda client: client.eval(*self._arguments(script, arguments)))

    async def accept(self, account, event: Event, headers, body):
        """Store an event, and wait until the replicas have it. :returns: :class:`Accepted`"""
        settings = self._settings
        arguments = (
            _conversation(account, event.conversation),
            _conversation(account, event.id),
            event.group,
            f"{self._prefix}{event.claim}" if event.claim else "",
            Meta(account, event.id, headers).text(),
            body,
            int(settings["dedupe_seconds"] * 1000),
            settings["max_events"],
            settings["max_bytes"],
            *self._high,
            settings["host"],
            f"{self._prefix}inbound:{account}/{event.id}",
        )
        wanted, enough = settings["wait_replicas"], min(settings["enough_replicas"], settings["wait_replicas"])
        wait = int(settings["wait_timeout"] * 1000)
        waits = [(wanted, wait)] if wanted else []
        if waits and not self._complete and enough < wanted:
            waits = [(wanted, min(wait, SHORT_WAIT)), (enough, wait)]

        async def accept(client):
            # On one connection, because WAIT is for what was written on its own.
            pipeline = client.pipeline(transaction=False)
            pipeline.eval(*self._arguments(scripts.ACCEPT, arguments))
            for one in waits:
                pipeline.execute_command("WAIT", *one)
            # The library would put the command, body and all, into the text of an error.
            answers = await pipeline.execute(raise_on_error=False)
            for one in answers:
                if isinstance(one, Exception):
                    raise one
            return answers[0], max(answers[1:], default=0)

        (status, identity, crossed), replicas = await self._primary.run(accept)
        if status != b"full":
            self._complete = replicas >= wanted
        return Accepted(status.decode(), identity.decode(), replicas >= enough, crossed == 1)

    async def take(self, most):
        """Up to ``most`` conversations that are due. :returns: (list of :class:`Taken`, seconds until the next one is due, None without one)"""
        now, wait, *found = await self._run(scripts.TAKE, self._owner, self._lease, most, GROUP)
        taken = []
        for conversation, lease, *events in found:
            batch = tuple(
                Queued(one[0].decode(), float(one[1]) / 1000, State.parse(one[3]), one[4].decode(), one[5].decode(), one[6] == 1) for one in events
            )
            metas = tuple(Meta.parse(one[2]) for one in events)
            taken.append(Taken(conversation.decode(), lease.decode(), now / 1000, batch, metas))
        return taken, None if wait < 0 else wait / 1000

    async def save(self, taken, states=()):
        """Prolong the lease and note ``states``, pairs of id and State. :returns: Redis's time in seconds, 0 when the lease was lost"""
        pairs = (text for identity, state in states for text in (identity, state.text()))
        return await self._run(scripts.SAVE, taken.conversation, taken.lease, self._lease, *pairs) / 1000

    async def send(self, taken, identity, state, replica, most):
        """Note that an event is about to go to a replica, unless that has ``most`` already.

        :returns: Redis's time in seconds, 0 when the lease was lost or the event is gone, below 0 when the replica has enough
        """
        return await self._run(scripts.SEND, taken.conversation, taken.lease, self._lease, identity, state.text(), replica, most) / 1000

    async def finish(self, taken, changes, delay):
        """Give the lease back.

        :param changes: list of (id, keep | free | forget | dead, State); free: no replica has it any more
        :param delay: seconds until the conversation is due again
        :returns: (whether the lease was still ours, whether the journal came down to its low-water mark)
        """
        arguments = (text for identity, verb, state in changes for text in (identity, verb, state.text()))
        delay = max(0, round(delay * 1000))
        answer = await self._run(scripts.FINISH, taken.conversation, taken.lease, delay, *self._low, *self._dead, self._settings["host"], *arguments)
        return answer[0] == 1, len(answer) > 2 and answer[2] == 1

    async def body(self, identity):
        """The body of an event as bytes, None when it is gone."""
        found = await self._primary.run(lambda client: client.xrange(f"{self._prefix}ingress:journal", identity, identity))
        return found[0][1][b"body"] if found else None

    async def look(self):
        """The :class:`Size`; dead letters that are too old go with it."""
        now, events, size, conversations, dead, dead_bytes, oldest, high = await self._run(scripts.LOOK, *self._dead)
        return Size(events, size, conversations, dead, dead_bytes, max(0.0, (now - oldest) / 1000) if oldest else 0.0, high == 1)

    async def entries(self, dead=False):
        """All that wait, or all dead letters, oldest first, as an asynchronous iterator of :class:`Entry`."""
        first = 0
        while True:
            found = await self._entries(dead, first, first + PAGE - 1)
            for entry in found:
                yield entry
            if len(found) < PAGE:
                return
            first += PAGE

    async def entry(self, identity):
        """(:class:`Entry`, whether it is dead), (None, False) when there is none."""
        for dead in (False, True):
            if found := await self._entries(dead, 0, 0, identity):
                return found[0], dead
        return None, False

    async def _entries(self, dead, *arguments):
        now, *found = await self._run(scripts.LIST, "dead" if dead else "live", *arguments)
        return [
            Entry(one[0].decode(), float(one[1]) / 1000, now / 1000, Meta.parse(one[2]), State.parse(one[3]), one[4].decode(), int(one[5])) for one in found
        ]

    async def replay(self, identities):
        """Dead letters wait again, as if they had come now. :returns: list of those that were dead"""
        return [one.decode() for one in await self._run(scripts.REPLAY, *identities)]

    async def drop(self, identities):
        """Forget events. :returns: list of those that were there"""
        return [one.decode() for one in await self._run(scripts.DROP, *identities)]


def _conversation(account, name):
    """One account's names are never another's."""
    return f"{account}/{urllib.parse.quote(name, safe='')}"
