# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is unsafe or impossible about a cluster, said before anything is touched.

Pure: plain data in, sentences out. A sentence reads ``<variable or host>: found X; allowed Y; do Z.``, starts with the
hosts it is about unless it is about all of them, and never holds the value of a secret.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import itertools
import re

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ansible_collections.openclaw.ha.plugins.module_utils import channels, jobs
from ansible_collections.openclaw.ha.plugins.module_utils.gateway_config import provider_problems, stateless_violations
from ansible_collections.openclaw.ha.plugins.module_utils.redis_access import RULES

#: OpenClaw refuses to start on an older one.
NODE_MINIMUM = (24, 16)
ANSIBLE_MINIMUM = (2, 19)
DISTRIBUTIONS = {"debian": ("12", "13")}
#: OpenClaw derives further ports from a replica's own one, up to +110.
REPLICA_PORTS = 120
SECRET_LENGTH = 16
#: A certificate with fewer days left is worth a warning.
CERTIFICATE_DAYS = 14
#: Seconds, as in roles/balancer/templates/nginx.conf.j2.
NGINX_READ_TIMEOUT = 60
#: Groups without which there is no cluster, and what runs there.
NEEDED_GROUPS = {"openclaw_gateways": "a gateway", "openclaw_redis": "Redis", "openclaw_balancers": "a balancer"}
#: The hosts of a role. Roles not named here are not looked at.
ROLE_GROUPS = {
    "gateway": "openclaw_gateways",
    "agent": "openclaw_gateways",
    "ingress": "openclaw_gateways",
    "owner": "openclaw_gateways",
    "redis": "openclaw_redis",
    "sentinel": "openclaw_sentinels",
    "balancer": "openclaw_balancers",
    "vip": "openclaw_balancers",
    "dns": "openclaw_dns",
    "backup": "openclaw_redis",
    "ollama": "openclaw_ollama",
}
#: Secrets and the groups whose hosts need them.
SECRETS = {
    "gateway_token": ("openclaw_gateways",),
    "redis_password": ("openclaw_redis", "openclaw_sentinels", "openclaw_gateways"),
    "sentinel_password": ("openclaw_redis", "openclaw_sentinels", "openclaw_gateways"),
}
#: Passwords of single users, by variable: the kind of server.
USER_PASSWORDS = {"redis_user_passwords": "redis", "sentinel_user_passwords": "sentinel"}

#: Words that only sample values hold; a random secret of hexadecimal or base64 characters does not.
_SAMPLE = re.compile(r"(change|replace).?(me|this|it)|example|your.?(token|password|secret|key)|dummy|^x+$", re.I)
_SECRET_NAME = re.compile(r"token|password|secret|key|env", re.I)
#: What passes through redis.conf, environment files and HTTP headers without a second meaning.
_PLAIN = re.compile(r"[!%-&(-\[\]-_a-~]*\Z")
_ENDPOINT = re.compile(r"[^\s/]+:\d{1,5}\Z")
_VERSION = re.compile(r"\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?\Z")
_REDIS_SIZE = re.compile(r"(\d+)\s*(b|k|kb|m|mb|g|gb)?\Z", re.I)
_REDIS_UNITS = {"": 1, "b": 1, "k": 1000, "kb": 1024, "m": 1000**2, "mb": 1024**2, "g": 1000**3, "gb": 1024**3}
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_SYSTEMD_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTPE%]?)\Z")


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """Stands for a value that could not be evaluated; the reason is one sentence."""

    reason: str


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Everything the checks look at.

    topology: the fact ``topology_cluster``
    settings: host -> variable -> value with the roles' defaults applied, or an Unreadable
    facts: host -> result of ``preflight_host_info``; None for a host that gave none, no entry for a host that this run
        leaves out
    npm: gateway version -> result of ``npm_package_info``, for versions that are not installed yet
    ansible_version: of the controller, such as ``2.19.14``; empty leaves its check out
    specs: role -> variable -> its option in the role's argument_specs
    certificates: (file of a certificate, file of its key) on the controller -> what certificate_info() says about them
    """

    topology: dict
    settings: dict
    facts: dict
    npm: dict = dataclasses.field(default_factory=dict)
    ansible_version: str = ""
    specs: dict = dataclasses.field(default_factory=dict)
    certificates: dict = dataclasses.field(default_factory=dict)

    def members(self, *groups):
        """Names of the hosts in any of the groups, in inventory order."""
        return [name for name, host in self.topology["hosts"].items() if set(groups) & set(host["groups"])]

    def judge(self, variable, hosts, check):
        """The sentences of ``check(host, value)`` for a variable's value on each host.

        Hosts with the same finding share one sentence, which names them unless it holds for all.
        """
        found = {}
        for host in hosts:
            value = self.settings[host].get(variable)
            if not isinstance(value, Unreadable):
                for sentence in check(host, value):
                    found.setdefault(sentence, []).append(host)
        return [_at(where, hosts) + sentence for sentence, where in found.items()]


def problems(topology, settings, host_facts, **more):
    """Sentences about what makes this cluster unsafe or impossible; empty when it may be built.

    See Cluster for the shapes; ``more`` takes its other fields.
    """
    cluster = Cluster(topology, settings, host_facts, **more)
    found = [sentence for check in CHECKS for sentence in check(cluster)]
    # What a check above has refused already may be of the wrong type, too: its sentence says more.
    found += [text for name, text in _types(cluster) if not any(re.search(rf"\b{name}\b", other) for other in found)]
    return list(dict.fromkeys(found))


def warnings(topology, settings, host_facts, **more):
    """Sentences about what works but costs something; same arguments as problems()."""
    cluster = Cluster(topology, settings, host_facts, **more)
    return list(dict.fromkeys(sentence for check in ADVICE for sentence in check(cluster)))


# --- the shape of the topology ------------------------------------------------------------------------------------


def _controller(cluster):
    version = cluster.ansible_version
    if version and _numbers(version) < ANSIBLE_MINIMUM:
        yield _say("ansible-core", version, f"{_dotted(ANSIBLE_MINIMUM)} or newer", "upgrade it on the controller")


def _groups(cluster):
    for group, what in NEEDED_GROUPS.items():
        if not cluster.members(group):
            yield _say(group, "no host", "one host or more", f"put the hosts that run {what} into this group")
    if cluster.members("openclaw_gateways") and not cluster.topology["replicas"]:
        yield _say("gateway_replicas", "no replica", "1 or more", "set it to the number of gateway replicas you want")


def _addresses(cluster):
    hosts = cluster.topology["hosts"]
    remedy = "set topology_address to the address by which its peers reach it"
    for name, host in hosts.items():
        subject, text = f"{name}: topology_address", host["address"]
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            yield _say(subject, text, "an IP address", remedy)
            continue
        if address.version != 4 and "openclaw_gateways" in host["groups"]:
            yield _say(subject, text, "an IPv4 address, as a gateway listens on no other", remedy)
        elif address.version != 4 and "openclaw_balancers" in host["groups"]:
            yield _say(subject, text, "an IPv4 address, as the balancers' configurations know no other", remedy)
        elif address.is_unspecified or address.is_multicast:
            yield _say(subject, text, "the address of one host", remedy)
        elif address.is_loopback and len(hosts) > 1:
            yield _say(subject, text, "an address that the other hosts can reach", remedy)
    for address, names in _grouped(hosts, lambda name: hosts[name]["address"]):
        if len(names) > 1:
            subject = f"{_list(names)}: topology_address"
            yield _say(subject, f"{address} on each", "an address of its own for each host", remedy)


def _ports(cluster):
    topology = cluster.topology
    replicas = [("gateway_port", "gateway", node["host"], node["port"], REPLICA_PORTS) for node in topology["replicas"]]
    services = [
        (variable, label, node["host"], node["port"], 1)
        for variable, label, key in (
            ("redis_port", "Redis", "redis"),
            ("sentinel_port", "Sentinel", "sentinels"),
            ("balancer_port", "balancer", "balancers"),
            ("ollama_port", "Ollama", "ollama"),
        )
        for node in topology[key]
    ] + [
        (variable, label, node["host"], node[key], 1)
        for variable, label, key in (
            ("agent_port", "agent's verdict", "verdict_port"),
            ("agent_check_port", "agent's check", "check_port"),
        )
        for node in topology["replicas"]
    ]
    services += [
        ("balancer_tls_port", "balancer's TLS", node["host"], node["tls_port"], 1) for node in topology["balancers"] if node["tls_port"] is not None
    ]
    services += [
        ("balancer_datacenters_port", "balancers of other datacenters", node["host"], node["datacenters_port"], 1)
        for node in topology["balancers"]
        if node["datacenters_port"] and len(topology["datacenters"]) > 1
    ]
    services += [("ingress_port", "ingress", node["host"], node["port"], 1) for node in topology["ingresses"]]
    services += [("ingress_status_port", "ingress's status", node["host"], node["status_port"], 1) for node in topology["ingresses"]]
    services += [("owner_status_port", "owners' status", node["host"], node["port"], 1) for node in topology["owners"]]
    for host in cluster.members("openclaw_balancers"):
        for variable, label in (("balancer_peers_port", "balancers among themselves"), ("balancer_metrics_port", "balancer's metrics")):
            port = cluster.settings[host].get(variable)
            if isinstance(port, int) and port:
                services.append((variable, label, host, port, 1))
    for variable, label, host, port, width in dict.fromkeys((*replicas, *services)):
        if not 1 <= port <= 65536 - width:
            yield _say(f"{host}: {variable}", f"port {port} for the {label}", f"1 to {65536 - width}", "correct it")

    # One sentence for each kind of clash, whichever hosts it is seen on: the variables are normally the same on all.
    clashes = {}
    for one, other in (*itertools.combinations(services, 2), *itertools.product(services, replicas)):
        variable, label, host, port, width = one
        start, end = other[3], other[3] + other[4] - 1
        if host == other[2] and start <= port <= end:
            taken = f"port {start} of {host}" if start == end else f"ports {start} to {end} of {host}"
            clashes.setdefault((variable, label, other[1]), f"{port} for the {label}, but the {other[1]} has {taken}")
    for (variable, *rest), found in clashes.items():
        yield _say(variable, found, "a port of its own for each", f"change {variable}")

    ordered = sorted(topology["replicas"], key=lambda node: (node["host"], node["port"]))
    pairs = [pair for pair in itertools.pairwise(ordered) if pair[0]["host"] == pair[1]["host"]]
    close = [(one, other) for one, other in pairs if other["port"] - one["port"] < REPLICA_PORTS]
    if close:
        one, other = close[0]
        same = one["port"] == other["port"]
        where = f"both on {one['address']}:{one['port']}" if same else f"on ports {one['port']} and {other['port']}"
        found = f"replicas {one['id']} and {other['id']} {where}"
        allowed = f"a distance of {REPLICA_PORTS} or more, as OpenClaw derives further ports from the first"
        yield _say("gateway_port_step", found, allowed, f"set it to {REPLICA_PORTS}")


def _sentinels(cluster):
    names = [node["host"] for node in cluster.topology["sentinels"]]
    count, quorum = len(names), cluster.topology["monitor"]["quorum"]
    if count and count % 2 == 0:
        yield _say(
            "openclaw_sentinels",
            f"{count} Sentinels ({_list(names)})",
            "an odd number, so that one side of a split network has the majority",
            "put an odd number of hosts into this group, which without hosts of its own means the Redis hosts",
        )
    elif count and not count // 2 + 1 <= quorum <= count:
        allowed = f"{count // 2 + 1} to {count} with {count} Sentinels"
        yield _say("sentinel_quorum", quorum, allowed, "set it so, or leave it out to get the majority")


def _vip(cluster):
    """The virtual addresses, each with the balancers of its datacenter. A fault that makes others hard to judge is said alone."""
    hosts = cluster.topology["hosts"]
    for datacenter, nodes in _grouped(cluster.topology["balancers"], lambda node: node["datacenter"]):
        names = [node["host"] for node in nodes]
        values = {node["host"]: node["vip"] for node in nodes}
        if not any(values.values()):
            continue
        if len(set(values.values())) > 1:
            found = ", ".join(f"{value or 'nothing'} on {host}" for host, value in values.items())
            yield _say("vip_address", found, f"one for all balancers of the datacenter {datacenter}", "set it once, for their group")
            continue
        address = values[names[0]]
        remedy = f"set it to a free address in the network of {_list(names)}"
        users = [host for host, node in hosts.items() if node["address"] == address]
        sites = cluster.topology["sites"].items()
        elsewhere = [other for other, site in sites if other != datacenter and address in [node["vip"] for node in site["balancers"]]]
        if _ipv4(address) is None:
            yield _say("vip_address", address, "an IPv4 address that hosts can have", remedy)
        elif users:
            yield _say("vip_address", f"{address}, the address of {_list(users)}", "an address that no host has", remedy)
        elif elsewhere:
            yield _say("vip_address", f"{address} in {_list([datacenter, *elsewhere])}", "an address of its own for each datacenter", remedy)
        else:
            yield from _vip_settings(cluster, datacenter, names)
            prefixes = [vip["prefix"] for vip in cluster.topology["vips"] if vip["datacenter"] == datacenter]
            if len(prefixes) > 1 or not 1 <= prefixes[0] <= 32:
                yield _say("vip_prefix", _list(str(prefix) for prefix in prefixes), "one number from 1 to 32", "set it once, for the balancers' group")
            else:

                def check(host, value, at=address, prefix=prefixes[0]):
                    return _vip_network(cluster, host, value, at, prefix)

                yield from cluster.judge("vip_interface", names, check)


def _vip_settings(cluster, datacenter, names):
    """What the balancers of one address must agree on."""
    for variable in ("vip_router_id", "vip_profile"):
        values = {host: cluster.settings[host].get(variable) for host in names}
        known = [value for value in values.values() if not isinstance(value, Unreadable)]
        if len(set(map(str, known))) > 1:
            found = ", ".join(f"{value} on {host}" for host, value in values.items())
            yield _say(variable, found, f"one for all balancers of the datacenter {datacenter}", "set it once, for their group")
    yield from cluster.judge("vip_router_id", names, _vip_router)


def _vip_router(host, value):
    if str(value).isdigit() and not 1 <= int(value) <= 255:
        yield _say("vip_router_id", value, "1 to 255", "choose one that no other VRRP router of the network uses")


def _vip_network(cluster, host, interface, address, prefix):
    """Whether the host's network has a place for the address. Unknown is what a host does not tell of itself."""
    known = (cluster.facts.get(host) or {}).get("interfaces")
    if not known:
        return
    own = cluster.topology["hosts"][host]["address"]
    if interface and interface not in known:
        yield _say("vip_interface", interface, f"an interface of the host ({_list(known)})", "correct it, or leave it out to have the right one found")
        return
    found = [(name, one) for name, networks in known.items() for one in map(ipaddress.ip_interface, networks) if str(one.ip) == own]
    if not found and not interface:
        yield _say("vip_interface", f"no interface that holds {own}", "one that the host has", f"set it to the one that shall carry {address}")
    for name, one in found[:1]:
        network = one.network
        if ipaddress.ip_address(address) not in network or (network.prefixlen < 31 and address in (str(network[0]), str(network[-1]))):
            yield _say("vip_address", address, f"an address for hosts in {network}, the network of {name}", "choose a free one there")
        elif prefix not in (network.prefixlen, 32):
            yield _say("vip_prefix", prefix, f"{network.prefixlen}, as in the network of {name}, or 32", "correct it")


# --- the hosts ----------------------------------------------------------------------------------------------------


def _hosts(cluster):
    for host, facts in cluster.facts.items():
        if facts is None:
            remedy = f"see its error above and repair it, or leave it out with --limit 'all:!{host}'"
            yield _say(host, "no answer", "hosts that can be examined first", remedy)
        elif facts["distribution_major_version"] not in DISTRIBUTIONS.get(facts["distribution"], ()):
            found = f"{facts['distribution']} {facts['distribution_major_version']}"
            yield _say(host, found, "debian 12 or 13", "install one of these, or take the host out of the inventory")


def _memory(cluster):
    replicas = {host: len(nodes) for host, nodes in _grouped(cluster.topology["replicas"], lambda node: node["host"])}
    redis = cluster.members("openclaw_redis")

    def total(host):
        return (cluster.facts.get(host) or {}).get("memory_bytes", 0)

    def check_redis(host, value):
        size = redis_bytes(value)
        if not size:
            found = f"{_shown(value)}, which is no limit"
            yield _say("redis_maxmemory", found, "a size such as 256mb", "set it to what the conversations need")
        elif 0 < total(host) < size:
            remedy = "lower it, or give the host more"
            yield _say("redis_maxmemory", value, f"less than the {_size(total(host))} of memory the host has", remedy)

    def check_gateway(host, value):
        each = systemd_bytes(value, total(host))
        if each is None:
            yield _say("gateway_memory_max", _shown(value), "a size such as 2G or 50%", "correct it")
            return
        stored = redis_bytes(cluster.settings[host].get("redis_maxmemory")) or 0 if host in redis else 0
        needed = replicas.get(host, 0) * each + stored
        if stored <= total(host) < needed:
            found = f"{replicas[host]} x {value}" + (f" and {_size(stored)} for Redis" if stored else "")
            remedy = "lower it, lower gateway_replicas, or spread them over more hosts"
            yield _say("gateway_memory_max", found, f"the {_size(total(host))} of memory the host has", remedy)

    yield from cluster.judge("redis_maxmemory", redis, check_redis)
    # A host whose memory is unknown is left out: its own sentence says so.
    yield from cluster.judge("gateway_memory_max", [host for host in replicas if total(host)], check_gateway)


def _redis_releases(cluster):
    """Redis 8 (Debian 13) replicates from Redis 7 (Debian 12), but not the other way: such a replica drops its data and stays empty."""
    facts = {host: cluster.facts[host] for host in cluster.members("openclaw_redis") if cluster.facts.get(host)}
    releases = {host: one["distribution_major_version"] for host, one in facts.items()}
    # Others have a sentence of their own.
    releases = {host: release for host, release in releases.items() if release in DISTRIBUTIONS["debian"]}
    if len(set(releases.values())) > 1:
        found = ", ".join(f"{release} on {host}" for host, release in releases.items())
        allowed = "one release of Debian for all Redis hosts, as an older Redis cannot follow a newer primary"
        remedy = "upgrade the replicas one by one, with --limit, then switch, then the old primary"
        yield _say("openclaw_redis", f"Debian {found}", allowed, remedy)


def _node(cluster):
    newer = f"{_dotted(NODE_MINIMUM)} or newer"

    def check_version(host, value):
        if not cluster.settings[host].get("gateway_node_path") and _numbers(value) < NODE_MINIMUM:
            yield _say("gateway_node_version", _shown(value), newer, "raise it")

    def check_path(host, value):
        facts = cluster.facts.get(host)
        if not value or facts is None:
            return
        version = facts["node_version"]
        if not version:
            found = f"no node that runs in {value}"
        elif _numbers(version) < NODE_MINIMUM:
            found = f"Node {version} in {value}"
        elif facts["npm"] != f"{str(value).rstrip('/')}/npm":
            found = f"no npm in {value}"
        else:
            return
        remedy = "change what is there, or leave the path empty to have gateway_node_version installed"
        yield _say("gateway_node_path", found, f"a directory with node {newer} and npm", remedy)

    gateways = cluster.members("openclaw_gateways")
    yield from cluster.judge("gateway_node_version", gateways, check_version)
    yield from cluster.judge("gateway_node_path", gateways, check_path)


def _release(cluster):
    def check(host, value):
        if not _VERSION.match(str(value)):
            yield _say("gateway_version", _shown(value), "one exact version such as 2026.9.6", "pin one")
        elif cluster.npm.get(value, {}).get("available") == "false":
            newest = _list(cluster.npm[value]["newest"])
            remedy = (
                f"choose one, the newest are {newest}" if newest else "see whether npm is set to the right registry"
            )
            yield _say("gateway_version", f"{value}, which is not on npm", "a published version of openclaw", remedy)

    yield from cluster.judge("gateway_version", cluster.members("openclaw_gateways"), check)


# --- secrets, providers, settings ---------------------------------------------------------------------------------


def _unreadable(cluster):
    found = {}
    for host, variables in cluster.settings.items():
        for variable, value in variables.items():
            if isinstance(value, Unreadable):
                found.setdefault(f"{variable}: {value.reason}", []).append(host)
    for sentence, hosts in found.items():
        yield _at(hosts, cluster.settings) + sentence


def _secrets(cluster):
    for variable, groups in SECRETS.items():
        hosts = cluster.members(*groups)
        faults = cluster.judge(variable, hosts, lambda host, value, name=variable: _secret(name, value))
        yield from faults
        values = [cluster.settings[host].get(variable) for host in hosts]
        if not faults and any(value != values[0] for value in values if not isinstance(value, Unreadable)):
            remedy = "set it once, in group_vars/all.yml"
            yield _say(variable, "different values on the hosts", "one for the whole cluster", remedy)


def _secret(variable, value):
    allowed = f"a secret of {SECRET_LENGTH} characters or more"
    if not value:
        found = "nothing"
    elif not isinstance(value, str):
        found = "something that is no text"
    elif _SAMPLE.search(value) or len(set(value)) < 4 <= len(value):
        found, allowed = "a sample value", f"{allowed} that nobody can guess"
    elif len(value) < SECRET_LENGTH:
        found = f"{len(value)} characters"
    elif not _PLAIN.match(value):
        found = "characters that mean something in configuration files"
        allowed = "printable ASCII without blanks, quotes, backslashes, $ and #"
    else:
        return
    yield _say(variable, found, allowed, "set it to what this prints: openssl rand -hex 32")


def _user_passwords(cluster):
    hosts = cluster.members("openclaw_redis", "openclaw_sentinels", "openclaw_gateways")
    for variable, kind in USER_PASSWORDS.items():

        def check(host, value, name=variable, kind=kind):
            if not isinstance(value, (dict, type(None))):
                yield _say(name, f"a {type(value).__name__}", "a password by user", "correct it")
                return
            for user, password in (value or {}).items():
                if user not in RULES[kind]:
                    yield _say(name, f"the user {user}", f"only {_list(RULES[kind])}", "correct it")
                else:
                    yield from _secret(f"{name}, user {user}", password)

        faults = cluster.judge(variable, hosts, check)
        yield from faults
        values = [cluster.settings[host].get(variable) or {} for host in hosts]
        if not faults and any(value != values[0] for value in values if not isinstance(value, Unreadable)):
            remedy = "set it once, in group_vars/all.yml"
            yield _say(variable, "different values on the hosts", "one for the whole cluster", remedy)


def _tls(cluster):
    wanted = cluster.topology["redis_tls"]
    other = [host for host, facts in cluster.facts.items() if facts and facts.get("redis_tls", wanted) not in (None, wanted)]
    if other:
        found = f"{str(wanted).lower()}, but Redis was set up {'without' if wanted else 'with'} TLS on {_list(other)}"
        remedy = f"set it to {str(not wanted).lower()}; the other way leads over a new cluster and a copy of the data"
        yield _say("redis_tls", found, "what the cluster was set up with", remedy)


def _providers(cluster):
    def check(host, value):
        if not isinstance(value, list):
            found = "nothing" if value is None else f"a {type(value).__name__}"
            yield _say("gateway_providers", found, "a list of one provider or more, the primary first", "correct it")
            return
        yield from provider_problems(value, bool(cluster.topology["ollama"]))
        for number, provider in enumerate(value, 1):
            if not isinstance(provider, dict):
                continue
            key = provider.get("api_key")
            if not key and provider.get("type") != "openai-compatible":
                continue
            if not key:
                found = "no api_key"
            elif not isinstance(key, str) or not _PLAIN.match(key):
                found = "an api_key with characters that no HTTP header takes"
            elif _SAMPLE.search(key):
                found = "a sample value as api_key"
            else:
                continue
            remedy = "set it from a vault, or from a file with the lookup openclaw.ha.secret_file"
            subject = f"gateway_providers entry {number} ({provider.get('name')})"
            yield _say(subject, found, "the provider's own key", remedy)

    yield from cluster.judge("gateway_providers", cluster.members("openclaw_gateways"), check)


def _balancers(cluster):
    hosts = cluster.members("openclaw_balancers")
    tls = {node["host"]: node["tls_port"] is not None for node in cluster.topology["balancers"]}

    def engine(host, value):
        if value not in (None, "haproxy", "nginx"):
            yield _say("balancer_engine", _shown(value), "haproxy or nginx", "choose one")

    def plain(host, value):
        if value not in (None, "serve", "redirect", "off"):
            # YAML reads a bare off as false.
            remedy = "put off in quotes" if value is False else "choose one"
            yield _say("balancer_plain", _shown(value), 'serve, redirect or "off"', remedy)
        elif value in ("redirect", "off") and not tls[host]:
            yield _say("balancer_plain", f"{value} without TLS", "serve, or TLS as well", "set balancer_tls to true")

    def only_haproxy(host, value, name, what):
        if value and cluster.settings[host].get("balancer_engine") == "nginx":
            yield _say(name, f"{value} with the engine nginx, which cannot {what}", "0 with nginx", "set it so, or set balancer_engine to haproxy")

    def body(host, value):
        if isinstance(value, int) and value < 1:
            yield _say("balancer_max_body", value, "1 or more bytes", "correct it")

    def negative(host, value, name):
        if isinstance(value, int) and value < 0:
            yield _say(name, value, "0, which is no limit, or more", "correct it")

    yield from cluster.judge("balancer_engine", hosts, engine)
    yield from cluster.judge("balancer_plain", hosts, plain)
    yield from cluster.judge("balancer_max_body", hosts, body)
    for name in ("balancer_client_connections", "balancer_client_requests_per_minute", "balancer_token_requests_per_minute", "balancer_hsts"):
        yield from cluster.judge(name, hosts, lambda host, value, name=name: negative(host, value, name))
    for name, what in (("balancer_token_requests_per_minute", "count by a digest of the token"), ("balancer_peers_port", "count together with others")):
        yield from cluster.judge(name, hosts, lambda host, value, name=name, what=what: only_haproxy(host, value, name, what))


def _certificates(cluster):
    tls = {node["host"]: node["tls_port"] is not None for node in cluster.topology["balancers"]}

    def check(host, value):
        if not isinstance(value, list) or not tls[host]:
            return
        names = [item.get("name") for item in value if isinstance(item, dict)]
        for number, item in enumerate(value, 1):
            # Other shapes are refused by the role's argument_specs.
            if not isinstance(item, dict) or not all(isinstance(item.get(key), str) for key in ("name", "cert", "key")):
                continue
            subject = f"balancer_certificates entry {number} ({item['name']})"
            if not _FILE_NAME.match(item["name"]):
                yield _say(subject, "a name that is no file's", "letters, digits, dots, dashes and underscores", "rename it")
            elif names.count(item["name"]) > 1:
                yield _say(subject, "the name twice", "a name of its own for each", "rename one")
            problem = cluster.certificates.get((item["cert"], item["key"]), {}).get("problem")
            if problem:
                yield f"{subject}: {problem}."

    yield from cluster.judge("balancer_certificates", cluster.members("openclaw_balancers"), check)


def _stateless(cluster):
    replicas = len(cluster.topology["replicas"])

    def check(host, value):
        if not isinstance(value, (dict, type(None))):
            found = f"a {type(value).__name__}"
            yield _say("gateway_extra_config", found, "a mapping, a part of openclaw.json", "correct it")
            return
        denied = cluster.settings[host].get("gateway_tools_deny")
        if not isinstance(denied, Unreadable):
            yield from stateless_violations(value, denied if isinstance(denied, list) else [], replicas)

    yield from cluster.judge("gateway_extra_config", cluster.members("openclaw_gateways"), check)


def _channels(cluster):
    gateways = cluster.members("openclaw_gateways")
    given = [cluster.settings[host].get("gateway_channels") for host in gateways]
    sound = [value for value in given if not isinstance(value, Unreadable)]

    def check(host, value):
        if value is None:
            return
        wrong = channels.problems(value)
        yield from wrong
        extra = cluster.settings[host].get("gateway_extra_config")
        others = (extra.get("channels") if isinstance(extra, dict) else None) or {}
        for kind in sorted({one["type"] for one in ([] if wrong else channels.accounts(value))} & set(others if isinstance(others, dict) else ())):
            found = f"channels.{kind}, of which gateway_channels has accounts"
            yield _say("gateway_extra_config", found, "channels of other types", "put it into settings of the account in gateway_channels")

    def check_url(host, value):
        if cluster.topology["webhooks"] and not re.fullmatch(r"https://[^\s/?#@]+/?", str(value or "")):
            allowed = "an https:// address without a path, as providers deliver nothing to others"
            yield _say("gateway_public_url", _shown(value) if value else "nothing", allowed, "set it to what providers reach the balancers by")

    yield from cluster.judge("gateway_channels", gateways, check)
    if any(value != sound[0] for value in sound):
        yield _say("gateway_channels", "different accounts on different gateway hosts", "the same on all", "set it once, in group_vars/all.yml")
    yield from cluster.judge("gateway_public_url", gateways, check_url)

    def check_jobs(host, value):
        listed = cluster.settings[host].get("gateway_channels") or []
        if value is not None and not isinstance(listed, Unreadable) and not channels.problems(listed):
            yield from jobs.problems(value, listed)

    yield from cluster.judge("gateway_jobs", gateways, check_jobs)


def _owner(cluster):
    """What the program itself would refuse, but on the hosts, and what would have two replicas ask for updates at once."""
    gateways = cluster.members("openclaw_gateways") if cluster.topology["owners"] else []

    def check(host, value):
        lease, stop, proof = (_number(cluster.settings[host].get(f"owner_{name}")) for name in ("lease", "stop", "proof"))
        if None in (lease, stop, proof):
            return  # its type has a sentence of its own
        if lease < channels.LEASE_MINIMUM:
            allowed = f"{channels.LEASE_MINIMUM} s or more, as Telegram keeps the request of a dead replica open for 30 s"
            yield _say("owner_lease", f"{lease:g} s", allowed, "raise it")
        if lease < stop + 4:
            yield _say("owner_lease", f"{lease:g} s", f"4 s more than owner_stop, {stop:g} s, or more", "raise it, or lower owner_stop")
        if stop < proof + 2:
            yield _say("owner_stop", f"{stop:g} s", f"2 s more than owner_proof, {proof:g} s, or more", "raise it, or lower owner_proof")

    yield from cluster.judge("owner_lease", gateways, check)


def _agent(cluster):
    gateways = cluster.members("openclaw_gateways")

    def check_dead(host, value):
        stalled = cluster.settings[host].get("agent_stalled_after")
        try:
            sound = float(value) > float(stalled)
        except (TypeError, ValueError):
            return  # its type has a sentence of its own
        if not sound:
            yield _say("agent_dead_after", f"{value} s", f"more than agent_stalled_after, {stalled} s", "raise it")

    def check_partner(host, value):
        for where in value if isinstance(value, list) else []:
            if not _ENDPOINT.match(str(where)):
                yield _say("agent_partner", where, "host:port", "correct it")

    yield from cluster.judge("agent_dead_after", gateways, check_dead)
    yield from cluster.judge("agent_partner", gateways, check_partner)


def _rollout(cluster):
    least = {
        "gateway_rollout_max_unavailable": 1,
        "gateway_rollout_patience": 0,
        "gateway_rollout_drain_deadline": 0,
        "gateway_rollout_soak": 0,
        "gateway_rollout_error_percent": 0,
        "gateway_rollout_memory_percent": 1,
    }
    for name, smallest in least.items():

        def check(host, value, name=name, smallest=smallest):
            # What is no number has a sentence of its own.
            if (number := _number(value)) is not None and number < smallest:
                yield _say(name, value, f"{smallest} or more", "correct it")

        yield from cluster.judge(name, cluster.members("openclaw_gateways"), check)


def _types(cluster):
    """Pairs of variable and sentence for values that a role's own argument_specs would refuse, but later."""
    for role, options in cluster.specs.items():
        for variable, option in options.items():

            def check(host, value, name=variable, spec=option):
                errors = (
                    [] if value is None else ArgumentSpecValidator({name: spec}).validate({name: value}).error_messages
                )
                for error in errors:
                    found = (
                        "a value of another kind"
                        if _holds_secret(name, spec)
                        else f"a value that does not fit: {error}"
                    )
                    yield _say(name, found, "what the role's argument_specs say", "correct it")

            for sentence in cluster.judge(variable, cluster.members(ROLE_GROUPS[role]), check):
                yield variable, sentence


CHECKS = (
    _controller,
    _groups,
    _addresses,
    _ports,
    _sentinels,
    _vip,
    _hosts,
    _redis_releases,
    _memory,
    _node,
    _release,
    _unreadable,
    _secrets,
    _user_passwords,
    _tls,
    _providers,
    _balancers,
    _certificates,
    _stateless,
    _channels,
    _owner,
    _agent,
    _rollout,
)


# --- what works but costs something -------------------------------------------------------------------------------


def _eviction(cluster):
    def check(host, value):
        if str(value).startswith(("allkeys-", "volatile-")):
            found = f"{value}, which evicts locks, fencing numbers and journals as well"
            yield _say("redis_maxmemory_policy", found, "any, but better noeviction", "change it")

    return cluster.judge("redis_maxmemory_policy", cluster.members("openclaw_redis"), check)


def _failover(cluster):
    redis, sentinels = len(cluster.topology["redis"]), len(cluster.topology["sentinels"])
    if redis == 1 and len(cluster.topology["hosts"]) > 1:
        yield _say("openclaw_redis", "one host, so no failover", "any number, but better 3", "add two hosts")
    elif redis > 1 and sentinels == 1:
        found = "one Sentinel, so no failover once its host is lost"
        yield _say("openclaw_sentinels", found, "any odd number, but better 3", "add two hosts")


def _npm_unknown(cluster):
    for version, answer in cluster.npm.items():
        if answer["available"] == "unknown":
            yield f"gateway_version: {answer['reason']} Its installation will tell."


def _certificates_end(cluster):
    for (path, _key), info in cluster.certificates.items():
        if not info.get("problem") and info.get("days", CERTIFICATE_DAYS) < CERTIFICATE_DAYS:
            found = f"a certificate in {path} that ends in {info['days']} days"
            yield _say("balancer_certificates", found, f"any that is valid, but better {CERTIFICATE_DAYS} days or more", "renew it")


def _long_turns(cluster):
    """A balancer gives up on a replica that says nothing for so long; a turn may take longer."""
    longest = max((_number(cluster.settings[host].get("gateway_turn_timeout")) or 0 for host in cluster.members("openclaw_gateways")), default=0)

    def nginx(host, value):
        if value == "nginx" and longest > NGINX_READ_TIMEOUT:
            found = f"nginx, which answers 504 after {NGINX_READ_TIMEOUT} s of silence, and turns of up to {longest} s"
            yield _say("balancer_engine", found, "any, but better haproxy", f"change it, or lower gateway_turn_timeout to {NGINX_READ_TIMEOUT} or less")

    def haproxy(host, value):
        seconds = _number(value)
        if cluster.settings[host].get("balancer_engine") != "nginx" and seconds is not None and seconds < longest:
            found = f"{value} s, after which a silent turn is answered with 504, and turns of up to {longest} s"
            yield _say("balancer_timeout_server", found, f"any, but better {longest} or more", "raise it, or lower gateway_turn_timeout")

    hosts = cluster.members("openclaw_balancers")
    yield from cluster.judge("balancer_engine", hosts, nginx)
    yield from cluster.judge("balancer_timeout_server", hosts, haproxy)


def _vip_alone(cluster):
    for datacenter, nodes in _grouped(cluster.topology["balancers"], lambda node: node["datacenter"]):
        if len(nodes) == 1 and nodes[0]["vip"]:
            found = f"{nodes[0]['vip']} with one balancer in the datacenter {datacenter}, so nobody takes it over"
            yield _say("vip_address", found, "any number of balancers, but better 2", "add one")


ADVICE = (_eviction, _failover, _npm_unknown, _certificates_end, _long_turns, _vip_alone)


# --- small things -------------------------------------------------------------------------------------------------


def redis_bytes(value):
    """Bytes of a Redis memory setting such as ``256mb``; None when it is none."""
    match = _REDIS_SIZE.match(str(value).strip())
    return int(match[1]) * _REDIS_UNITS[(match[2] or "").lower()] if match else None


def systemd_bytes(value, total):
    """Bytes of a systemd limit such as ``2G`` or ``50%`` of ``total``; 0 for ``infinity``, None when it is none."""
    if value == "infinity":
        return 0
    match = _SYSTEMD_SIZE.match(str(value).strip())
    if not match:
        return None
    number, unit = float(match[1]), match[2]
    return int(number * total / 100) if unit == "%" else int(number * 1024 ** " KMGTPE".find(unit or " "))


def _ipv4(text):
    """The address that one host can have, None for any other text."""
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        return None
    return None if address.is_unspecified or address.is_multicast or address.is_loopback or address.is_reserved else address


def _holds_secret(name, option):
    nested = (option.get("options") or {}).items()
    return bool(_SECRET_NAME.search(name)) or any(_holds_secret(key, value) for key, value in nested)


def _number(value):
    """A number, also one that came as text from the command line; None for anything else, whose type has a sentence of its own."""
    try:
        return float(value) if "." in str(value) else int(value)
    except (TypeError, ValueError):
        return None


def _numbers(version):
    """The leading numbers of a version, ``v24.16.1`` gives (24, 16, 1); () for other text, which is lower than any."""
    match = re.match(r"v?(\d+(?:\.\d+)*)", str(version))
    return tuple(int(part) for part in match[1].split(".")) if match else ()


def _say(subject, found, allowed, do):
    return f"{subject}: found {found}; allowed {allowed}; {do}."


def _shown(value):
    return "nothing" if value in (None, "", [], {}) else str(value)


def _size(count):
    return f"{count / 1024**3:.1f} GiB" if count >= 1024**3 else f"{count / 1024**2:.0f} MiB"


def _dotted(numbers):
    return ".".join(str(number) for number in numbers)


def _list(names):
    return ", ".join(names)


def _at(where, hosts):
    """Names the hosts of a finding, unless it is all of them."""
    return "" if set(where) == set(hosts) else f"{_list(where)}: "


def _grouped(items, key):
    groups = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.items())
