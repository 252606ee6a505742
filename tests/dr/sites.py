# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two datacenters of a lab cluster: who is there, what becomes of them, and clients that go to whichever answers."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import subprocess
import threading
import time

import dns.resolver
import redis
import requests

from lab.cluster import ROOT
from lab.cluster import Cluster as LabCluster
from lab.shell import run, wait_for
from plugins.module_utils.topology import build
from tests.history import collect
from tests.history.cluster import Cluster
from tests.history.history import History
from tests.history.load import Load
from tests.history.run import judge


@dataclasses.dataclass
class Sites:
    """``topologies``: the roles' own, by datacenter; ``cluster``: for a load, whose clients go from one balancer's address to the other's."""

    lab: LabCluster
    topologies: dict
    cluster: Cluster

    @classmethod
    def of_lab(cls, name):
        """A lab cluster with two datacenters, by its name."""
        lab = LabCluster(name)
        inventories = ("--inventory", lab.sample, "--inventory", lab.inventory)
        listed = json.loads(run(ROOT / ".venv/bin/ansible-inventory", *inventories, "--list", cwd=ROOT))
        groups = {group: found.get("hosts", []) for group, found in listed.items() if group != "_meta"}
        hostvars = listed["_meta"]["hostvars"]
        whole = build(groups, hostvars)
        topologies = {one: build(groups, hostvars, one) for one in whole["datacenters"]}
        doors = tuple(f"{site['addresses'][0]}:{site['balancers'][0]['port']}" for site in whole["sites"].values())
        cluster = Cluster(
            name=name,
            url=f"http://{doors[0]}",
            token=lab.secret("gateway_token").read_text().strip(),
            replicas=doors,
            llm_url=lab.llm_url,
            containers={host: lab.container(host) for host in lab.hosts},
            topology=whole,
            lab=lab,
        )
        return cls(lab, topologies, cluster)

    def hosts(self, site):
        return list(self.topologies[site]["hosts"])

    def execute(self, host, *words, check=True):
        """Run a command on a host; what it printed."""
        done = subprocess.run(["docker", "exec", self.lab.container(host), *words], check=False, capture_output=True, text=True, timeout=120)
        if check and done.returncode:
            raise RuntimeError(f"{host}: {' '.join(words)} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
        return done.stdout.strip()

    def status(self, host):
        """What a host's service of the datacenters saw last; a state of ``""`` while it has seen nothing since its start."""
        return json.loads(self.execute(host, "openclaw-datacenter", "status", check=False) or '{"state": ""}')

    def state(self, site):
        """What all hosts of a datacenter say that it is; empty when they do not agree."""
        states = {self.status(host)["state"] for host in self.hosts(site)}
        return states.pop() if len(states) == 1 else ""

    def active(self):
        """The datacenter that has the conversations."""
        (name,) = [site for site in self.topologies if self.state(site) == "active"]
        return name

    def other(self, site):
        (name,) = [one for one in self.topologies if one != site]
        return name

    def redis(self, node):
        """A client of one Redis server (dict with ``address`` and ``port``)."""
        return collect.primary_by_address(node["address"], node["port"], self.lab.access("redis", "admin"))

    def primary(self, site):
        """A client of the primary that a datacenter's Sentinels name."""
        sentinels = [(one["address"], one["port"]) for one in self.topologies[site]["sentinels"]]
        access = self.lab.access("redis", "admin"), self.lab.access("sentinel", "client")
        return collect.primary_by_sentinel(sentinels, self.topologies[site]["monitor"]["name"], *access)

    def leader(self, site):
        """The Redis server of a datacenter that says it is the primary, None while there is not exactly one."""
        found = []
        for node in self.topologies[site]["redis"]:
            with contextlib.suppress(redis.RedisError):
                found += [node] if self.redis(node).info("replication")["role"] == "master" else []
        return found[0] if len(found) == 1 else None

    def upstreams(self, site):
        """Whom each Redis server of a standby follows, ``host -> address:port``, with its link; empty for a primary."""
        found = {}
        for node in self.topologies[site]["redis"]:
            info = self.redis(node).info("replication")
            found[node["host"]] = (f"{info['master_host']}:{info['master_port']}", info["master_link_status"]) if info["role"] == "slave" else ()
        return found

    @contextlib.contextmanager
    def killed(self, site):
        """All hosts of a datacenter are killed at once, as by a loss of power, and started again at the end."""
        containers = [self.lab.container(host) for host in self.hosts(site)]
        run("docker", "kill", *containers)
        try:
            yield
        finally:
            run("docker", "start", *containers)

    @contextlib.contextmanager
    def cut(self, site):
        """Nothing passes between a datacenter and the other one; clients and models are reached by both."""
        others = [host["address"] for host in self.topologies[self.other(site)]["hosts"].values()]
        rules = [(host, chain, flag, address) for host in self.hosts(site) for chain, flag in (("INPUT", "-s"), ("OUTPUT", "-d")) for address in others]
        for host, chain, flag, address in rules:
            self.execute(host, "iptables", "-I", chain, flag, address, "-j", "DROP")
        try:
            yield
        finally:
            for host, chain, flag, address in rules:
                self.execute(host, "iptables", "-D", chain, flag, address, "-j", "DROP", check=False)


class Visitors:
    """A client that asks a name server for the name and then the datacenter it is told for its health, one after the other, while it is a context.

    ``seen``: ``(monotonic time, datacenter, HTTP status; 0 for none)`` for each.
    """

    PAUSE = 0.02  # seconds between two: an upper bound of the load

    def __init__(self, sites):
        self.doors = {topology["vips"][0]["address"]: site for site, topology in sites.topologies.items()}
        self.resolvers = [resolver(node) for node in sites.cluster.topology["dns"]]
        self.seen = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._visit, daemon=True)

    def _visit(self):
        for one in itertools.cycle(self.resolvers):
            if self._over.wait(self.PAUSE):
                return
            address = one.resolve("claw.example.org", "A")[0].address
            status = 0
            with contextlib.suppress(requests.RequestException):
                status = requests.get(f"http://{address}:8080/api/v1/health", timeout=5).status_code
            self.seen.append((time.monotonic(), self.doors[address], status))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_error):
        self._over.set()
        self._thread.join(30)


def resolver(node):
    """Asks one name server, and nobody else."""
    found = dns.resolver.Resolver(configure=False)
    found.nameservers, found.port = [node["address"]], node["port"]
    return found


@contextlib.contextmanager
def talking(sites, options, directory):
    """Clients talk meanwhile. Yields the load; afterwards it is over."""
    directory.mkdir(parents=True, exist_ok=True)
    load = Load(sites.cluster, options, directory / "operations.jsonl").start()
    try:
        yield load
    finally:
        load.stop()
        load.outcome = load.join()


def verdict(sites, load, options, directory, site, name):
    """What the history checker finds in what clients saw, and in what a datacenter has."""
    client = sites.primary(site)
    gateways = tuple(f"{one['address']}:{one['port']}" for one in sites.topologies[site]["replicas"])
    unsettled = collect.settle(dataclasses.replace(sites.cluster, replicas=gateways), client, load.run, options.channel)
    stored = collect.stored(client, load.run, options.channel)
    operations, gets = load.outcome
    History(operations, stored, sites.cluster.model_calls(load.run), gets, None).save(directory / "history.json")
    return judge(directory, fault=name, options=dataclasses.asdict(options), run=load.run, unsettled=unsettled)


def until_active(sites, site, seconds=60):
    wait_for(f"{site} to be active", lambda: sites.state(site) == "active", seconds)
