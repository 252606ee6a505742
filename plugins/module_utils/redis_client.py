# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Questions to Redis and Sentinel over the redis library, answered as plain data or as one ``error`` text."""

from __future__ import annotations

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
    )


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
    """Ask one Redis for its role; see :func:`redis_view.agree` for the shape."""
    try:
        info = connect(node, access, timeout).info("replication")
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


def inspect_sentinel(node, name, access, timeout):
    """Ask one Sentinel what it watches under ``name``; see :func:`redis_view.agree` for the shape."""
    nothing = {**node, "primary": None, "replicas": 0, "quorum_ok": False, "tilt": False, "failover": False, "flags": ""}
    try:
        client = connect(node, access, timeout)
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
