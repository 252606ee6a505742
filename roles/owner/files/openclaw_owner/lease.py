# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The leases in Redis. Every method is one script; all raise :class:`openclaw_ingress.primary.RedisAway`."""

from __future__ import annotations

import json
from dataclasses import dataclass

from . import scripts
from .decision import Lease

#: Milliseconds for confirmations where not all came the last time: else a host that is gone would hold up every lease for the whole time.
SHORT_WAIT = 50


@dataclass(frozen=True)
class Grant:
    """granted; then token and since (seconds since 1970) and whether enough replicas of Redis have it; else who has it, and for how many seconds."""

    granted: bool
    token: int = 0
    since: float = 0.0
    confirmed: bool = False
    holder: str = ""
    host: str = ""
    wait: float = 0.0


class Leases:
    """See :mod:`.scripts` for the keys. Singletons are named by their ids, times are seconds."""

    def __init__(self, settings, primary):
        self._settings, self._primary = settings, primary
        self._prefix = settings["key_prefix"]
        self._lease = int(settings["lease_seconds"] * 1000)
        self._complete = True

    def _key(self, name):
        return f"{self._prefix}owner:{name}"

    async def _confirmed(self, script, name, *arguments):
        """(the script's answer, whether enough replicas have what it wrote)."""
        wanted = self._settings["wait_replicas"]
        enough = min(self._settings["enough_replicas"], wanted)
        wait = int(self._settings["wait_timeout"] * 1000)
        waits = [(wanted, wait)] if wanted else []
        if waits and not self._complete and enough < wanted:
            waits = [(wanted, min(wait, SHORT_WAIT)), (enough, wait)]

        async def run(client):
            # On one connection, because WAIT is for what was written on its own.
            pipeline = client.pipeline(transaction=False)
            pipeline.eval(script, 1, self._key(name), *arguments)
            for one in waits:
                pipeline.execute_command("WAIT", *one)
            answers = await pipeline.execute(raise_on_error=False)
            for one in answers:
                if isinstance(one, Exception):
                    raise one
            return answers[0], max(answers[1:], default=0)

        answer, replicas = await self._primary.run(run)
        self._complete = replicas >= wanted
        return answer, replicas >= enough

    async def acquire(self, name, replica, linger):
        """Ask for a lease. :returns: :class:`Grant`"""
        arguments = (replica, self._settings["host"], self._lease, int(linger * 1000))
        (granted, *rest), confirmed = await self._confirmed(scripts.ACQUIRE, name, *arguments)
        if granted == 1:
            return Grant(True, int(rest[0]), float(rest[1]), confirmed)
        return Grant(False, holder=rest[0].decode(), host=rest[1].decode(), wait=int(rest[2]) / 1000)

    async def renew(self, name, replica, token):
        """:returns: (whether the lease is still theirs, whether that is confirmed)"""
        answer, confirmed = await self._confirmed(scripts.RENEW, name, replica, token, self._lease)
        return answer == 1, confirmed

    async def release(self, name, replica, token, fault=False):
        """:param fault: whether the replica died while it had it
        :returns: whether the lease was theirs
        """
        answer = await self._primary.run(lambda client: client.eval(scripts.RELEASE, 1, self._key(name), replica, token, int(fault)))
        return answer == 1

    async def look(self, lingers, at):
        """What Redis says of some singletons, asked at ``at``.

        :param lingers: id -> linger
        :returns: id -> :class:`.decision.Lease`
        """
        if not lingers:
            return {}
        keys = [self._key(name) for name in lingers]
        now, *found = await self._primary.run(lambda client: client.eval(scripts.LOOK, len(keys), *keys))
        leases = {}
        for (name, linger), fields in zip(lingers.items(), found):
            holder, host, token, since, expires, released, pause = (one.decode() for one in fields)
            free = not holder or released != "0"
            wait = max(0.0, (int(pause or 0) - now) / 1000 if free else (int(expires or 0) - now) / 1000 + linger)
            leases[name] = Lease(holder, host, int(token or 0), float(since or 0), free, wait, at)
        return leases

    async def tell(self, kind, detail):
        """One more entry in the stream of the cluster's events."""
        stream, text = f"{self._prefix}events", json.dumps(detail, separators=(",", ":"))
        await self._primary.run(lambda client: client.eval(scripts.EVENT, 1, stream, kind, self._settings["host"], text))
