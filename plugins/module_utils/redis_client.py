# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Questions to Redis and Sentinel over the redis library, answered as plain data or as one ``error`` text."""

from __future__ import annotations

import traceback

from ansible.module_utils.basic import missing_required_lib

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    REDIS_IMPORT_ERROR = None
except ImportError:
    redis = None
    REDIS_IMPORT_ERROR = traceback.format_exc()


def require_redis(module):
    """End the module with the usual sentence when the redis library is absent."""
    if redis is None:
        module.fail_json(msg=missing_required_lib("redis"), exception=REDIS_IMPORT_ERROR)


def connect(node, password, timeout):
    """A client for one node (dict with ``address`` and ``port``); ``timeout`` in seconds holds for connecting and each reply."""
    return redis.Redis(
        host=node["address"],
        port=node["port"],
        password=password or None,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        # Newer versions of the library retry by themselves, for seconds; whoever asks here decides how long to go on.
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
    )


def sentinel(client, *words):
    """A SENTINEL command's reply as the server sent it. The library's own parsing differs between its versions, so it is kept out."""
    return client.execute_command("SENTINEL", *words)


def sentinel_settings(client, name):
    """What a Sentinel knows of the primary watched under ``name``, as a dict of texts."""
    return _pairs(sentinel(client, "MASTER", name))


def inspect_redis(node, password, timeout):
    """Ask one Redis for its role; see :func:`redis_view.agree` for the shape."""
    try:
        info = connect(node, password, timeout).info("replication")
    except redis.RedisError as error:
        return {**node, "error": str(error)}
    primary = info["role"] == "master"
    return {
        **node,
        "role": info["role"],
        "primary": None if primary else f"{info['master_host']}:{info['master_port']}",
        "link": True if primary else info["master_link_status"] == "up",
        "offset": info["master_repl_offset"] if primary else info["slave_repl_offset"],
        "lag": 0 if primary else info.get("master_last_io_seconds_ago", -1),
        "connected": info.get("connected_slaves", 0),
    }


def inspect_sentinel(node, name, password, timeout):
    """Ask one Sentinel what it watches under ``name``; see :func:`redis_view.agree` for the shape."""
    nothing = {**node, "primary": None, "replicas": 0, "quorum_ok": False, "tilt": False, "failover": False, "flags": ""}
    try:
        client = connect(node, password, timeout)
        tilt = client.info("sentinel").get("sentinel_tilt", 0) == 1
        state = next((one for one in map(_pairs, sentinel(client, "MASTERS")) if one["name"] == name), None)
        if state is None:
            return {**nothing, "tilt": tilt}
        try:
            quorum_ok = sentinel(client, "CKQUORUM", name).startswith("OK")
        except redis.ResponseError:
            quorum_ok = False
    except redis.RedisError as error:
        return {**node, "error": str(error)}
    return {
        **nothing,
        "primary": f"{state['ip']}:{state['port']}",
        "replicas": int(state["num-slaves"]),
        "quorum_ok": quorum_ok,
        "tilt": tilt,
        "failover": "failover_in_progress" in state["flags"],
        "flags": state["flags"],
    }


def _pairs(reply):
    """A flat list of names and values (RESP2, what older libraries speak) or a map (RESP3), as a dict."""
    if isinstance(reply, dict):
        return reply
    return dict(zip(reply[::2], reply[1::2]))
