# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The servers under test: how to find and enter them, and how to act on their hosts. The only place that knows how to get in."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import random
import subprocess
import sys

import redis

from lab.cluster import ROOT
from lab.cluster import Cluster as LabCluster
from lab.demo import topology as build_topology
from lab.shell import wait_for

if str(ROOT / ".collections") not in sys.path:
    sys.path.insert(0, str(ROOT / ".collections"))

from ansible_collections.openclaw.ha.plugins.module_utils import redis_client, redis_view  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Servers:
    """One primary with replicas, and its Sentinels.

    ``nodes``, ``sentinels``: as in the topology; ``access``: role (``app``, ``admin``) -> how to enter Redis;
    ``sentinel_access``: likewise for ``client`` and ``admin``; ``containers``: host -> container; ``units``: of Redis and
    Sentinel; ``prefix``: of the keys that the app may write
    """

    name: str
    nodes: tuple[dict, ...]
    sentinels: tuple[dict, ...]
    monitor: str
    access: dict = dataclasses.field(repr=False)
    sentinel_access: dict = dataclasses.field(repr=False)
    containers: dict
    redis_unit: str = "redis-server.service"
    sentinel_unit: str = "redis-sentinel.service"
    prefix: str = "oc:"
    #: The lab cluster when the collection set them up, so that its playbooks can act on them.
    cluster: str = ""

    def client(self, node, role="admin", timeout=2):
        """A client of one Redis."""
        return redis_client.connect(node, self.access[role], timeout)

    def sentinel(self, node, role="admin", timeout=2):
        """A client of one Sentinel."""
        return redis_client.connect(node, self.sentinel_access[role], timeout)

    def primary(self, timeout=0.5):
        """The node that a Sentinel names and that says so itself; the way of the gateways' clients.

        :raises redis.ConnectionError: when there is none
        """
        for sentinel in random.sample(self.sentinels, len(self.sentinels)):
            try:
                found = redis_client.sentinel(
                    self.sentinel(sentinel, "client", timeout), "GET-MASTER-ADDR-BY-NAME", self.monitor
                )
                node = next(one for one in self.nodes if found and one["address"] == found[0] and one["port"] == int(found[1]))
                if self.client(node, "app", timeout).info("replication")["role"] == "master":
                    return node
            except (redis.RedisError, StopIteration):
                continue
        raise redis.ConnectionError(f"{self.name}: no Sentinel leads to a primary")

    def problems(self):
        """What is wrong with the set, in sentences; empty when all agree and every replica follows."""
        nodes = [redis_client.inspect_redis(node, self.access["admin"], 1) for node in self.nodes]
        sentinels = [
            redis_client.inspect_sentinel(node, self.monitor, self.sentinel_access["admin"], 1) for node in self.sentinels
        ]
        view = redis_view.agree(nodes, sentinels)
        found = list(view["problems"]) + ([] if view["state"] == "agreed" else [view["state"]])
        primaries = [node for node in nodes if node.get("role") == "master"]
        connected = sum(node["connected"] for node in primaries)
        return found + ([] if connected == len(self.nodes) - 1 else [f"{connected} replicas are connected."])

    @contextlib.contextmanager
    def pinned(self):
        """The present primary by a second port, for a client that stays on its side whatever is cut off meanwhile."""
        node = self.primary()
        door = back_door(node)
        rule = ["PREROUTING", "-p", "tcp", "--dport", str(door), "-j", "REDIRECT", "--to-ports", str(node["port"])]
        self.execute(node["host"], "iptables", "-w", "-t", "nat", "-I", *rule)
        try:
            yield {**node, "port": door}
        finally:
            self.execute(node["host"], "iptables", "-w", "-t", "nat", "-D", *rule)

    def settle(self, seconds=60):
        """Wait until nothing is wrong. :raises lab.shell.LabError: with what still is"""
        last = []

        def well():
            last[:] = self.problems()
            return not last

        try:
            wait_for(f"{self.name} is well", well, seconds)
        except RuntimeError as error:
            raise type(error)(f"{error}: {' '.join(last)}") from None

    def down_after(self):
        """Seconds of silence after which a Sentinel calls the primary down."""
        state = redis_client.sentinel_settings(self.sentinel(self.sentinels[0]), self.monitor)
        return int(state["down-after-milliseconds"]) / 1000

    def version(self):
        return self.client(self.nodes[0]).info("server")["redis_version"]

    def stored(self, key):
        """The list under ``key`` as the primary holds it, when every replica holds the same.

        :raises lab.shell.LabError: when they still differ after 20 s
        """

        def lists():
            found = [self.client(node, "app", 10).lrange(key, 0, -1) for node in self.nodes]
            return (found[0],) if all(one == found[0] for one in found) else None

        return tuple(wait_for(f"{self.name}: equal data everywhere", lists, 20)[0])

    def execute(self, host, *words, check=True):
        """Run a command on a host; returns what it printed. :raises RuntimeError: when it fails and ``check`` is set"""
        command = ["docker", "exec", self.containers[host], *words]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
        if check and done.returncode:
            raise RuntimeError(f"{host}: {' '.join(words)} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
        return done.stdout.strip()

    def pid(self, host, unit):
        return self.execute(host, "systemctl", "show", "--property=MainPID", "--value", unit)


def back_door(node):
    """The second port of a Redis; see :meth:`Servers.pinned`."""
    return node["port"] + 10000


def of_lab(name):
    """The servers that the roles set up in a lab cluster."""
    lab = LabCluster(name)
    topology = build_topology(lab)
    return Servers(
        name="openclaw.ha",
        nodes=tuple(topology["redis"]),
        sentinels=tuple(topology["sentinels"]),
        monitor=topology["monitor"]["name"],
        access={user: lab.access("redis", user) for user in ("app", "admin")},
        sentinel_access={user: lab.access("sentinel", user) for user in ("client", "admin")},
        containers={host: lab.container(host) for host in lab.hosts},
        cluster=name,
    )


#: Debian's own files; only what makes three servers a set is changed: addresses, ports, places and the primary.
PLAIN = pathlib.Path(__file__).with_name("plain.sh")


def plain(ours, number, fault):
    """A second set on the same hosts, as Debian ships it, for comparison: no password, no AOF, 30 s down-after.

    :param number: gives it ports of its own
    """
    ports = {"redis": 7000 + number, "sentinel": 27000 + number}
    name = f"plain{number}"
    addresses = {node["host"]: node["address"] for node in ours.nodes}
    first = next(iter(addresses.values()))
    script = PLAIN.read_text()
    servers = Servers(
        name=f"plain, {fault}",
        nodes=tuple({"host": host, "address": address, "port": ports["redis"]} for host, address in addresses.items()),
        sentinels=tuple({"host": host, "address": address, "port": ports["sentinel"]} for host, address in addresses.items()),
        monitor="mymaster",
        access={"app": {}, "admin": {}},
        sentinel_access={"client": {}, "admin": {}},
        containers=ours.containers,
        redis_unit=f"{name}-redis.service",
        sentinel_unit=f"{name}-sentinel.service",
    )
    for host, address in addresses.items():
        servers.execute(
            host, "sh", "-c", script, "plain.sh", name, address, first, str(ports["redis"]), str(ports["sentinel"])
        )
    return servers


def remove_plain(servers):
    """Stop a plain set and remove its files."""
    name = servers.redis_unit.removesuffix("-redis.service")
    for host in servers.containers:
        script = (
            f"systemctl unmask --runtime {servers.redis_unit}; systemctl kill --signal KILL {servers.redis_unit} {servers.sentinel_unit};"
            f"systemctl disable --now {servers.redis_unit} {servers.sentinel_unit};"
            f"rm -rf /usr/lib/systemd/system/{servers.redis_unit} /usr/lib/systemd/system/{servers.sentinel_unit} /var/lib/redis-{name};"
            "systemctl daemon-reload; systemctl reset-failed"
        )
        servers.execute(host, "sh", "-c", script, check=False)
