# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The delivery of a bot's updates to its webhook."""

from __future__ import annotations

import collections
import dataclasses
import heapq
import http.client
import json
import socket
import ssl
import threading
import time
import urllib.parse

from telegram.parts import integer

LARGEST_ANSWER = 1024 * 1024


@dataclasses.dataclass
class Update:
    """An update that waits to be fetched or delivered."""

    body: dict
    lane: object
    expires: float
    attempts: int = 0
    pause: float = 0.0

    @property
    def id(self):
        return self.body["update_id"]


@dataclasses.dataclass(frozen=True)
class Webhook:
    url: str
    secret_token: str = ""
    max_connections: int = 40
    certificate: str | None = None


def post(webhook, body, context, timeout):
    """POST ``body`` as JSON; returns the status, its phrase, the headers and the body of the answer.

    Each delivery has a connection of its own. ``timeout`` (seconds) limits every wait, not their sum.

    :raises OSError, ValueError, http.client.HTTPException: when there is no answer; ValueError for an impossible URL
    """
    url = urllib.parse.urlsplit(webhook.url)
    if url.scheme == "https":
        connection = http.client.HTTPSConnection(url.hostname, url.port, timeout=timeout, context=context)
    else:
        connection = http.client.HTTPConnection(url.hostname, url.port, timeout=timeout)
    headers = {"Content-Type": "application/json", "Connection": "close"}
    if webhook.secret_token:
        headers["X-Telegram-Bot-Api-Secret-Token"] = webhook.secret_token
    target = (url.path or "/") + (f"?{url.query}" if url.query else "")
    try:
        connection.request("POST", target, json.dumps(body).encode(), headers)
        response = connection.getresponse()
        return response.status, response.reason, response.headers, response.read(LARGEST_ANSWER)
    finally:
        connection.close()


def reason_of(error):
    """What getWebhookInfo tells about a delivery without an answer."""
    if isinstance(error, ConnectionRefusedError):
        return "Connection refused"
    if isinstance(error, TimeoutError):
        return "Read timeout expired"
    if isinstance(error, ssl.SSLError):
        return f"SSL error {{{error}}}"
    if isinstance(error, socket.gaierror):
        return f"Failed to resolve host: {error.strerror}"
    return "Connection closed" if isinstance(error, (ConnectionError, http.client.HTTPException)) else str(error)


def method_call(headers, body):
    """The method call in an answer to a delivery as parameters with ``method``, or {}."""
    try:
        if headers.get_content_type() == "application/x-www-form-urlencoded":
            call = dict(urllib.parse.parse_qsl(body.decode()))
        else:
            call = json.loads(body)
    except ValueError:
        return {}
    return call if isinstance(call, dict) and isinstance(call.get("method"), str) else {}


class Delivery:
    """Delivers a bot's updates to one webhook until it is stopped: in order per chat, several chats at once."""

    def __init__(self, bot, webhook, context, updates):
        self._bot = bot
        self._webhook = webhook
        self.context = context
        self._wake = threading.Condition(bot.lock)
        self._lanes = {}  # a chat's updates, oldest first
        self._due = []  # a heap of (when, update id, lane): every lane that has updates, and none on its way
        self._running = 0
        self._stopped = False
        for update in updates:
            self.add(update)
        threading.Thread(target=self._run, daemon=True).start()

    def add(self, update):
        with self._wake:
            lane = self._lanes.setdefault(update.lane, collections.deque())
            lane.append(update)
            if len(lane) == 1:
                self._schedule(update, 0)

    def stop(self):
        """Start no more deliveries; those on their way end by themselves."""
        with self._wake:
            self._stopped = True
            self._wake.notify()

    def _schedule(self, update, pause):
        heapq.heappush(self._due, (time.monotonic() + pause, update.id, update.lane))
        self._wake.notify()

    def _run(self):
        with self._wake:
            while not self._stopped:
                free = self._due and self._running < self._webhook.max_connections
                pause = self._due[0][0] - time.monotonic() if free else None
                if pause is None or pause > 0:
                    self._wake.wait(pause)
                else:
                    self._start(heapq.heappop(self._due)[2])

    def _start(self, name):
        lane = self._lanes[name]
        while lane and not self._bot.waits(lane[0]):
            lane.popleft()
        if not lane:
            del self._lanes[name]
            return
        self._running += 1
        threading.Thread(target=self._deliver, args=(lane,), daemon=True).start()

    def _deliver(self, lane):
        update = lane[0]
        twice = self._bot.faults.take("deliver_twice") if not update.attempts else None
        update.attempts += 1
        copies = range(2, twice["copies"] + 1) if twice else ()
        if twice and twice["concurrently"]:
            for copy in copies:
                threading.Thread(target=self._attempt, args=(update, copy), daemon=True).start()
        accepted, wanted_pause = self._attempt(update)
        if accepted and twice and not twice["concurrently"]:
            for copy in copies:
                self._attempt(update, copy)
        with self._wake:
            self._running -= 1
            settings = self._bot.settings
            if accepted:
                self._bot.confirm(update)
                lane.popleft()
                pause = 0
            else:
                update.pause = min(max(update.pause * 2, settings.retry_base), settings.retry_longest)
                pause = max(update.pause, min(wanted_pause, settings.retry_longest))
            if lane:
                self._schedule(lane[0], pause)
            else:
                del self._lanes[update.lane]
            self._wake.notify()

    def _attempt(self, update, copy=1):
        """Deliver an update once; returns whether it was accepted, and the seconds of a Retry-After header."""
        bot = self._bot
        with bot.lock:
            record = bot.deliveries.add(update_id=update.id, attempt=update.attempts, copy=copy, url=self._webhook.url, status=None, seconds=None)
        started = time.monotonic()
        headers, body, status = {}, b"", None
        try:
            status, phrase, headers, body = post(self._webhook, update.body, self.context, bot.settings.webhook_timeout)
            error = None if 200 <= status < 300 else f"Wrong response from the webhook: {status} {phrase}"
        except (OSError, ValueError, http.client.HTTPException) as failure:
            error = reason_of(failure)
        with bot.lock:
            record |= {"status": status, "seconds": round(time.monotonic() - started, 6), "error": error}
            record["headers"] = {name.lower(): headers[name] for name in headers if name.lower().startswith("x-openclaw-")}
            if error and not self._stopped:
                bot.last_error = {"last_error_date": int(time.time()), "last_error_message": error}
        if error:
            return False, integer(headers, "Retry-After", 0, 0)
        if call := method_call(headers, body):
            bot.called_back(call, self._webhook.url)
        return True, 0
