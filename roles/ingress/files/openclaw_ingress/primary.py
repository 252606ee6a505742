# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way to the Redis primary: named by a Sentinel, or by the configuration. What failed once is asked for anew."""

from __future__ import annotations

import contextlib
import inspect
import logging
import random

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from .config import endpoint, secret

log = logging.getLogger("openclaw_ingress")

#: Most connections to one server.
_CONNECTIONS = 32


class RedisAway(Exception):
    """Redis cannot be used now; the text says why."""


class Primary:
    """Connections to the primary, made when they are needed and kept.

    A command is never cut off on our side, since its answer would be the next command's on the same connection: it has a timeout of its own.
    """

    def __init__(self, settings):
        self._where = settings["redis"]
        self._connect_timeout = settings["redis_timeout"]
        # WAIT takes its own time.
        self._timeout = settings["redis_timeout"] + settings["wait_timeout"]
        self._client = None
        #: Did the latest command succeed? None before the first.
        self.serves = None

    async def run(self, operation):
        """``await operation(client)``, once.

        :raises RedisAway: when the primary is not to be had, or does not serve
        """
        client = None
        try:
            client = await self._connected()
            answer = await operation(client)
        except (redis.RedisError, OSError, TimeoutError) as error:
            # Also what the server refuses: a primary that is none any more does, and one that is full, or has too few replicas.
            if client is self._client:
                await self.close()
            away = RedisAway(str(error) or type(error).__name__)
            if self.serves is not False:
                log.warning("Redis is away: %s", away)
            self.serves = False
            raise away from error
        if self.serves is False:
            log.warning("Redis is back.")
        self.serves = True
        return answer

    async def close(self):
        """Close what is idle; what is in use closes with its command."""
        client, self._client = self._client, None
        if client:
            # The good-bye may take too long as well.
            with contextlib.suppress(redis.RedisError, OSError, TimeoutError):
                await client.connection_pool.disconnect(inuse_connections=False)

    async def _connected(self):
        if self._client is None:
            address = endpoint(self._where["address"]) if "address" in self._where else await self._named()
            # Another one may have found it meanwhile.
            self._client = self._client or self._open(*address, "user", "password_file")
        return self._client

    async def _named(self):
        """(host, port) of the primary, by the first Sentinel that names one."""
        last = None
        for where in random.sample(self._where["sentinels"], len(self._where["sentinels"])):
            client = self._open(*endpoint(where), "sentinel_user", "sentinel_password_file")
            try:
                found = await client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._where["monitor"])
                if found:
                    host, port = found
                    return host.decode(), int(port)
                last = f"the Sentinel {where} knows no {self._where['monitor']}"
            except (redis.RedisError, OSError, TimeoutError) as error:
                last = f"the Sentinel {where}: {error or type(error).__name__}"
            finally:
                with contextlib.suppress(redis.RedisError, OSError, TimeoutError):
                    await client.connection_pool.disconnect()
        raise redis.ConnectionError(f"no Sentinel names a primary ({last})")

    def _open(self, host, port, user, password_file):
        options = {
            "host": host,
            "port": port,
            "username": self._where.get(user),
            "password": secret(self._where[password_file]).decode() if password_file in self._where else None,
            "socket_timeout": self._timeout,
            "socket_connect_timeout": self._connect_timeout,
            "socket_keepalive": True,
            "protocol": 2,
            # Newer versions of the library repeat commands by themselves, and tell the server their name, which the user may not.
            "retry": Retry(NoBackoff(), 0),
            "driver_info": None,
            "lib_name": None,
            "lib_version": None,
        }
        kind = redis.asyncio.Connection
        if tls := self._where.get("tls"):
            kind = redis.asyncio.SSLConnection
            options |= {"ssl_ca_certs": tls["ca"], "ssl_certfile": tls["cert"], "ssl_keyfile": tls["key"]}
        known = {name for one in kind.__mro__ if one is not object for name in inspect.signature(one.__init__).parameters}
        if "driver_info" in known:
            # It takes the place of the other two, and they are no longer welcome.
            known -= {"lib_name", "lib_version"}
        options = {name: value for name, value in options.items() if name in known}
        # After an outage all that wait would make a connection each, at once.
        pool = redis.asyncio.BlockingConnectionPool(connection_class=kind, max_connections=_CONNECTIONS, timeout=self._timeout, **options)
        return redis.asyncio.Redis(connection_pool=pool)
