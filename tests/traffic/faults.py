# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can go wrong between clients and gateways: each fault is a function of the cluster that returns a context manager.

Entering it breaks something and yields a :class:`Broken`, leaving it repairs that and waits until the repair is seen. Built on the
faults of the history checker.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import subprocess
import time

import requests

from lab.cluster import Cluster as LabCluster
from lab.demo import playbook
from lab.shell import run, wait_for
from tests.history import faults as history
from tests.history.faults import execute, main_pid, started

from .engines import engine, is_active

#: What drops the packets by which balancers see each other; VRRP is IP protocol 112.
CHAIN = "openclaw-traffic"
VRRP = "112"


@dataclasses.dataclass(frozen=True)
class Broken:
    """``at``: just before it broke. ``replicas``: ids of those that it made sick; ``balancer``: the host of one that it hit."""

    at: float
    replicas: tuple[str, ...] = ()
    balancer: str | None = None


@contextlib.contextmanager
def nothing(_cluster):
    """Nothing goes wrong."""
    yield Broken(time.monotonic())


# ---- replicas


@contextlib.contextmanager
def _killed(cluster, replicas):
    """kill -9, and systemd does not bring them back before the fault ends."""
    for replica in replicas:
        execute(cluster, replica["host"], "systemctl", "mask", "--runtime", replica["unit"])
    pids = [main_pid(cluster, replica["host"], replica["unit"]) for replica in replicas]
    at = time.monotonic()
    try:
        for replica, pid in zip(replicas, pids, strict=True):
            execute(cluster, replica["host"], "kill", "-KILL", pid)
        yield Broken(at, tuple(replica["id"] for replica in replicas))
    finally:
        for replica in replicas:
            execute(cluster, replica["host"], "systemctl", "unmask", "--runtime", replica["unit"])
            execute(cluster, replica["host"], "systemctl", "start", replica["unit"])
    for replica in replicas:
        wait_for(f"{replica['id']} is back", lambda replica=replica: started(replica), 240)


def replica_killed(cluster):
    """kill -9 of one replica."""
    return _killed(cluster, cluster.topology["replicas"][:1])


def two_of_three_killed(cluster):
    """kill -9 of all replicas but one."""
    return _killed(cluster, cluster.topology["replicas"][:-1])


def _sick(fault):
    """A fault of the history checker that makes the first replica sick."""

    @contextlib.contextmanager
    @functools.wraps(fault)
    def broken(cluster):
        at = time.monotonic()
        with fault(cluster):
            yield Broken(at, (cluster.topology["replicas"][0]["id"],))

    return broken


@contextlib.contextmanager
def drained_in_turn(cluster):
    """Each replica in turn is drained by the playbook, restarted, and made ready by the playbook."""
    at = time.monotonic()
    for replica in cluster.topology["replicas"]:
        _play(cluster, "drain", drain=replica["id"])
        execute(cluster, replica["host"], "systemctl", "restart", replica["unit"])
        wait_for(f"{replica['id']} is back", lambda replica=replica: started(replica), 240)
        _play(cluster, "drain", drain=replica["id"], drain_state="ready")
    yield Broken(at)


def _play(cluster, name, **variables):
    """A playbook of the collection, with the engine that the cluster has now."""
    playbook(LabCluster(cluster.name), name, "--extra-vars", json.dumps({"balancer_engine": engine(cluster), **variables}))


# ---- what all replicas share


@contextlib.contextmanager
def redis_away(cluster):
    """Every Redis and every Sentinel is stopped."""
    at = time.monotonic()
    with history.redis_away(cluster):
        yield Broken(at)


@contextlib.contextmanager
def provider_away(cluster):
    """The first provider refuses connections; afterwards it is what it was."""
    host, port = cluster.llm_url.rsplit(":", 1)
    control = f"{host}:{int(port) + 1}/behaviour"
    before = requests.get(control, timeout=10).json()
    at = time.monotonic()
    requests.post(control, json={"mode": "refuse", "seconds": 600}, timeout=10).raise_for_status()
    try:
        yield Broken(at)
    finally:
        requests.post(control, json=before, timeout=10).raise_for_status()


# ---- balancers


def vip(cluster):
    """The virtual IP of the first datacenter. :raises RuntimeError: when the cluster has none"""
    addresses = [one["address"] for one in cluster.topology.get("vips", ()) if one["address"]]
    if not addresses:
        raise RuntimeError(f"cluster {cluster.name} has no virtual IP: this fault is about it")
    return addresses[0]


def way_in(cluster):
    """Where clients knock: the virtual IP, else the first balancer. :returns: the cluster with this as its URL"""
    addresses = [one["address"] for one in cluster.topology.get("vips", ()) if one["address"]]
    port = cluster.topology["balancers"][0]["port"]
    return dataclasses.replace(cluster, url=f"http://{addresses[0]}:{port}") if addresses else cluster


def holders(cluster):
    """The balancers' hosts that have the virtual IP; a host that is away has not."""
    address, found = vip(cluster), []
    for balancer in cluster.topology["balancers"]:
        command = ["docker", "exec", cluster.containers[balancer["host"]], "ip", "-o", "-4", "address", "show"]
        shown = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60).stdout
        if f" {address}/" in shown:
            found.append(balancer["host"])
    return found


def one_holder(cluster):
    """Wait until exactly one balancer has the virtual IP, and return its host."""
    return wait_for("exactly one holder of the virtual IP", lambda: len(found := holders(cluster)) == 1 and found[0], 60)


@contextlib.contextmanager
def balancer_host_killed(cluster):
    """docker kill of the host that has the virtual IP, with all that runs on it; docker start afterwards."""
    host = one_holder(cluster)
    sick = tuple(replica["id"] for replica in cluster.topology["replicas"] if replica["host"] == host)
    at = time.monotonic()
    run("docker", "kill", cluster.containers[host])
    try:
        yield Broken(at, sick, host)
    finally:
        run("docker", "start", cluster.containers[host])
    for replica in cluster.topology["replicas"]:
        wait_for(f"{replica['id']} is back", lambda replica=replica: started(replica), 240)
    wait_for("two Redis replicas", lambda: _redis_replicas(cluster) == len(cluster.topology["redis"]) - 1, 240)
    one_holder(cluster)


def _redis_replicas(cluster):
    import redis

    try:
        return cluster.redis().info("replication")["connected_slaves"]
    except redis.RedisError:
        return None


@contextlib.contextmanager
def balancer_killed(cluster):
    """kill -9 of the balancing program where the virtual IP is; it does not come back before the fault ends."""
    host, unit = one_holder(cluster), f"{engine(cluster)}.service"
    execute(cluster, host, "systemctl", "mask", "--runtime", unit)
    at = time.monotonic()
    try:
        execute(cluster, host, "systemctl", "kill", "--signal=KILL", unit)
        yield Broken(at, balancer=host)
    finally:
        execute(cluster, host, "systemctl", "unmask", "--runtime", unit)
        execute(cluster, host, "systemctl", "start", unit)
    one_holder(cluster)


@contextlib.contextmanager
def keepalived_stopped(cluster):
    """keepalived is stopped where the virtual IP is."""
    host, at = one_holder(cluster), time.monotonic()
    execute(cluster, host, "systemctl", "stop", "keepalived.service")
    try:
        yield Broken(at, balancer=host)
    finally:
        execute(cluster, host, "systemctl", "start", "keepalived.service")
    wait_for("keepalived", lambda: is_active(cluster, host, "keepalived.service"))
    one_holder(cluster)


@contextlib.contextmanager
def balancers_apart(cluster):
    """Balancers do not hear each other's VRRP; everything else passes."""
    balancers, at = cluster.topology["balancers"], time.monotonic()
    held = one_holder(cluster)
    with contextlib.ExitStack() as stack:
        for balancer in balancers:
            peers = [other["address"] for other in balancers if other["host"] != balancer["host"]]
            stack.enter_context(deaf(cluster, balancer["host"], peers))
        wait_for("a holder on either side", lambda: len(holders(cluster)) == len(balancers), 30)
        yield Broken(at, balancer=held)
    one_holder(cluster)


@contextlib.contextmanager
def deaf(cluster, host, peers):
    """A host neither sends VRRP to its peers nor hears any of them, by a chain of our own, which is removed afterwards."""

    def iptables(*words):
        execute(cluster, host, "iptables", "--wait", *words)

    iptables("--new-chain", CHAIN)
    try:
        for peer in peers:
            for side in ("--source", "--destination"):
                iptables("--append", CHAIN, "--protocol", VRRP, side, peer, "--jump", "DROP")
        for hook in ("INPUT", "OUTPUT"):
            iptables("--insert", hook, "--jump", CHAIN)
        yield
    finally:
        for hook in ("INPUT", "OUTPUT"):
            command = ["docker", "exec", cluster.containers[host], "iptables", "--wait", "--delete", hook, "--jump", CHAIN]
            subprocess.run(command, check=False, capture_output=True, timeout=60)  # it may not have come that far
        iptables("--flush", CHAIN)
        iptables("--delete-chain", CHAIN)


@contextlib.contextmanager
def one_replica_more_and_less(cluster):
    """site.yml with one gateway replica more, and again with as many as before, while clients talk."""
    count, at = len(cluster.topology["replicas"]), time.monotonic()
    try:
        _play(cluster, "site", gateway_replicas=count + 1)
    finally:
        _play(cluster, "site", gateway_replicas=count)
    yield Broken(at)


#: Name -> fault.
FAULTS = {
    "none": nothing,
    "replica killed": replica_killed,
    "two of three killed": two_of_three_killed,
    "replica frozen": _sick(history.gateway_frozen),
    "drain, restart, ready": drained_in_turn,
    "redis away": redis_away,
    "provider away": provider_away,
    "balancer's host killed": balancer_host_killed,
    "balancer killed": balancer_killed,
    "keepalived stopped": keepalived_stopped,
    "balancers apart": balancers_apart,
    "one replica more and less": one_replica_more_and_less,
}
#: Those that are about the virtual IP.
OF_VIP = ("balancer's host killed", "balancer killed", "keepalived stopped", "balancers apart")
