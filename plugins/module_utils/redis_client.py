# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Questions to Redis and Sentinel over the redis library, answered as plain data or as one ``error`` text."""

from __future__ import annotations

import inspect
import socket
import ssl
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


#: Suboptions of a module's ``redis_access`` and ``sentinel_access``; see the documentation fragment ``access``.
ACCESS = {
    "type": "dict",
    "default": {},
    "options": {
        "username": {"type": "str"},
        "password": {"type": "str", "no_log": True},
        "tls_ca": {"type": "path"},
        "tls_cert": {"type": "path"},
        "tls_key": {"type": "path", "no_log": False},
    },
}


def connect(node, access, timeout):
    """A client for one node (dict with ``address`` and ``port``); ``timeout`` in seconds holds for connecting and each reply.

    :param access: dict with any of ``username``, ``password``, ``tls_ca``, ``tls_cert``, ``tls_key``; TLS is spoken when
        ``tls_ca`` is there
    """
    tls = {}
    if access.get("tls_ca"):
        tls = {
            "ssl": True,
            "ssl_ca_certs": access["tls_ca"],
            "ssl_certfile": access.get("tls_cert"),
            "ssl_keyfile": access.get("tls_key"),
            "ssl_check_hostname": True,
        }
    return redis.Redis(
        host=node["address"],
        port=node["port"],
        username=access.get("username") or None,
        password=access.get("password") or None,
        **tls,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        # Newer versions of the library retry by themselves, for seconds; whoever asks here decides how long to go on.
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
        **_unnamed(),
    )


def _unnamed():
    """Keeps newer versions of the library from telling the server its own name and version: the users may not send that."""
    known = inspect.signature(redis.Redis.__init__).parameters
    return {"driver_info": None} if "driver_info" in known else {"lib_name": None, "lib_version": None} if "lib_name" in known else {}


def served_certificate(node, access, timeout):
    """The certificate that a server shows, as DER bytes. :raises OSError: when it shows none that the authority has signed"""
    context = ssl.create_default_context(cafile=access["tls_ca"])
    if access.get("tls_cert"):
        context.load_cert_chain(access["tls_cert"], access.get("tls_key"))
    with socket.create_connection((node["address"], node["port"]), timeout=timeout) as plain:
        with context.wrap_socket(plain, server_hostname=node["address"]) as connection:
            return connection.getpeercert(binary_form=True)


def sentinel(client, *words):
    """A SENTINEL command's reply as the server sent it. The library's own parsing differs between its versions, so it is kept out."""
    return client.execute_command("SENTINEL", *words)


def sentinel_settings(client, name):
    """What a Sentinel knows of the primary watched under ``name``, as a dict of texts."""
    return _pairs(sentinel(client, "MASTER", name))


def inspect_redis(node, access, timeout):
    """Ask one Redis what it is and how it is; see :func:`redis_view.agree` and :func:`redis_switch.obstacles` for the shape."""
    try:
        return describe_redis(node, connect(node, access, timeout))
    except redis.RedisError as error:
        return {**node, "error": str(error)}


def describe_redis(node, client):
    """What one Redis says over a given connection; raises the library's errors."""
    info = client.info()
    settings = client.config_get("min-replicas-to-write", "replica-priority")
    primary = info["role"] == "master"
    return {
        **node,
        "role": info["role"],
        "primary": None if primary else f"{info['master_host']}:{info['master_port']}",
        "link": True if primary else info["master_link_status"] == "up",
        "offset": info["master_repl_offset"] if primary else info["slave_repl_offset"],
        "lag": 0 if primary else info.get("master_last_io_seconds_ago", -1),
        "connected": info.get("connected_slaves", 0),
        "version": info["redis_version"],
        "build": str(info.get("redis_build_id", "")),
        # The name of this history of writes, and the one it branched off from at a promotion, up to which offset.
        "history": info["master_replid"],
        "history_before": info.get("master_replid2", ""),
        "branched_at": info.get("second_repl_offset", -1),
        "priority": int(settings["replica-priority"]),
        "min_replicas": int(settings["min-replicas-to-write"]),
        "good_replicas": info.get("min_slaves_good_slaves", info.get("connected_slaves", 0)),
        "loading": bool(info["loading"]),
        "syncing": bool(info.get("master_sync_in_progress", 0)),
        "saving": bool(info["rdb_bgsave_in_progress"]),
        "aof_enabled": bool(info["aof_enabled"]),
        "aof_write_ok": info["aof_last_write_status"] == "ok",
        "aof_rewrite_ok": info["aof_last_bgrewrite_status"] == "ok",
        "aof_rewriting": bool(info["aof_rewrite_in_progress"] or info["aof_rewrite_scheduled"]),
    }


def inspect_sentinel(node, name, access, timeout, elsewhere=()):
    """Ask one Sentinel what it watches under ``name``; see :func:`redis_view.agree` for the shape, and :func:`describe_sentinel`."""
    try:
        return describe_sentinel(node, name, connect(node, access, timeout), elsewhere)
    except redis.RedisError as error:
        return {**node, "error": str(error)}


def describe_sentinel(node, name, client, elsewhere=()):
    """What one Sentinel says over a given connection; raises the library's errors.

    :param elsewhere: ``address:port`` of servers that it may have met and has no business with, those of a standby datacenter
    """
    info = client.info()
    nothing = {
        **node,
        "primary": None,
        "replicas": 0,
        "known": {},
        "others": 0,
        "quorum": None,
        "quorum_ok": False,
        "tilt": info.get("sentinel_tilt", 0) == 1,
        "failover": False,
        "failover_timeout": 0,
        "flags": "",
        "version": info["redis_version"],
        "build": str(info.get("redis_build_id", "")),
    }
    state = next((one for one in map(_pairs, sentinel(client, "MASTERS")) if one["name"] == name), None)
    if state is None:
        return nothing
    try:
        quorum_ok = sentinel(client, "CKQUORUM", name).startswith("OK")
    except redis.ResponseError:
        quorum_ok = False
    met = {f"{one['ip']}:{one['port']}": one for one in map(_pairs, sentinel(client, "REPLICAS", name))}
    return {
        **nothing,
        "primary": f"{state['ip']}:{state['port']}",
        "replicas": int(state["num-slaves"]) - len(met.keys() & set(elsewhere)),
        "known": {
            address: {"flags": one["flags"], "link": one.get("master-link-status") == "ok", "priority": int(one["slave-priority"])}
            for address, one in met.items()
            if address not in elsewhere
        },
        "others": int(state["num-other-sentinels"]),
        "quorum": int(state["quorum"]),
        "quorum_ok": quorum_ok,
        "failover": "failover_in_progress" in state["flags"],
        "failover_timeout": int(state["failover-timeout"]) / 1000,
        "flags": state["flags"],
    }


def pinned_settings(client, found):
    """Names of those settings that this server takes only at its start.

    They are asked of the server, since they differ between versions: it refuses to set them even to the value that they have,
    and setting any other to the value that it has does nothing.

    :param found: settings as CONFIG GET gave them, name to text
    """
    pinned = set()
    for name, value in found.items():
        try:
            client.config_set(name, value)
        except redis.ResponseError as refusal:
            if "immutable config" in str(refusal) or "protected config" in str(refusal):
                pinned.add(name)
    return pinned


def _pairs(reply):
    """A flat list of names and values (RESP2, what older libraries speak) or a map (RESP3), as a dict."""
    if isinstance(reply, dict):
        return reply
    return dict(zip(reply[::2], reply[1::2]))
