# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads the evidence at the end of a run: conversations from Redis, model calls from the doubles."""

from __future__ import annotations

import json
import time

import redis
import requests
from redis.sentinel import Sentinel

from tests.doubles.ollama_double import answer, text_of

from .history import ModelCall, StoredTurn, tokens

PREFIX = "oc:"


def primary_by_sentinel(sentinels, monitor, access, sentinel_access):
    """A client of the primary that the Sentinels name. ``sentinels``: (address, port) pairs; for the rest see _options."""
    names = Sentinel(sentinels, sentinel_kwargs=_options(sentinel_access), **_options(access))
    return names.master_for(monitor, decode_responses=True)


def primary_by_address(address, port, access):
    """A client of one Redis server."""
    return redis.Redis(address, port, decode_responses=True, **_options(access))


def _options(access):
    """Options of the redis library; ``access``: dict with any of username, password, tls_ca, tls_cert, tls_key."""
    tls = {"ssl_ca_certs": "tls_ca", "ssl_certfile": "tls_cert", "ssl_keyfile": "tls_key"}
    return {
        "username": access.get("username"),
        "password": access.get("password"),
        "socket_timeout": 5,
        "socket_connect_timeout": 3,
        **({"ssl": True, **{option: access.get(name) for option, name in tls.items()}} if access.get("tls_ca") else {}),
    }


def stored_turn(raw):
    """A turn as the plugin stores it -> StoredTurn."""
    messages = raw["messages"]
    text = "\n".join(text_of(message["content"]) for message in messages if message["role"] == "user")
    replies = [text_of(message["content"]) for message in messages if message["role"] == "assistant"]
    late = bool(raw.get("late"))
    return StoredTurn(tokens(text), text, raw["id"], raw.get("replica"), late, replies[-1] if replies else None)


def stored(client, run, channel="web"):
    """Every conversation of a run, also those that none of its clients began."""
    start = f"{PREFIX}conv:"
    keys = sorted(client.scan_iter(match=f"{start}{channel}:{run}-*", count=1000))
    return {
        key.removeprefix(start): tuple(stored_turn(json.loads(raw)) for raw in client.lrange(key, 0, -1))
        for key in keys
    }


def model_call(raw, source="", name=""):
    """One entry of a double's ``GET /requests`` -> ModelCall. Its answer follows from what it was shown."""
    said = raw["user_messages"]
    reply = answer([{"role": "user", "content": text} for text in said], name)
    return ModelCall(tokens("\n".join(said)), reply, raw["outcome"], source)


def model_calls(url, run, name=""):
    """The calls that one double received for a run, oldest first. ``name``: how its answers begin.

    A real model server in a double's place keeps no record: its turns are found to be unwitnessed.
    """
    response = requests.get(f"{url}/requests", params={"match": f"turn-{run}-"}, timeout=60)
    if response.status_code == 404:
        return []
    response.raise_for_status()
    return [model_call(raw, url, name) for raw in response.json()]


def settle(cluster, client, run, channel="web", seconds=120):
    """Wait until nothing of a run is on its way any more: no replica keeps turns for Redis, no conversation is locked.

    :returns: "" or what was still missing after ``seconds``
    """
    deadline = time.monotonic() + seconds
    while True:
        waiting = _unsettled(cluster, client, run, channel)
        if not waiting or time.monotonic() > deadline:
            return waiting
        time.sleep(0.5)  # between two looks, until the deadline above


def _unsettled(cluster, client, run, channel):
    for address in cluster.replicas:
        try:
            health = requests.get(f"http://{address}/api/v1/health", timeout=5).json()
        except (requests.RequestException, ValueError) as error:
            return f"{address} does not answer: {type(error).__name__}"
        if not health.get("redis") or health.get("spooled"):
            return f"{address}: redis {health.get('redis')}, {health.get('spooled')} turns waiting for it"
    try:
        locked = next(client.scan_iter(match=f"{PREFIX}lock:{channel}:{run}-*", count=1000), None)
    except redis.RedisError as error:
        return f"Redis does not answer: {error}"
    return f"{locked} is locked" if locked else ""
