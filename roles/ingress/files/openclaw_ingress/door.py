# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The door: takes webhooks, and acknowledges none before it is stored. Nothing that it logs is a secret, or anybody's words."""

from __future__ import annotations

import asyncio
import logging
import time

from aiohttp import web

from .channels import Malformed, Reply
from .config import account_name
from .primary import RedisAway

log = logging.getLogger("openclaw_ingress")

#: Headers of one connection, or of the way to here; with them goes what the balancer says of the sender.
_NOT_KEPT = {
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding", "upgrade", "expect",
    "host", "content-length", "accept-encoding", "forwarded", "via", "x-real-ip",
}  # fmt: skip


class Door:
    """``application``: the web application of the accounts' paths. ``closed`` is set when no new request may be taken."""

    def __init__(self, settings, channels, journal, metrics, accepted):
        """
        :param channels: account's name -> :class:`.channels.Channel`
        :param accepted: called after an event was stored
        """
        self._settings, self._journal, self._metrics, self._accepted = settings, journal, metrics, accepted
        self._slots = asyncio.Semaphore(settings["requests"])
        self._confirmed = True
        self.closed = False
        self.application = web.Application(client_max_size=settings["body_max_bytes"])
        for account in settings["accounts"]:
            self.application.router.add_post(account["path"], self._handler(account_name(account), channels[account_name(account)]))

    def _handler(self, account, channel):
        async def handle(request):
            try:
                # Storing goes on when the sender hangs up.
                return await asyncio.shield(self._take(account, channel, request))
            except Exception:  # pylint: disable=broad-except
                log.exception("A webhook of %s could not be stored.", account)
                return self._refuse(account, "failed", 503)

        return handle

    async def _take(self, account, channel, request):
        if self.closed:
            return self._refuse(account, "stopping", 503)
        if "Content-Encoding" in request.headers:
            return self._refuse(account, "encoded", 415)
        try:
            if (request.content_length or 0) > self._settings["body_max_bytes"]:
                return self._refuse(account, "too_large", 413)
            async with asyncio.timeout(self._settings["body_timeout"]):
                body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return self._refuse(account, "too_large", 413)
        except TimeoutError:
            return self._refuse(account, "too_slow", 408)
        now = time.time()
        if not channel.verify(request.headers, body, now):
            return self._refuse(account, "wrong_secret", 401)
        try:
            event = channel.read(request.headers, body)
        except Malformed as error:
            log.info("A webhook of %s was refused: %s.", account, error)
            return self._refuse(account, "malformed", 400)
        if isinstance(event, Reply):
            return web.json_response(event.body)
        return await self._store(account, event, _kept(request.headers, channel.proofs), body)

    async def _store(self, account, event, headers, body):
        try:
            # A slot is taken by what is to be stored alone: whoever has no secret, or sends slowly, holds nobody up.
            async with self._slots:
                accepted = await self._journal.accept(account, event, headers, body)
        except RedisAway:
            return self._refuse(account, "redis_away", 503)
        if accepted.status == "full":
            return self._refuse(account, "full", 503)
        self._accepted()
        if accepted.crossed:
            log.warning("The journal has reached its high-water mark: events wait, and at its bounds they are refused.")
        if accepted.confirmed != self._confirmed:
            self._confirmed = accepted.confirmed
            log.warning("Redis's replicas confirm again." if self._confirmed else "Too few replicas of Redis confirm events: they are not acknowledged.")
        if not accepted.confirmed:
            # It is stored and will be delivered; the provider's next try finds it, and is acknowledged once it is safe.
            return self._refuse(account, "unconfirmed", 503)
        (self._metrics.duplicates if accepted.status == "duplicate" else self._metrics.accepted).labels(account).inc()
        return web.json_response({})

    def _refuse(self, account, reason, status):
        self._metrics.refused.labels(account, reason).inc()
        headers = {"Retry-After": str(self._settings["retry_after"])} if status == 503 else None
        return web.json_response({"error": reason}, status=status, headers=headers)


def _kept(headers, proofs):
    """The headers that a gateway is to get too, as tuple of (name, value)."""
    dropped = _NOT_KEPT | {one.lower() for one in proofs}
    return tuple((key, value) for key, value in headers.items() if key.lower() not in dropped and not key.lower().startswith("x-forwarded-"))
