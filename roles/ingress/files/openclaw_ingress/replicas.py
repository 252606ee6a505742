# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the agents say of the replicas: asked in the background, answered from memory."""

from __future__ import annotations

import asyncio
import logging
import time

import aiohttp

from .decision import Replica, order

log = logging.getLogger("openclaw_ingress")

#: Seconds that an agent may take to answer: it does from memory.
_DEADLINE = 3.0


class Replicas:
    """Watches the verdict of every replica; ``known``: id -> :class:`Replica`."""

    def __init__(self, settings, session):
        self._settings, self._session = settings, session
        self._configured = {one["id"]: one for one in settings["replicas"]}
        self.known = {name: Replica(name) for name in self._configured}
        self._heard = dict.fromkeys(self._configured, float("-inf"))
        self._turn = 0

    def listening(self, account):
        """The replicas that have a listener for an account, as :class:`Replica`."""
        return [self.known[name] for name, one in self._configured.items() if account in one["webhooks"]]

    def order(self, account, avoid):
        """The ids of the replicas for the next POST, the first choice first."""
        self._turn += 1
        return order(self.listening(account), avoid, self._turn)

    def url(self, name, account):
        """Where a replica listens for an account's webhooks."""
        return self._configured[name]["webhooks"][account]

    async def look(self):
        """Ask all of them once."""
        await asyncio.gather(*(self._look(name, one["verdict_url"]) for name, one in self._configured.items()))

    async def watch(self):
        """Ask them for ever."""
        await asyncio.gather(*(self._watch(name, one["verdict_url"]) for name, one in self._configured.items()))

    async def _watch(self, name, url):
        while True:
            await asyncio.sleep(self._settings["health_interval"])
            await self._look(name, url)

    async def _look(self, name, url):
        now = time.monotonic()
        try:
            async with asyncio.timeout(_DEADLINE), self._session.get(url, allow_redirects=False) as response:
                found = _replica(name, await response.json(content_type=None), time.time())
            self._heard[name] = now
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError, TypeError):
            if now - self._heard[name] < self._settings["verdict_grace"]:
                return
            found = Replica(name)
        before, self.known[name] = self.known[name], found
        if before.status != found.status:
            log.info("Replica %s is %s.", name, found.status or "not to be judged: its agent does not answer")


def _replica(name, verdict, now):
    """From the agent's document; its gateway's uptime is as of the gateway's last good answer."""
    started = now - verdict["uptime_seconds"] - verdict.get("observed_seconds", 0) if verdict.get("uptime_seconds") or verdict.get("version") else None
    return Replica(name, str(verdict["status"]), started)
