# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes wrong, on purpose. A fault is a function of the servers that returns a context manager: entering it breaks
something, leaving it repairs that. All of them act on the host of the present primary, or on all hosts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import subprocess
from concurrent.futures import ThreadPoolExecutor

import redis

from lab.shell import wait_for

from . import playbook
from .servers import back_door


@contextlib.contextmanager
def nothing(_servers):
    """Nothing goes wrong."""
    yield


@contextlib.contextmanager
def primary_killed(servers):
    """kill -9 of the primary, which stays away until another one is elected, as if its host were gone."""
    host = servers.primary()["host"]
    unit = servers.redis_unit
    # Masked, or systemd would have it back before a Sentinel calls it down.
    servers.execute(host, "systemctl", "mask", "--quiet", "--runtime", unit)
    try:
        servers.execute(host, "kill", "-KILL", servers.pid(host, unit))
        yield
    finally:
        servers.execute(host, "systemctl", "unmask", "--quiet", "--runtime", unit)
        servers.execute(host, "systemctl", "reset-failed", unit, check=False)
        servers.execute(host, "systemctl", "start", unit)


@contextlib.contextmanager
def primary_restarted(servers):
    """kill -9 of the primary, and systemd brings it back at once."""
    host = servers.primary()["host"]
    old = servers.pid(host, servers.redis_unit)
    servers.execute(host, "kill", "-KILL", old)
    wait_for("systemd starts it again", lambda: servers.pid(host, servers.redis_unit) not in (old, "0"))
    yield


@contextlib.contextmanager
def primary_killed_without_a_sentinel(servers):
    """The primary's whole host is silent, its Sentinel, too: one Sentinel is gone while another primary is elected."""
    host = servers.primary()["host"]
    servers.execute(host, "systemctl", "stop", servers.sentinel_unit)
    try:
        with primary_killed(servers):
            yield
    finally:
        servers.execute(host, "systemctl", "start", servers.sentinel_unit)


@contextlib.contextmanager
def primary_frozen(servers):
    """SIGSTOP of the primary for longer than down-after, then SIGCONT: it wakes up and believes that nothing has happened."""
    host = servers.primary()["host"]
    pid = servers.pid(host, servers.redis_unit)
    servers.execute(host, "kill", "-STOP", pid)
    try:
        yield
    finally:
        servers.execute(host, "kill", "-CONT", pid)


@contextlib.contextmanager
def primary_partitioned(servers):
    """The primary and its Sentinel no longer reach anybody, nor anybody them, but for the client that came by the back door."""
    primary = servers.primary()
    host, ports = primary["host"], f"{primary['port']},{servers.sentinels[0]['port']}"
    # Both directions, and connections begun on either side. Only this set's ports: other sets live on the same hosts.
    rules = [
        [chain, "!", side, "lo", "-p", "tcp", "-m", "multiport", which, ports,
         "-m", "conntrack", "!", "--ctorigdstport", str(back_door(primary)), "-j", "DROP"]
        for chain, side in (("INPUT", "-i"), ("OUTPUT", "-o"))
        for which in ("--sports", "--dports")
    ]  # fmt: skip
    for rule in rules:
        servers.execute(host, "iptables", "-w", "-I", *rule)
    try:
        yield
    finally:
        for rule in rules:
            servers.execute(host, "iptables", "-w", "-D", *rule)


@contextlib.contextmanager
def hosts_gone(servers, signal):
    """All hosts at once: ``KILL`` them (no process gets to say goodbye), or power them off in order; then they start again."""
    with ThreadPoolExecutor(len(servers.containers)) as pool:

        def each(*words):
            run = functools.partial(subprocess.run, check=True, capture_output=True, timeout=90)
            list(pool.map(lambda name: run(["docker", *words, name]), servers.containers.values()))

        try:
            each("kill", "--signal", signal)
            each("wait")
        finally:
            each("start")
    yield


@contextlib.contextmanager
def switched(servers):
    """A planned switch: the collection's playbook, or ``SENTINEL FAILOVER`` where there is none."""
    before = servers.primary()
    if servers.cluster:
        playbook.run(servers.cluster, "redis_switch")
    else:
        servers.sentinel(servers.sentinels[0]).execute_command("SENTINEL", "FAILOVER", servers.monitor)
    wait_for("another primary", lambda: _primary(servers) not in (None, before))
    yield


def _primary(servers):
    try:
        return servers.primary()
    except redis.RedisError:  # there is none at the moment
        return None


@dataclasses.dataclass(frozen=True)
class Fault:
    """``run``: the context manager; ``pinned``: with one more client that stays with the old primary, whatever it says;
    ``hold``: seconds that the fault lasts at least, else until writes are acknowledged again."""

    run: object
    title: str
    pinned: bool = False
    hold: float = 0


#: Name -> Fault.
FAULTS = {
    "none": Fault(nothing, "none"),
    "killed": Fault(primary_killed, "primary killed (kill -9), stays away"),
    "restarted": Fault(primary_restarted, "primary killed (kill -9), systemd starts it again"),
    "frozen": Fault(primary_frozen, "primary frozen beyond down-after, then released", pinned=True),
    "partitioned": Fault(primary_partitioned, "primary cut off with a client on its side, then healed", pinned=True, hold=8),
    "one-sentinel-gone": Fault(primary_killed_without_a_sentinel, "primary and one Sentinel gone"),
    "switched": Fault(switched, "planned switch under load", pinned=True),
    "powered-off": Fault(functools.partial(hosts_gone, signal="SIGRTMIN+3"), "all hosts powered off and started"),
    "hosts-killed": Fault(functools.partial(hosts_gone, signal="KILL"), "all hosts killed at once and started"),
}
#: These act on whole hosts, so on every set that lives there.
ALL_HOSTS = ("powered-off", "hosts-killed")
