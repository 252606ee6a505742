import pathlib

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.openclaw.ha.plugins.module_utils import topology
from ansible_collections.openclaw.ha.plugins.module_utils.topology import TopologyError, build


def inventory(hosts=3, **extra):
    names = [f"node{number}" for number in range(1, hosts + 1)]
    groups = {
        "openclaw_balancers": names[:2],
        "openclaw_gateways": names,
        "openclaw_redis": names,
        "openclaw_ollama": names[:1],
    }
    hostvars = {name: {"ansible_host": f"192.0.2.{10 + number}", **extra} for number, name in enumerate(names, 1)}
    return groups, hostvars


def test_three_hosts():
    built = build(*inventory())
    assert built["replicas"][1] == {
        "id": "node2-1",
        "host": "node2",
        "instance": 1,
        "address": "192.0.2.12",
        "port": 18789,
        "verdict_port": 18700,
        "check_port": 18650,
        "unit": "openclaw-gateway@1.service",
        "datacenter": "main",
        "zone": "main",
    }
    assert [replica["id"] for replica in built["replicas"]] == ["node1-1", "node2-1", "node3-1"]
    assert built["redis"][2] == {"host": "node3", "address": "192.0.2.13", "port": 6379, "datacenter": "main"}
    assert built["monitor"] == {"name": "openclaw", "quorum": 2}
    assert [node["host"] for node in built["balancers"]] == ["node1", "node2"]
    assert built["ollama"] == [{"host": "node1", "address": "192.0.2.11", "port": 11434, "datacenter": "main"}]
    assert built["hosts"]["node3"]["groups"] == ["openclaw_gateways", "openclaw_redis", "openclaw_sentinels"]


def test_sentinels_default_to_the_redis_hosts_and_may_be_others():
    groups, hostvars = inventory()
    assert [node["host"] for node in build(groups, hostvars)["sentinels"]] == groups["openclaw_redis"]
    groups["openclaw_sentinels"] = ["node1"]
    assert [node["host"] for node in build(groups, hostvars)["sentinels"]] == ["node1"]


def test_replicas_of_one_host_keep_their_distance():
    built = build(*inventory(hosts=1, gateway_replicas=3))
    assert [(replica["id"], replica["port"], replica["verdict_port"], replica["check_port"]) for replica in built["replicas"]] == [
        ("node1-1", 18789, 18700, 18650),
        ("node1-2", 18909, 18701, 18651),
        ("node1-3", 19029, 18702, 18652),
    ]


def test_a_virtual_address_for_each_datacenter():
    groups, hostvars = inventory()
    assert build(groups, hostvars)["vips"] == [] and [node["vip"] for node in build(groups, hostvars)["balancers"]] == [None, None]
    groups, hostvars = inventory(vip_address="192.0.2.10")
    built = build(groups, hostvars)
    assert built["vips"] == [{"datacenter": "main", "address": "192.0.2.10", "prefix": 24}]
    assert [node["vip"] for node in built["balancers"]] == ["192.0.2.10", "192.0.2.10"]
    hostvars["node2"].update(vip_address="192.0.2.9", vip_prefix=32, topology_datacenter="west")
    assert build(groups, hostvars)["vips"][1] == {"datacenter": "west", "address": "192.0.2.9", "prefix": 32}


@given(hosts=st.integers(1, 5), count=st.integers(0, 12))
def test_scaling_up_never_moves_a_replica(hosts, count):
    before = build(*inventory(hosts=hosts, gateway_replicas=count))["replicas"]
    after = build(*inventory(hosts=hosts, gateway_replicas=count + 1))["replicas"]
    assert len(after) == count + 1
    assert after[:count] == before


def test_empty_inventory_is_a_topology_too():
    built = build({}, {})
    assert built["replicas"] == built["redis"] == built["sentinels"] == []
    assert built["hosts"] == {}


def test_address_comes_from_variable_then_interface_then_ansible_host():
    groups, hostvars = inventory(hosts=1)
    assert build(groups, hostvars)["hosts"]["node1"]["address"] == "192.0.2.11"
    hostvars["node1"].update(topology_interface="eth-1", ansible_facts={"eth_1": {"ipv4": {"address": "198.51.100.7"}}})
    assert build(groups, hostvars)["hosts"]["node1"]["address"] == "198.51.100.7"
    hostvars["node1"]["topology_address"] = "203.0.113.9"
    assert build(groups, hostvars)["hosts"]["node1"]["address"] == "203.0.113.9"
    assert build({"openclaw_redis": ["db"]}, {"db": {}})["hosts"]["db"]["address"] == "db"


def test_interface_without_address_is_refused_by_name():
    groups, hostvars = inventory(hosts=1, topology_interface="eth9")
    with pytest.raises(TopologyError, match="node1: topology_interface is eth9, but no IPv4 address"):
        build(groups, hostvars)


@pytest.mark.parametrize("value", ["three", 2.5, True, [3]])
@pytest.mark.parametrize("key", ["gateway_replicas", "gateway_port", "agent_port", "agent_check_port", "redis_port", "sentinel_quorum", "vip_prefix"])
def test_wrong_type_is_refused_by_name(key, value):
    groups, hostvars = inventory(vip_address="192.0.2.10", **{key: value})
    with pytest.raises(TopologyError, match=rf"node1: {key} is .*; it must be a whole number"):
        build(groups, hostvars)


@pytest.mark.parametrize("key, values", [("gateway_replicas", (3, 5)), ("sentinel_monitor_name", ("a", "b"))])
def test_cluster_wide_values_must_agree(key, values):
    groups, hostvars = inventory(hosts=2)
    hostvars["node1"][key], hostvars["node2"][key] = values
    with pytest.raises(TopologyError, match=f"{key} differs between hosts"):
        build(groups, hostvars)


def test_documented_defaults_are_the_real_ones():
    specs = pathlib.Path(topology.__file__).resolve().parents[2] / "roles/topology/meta/argument_specs.yml"
    options = yaml.safe_load(specs.read_text())["argument_specs"]["main"]["options"]
    documented = {name: option["default"] for name, option in options.items() if "default" in option}
    assert documented == topology.DEFAULTS


def test_a_balancer_has_a_port_for_tls_only_when_it_speaks_it():
    groups = {"openclaw_balancers": ["node1", "node2"]}
    hosts = {"node1": {"balancer_tls": "yes", "balancer_tls_port": 443}, "node2": {"balancer_tls_port": 443}}
    assert [node["tls_port"] for node in topology.build(groups, hosts)["balancers"]] == [443, None]
    with pytest.raises(topology.TopologyError, match="node1: balancer_tls is 'maybe'"):
        topology.build(groups, {"node1": {"balancer_tls": "maybe"}, "node2": {}})


def test_only_haproxy_takes_requests_from_other_datacenters():
    hosts = {"node1": {}, "node2": {"balancer_engine": "nginx"}, "node3": {"balancer_datacenters_port": 0}}
    assert [node["datacenters_port"] for node in topology.build({"openclaw_balancers": list(hosts)}, hosts)["balancers"]] == [8444, 0, 0]


# --- several datacenters

APART = {
    "main1": {"ansible_host": "192.0.2.11", "topology_datacenter": "main", "vip_address": "192.0.2.10", "gateway_replicas": 2},
    "main2": {"ansible_host": "192.0.2.12", "topology_datacenter": "main", "vip_address": "192.0.2.10", "gateway_replicas": 2},
    "west1": {"ansible_host": "198.51.100.11", "topology_datacenter": "west", "gateway_replicas": 1},
}
TWO = {
    "openclaw_balancers": ["main1", "main2", "west1"],
    "openclaw_gateways": ["main1", "west1"],
    "openclaw_redis": ["main1", "main2", "west1"],
    "openclaw_dns": ["main2", "west1"],
}


def test_each_datacenter_is_a_cluster_of_its_own():
    main, west = build(TWO, APART, "main"), build(TWO, APART, "west")
    assert (main["datacenter"], main["datacenters"]) == ("main", ["main", "west"])
    assert list(main["hosts"]) == ["main1", "main2"] and [node["host"] for node in main["redis"]] == ["main1", "main2"]
    assert main["monitor"]["quorum"] == 2 and west["monitor"]["quorum"] == 1
    # The number of replicas is each one's own.
    assert [one["id"] for one in main["replicas"]] == ["main1-1", "main1-2"] and [one["id"] for one in west["replicas"]] == ["west1-1"]
    assert west["vips"] == [] and west["hosts"]["west1"]["zone"] == "west"


def test_what_others_know_of_a_datacenter():
    main, west = build(TWO, APART, "main"), build(TWO, APART, "west")
    assert main["sites"] == west["sites"] and main["sites"]["main"]["redis"] == main["redis"]
    assert {name: site["addresses"] for name, site in main["sites"].items()} == {"main": ["192.0.2.10"], "west": ["198.51.100.11"]}
    assert [node["host"] for node in west["dns"]] == ["main2", "west1"] == [node["host"] for node in build(TWO, APART)["dns"]]


def test_all_of_them_side_by_side():
    both = build(TWO, APART)
    assert both["datacenter"] is None and list(both["hosts"]) == ["main1", "main2", "west1"]
    assert [one["id"] for one in both["replicas"]] == ["main1-1", "main1-2", "west1-1"]


def test_a_datacenter_that_nobody_belongs_to():
    with pytest.raises(TopologyError, match="no datacenter 'east'.*main, west"):
        build(TWO, APART, "east")


def test_datacenters_that_follow_each_other_speak_tls_alike():
    with pytest.raises(TopologyError, match="redis_tls differs"):
        build(TWO, {**APART, "west1": {**APART["west1"], "redis_tls": False}}, "main")


TELEGRAM = {"type": "telegram", "mode": "webhook"}
WHATSAPP = {"type": "whatsapp"}


@pytest.mark.parametrize("listed, webhooks, owners", [(None, 0, 0), ([], 0, 0), ([TELEGRAM], 1, 0), ([WHATSAPP], 0, 1), ([TELEGRAM, WHATSAPP], 1, 1)])
def test_what_channels_need_runs_on_gateway_hosts_and_only_for_them(listed, webhooks, owners):
    built = build(*inventory(hosts=2, gateway_channels=listed))
    assert built["webhooks"] == ["/webhooks/telegram/default"] * webhooks
    assert [(node["host"], node["port"], node["status_port"]) for node in built["ingresses"]] == [("node1", 18600, 18601), ("node2", 18600, 18601)] * webhooks
    assert [(node["host"], node["port"]) for node in built["owners"]] == [("node1", 18602), ("node2", 18602)] * owners


def test_each_datacenter_has_ingresses_of_its_own():
    groups, hostvars = inventory(hosts=4, gateway_channels=[TELEGRAM])
    for name in ("node3", "node4"):
        hostvars[name]["topology_datacenter"] = "west"
    assert [node["host"] for node in build(groups, hostvars, "west")["ingresses"]] == ["node3", "node4"]
    both = build(groups, hostvars)
    assert [node["datacenter"] for node in both["ingresses"]] == ["main", "main", "west", "west"] and len(both["webhooks"]) == 1
