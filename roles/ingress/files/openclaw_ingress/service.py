# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The service: door, delivery, the watch on the replicas, and what it says of itself, in one process."""

from __future__ import annotations

import asyncio
import logging
import signal
import uuid

import aiohttp
from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from . import channels, config
from .delivery import Delivery
from .door import Door
from .journal import Journal, Size
from .metrics import Metrics
from .primary import Primary, RedisAway
from .replicas import Replicas
from .systemd import notify
from .tasks import end

log = logging.getLogger("openclaw_ingress")

#: Seconds between two looks at the journal, and between two signs of life for systemd's watchdog.
LOOK = 1.0
WATCHDOG = 3.0


class Service:
    """All of one ingress."""

    def __init__(self, settings):
        """:raises config.ConfigError: when a secret cannot be read"""
        self.config = settings
        self.metrics = Metrics()
        self.size = Size()
        self._channels = {config.account_name(one): channels.make(one, [config.secret(where) for where in one["secrets"]]) for one in settings["accounts"]}
        self._primary = Primary(settings)
        # A name of its own for each life: the leases of a former one are not taken for ours.
        self._journal = Journal(settings, self._primary, f"{settings['host']}/{uuid.uuid4().hex[:8]}")
        self._session = self._replicas = self._delivery = self._door = None
        self._tasks, self._runners, self._delivering = [], [], None

    async def start(self):
        """Look at the replicas, then deliver and take requests."""
        connector = aiohttp.TCPConnector(force_close=True, limit=0)
        self._session = aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), skip_auto_headers=("Content-Type", "User-Agent", "Accept", "Accept-Encoding")
        )
        self._replicas = Replicas(self.config, self._session)
        self._delivery = Delivery(self.config, self._channels, self._journal, self._replicas, self._session, self.metrics)
        self._door = Door(self.config, self._channels, self._journal, self.metrics, self._delivery.wake)
        self._door.application.router.add_get("/health", self._health)
        # What is delivered to a replica that was never looked at would count as lost.
        await self._replicas.look()
        await self._look()
        self._delivering = asyncio.ensure_future(self._delivery.run())
        self._tasks = [asyncio.ensure_future(one) for one in (self._replicas.watch(), self._watch(), self._sign())]
        status = web.Application()
        status.router.add_get("/health", self._health)
        status.router.add_get("/metrics", self._metrics)
        await self._listen(status, "127.0.0.1", self.config["status_port"])
        await self._listen(self._door.application, self.config["address"], self.config["port"])

    async def _listen(self, application, address, port):
        runner = web.AppRunner(application, access_log=None, handle_signals=False)
        self._runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, address, port, backlog=1024).start()

    async def stop(self):
        """End in order: no new requests, no new deliveries, leases given back."""
        if self._door:
            self._door.closed = True
        if self._delivery:
            await self._delivery.stop()
        for runner in reversed(self._runners):
            await runner.cleanup()
        await end([*self._tasks, *([self._delivering] if self._delivering else [])])
        if self._session:
            await self._session.close()
        await self._primary.close()

    async def _look(self):
        try:
            self.size = await self._journal.look()
        except RedisAway:
            pass
        self.metrics.size(self.size)
        self.metrics.redis.set(self._primary.serves is True)
        for name, one in self._replicas.known.items():
            self.metrics.replicas.labels(name).set(one.usable)

    async def _watch(self):
        while True:
            await asyncio.sleep(LOOK)
            try:
                await self._look()
            except Exception:  # pylint: disable=broad-except
                log.exception("The journal cannot be looked at.")

    async def _sign(self):
        while True:
            notify("WATCHDOG=1")
            await asyncio.sleep(WATCHDOG)

    async def _health(self, _request):
        """503 where a balancer does better to ask another ingress."""
        serves = self._primary.serves is True and not self._door.closed
        body = {
            "status": "ok" if serves else "down",
            "host": self.config["host"],
            "redis": self._primary.serves is True,
            "stopping": self._door.closed,
            "events": self.size.events,
            "oldest_seconds": round(self.size.oldest, 1),
            "dead": self.size.dead,
            "replicas": {name: one.status for name, one in self._replicas.known.items()},
        }
        return web.json_response(body, status=200 if serves else 503, headers={"Cache-Control": "no-store"})

    async def _metrics(self, _request):
        return web.Response(body=generate_latest(self.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def serve(settings):
    """Run until SIGTERM or SIGINT."""
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    service = Service(settings)
    try:
        await service.start()
        notify("READY=1")
        log.info("Webhooks of %s are taken.", ", ".join(config.account_name(one) for one in settings["accounts"]))
        await ended.wait()
    finally:
        notify("STOPPING=1")
        await service.stop()
