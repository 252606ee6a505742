# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventory turned into one structure that every role reads.

Pure: takes groups and host variables, returns plain data, touches nothing. It refuses only what it cannot build from;
whether a topology is *wise* is the business of ``preflight``.
"""

from __future__ import annotations

# Relative, because the lab takes this file without Ansible.
from . import channels

GROUPS = ("openclaw_balancers", "openclaw_gateways", "openclaw_redis", "openclaw_sentinels", "openclaw_ollama", "openclaw_dns")

#: Defaults of the variables that shape the topology. Several roles need them, so they live here and nowhere else.
DEFAULTS = {
    "gateway_port": 18789,
    # OpenClaw derives further ports from the first one, up to +110: replicas on one host keep this distance.
    "gateway_port_step": 120,
    # The agent of a gateway host answers for each replica on two ports: the verdict, and HAProxy's agent-check.
    "agent_port": 18700,
    "agent_check_port": 18650,
    # On every gateway host, where channels need them: the door for webhooks, what it says of itself, and what the elected owners say.
    "ingress_port": 18600,
    "ingress_status_port": 18601,
    "owner_status_port": 18602,
    "redis_port": 6379,
    "sentinel_port": 26379,
    "sentinel_monitor_name": "openclaw",
    "balancer_port": 8080,
    "balancer_engine": "haproxy",
    "balancer_tls": False,
    "balancer_tls_port": 8443,
    # For the balancers of other datacenters; 0 = requests stay in their datacenter.
    "balancer_datacenters_port": 8444,
    "ollama_port": 11434,
    "dns_port": 53,
    "vip_prefix": 24,
    "redis_tls": True,
    "topology_datacenter": "main",
}


class TopologyError(ValueError):
    """The inventory cannot be turned into a topology; the text names host, variable, value and remedy."""


def build(groups, hostvars, datacenter=None):
    """Build the topology of one datacenter, each of which is a cluster of its own, or all of them side by side.

    :param groups: mapping of group name to a list of host names, in inventory order
    :param hostvars: mapping of host name to its variables
    :param datacenter: name of the datacenter; None for all of them, which makes sense to look at, but is nobody's cluster
    :returns: dict with ``hosts``, ``datacenter``, ``datacenters``, ``sites``, ``replicas``, ``redis``, ``sentinels``, ``redis_tls``,
        ``monitor``, ``balancers``, ``ingresses``, ``webhooks``, ``owners``, ``vips``, ``ollama`` and ``dns`` (the name servers of all
        datacenters); see ``roles/topology/README.md``
    :raises TopologyError: when a value has the wrong type or a host has no address
    """
    members = {group: list(groups.get(group, [])) for group in GROUPS}
    if not members["openclaw_sentinels"]:
        members["openclaw_sentinels"] = list(members["openclaw_redis"])
    names = list(dict.fromkeys(host for group in GROUPS for host in members[group]))
    place = {name: str(_value(hostvars[name], "topology_datacenter")) for name in names}
    parts = {
        one: _site({group: [name for name in members[group] if place[name] == one] for group in GROUPS}, hostvars, one)
        for one in dict.fromkeys(place.values())
    }
    if len({part["redis_tls"] for part in parts.values() if part["redis"]}) > 1:
        raise TopologyError(_differs("redis_tls", {part["redis_tls"] for part in parts.values() if part["redis"]}))
    if datacenter is not None and datacenter not in parts:
        raise TopologyError(f"There is no datacenter {datacenter!r} in the inventory; topology_datacenter of its hosts says {', '.join(parts) or 'nothing'}.")
    if datacenter is not None:
        whole = parts[datacenter]
    elif len(parts) == 1:
        (whole,) = parts.values()
    else:
        whole = _together(list(parts.values()))
    names = {"dns": [node for part in parts.values() for node in part["dns"]]}
    return {**whole, **names, "datacenter": datacenter, "datacenters": list(parts), "sites": {one: _seen_from_outside(part) for one, part in parts.items()}}


def _together(parts):
    """All datacenters side by side; the Sentinels' quorum and name, which each has for itself, are the first one's."""
    whole = dict(parts[0]) if parts else _site({group: [] for group in GROUPS}, {}, None)
    for part in parts[1:]:
        whole["hosts"] = {**whole["hosts"], **part["hosts"]}
        for key in ("replicas", "redis", "sentinels", "balancers", "ingresses", "owners", "vips", "ollama"):
            whole[key] = whole[key] + part[key]
        whole["webhooks"] = sorted({*whole["webhooks"], *part["webhooks"]})
    return whole


def _seen_from_outside(part):
    """What other datacenters have to know of one. ``addresses`` is what its clients connect to."""
    addresses = [vip["address"] for vip in part["vips"]] or [node["address"] for node in part["balancers"]]
    return {"addresses": addresses, **{key: part[key] for key in ("balancers", "replicas", "redis", "sentinels")}}


def _site(members, hostvars, datacenter):
    """The topology of the hosts of one datacenter."""
    hosts = {}
    for name in dict.fromkeys(host for group in GROUPS for host in members[group]):
        variables = hostvars[name]
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
                "datacenter": datacenter,
            }
            for name in members[group]
        ]

    sentinels = nodes("openclaw_sentinels", "sentinel_port")
    balancers = _balancers(nodes("openclaw_balancers", "balancer_port"), hostvars)
    gateways = members["openclaw_gateways"]
    listed = hostvars[gateways[0]].get("gateway_channels") if gateways else None
    webhooks, singletons = channels.webhooks(listed), channels.singletons(listed)
    return {
        "hosts": hosts,
        "replicas": _replicas(members["openclaw_gateways"], hosts, hostvars),
        "redis": nodes("openclaw_redis", "redis_port"),
        "sentinels": sentinels,
        "redis_tls": _truth(members["openclaw_redis"] + members["openclaw_sentinels"] + members["openclaw_gateways"], hostvars, "redis_tls"),
        "monitor": _monitor(members["openclaw_sentinels"], len(sentinels), hostvars),
        "balancers": balancers,
        "ingresses": _ingresses(nodes("openclaw_gateways", "ingress_port"), hostvars) if webhooks else [],
        "webhooks": webhooks,
        "owners": nodes("openclaw_gateways", "owner_status_port") if singletons else [],
        "vips": _vips(balancers, hostvars),
        "ollama": nodes("openclaw_ollama", "ollama_port"),
        "dns": nodes("openclaw_dns", "dns_port"),
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
    """Balancers with their engine, their ports for TLS (None for none) and other datacenters (0 for none), and the virtual address they may hold."""
    for node in nodes:
        name = node["host"]
        tls = _truth([name], hostvars, "balancer_tls")
        node["engine"] = str(_value(hostvars[name], "balancer_engine"))
        node["tls_port"] = _integer(name, hostvars[name], "balancer_tls_port") if tls else None
        node["datacenters_port"] = _integer(name, hostvars[name], "balancer_datacenters_port") if node["engine"] == "haproxy" else 0
        node["vip"] = str(hostvars[name].get("vip_address") or "") or None
    return nodes


def _ingresses(nodes, hostvars):
    """The gateway hosts' doors for webhooks, with the port on which each tells its own host how it is."""
    return [{**node, "status_port": _integer(node["host"], hostvars[node["host"]], "ingress_status_port")} for node in nodes]


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
