# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can go wrong, on purpose: each fault is a function of the cluster that returns a context manager.

Entering it breaks something of the lab's own hosts, leaving it repairs that and waits until the repair is seen.
"""

from __future__ import annotations

import contextlib
import functools
import subprocess

import redis
import requests

from lab.shell import wait_for
from tests.redis import playbook

from . import collect


def execute(cluster, host, *words):
    """Run a command on a host of the lab; returns what it printed. :raises RuntimeError: when it fails"""
    done = subprocess.run(
        ["docker", "exec", cluster.containers[host], *words], check=False, capture_output=True, text=True, timeout=120
    )
    if done.returncode:
        raise RuntimeError(f"{host}: {' '.join(words)} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout.strip()


def main_pid(cluster, host, unit):
    return execute(cluster, host, "systemctl", "show", "--property=MainPID", "--value", unit)


def started(replica):
    """Whether a replica says that it takes traffic."""
    try:
        return requests.get(f"http://{replica['address']}:{replica['port']}/startupz", timeout=2).json()["ok"] is True
    except (OSError, ValueError, KeyError, requests.RequestException):
        return False


@contextlib.contextmanager
def nothing(_cluster):
    """Nothing goes wrong."""
    yield


@contextlib.contextmanager
def gateway_killed(cluster):
    """kill -9 of one gateway in the middle of its turns; systemd brings it back."""
    replica = cluster.topology["replicas"][0]
    execute(cluster, replica["host"], "kill", "-KILL", main_pid(cluster, replica["host"], replica["unit"]))
    yield
    wait_for(f"{replica['id']} is back", lambda: started(replica))


@contextlib.contextmanager
def gateway_frozen(cluster):
    """SIGSTOP of one gateway, for longer than its lease, and then SIGCONT."""
    replica = cluster.topology["replicas"][0]
    pid = main_pid(cluster, replica["host"], replica["unit"])
    execute(cluster, replica["host"], "kill", "-STOP", pid)
    try:
        yield
    finally:
        execute(cluster, replica["host"], "kill", "-CONT", pid)
    wait_for(f"{replica['id']} goes on", lambda: started(replica))


#: Holds the write lock of a SQLite database until its standard input ends.
LOCK = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
database.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def database_locked(cluster):
    """Another process holds one gateway's SQLite database locked, as a backup tool or a slow disk would."""
    replica = cluster.topology["replicas"][0]
    find = ("find", f"/var/lib/openclaw/{replica['instance']}", "-name", "openclaw-agent.sqlite")
    path = execute(cluster, replica["host"], *find)
    container = cluster.containers[replica["host"]]
    command = ["docker", "exec", "--interactive", container, "python3", "-c", LOCK, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        if holder.stdout.readline() != "locked\n":
            raise RuntimeError(f"{path} on {replica['host']} could not be locked")
        try:
            yield
        finally:
            holder.stdin.close()
    wait_for(f"{replica['id']} goes on", lambda: started(replica))


def primary_host(cluster):
    """The host of the present Redis primary."""
    address = cluster.redis().connection_pool.get_master_address()[0]
    return next(node["host"] for node in cluster.topology["redis"] if node["address"] == address)


@contextlib.contextmanager
def redis_primary_killed(cluster):
    """kill -9 of the Redis primary, which does not come back before the fault ends: the Sentinels elect another one."""
    host = primary_host(cluster)
    # Masked, or systemd would have it back before a Sentinel calls it down.
    execute(cluster, host, "systemctl", "mask", "--runtime", "redis-server.service")
    try:
        execute(cluster, host, "kill", "-KILL", main_pid(cluster, host, "redis-server.service"))
        yield
    finally:
        execute(cluster, host, "systemctl", "unmask", "--runtime", "redis-server.service")
        execute(cluster, host, "systemctl", "start", "redis-server.service")
    wait_for("another primary", lambda: primary_host(cluster) != host)
    wait_for("two replicas", lambda: cluster.redis().info("replication")["connected_slaves"] == 2)


@contextlib.contextmanager
def redis_away(cluster):
    """Every Redis and every Sentinel is stopped."""
    hosts = [node["host"] for node in cluster.topology["redis"]]
    for host in hosts:
        execute(cluster, host, "systemctl", "stop", "redis-sentinel.service", "redis-server.service")
    try:
        yield
    finally:
        for host in hosts:
            execute(cluster, host, "systemctl", "start", "redis-server.service", "redis-sentinel.service")
    wait_for("two replicas", lambda: cluster.redis().info("replication")["connected_slaves"] == len(hosts) - 1)


@contextlib.contextmanager
def gateways_restarted(cluster):
    """Every gateway is restarted, one after the other, the next when the last one takes traffic again."""
    for replica in cluster.topology["replicas"]:
        execute(cluster, replica["host"], "systemctl", "restart", replica["unit"])
        wait_for(f"{replica['id']} is back", lambda replica=replica: started(replica))
    yield


@contextlib.contextmanager
def hosts_killed(cluster):
    """Every host dies at once, gateways, Redis, Sentinels and balancers with it, and is started again: nobody says goodbye."""
    containers = list(cluster.containers.values())
    for words in (("kill",), ("wait",), ("start",)):
        subprocess.run(["docker", *words, *containers], check=True, capture_output=True, timeout=90)
    yield
    for replica in cluster.topology["replicas"]:
        wait_for(f"{replica['id']} is back", lambda replica=replica: started(replica), 180)
    wait_for("two replicas", lambda: _replicas_of_primary(cluster) == len(cluster.topology["redis"]) - 1, 60)


def _replicas_of_primary(cluster):
    """How many replicas the primary has; None while there is no primary."""
    try:
        return cluster.redis().info("replication").get("connected_slaves")
    except redis.RedisError:
        return None


@contextlib.contextmanager
def passwords_rotated(cluster):
    """New passwords for Redis and Sentinel, brought to all by one run of site.yml; afterwards the old ones are no longer good."""
    old = cluster.lab.access("redis", "app")
    cluster.lab.rotate("redis_password")
    cluster.lab.rotate("sentinel_password")
    playbook.run(cluster.name, "site", seconds=900)
    yield
    node = cluster.topology["redis"][0]
    try:
        collect.primary_by_address(node["address"], node["port"], old).ping()
    except redis.AuthenticationError:
        return
    raise RuntimeError("the old password of Redis is still good")


@contextlib.contextmanager
def provider(cluster, mode, **behaviour):
    """The first provider misbehaves; see tests/doubles/README.md for the modes."""

    def behave(**wanted):
        # On its own port: in the mode "refuse" the double's first port is closed.
        host, port = cluster.llm_url.rsplit(":", 1)
        requests.post(f"{host}:{int(port) + 1}/behaviour", json=wanted, timeout=10).raise_for_status()

    behave(mode=mode, **behaviour)
    try:
        yield
    finally:
        behave(mode="ok")


#: Name -> fault.
FAULTS = {
    "none": nothing,
    "gateway killed": gateway_killed,
    "gateway frozen": gateway_frozen,
    "database locked": database_locked,
    "redis primary killed": redis_primary_killed,
    "redis away": redis_away,
    "gateways restarted": gateways_restarted,
    "hosts killed": hosts_killed,
    "passwords rotated": passwords_rotated,
    **{
        f"provider {mode}": functools.partial(provider, mode=mode, **more)
        for mode, more in {
            "500": {},
            "503": {},
            "429": {},
            "401": {},
            "refuse": {"seconds": 600},
            "hang": {},
            "slow_first_token": {"seconds": 60},
        }.items()
    },
}
