# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventory turned into one structure that every role reads.

Pure: takes groups and host variables, returns plain data, touches nothing. It refuses only what it cannot build from;
whether a topology is *wise* is the business of ``preflight``.
"""

from __future__ import annotations

GROUPS = ("openclaw_balancers", "openclaw_gateways", "openclaw_redis", "openclaw_sentinels", "openclaw_ollama")

#: Defaults of the variables that shape the topology. Several roles need them, so they live here and nowhere else.
DEFAULTS = {
    "gateway_port": 18789,
    # OpenClaw derives further ports from the first one, up to +110: replicas on one host keep this distance.
    "gateway_port_step": 120,
    # The agent of a gateway host answers for each replica on two ports: the verdict, and HAProxy's agent-check.
    "agent_port": 18700,
    "agent_check_port": 18650,
    "redis_port": 6379,
    "sentinel_port": 26379,
    "sentinel_monitor_name": "openclaw",
    "balancer_port": 8080,
    "balancer_engine": "haproxy",
    "balancer_tls": False,
    "balancer_tls_port": 8443,
    "ollama_port": 11434,
    "vip_prefix": 24,
    "redis_tls": True,
    "topology_datacenter": "main",
}


class TopologyError(ValueError):
    """The inventory cannot be turned into a topology; the text names host, variable, value and remedy."""


def build(groups, hostvars):
    """Build the topology.

    :param groups: mapping of group name to a list of host names, in inventory order
    :param hostvars: mapping of host name to its variables
    :returns: dict with ``hosts``, ``datacenters``, ``replicas``, ``redis``, ``sentinels``, ``redis_tls``, ``monitor``,
        ``balancers``, ``vips`` and ``ollama``; see ``roles/topology/README.md`` for the shape of each
    :raises TopologyError: when a value has the wrong type or a host has no address
    """
    members = {group: list(groups.get(group, [])) for group in GROUPS}
    if not members["openclaw_sentinels"]:
        members["openclaw_sentinels"] = list(members["openclaw_redis"])
    names = list(dict.fromkeys(host for group in GROUPS for host in members[group]))

    hosts = {}
    for name in names:
        variables = hostvars[name]
        datacenter = str(_value(variables, "topology_datacenter"))
        hosts[name] = {
            "address": _address(name, variables),
            "datacenter": datacenter,
            "zone": str(variables.get("topology_zone") or datacenter),
            "groups": [group for group in GROUPS if name in members[group]],
        }

    def nodes(group, port_variable):
        return [
            {
                "host": name,
                "address": hosts[name]["address"],
                "port": _integer(name, hostvars[name], port_variable),
                "datacenter": hosts[name]["datacenter"],
            }
            for name in members[group]
        ]

    sentinels = nodes("openclaw_sentinels", "sentinel_port")
    balancers = _balancers(nodes("openclaw_balancers", "balancer_port"), hostvars)
    return {
        "hosts": hosts,
        "datacenters": list(dict.fromkeys(host["datacenter"] for host in hosts.values())),
        "replicas": _replicas(members["openclaw_gateways"], hosts, hostvars),
        "redis": nodes("openclaw_redis", "redis_port"),
        "sentinels": sentinels,
        "redis_tls": _truth(members["openclaw_redis"] + members["openclaw_sentinels"] + members["openclaw_gateways"], hostvars, "redis_tls"),
        "monitor": _monitor(members["openclaw_sentinels"], len(sentinels), hostvars),
        "balancers": balancers,
        "vips": _vips(balancers, hostvars),
        "ollama": nodes("openclaw_ollama", "ollama_port"),
    }


def _replicas(gateways, hosts, hostvars):
    """Deal ``gateway_replicas`` round-robin over the hosts: adding one never moves another."""
    if not gateways:
        return []
    count = _agreed(gateways, hostvars, "gateway_replicas", len(gateways))
    replicas = []
    for index in range(count):
        name = gateways[index % len(gateways)]
        instance = index // len(gateways) + 1
        port = _integer(name, hostvars[name], "gateway_port")
        step = _integer(name, hostvars[name], "gateway_port_step")
        verdict_port, check_port = (_integer(name, hostvars[name], key) for key in ("agent_port", "agent_check_port"))
        replicas.append(
            {
                "id": f"{name}-{instance}",
                "host": name,
                "instance": instance,
                "address": hosts[name]["address"],
                "port": port + (instance - 1) * step,
                "verdict_port": verdict_port + instance - 1,
                "check_port": check_port + instance - 1,
                "unit": f"openclaw-gateway@{instance}.service",
                "datacenter": hosts[name]["datacenter"],
                "zone": hosts[name]["zone"],
            }
        )
    return replicas


def _balancers(nodes, hostvars):
    """Balancers with their engine, the port on which they speak TLS and the virtual address they may hold; None for none."""
    for node in nodes:
        name = node["host"]
        tls = _truth([name], hostvars, "balancer_tls")
        node["engine"] = str(_value(hostvars[name], "balancer_engine"))
        node["tls_port"] = _integer(name, hostvars[name], "balancer_tls_port") if tls else None
        node["vip"] = str(hostvars[name].get("vip_address") or "") or None
    return nodes


def _vips(balancers, hostvars):
    """The virtual addresses. Sound is one for each datacenter at most, which ``preflight`` sees to."""
    found = []
    for node in balancers:
        if node["vip"]:
            row = {"datacenter": node["datacenter"], "address": node["vip"], "prefix": _integer(node["host"], hostvars[node["host"]], "vip_prefix")}
            if row not in found:
                found.append(row)
    return found


def _monitor(names, count, hostvars):
    """What the Sentinels watch: a name and a quorum, the same on all of them. The default quorum is the majority."""
    values = {str(_value(hostvars[name], "sentinel_monitor_name")) for name in names}
    if len(values) > 1:
        raise TopologyError(_differs("sentinel_monitor_name", values))
    return {
        "name": values.pop() if values else DEFAULTS["sentinel_monitor_name"],
        "quorum": _agreed(names, hostvars, "sentinel_quorum", count // 2 + 1) if names else 0,
    }


def _address(name, variables):
    """A host's address: ``topology_address``, else the one of ``topology_interface``, else ``ansible_host``, else its name."""
    if variables.get("topology_address"):
        return str(variables["topology_address"])
    interface = variables.get("topology_interface")
    if interface:
        facts = (variables.get("ansible_facts") or {}).get(str(interface).replace("-", "_")) or {}
        address = (facts.get("ipv4") or {}).get("address")
        if not address:
            raise TopologyError(
                f"{name}: topology_interface is {interface}, but no IPv4 address of it is known; gather the host's "
                f"network facts, or set topology_address to the address its peers reach it by."
            )
        return str(address)
    return str(variables.get("ansible_host") or name)


def _value(variables, key):
    value = variables.get(key)
    return DEFAULTS[key] if value is None or value == "" else value


def _integer(name, variables, key, default=None):
    value = variables.get(key)
    if value is None or value == "":
        value = DEFAULTS[key] if default is None else default
    try:
        if isinstance(value, (bool, float)):
            raise ValueError(value)
        return int(value)
    except (TypeError, ValueError):
        raise TopologyError(f"{name}: {key} is {value!r}; it must be a whole number.") from None


def _agreed(names, hostvars, key, default):
    values = {_integer(name, hostvars[name], key, default) for name in names}
    if len(values) > 1:
        raise TopologyError(_differs(key, values))
    return values.pop()


def _truth(names, hostvars, key):
    """A yes or no that all hosts agree on."""
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    given = {name: str(_value(hostvars[name], key)).lower() for name in names}
    for name, word in given.items():
        if word not in words:
            raise TopologyError(f"{name}: {key} is {word!r}; it must be true or false.")
    values = {words[word] for word in given.values()}
    if len(values) > 1:
        raise TopologyError(_differs(key, values))
    return values.pop() if values else DEFAULTS[key]


def _differs(key, values):
    found = ", ".join(sorted(str(value) for value in values))
    return f"{key} differs between hosts ({found}); it holds for the whole cluster, so set it once, in group_vars/all.yml."
