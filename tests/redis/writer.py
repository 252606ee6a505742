# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clients that write numbered tokens while something breaks, and keep a record of what they were told."""

from __future__ import annotations

import dataclasses
import re
import threading
import time

import redis

from .record import OK, REFUSED, UNKNOWN, Write


@dataclasses.dataclass(frozen=True)
class LoadOptions:
    """``rate``: writes a second of each client; ``wait``: replicas that must confirm a write (0: the primary's word is enough);
    ``wait_ms``: for how long to ask them; ``timeout``: seconds for connecting and for each answer; ``seconds``: the load ends by itself after that."""

    clients: int = 3
    rate: float = 60
    wait: int = 1
    wait_ms: int = 500
    timeout: float = 1.5
    seconds: float = 120


class Load:
    """Clients in threads.

    :param servers: how to find and to enter the servers, see :class:`tests.redis.servers.Servers`
    :param pinned: a node that one more client writes to, whoever the primary is
    """

    def __init__(self, servers, options, key, pinned=None):
        self.servers, self.options, self.key = servers, options, key
        self.began = time.monotonic()
        self.ended = None
        self._writes = []
        self._done = threading.Event()
        clients = [(f"c{number}", None) for number in range(options.clients)] + ([("pinned", pinned)] if pinned else [])
        self._threads = [threading.Thread(target=self._client, args=client, daemon=True) for client in clients]
        for thread in self._threads:
            thread.start()

    def acknowledged_since(self, moment):
        """How many writes of clients that look for the primary were acknowledged after a moment of the monotonic clock."""
        return sum(one.outcome == OK and not one.pinned and one.invoked > moment for one in list(self._writes))

    @property
    def running(self):
        return any(thread.is_alive() for thread in self._threads)

    def stop(self):
        """End the load. :returns: all writes, in the order in which they ended"""
        self._done.set()
        for thread in self._threads:
            thread.join(self.options.timeout * 4 + 5)
        if self.running:
            raise RuntimeError("a client did not end")
        self.ended = time.monotonic()
        return tuple(self._writes)

    def _client(self, name, pinned):
        end = self.began + self.options.seconds
        number, connection = 0, None
        while not self._done.is_set() and time.monotonic() < end:
            due = time.monotonic() + 1 / self.options.rate
            try:
                connection = connection or self._connect(pinned)
            except redis.RedisError:
                self._done.wait(0.05)  # between two looks for the primary
                continue
            number += 1
            write = self._write(connection, f"{name}-{number}", pinned is not None)
            self._writes.append(write)
            if write.outcome != OK:
                connection.close()
                connection = None
            self._done.wait(max(0, due - time.monotonic()))

    def _connect(self, pinned):
        """A client with a working connection. :raises redis.RedisError: when there is none to be had"""
        node = pinned or self.servers.primary()
        client = self.servers.client(node, "app", self.options.timeout)
        client.ping()
        client.via = f"{node['address']}:{node['port']}"
        return client

    def _write(self, client, token, pinned):
        """Append one token, once: nothing here sends anything twice."""
        options = self.options
        # Both commands leave in one piece on one connection: WAIT speaks of the writes of its own connection alone.
        pipeline = client.pipeline(transaction=False)
        pipeline.rpush(self.key, token)
        if options.wait:
            pipeline.execute_command("WAIT", options.wait, options.wait_ms)
        invoked = time.monotonic()
        try:
            replies = pipeline.execute(raise_on_error=False)
            outcome, error = judge(replies, options.wait)
        except redis.RedisError as problem:
            outcome, error = UNKNOWN, type(problem).__name__
        return Write(token, invoked, time.monotonic(), outcome, client.via, error, pinned)


def judge(replies, wait):
    """Outcome of one write and the error's name, from the replies to RPUSH and, when ``wait`` is not 0, to WAIT."""
    first = replies[0]
    if isinstance(first, redis.ResponseError):
        return REFUSED, _word(first)
    if isinstance(first, Exception):
        return UNKNOWN, type(first).__name__
    if not wait:
        return OK, ""
    if isinstance(replies[1], Exception):
        return UNKNOWN, f"WAIT: {_word(replies[1])}"
    return (OK, "") if int(replies[1]) >= wait else (UNKNOWN, f"WAIT {wait}: {int(replies[1])}")


def _word(error):
    """The error's code as Redis sends it (``READONLY``), which the library cuts off for some, or the class's name."""
    code = re.match(r"[A-Z]{4,}\b", str(error))
    return code.group() if code else type(error).__name__
