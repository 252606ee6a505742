import copy
import pathlib
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.openclaw.ha.plugins.module_utils import preflight, topology
from ansible_collections.openclaw.ha.plugins.module_utils.gateway_config import STATEFUL_TOOLS
from ansible_collections.openclaw.ha.plugins.module_utils.preflight import Unreadable

ROOT = pathlib.Path(preflight.__file__).resolve().parents[2]
GIB = 1024**3
SECRET = "0123456789abcdef0123456789abcdef"
SETTINGS = {
    "gateway_version": "2026.9.6",
    "gateway_node_version": "24.19.0",
    "gateway_node_path": "",
    "gateway_memory_max": "2G",
    "gateway_tools_deny": list(STATEFUL_TOOLS),
    "gateway_extra_config": {},
    "gateway_token": SECRET + "token",
    "gateway_providers": [
        {
            "name": "cloud",
            "type": "openai-compatible",
            "endpoint": "https://llm.test/v1",
            "model": "m",
            "api_key": SECRET + "key",
        },
        {"name": "ollama", "type": "ollama", "model": "llama3.2:1b"},
    ],
    "redis_maxmemory": "256mb",
    "redis_maxmemory_policy": "noeviction",
    "redis_password": SECRET + "redis",
    "sentinel_password": SECRET + "sentinel",
}
FACTS = {
    "memory_bytes": 8 * GIB,
    "distribution": "debian",
    "distribution_major_version": "12",
    "node_version": "",
    "npm": "",
    "missing_release": "",
}
GROUPS = ("openclaw_balancers", "openclaw_gateways", "openclaw_redis", "openclaw_ollama")


class Case:
    """A sound cluster to plant faults in."""

    def __init__(self, hosts=3):
        self.names = [f"node{number}" for number in range(1, hosts + 1)]
        self.groups = {group: list(self.names) for group in GROUPS}
        self.hostvars = {name: {"ansible_host": f"192.0.2.{number}"} for number, name in enumerate(self.names, 1)}
        self.settings = {name: copy.deepcopy(SETTINGS) for name in self.names}
        self.facts = {name: dict(FACTS) for name in self.names}
        self.more = {}

    def set(self, *hosts, **values):
        for name in hosts or self.names:
            self.settings[name].update(copy.deepcopy(values))
        return self

    def shape(self, *hosts, **values):
        for name in hosts or self.names:
            self.hostvars[name].update(values)
        return self

    def know(self, *hosts, **values):
        for name in hosts or self.names:
            self.facts[name].update(values)
        return self

    def arguments(self):
        # Each datacenter is judged by itself; here the one of the first host.
        here = next(iter(self.hostvars.values())).get("topology_datacenter")
        return topology.build(self.groups, self.hostvars, here), self.settings, self.facts

    def problems(self):
        return preflight.problems(*self.arguments(), **self.more)

    def warnings(self):
        return preflight.warnings(*self.arguments(), **self.more)


@pytest.fixture
def case():
    return Case()


def refused(case, start, *parts):
    """Exactly one problem, which starts so and holds the parts, and is one sentence of the agreed form."""
    found = case.problems()
    assert len(found) == 1, found
    assert found[0].startswith(start), found[0]
    for part in parts:
        assert part in found[0]
    assert found[0].endswith(".")
    assert "\n" not in found[0]


# --- what is sound


@pytest.mark.parametrize("hosts", [1, 3, 5])
def test_a_sound_cluster(hosts):
    case = Case(hosts)
    assert case.problems() == []
    assert case.warnings() == []


def test_three_replicas_on_one_host():
    assert Case(1).shape(gateway_replicas=3).problems() == []


@pytest.mark.parametrize("name, hosts", [("three_hosts", 3), ("single_host", 1)])
def test_the_sample_inventories(name, hosts):
    directory = ROOT / "inventories" / name
    inventory = yaml.safe_load((directory / "hosts.yml").read_text())["openclaw"]
    variables = yaml.safe_load((directory / "group_vars" / "all.yml").read_text())
    case = Case(hosts)
    groups = inventory["children"]
    case.groups = {
        group: list(members.get("hosts") or groups[next(iter(members["children"]))]["hosts"])
        for group, members in groups.items()
    }
    case.hostvars = {host: {**variables, **(own or {})} for host, own in inventory["hosts"].items()}
    secrets = {key: f"{SECRET}{key}" for key in preflight.SECRETS}
    providers = [
        {**entry, **({"api_key": SECRET} if "api_key" in entry else {})} for entry in variables["gateway_providers"]
    ]
    given_values = {
        key: value for key, value in variables.items() if key.startswith(("gateway_", "redis_", "sentinel_"))
    }
    case.set(**{**given_values, **secrets, "gateway_providers": providers})
    assert case.problems() == []
    assert case.warnings() == []


def test_hosts_that_this_run_leaves_out_are_not_asked_for(case):
    del case.facts["node2"]
    assert case.problems() == []


# --- the shape of the topology


@pytest.mark.parametrize("group", preflight.NEEDED_GROUPS)
def test_no_host_in_a_needed_group(case, group):
    case.groups[group] = []
    refused(case, f"{group}: found no host; allowed one host or more; put the hosts that run ")


def test_no_replica(case):
    refused(case.shape(gateway_replicas=0), "gateway_replicas: found no replica; allowed 1 or more; ")


@pytest.mark.parametrize(
    "step, found", [(0, "both on 192.0.2.1:18789"), (119, "on ports 18789 and 18908"), (-1, "on ports 18788 and 18789")]
)
def test_replicas_of_a_host_too_close(step, found):
    case = Case(1).shape(gateway_replicas=2, gateway_port_step=step)
    refused(
        case, "gateway_port_step: found replicas node1-", found, "allowed a distance of 120 or more", "set it to 120."
    )


def test_replicas_too_close_on_every_host_are_one_problem(case):
    refused(
        case.shape(gateway_replicas=9, gateway_port_step=0),
        "gateway_port_step: found replicas node1-1 and node1-2 both on ",
    )


def test_two_hosts_with_one_address(case):
    case.shape("node3", topology_address="192.0.2.2")
    refused(
        case, "node2, node3: topology_address: found 192.0.2.2 on each; allowed an address of its own for each host; "
    )


@pytest.mark.parametrize("address", ["node1.test", "192.0.2.256", "192.0.2.1/24", ""])
def test_an_address_that_is_none(case, address):
    case.hostvars["node1"] = {"ansible_host": address}
    refused(
        case, f"node1: topology_address: found {address or 'node1'}; allowed an IP address; set topology_address to "
    )


@pytest.mark.parametrize(
    "address, allowed",
    [
        ("127.0.0.1", "an address that the other hosts can reach"),
        ("0.0.0.0", "the address of one host"),
        ("224.0.0.1", "the address of one host"),
        ("2001:db8::1", "an IPv4 address, as a gateway"),
    ],
)
def test_an_address_that_cannot_serve(case, address, allowed):
    refused(
        case.shape("node2", topology_address=address), f"node2: topology_address: found {address}; allowed {allowed}"
    )


def test_one_host_may_use_its_loopback_address():
    assert Case(1).shape(topology_address="127.0.0.1").problems() == []


def test_a_host_without_gateway_and_balancer_may_have_an_ipv6_address(case):
    case.groups["openclaw_gateways"] = ["node1", "node2"]
    case.groups["openclaw_balancers"] = ["node1", "node3"]
    refused(case.shape("node3", topology_address="2001:db8::1"), "node3: topology_address: found 2001:db8::1; allowed an IPv4 address, as the balancers'")
    case.groups["openclaw_balancers"] = ["node1", "node2"]
    assert case.shape("node3", topology_address="2001:db8::1").problems() == []


@pytest.mark.parametrize(
    "values, start",
    [
        ({"redis_port": 26379}, "redis_port: found 26379 for the Redis, but the Sentinel has port 26379 of node1"),
        (
            {"balancer_port": 18789},
            "balancer_port: found 18789 for the balancer, but the gateway has ports 18789 to 18908 of node1",
        ),
        (
            {"ollama_port": 18908},
            "ollama_port: found 18908 for the Ollama, but the gateway has ports 18789 to 18908 of node1",
        ),
        ({"agent_port": 18789}, "agent_port: found 18789 for the agent's verdict, but the gateway has ports 18789 to 18908 of node1"),
        ({"agent_check_port": 18700}, "agent_port: found 18700 for the agent's verdict, but the agent's check has port 18700 of node1"),
        (
            {"gateway_port": 6300},
            "redis_port: found 6379 for the Redis, but the gateway has ports 6300 to 6419 of node1",
        ),
    ],
)
def test_services_on_one_port(case, values, start):
    refused(case.shape(**values), start, "; allowed a port of its own for each; change ")


@pytest.mark.parametrize(
    "values, found",
    [
        ({"balancer_metrics_port": 18790}, "balancer_metrics_port: found 18790 for the balancer's metrics, but the gateway has ports 18789 to 18908 of node1"),
        ({"balancer_metrics_port": 9000, "balancer_peers_port": 9000}, "balancer_peers_port: found 9000 for the balancers among themselves, but"),
    ],
)
def test_ports_of_the_balancer_alone_must_be_free_too(case, values, found):
    refused(case.set(**values), found)


def test_ports_that_touch_but_do_not_clash(case):
    assert case.shape(balancer_port=18788, ollama_port=18909).problems() == []


def test_services_of_different_hosts_may_share_a_port(case):
    case.groups["openclaw_balancers"] = ["node1"]
    case.groups["openclaw_gateways"] = ["node2", "node3"]
    assert case.shape(balancer_port=18789).problems() == []


@pytest.mark.parametrize(
    "variable, port, most",
    [
        ("redis_port", 0, 65535),
        ("agent_port", 0, 65535),
        ("agent_check_port", 65536, 65535),
        ("balancer_port", 65536, 65535),
        ("gateway_port", 65417, 65416),
    ],
)
def test_ports_that_do_not_exist(variable, port, most):
    refused(
        Case(1).shape(**{variable: port}),
        f"node1: {variable}: found port {port} for the ",
        f"allowed 1 to {most}; correct it.",
    )


@pytest.mark.parametrize("count", [2, 4])
def test_an_even_number_of_sentinels(count):
    case = Case(count)
    refused(
        case,
        f"openclaw_sentinels: found {count} Sentinels (node1, ",
        "allowed an odd number",
        "without hosts of its own means the Redis hosts",
    )


def test_an_odd_number_of_sentinels_beside_two_redis(case):
    case.groups["openclaw_redis"] = ["node1", "node2"]
    case.groups["openclaw_sentinels"] = ["node1", "node2", "node3"]
    assert case.problems() == []


@pytest.mark.parametrize("quorum, good", [(1, False), (2, True), (3, True), (4, False), (0, False)])
def test_the_quorum(case, quorum, good):
    case.shape(sentinel_quorum=quorum)
    if good:
        assert case.problems() == []
    else:
        refused(case, f"sentinel_quorum: found {quorum}; allowed 2 to 3 with 3 Sentinels; ")


# --- the virtual address


def with_vip(hosts=3, prefix=24, interface=""):
    case = Case(hosts).shape(vip_address="192.0.2.10", vip_prefix=prefix).set(vip_interface=interface, vip_router_id=51, vip_profile="default")
    for number, name in enumerate(case.names, 1):
        case.know(name, interfaces={"lo": ["127.0.0.1/8"], "eth0": [f"192.0.2.{number}/24"], "eth1": ["198.51.100.1/28"]})
    return case


def test_a_virtual_address_in_the_hosts_network():
    for case in (with_vip(), with_vip(prefix=32), with_vip(interface="eth1")):
        assert case.problems() == [] and case.warnings() == []


@pytest.mark.parametrize("address", ["vip.test", "192.0.2.10/24", "2001:db8::1", "127.0.0.5", "224.0.0.18", "0.0.0.0", "255.255.255.255"])
def test_a_virtual_address_that_is_none(address):
    refused(with_vip().shape(vip_address=address), f"vip_address: found {address}; allowed an IPv4 address", "free address in the network of node1")


def test_a_virtual_address_that_a_host_has():
    refused(with_vip().shape(vip_address="192.0.2.2"), "vip_address: found 192.0.2.2, the address of node2; allowed an address that no host has")


@pytest.mark.parametrize("address", ["198.51.100.10", "192.0.2.0", "192.0.2.255"])
def test_a_virtual_address_outside_the_hosts_network(address):
    case = with_vip().shape(vip_address=address)
    refused(case, f"vip_address: found {address}; allowed an address for hosts in 192.0.2.0/24, the network of eth0;")


def test_a_virtual_address_on_some_balancers_only():
    case = with_vip().shape("node3", vip_address="")
    refused(case, "vip_address: found 192.0.2.10 on node1, 192.0.2.10 on node2, nothing on node3; allowed one for all balancers of the datacenter main")


def test_a_virtual_address_for_two_datacenters():
    case = with_vip().shape("node1", topology_datacenter="east").shape("node2", "node3", topology_datacenter="west")
    assert [sentence.split(";")[0] for sentence in case.problems()] == [
        "vip_address: found 192.0.2.10 in east, west",
    ]
    case.shape("node1", vip_address="192.0.2.9")
    assert case.problems() == []


@pytest.mark.parametrize("number", [0, 256, 999])
def test_a_router_id_out_of_range(number):
    refused(with_vip().set(vip_router_id=number), f"vip_router_id: found {number}; allowed 1 to 255")


@pytest.mark.parametrize("variable, value", [("vip_router_id", 52), ("vip_profile", "fast")])
def test_what_balancers_of_one_address_agree_on(variable, value):
    case = with_vip().set("node2", **{variable: value})
    refused(case, f"{variable}: found ", f"{value} on node2", "allowed one for all balancers of the datacenter main")


@pytest.mark.parametrize("prefix", [0, 33, 16])
def test_a_prefix_that_does_not_fit(prefix):
    refused(with_vip(prefix=prefix), f"vip_prefix: found {prefix}; allowed ")


def test_prefixes_that_differ():
    refused(with_vip().shape("node2", vip_prefix=32), "vip_prefix: found 24, 32; allowed one number from 1 to 32")


def test_an_interface_that_a_host_does_not_have():
    refused(with_vip().set("node2", vip_interface="eth9"), "node2: vip_interface: found eth9; allowed an interface of the host (lo, eth0, eth1)")


def test_a_host_whose_address_is_on_no_interface_needs_to_be_told():
    case = with_vip().know("node2", interfaces={"eth0": ["10.0.0.2/24"]})
    refused(case, "node2: vip_interface: found no interface that holds 192.0.2.2; allowed one that the host has; set it to the one")
    assert case.set("node2", vip_interface="eth0").problems() == []


def test_a_virtual_address_with_one_balancer_is_a_warning():
    case = with_vip(1)
    assert case.problems() == []
    (warning,) = case.warnings()
    assert warning.startswith("vip_address: found 192.0.2.10 with one balancer in the datacenter main, so nobody takes it over; ")


# --- the hosts


@pytest.mark.parametrize("version, good", [("2.18.9", False), ("2.19.0", True), ("2.21.5", True), ("3.0.0", True)])
def test_ansible_core(case, version, good):
    case.more["ansible_version"] = version
    if good:
        assert case.problems() == []
    else:
        refused(case, "ansible-core: found 2.18.9; allowed 2.19 or newer; upgrade it on the controller.")


@pytest.mark.parametrize(
    "name, major", [("debian", "11"), ("debian", "14"), ("debian", ""), ("ubuntu", "24"), ("ubuntu", "12")]
)
def test_distributions(case, name, major):
    case.know("node2", distribution=name, distribution_major_version=major)
    refused(case, f"node2: found {name} {major}".rstrip(), "; allowed debian 12 or 13; ")


def test_debian_13(case):
    assert case.know(distribution_major_version="13").problems() == []


def test_redis_of_two_releases(case):
    case.know("node3", distribution_major_version="13")
    refused(case, "openclaw_redis: found Debian 12 on node1, 12 on node2, 13 on node3; allowed one release ", "--limit")


def test_redis_of_two_releases_in_a_run_that_is_limited_to_one(case):
    case.know("node3", distribution_major_version="13")
    del case.facts["node1"], case.facts["node2"]
    assert case.problems() == []


def test_a_host_that_did_not_answer(case):
    case.facts["node2"] = None
    refused(case, "node2: found no answer; allowed hosts that can be examined first; ", "--limit 'all:!node2'")


def test_redis_memory_above_the_hosts(case):
    refused(
        case.set(redis_maxmemory="9gb"),
        "redis_maxmemory: found 9gb; allowed less than the 8.0 GiB of memory the host has; ",
    )


def test_redis_memory_above_one_hosts_memory_names_the_host(case):
    refused(
        case.know("node2", memory_bytes=200 * 1024**2).set("node2", gateway_memory_max="infinity"),
        "node2: redis_maxmemory: found 256mb; allowed less than the 200 MiB ",
    )


@pytest.mark.parametrize("value", ["0", 0, "much", "-1", "1tb", "256 megabytes"])
def test_redis_memory_that_is_no_limit(case, value):
    refused(
        case.set(redis_maxmemory=value),
        f"redis_maxmemory: found {value}, which is no limit; allowed a size such as 256mb; ",
    )


@pytest.mark.parametrize("replicas, good", [(3, True), (4, False)])
def test_gateways_and_redis_must_fit_together(replicas, good):
    case = Case(1).shape(gateway_replicas=replicas)
    if good:
        assert case.problems() == []
    else:
        refused(
            case,
            "gateway_memory_max: found 4 x 2G and 256 MiB for Redis; allowed the 8.0 GiB of memory the host has; ",
        )


def test_gateways_alone_count_without_redis_on_their_host(case):
    case.groups["openclaw_redis"] = ["node3"]
    case.groups["openclaw_gateways"] = ["node1"]
    assert case.shape(gateway_replicas=4).problems() == []
    refused(case.shape(gateway_replicas=5), "gateway_memory_max: found 5 x 2G; allowed the 8.0 GiB ")


@pytest.mark.parametrize("value", ["2 GB", "lots", "", None])
def test_a_gateway_limit_that_is_none(case, value):
    refused(
        case.set(gateway_memory_max=value),
        f"gateway_memory_max: found {value or 'nothing'}; allowed a size such as 2G or 50%; ",
    )


@pytest.mark.parametrize("value", ["50%", "infinity", "4096M", 2147483648])
def test_gateway_limits_in_other_words(case, value):
    assert case.set(gateway_memory_max=value).problems() == []


@pytest.mark.parametrize("version", ["24.15.9", "20.19.2", "v22.1.0", "latest", ""])
def test_node_too_old(case, version):
    refused(
        case.set(gateway_node_version=version),
        f"gateway_node_version: found {version or 'nothing'}; allowed 24.16 or newer; raise it.",
    )


@pytest.mark.parametrize("version", ["24.16.0", "25.0.0", "v24.19.0"])
def test_node_new_enough(case, version):
    assert case.set(gateway_node_version=version).problems() == []


@pytest.mark.parametrize(
    "version, npm, found",
    [
        ("20.19.2", "/usr/bin/npm", "Node 20.19.2 in /usr/bin"),
        ("", "/usr/bin/npm", "no node that runs in /usr/bin"),
        ("24.19.0", "", "no npm in /usr/bin"),
        ("24.19.0", "/opt/openclaw/node/24.19.0/bin/npm", "no npm in /usr/bin"),
    ],
)
def test_a_given_node_that_will_not_do(case, version, npm, found):
    case.set(gateway_node_path="/usr/bin").know(node_version="24.19.0", npm="/usr/bin/npm")
    case.know("node2", node_version=version, npm=npm)
    refused(case, f"node2: gateway_node_path: found {found}; allowed a directory with node 24.16 or newer and npm; ")


def test_a_given_node_replaces_the_one_to_be_installed(case):
    case.set(gateway_node_path="/opt/node/bin/", gateway_node_version="1.0.0")
    assert case.know(node_version="24.16.0", npm="/opt/node/bin/npm").problems() == []


@pytest.mark.parametrize("version", ["latest", "2026.9", "^2026.9.6", "", None, 2026.9])
def test_a_gateway_version_that_is_none(case, version):
    refused(
        case.set(gateway_version=version),
        f"gateway_version: found {version or 'nothing'}; allowed one exact version such as 2026.9.6; ",
    )


def npm(available, newest=()):
    return {
        "2026.9.6": {
            "available": available,
            "newest": list(newest),
            "reason": "Whether it exists could not be asked: no network.",
        }
    }


def test_a_gateway_version_that_is_not_on_npm(case):
    case.more["npm"] = npm("false", ["2026.9.5", "2026.9.4"])
    refused(
        case,
        "gateway_version: found 2026.9.6, which is not on npm; allowed a published version of openclaw; ",
        "choose one, the newest are 2026.9.5, 2026.9.4.",
    )


def test_a_package_that_npm_does_not_know(case):
    case.more["npm"] = npm("false")
    refused(
        case, "gateway_version: found 2026.9.6, which is not on npm; ", "see whether npm is set to the right registry."
    )


def test_a_gateway_version_that_is_on_npm(case):
    case.more["npm"] = npm("true")
    assert case.problems() == case.warnings() == []


def test_npm_that_cannot_be_asked_is_a_warning_only(case):
    case.more["npm"] = npm("unknown")
    assert case.problems() == []
    assert case.warnings() == [
        "gateway_version: Whether it exists could not be asked: no network. Its installation will tell."
    ]


# --- secrets, providers, settings


@pytest.mark.parametrize("variable", preflight.SECRETS)
@pytest.mark.parametrize(
    "value, found",
    [
        (None, "nothing"),
        ("", "nothing"),
        ("k3yK3Yk3", "8 characters"),
        ("k3yK3Yk3k3yK3Yk", "15 characters"),
        ("changeme", "a sample value"),
        ("CHANGE-ME-CHANGE-ME-CHANGE", "a sample value"),
        ("your-token-goes-here-0123456", "a sample value"),
        ("xxxxxxxxxxxxxxxxxxxxxxxxxxxx", "a sample value"),
        ("1111111111111111222222222222", "a sample value"),
        ("with a blank 0123456789abcdef", "characters that mean something"),
        ('quote"0123456789abcdef', "characters that mean something"),
        ("dollar$0123456789abcdef", "characters that mean something"),
        ("line\n0123456789abcdef", "characters that mean something"),
        ("ümlaut0123456789abcdef", "characters that mean something"),
        (1234567890123456, "something that is no text"),
    ],
)
def test_secrets_that_will_not_do(case, variable, value, found):
    refused(
        case.set(**{variable: value}),
        f"{variable}: found {found}",
        "; allowed ",
        "set it to what this prints: openssl rand -hex 32.",
    )


@pytest.mark.parametrize("variable", preflight.SECRETS)
@pytest.mark.parametrize("value", ["k3yK3Yk3k3yK3Yk3", "Az09+/=-._~!%&()*,:;<>?@[]^{|}", SECRET])
def test_secrets_that_will_do(case, variable, value):
    assert case.set(**{variable: value}).problems() == []


@pytest.mark.parametrize("variable", preflight.SECRETS)
def test_a_secret_that_differs_between_hosts(case, variable):
    refused(
        case.set("node2", **{variable: SECRET + "other"}),
        f"{variable}: found different values on the hosts; allowed one for the whole cluster; ",
    )


@pytest.mark.parametrize("variable", preflight.SECRETS)
def test_a_secret_missing_on_one_host_names_it(case, variable):
    refused(case.set("node2", **{variable: ""}), f"node2: {variable}: found nothing; ")


def test_a_secret_is_not_asked_of_hosts_without_need_for_it(case):
    case.groups.update(openclaw_gateways=["node1"], openclaw_redis=["node1"])
    assert case.set("node2", "node3", gateway_token="", redis_password="", sentinel_password="").problems() == []


def test_a_secret_file_that_was_refused(case):
    reason = (
        "/x/token: found mode 0644; allowed 0600 or 0400, so that only its owner reads it; run: chmod 0600 /x/token"
    )
    refused_values = case.set(gateway_token=Unreadable(reason)).problems()
    assert refused_values == [f"gateway_token: {reason}"]
    case.set("node1", gateway_token=SECRET)
    assert case.problems() == [f"node2, node3: gateway_token: {reason}"]


def providers(**changes):
    changed = copy.deepcopy(SETTINGS["gateway_providers"])
    changed[0].update(changes)
    return changed


@pytest.mark.parametrize(
    "value, found",
    [
        ([], "empty"),
        (None, "nothing"),
        ("cloud", "found a str; allowed a list"),
        ({"cloud": {}}, "found a dict; allowed a list"),
        (["cloud"], "entry 1 has no name"),
        (providers(name=""), "entry 1 has no name"),
        (providers(name="ollama"), "the same name"),
        (providers(type="openai"), "'openai'"),
        (providers(type=None), "None"),
        (providers(endpoint="llm.test/v1"), "'llm.test/v1'"),
        (providers(endpoint="ftp://llm.test"), "'ftp://llm.test'"),
        (providers(endpoint=""), "no endpoint"),
        (providers(model=""), "no model"),
        (providers(timeout=0), "timeout 0"),
        (providers(retries=-1), "retries -1"),
        (providers(api_key=""), "no api_key"),
        (providers(api_key=None), "no api_key"),
        (providers(api_key="your-key"), "a sample value as api_key"),
        (providers(api_key=SECRET + "\n"), "an api_key with characters that no HTTP header takes"),
        (providers(api_key=[SECRET]), "an api_key with characters that no HTTP header takes"),
    ],
)
def test_providers_that_will_not_do(case, value, found):
    refused(case.set(gateway_providers=value), "gateway_providers", found)


def test_ollama_needs_an_endpoint_or_a_host(case):
    case.groups["openclaw_ollama"] = []
    refused(case, "gateway_providers entry 2 (ollama)", "openclaw_ollama")
    entries = providers()
    entries[1]["endpoint"] = "http://192.0.2.99:11434"
    assert case.set(gateway_providers=entries).problems() == []


def test_providers_of_one_host_may_differ_and_are_named(case):
    refused(case.set("node2", gateway_providers=providers(type="x")), "node2: gateway_providers entry 1 (cloud)")


@pytest.mark.parametrize(
    "values, part",
    [
        ({"gateway_extra_config": {"agents": {"defaults": {"heartbeat": {"every": "30m"}}}}}, "heartbeat"),
        ({"gateway_extra_config": {"cron": {"enabled": True}}}, "cron.enabled"),
        ({"gateway_extra_config": {"memory": {"search": {"enabled": True}}}}, "memory"),
        (
            {
                "gateway_extra_config": {
                    "channels": {"telegram": {"webhookUrl": "https://x.test", "dmPolicy": "pairing"}}
                }
            },
            "pairing",
        ),
        ({"gateway_tools_deny": list(STATEFUL_TOOLS)[1:]}, STATEFUL_TOOLS[0]),
    ],
)
def test_settings_that_run_once_for_each_replica_or_differ(values, part):
    refused(Case().set(**values), next(iter(values)), part)
    one = Case(1).set(**values)
    assert one.problems() == []


def test_denied_tools_that_cannot_be_evaluated_are_one_problem(case):
    refused(case.set(gateway_tools_deny=Unreadable("found nothing yet.")), "gateway_tools_deny: found nothing yet.")


@pytest.mark.parametrize("value", ["text", ["list"], 1])
def test_extra_config_of_another_kind(case, value):
    refused(
        case.set(gateway_extra_config=value), f"gateway_extra_config: found a {type(value).__name__}; allowed a mapping"
    )


# --- channels

TELEGRAM = {"type": "telegram", "mode": "webhook", "secrets": {"bot_token": "1:t0ken", "webhook_secret": "w3bhook"}, "allow_from": [42]}
POLLING = {"type": "telegram", "account": "poll", "mode": "polling", "secrets": {"bot_token": "2:t0ken"}, "allow_from": [42]}


def with_channels(*listed, url="https://claw.test", **more):
    return Case().set(gateway_channels=list(listed), gateway_public_url=url, **more).shape(gateway_channels=list(listed))


def test_sound_channels():
    assert with_channels(TELEGRAM, POLLING, {"type": "whatsapp", "allow_from": ["+15550001"]}).problems() == []
    assert with_channels(POLLING, url="").problems() == [], "nobody delivers anything"


@pytest.mark.parametrize("url", ["", "http://claw.test", "https://claw.test/path", "https://user@claw.test", "claw.test"])
def test_webhooks_that_no_provider_could_deliver(url):
    refused(with_channels(TELEGRAM, url=url), "gateway_public_url: found ", "allowed an https:// address")


def test_an_account_that_makes_none():
    refused(with_channels(TELEGRAM | {"mode": "push"}), "gateway_channels entry 1 (telegram/default): found mode 'push'")


def test_channels_that_differ_between_hosts():
    case = with_channels(POLLING, POLLING | {"account": "second"})
    refused(case.set("node2", gateway_channels=[POLLING]), "gateway_channels: found different accounts on different gateway hosts")


def test_a_job_that_makes_none():
    case = with_channels(TELEGRAM).set(gateway_jobs=[{"name": "report", "schedule": "daily", "message": "What is new?"}])
    refused(case, "gateway_jobs entry 1 (report): found schedule 'daily'")


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"owner_lease": 31, "owner_stop": 20, "owner_proof": 15}, "owner_lease: found 31 s; allowed 32 s or more, as Telegram"),
        ({"owner_lease": 40, "owner_stop": 37}, "owner_lease: found 40 s; allowed 4 s more than owner_stop, 37 s, or more"),
        ({"owner_stop": 26}, "owner_stop: found 26 s; allowed 2 s more than owner_proof, 25 s, or more"),
    ],
)
def test_leases_that_would_have_two_owners(values, sentence):
    values = {"owner_lease": 40.0, "owner_stop": 28.0, "owner_proof": 25.0} | values
    refused(with_channels(POLLING, **values), sentence)
    assert with_channels(TELEGRAM, **values).problems() == [], "nobody needs an owner"


def test_the_defaults_of_owners_are_sound():
    defaults = yaml.safe_load((ROOT / "roles/owner/defaults/main.yml").read_text())
    assert with_channels(POLLING, **defaults).problems() == []


def test_a_secret_of_a_channel_in_the_wrong_place_is_not_told():
    spec = yaml.safe_load((ROOT / "roles/gateway/meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    case = with_channels({**POLLING, "secrets": "2:t0ken"})
    case.more["specs"] = {"gateway": {"gateway_channels": spec["gateway_channels"]}}
    refused(case, "gateway_channels entry 1 (telegram/poll): found secrets that are no mapping")
    assert "t0ken" not in str(case.problems())


def test_a_channel_in_two_places():
    extra = {"channels": {"telegram": {"webhookUrl": "https://claw.test", "dmPolicy": "open"}}}
    refused(with_channels(TELEGRAM, gateway_extra_config=extra), "gateway_extra_config: found channels.telegram, of which gateway_channels has accounts")


@pytest.mark.parametrize("port, who", [("ingress_port", "ingress"), ("ingress_status_port", "ingress's status"), ("owner_status_port", "owners' status")])
def test_ports_of_what_channels_need(port, who):
    case = with_channels(TELEGRAM, POLLING).shape(**{port: 6379})
    refused(case, f"redis_port: found 6379 for the Redis, but the {who} has port 6379 of node1")
    assert Case().shape(**{port: 6379}).problems() == [], "without channels nothing listens there"


# --- the agent


def test_an_agent_that_would_call_the_dead_alive(case):
    case.set(agent_stalled_after=1.5, agent_dead_after=1.5)
    refused(case, "agent_dead_after: found 1.5 s; allowed more than agent_stalled_after, 1.5 s; raise it.")
    assert case.set(agent_dead_after=6.0).problems() == []
    assert case.set(agent_dead_after="soon").problems() == [], "its type is not this check's business"


@pytest.mark.parametrize("where", ["example.org", "https://example.org:443", "example.org:https", "a b:443"])
def test_a_partner_without_a_port(case, where):
    refused(case.set(agent_partner=["other.test:443", where]), f"agent_partner: found {where}; allowed host:port; correct it.")


def test_a_partner_by_its_address(case):
    assert case.set(agent_partner=["192.0.2.1:443", "[2001:db8::1]:8443"]).problems() == []


# --- what the roles' argument_specs say


@pytest.mark.parametrize(
    "variable, option, value, part",
    [
        ("redis_save", {"type": "int"}, "often", "unable to convert to int"),
        ("redis_policy", {"type": "str", "choices": ["a", "b"]}, "c", "must be one of: a, b, got: c"),
    ],
)
def test_values_that_a_role_would_refuse_later(case, variable, option, value, part):
    case.more["specs"] = {"redis": {variable: option}}
    refused(case.set("node2", **{variable: value}), f"node2: {variable}: found a value that does not fit: ", part)


def test_values_that_fit_their_role_and_absent_ones(case):
    case.more["specs"] = {"redis": {"redis_x": {"type": "int"}, "redis_y": {"type": "int", "required": True}}}
    assert case.set(redis_x="3").problems() == []


def test_a_role_is_asked_on_its_own_hosts_only(case):
    case.groups["openclaw_ollama"] = ["node1"]
    case.more["specs"] = {"ollama": {"ollama_x": {"type": "int"}}}
    assert case.set("node2", ollama_x="many").problems() == []


def test_a_closer_check_speaks_alone(case):
    case.more["specs"] = {"gateway": {"gateway_providers": {"type": "list", "elements": "dict"}}}
    refused(case.set(gateway_providers="cloud"), "gateway_providers: found a str; ")


# --- what works but costs something


@pytest.mark.parametrize(
    "policy", [f"{keys}-{how}" for keys in ("volatile", "allkeys") for how in ("lru", "lfu", "random")] + ["volatile-ttl"]
)
def test_a_policy_that_evicts_locks_is_a_warning(case, policy):
    case.set(redis_maxmemory_policy=policy)
    assert case.problems() == []
    assert [
        re.match(f"redis_maxmemory_policy: found {policy}, which evicts locks", text) is None
        for text in case.warnings()
    ] == [False]


def test_one_redis_beside_other_hosts_is_a_warning(case):
    case.groups["openclaw_redis"] = ["node1"]
    assert case.problems() == []
    assert case.warnings() == [
        "openclaw_redis: found one host, so no failover; allowed any number, but better 3; add two hosts."
    ]


def test_one_sentinel_for_several_redis_is_a_warning(case):
    case.groups["openclaw_sentinels"] = ["node1"]
    assert case.problems() == []
    assert [text.split(";")[0] for text in case.warnings()] == [
        "openclaw_sentinels: found one Sentinel, so no failover once its host is lost"
    ]


# --- over everything


def test_all_problems_are_told_at_once(case):
    case.shape(gateway_replicas=9, gateway_port_step=0, sentinel_quorum=1)
    case.set(gateway_token="", redis_maxmemory="1000gb", gateway_node_version="20.0.0")
    assert [text.split(":")[0] for text in case.problems()] == [
        "gateway_port_step",
        "sentinel_quorum",
        "redis_maxmemory",
        "gateway_node_version",
        "gateway_token",
    ]


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("KEEPME-5ec4e7"),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["name", "type", "api_key", "model"]), inner, max_size=4),
    max_leaves=6,
)


@given(st.sampled_from(sorted(SETTINGS)), JUNK)
def test_no_value_crashes_preflight(variable, value):
    specs = {
        "gateway": {"gateway_providers": {"type": "list", "elements": "dict", "options": {"api_key": {"type": "str"}}}}
    }
    case = Case(1).set(**{variable: value})
    case.more["specs"] = specs
    assert all("\n" not in text or "\n" in str(value) for text in case.problems())
    case.warnings()


@given(
    st.sampled_from(sorted(preflight.SECRETS)),
    st.sampled_from([str, lambda text: [text], lambda text: {"a": text}]),
    st.sampled_from(["", " ", "$", "changeme"]),
)
def test_no_sentence_holds_a_secret(variable, wrap, spoil):
    secret = "KEEP5ec4e7" + spoil
    case = Case(1).set(**{variable: wrap(secret)}, gateway_providers=providers(api_key=wrap(secret)))
    option = {"type": "list", "elements": "dict", "options": {"api_key": {"type": "int"}}}
    case.more["specs"] = {
        "gateway": {"gateway_providers": option, variable: {"type": "int"}},
        "redis": {variable: {"type": "int"}},
    }
    found = case.problems() + case.warnings()
    assert found
    assert not [text for text in found if "KEEP5ec4e7" in text]


@pytest.mark.parametrize(
    "text, size",
    [
        ("256mb", 256 * 1024**2),
        ("1k", 1000),
        ("1kb", 1024),
        ("2GB", 2 * GIB),
        (100, 100),
        ("5 mb", 5 * 1024**2),
        ("x", None),
        ("", None),
        (None, None),
    ],
)
def test_redis_bytes(text, size):
    assert preflight.redis_bytes(text) == size


@pytest.mark.parametrize(
    "text, size",
    [
        ("2G", 2 * GIB),
        ("1.5G", 3 * GIB // 2),
        ("512M", GIB // 2),
        ("1024", 1024),
        (7, 7),
        ("25%", GIB),
        ("infinity", 0),
        ("2g", None),
        ("x", None),
        ("", None),
    ],
)
def test_systemd_bytes(text, size):
    assert preflight.systemd_bytes(text, 4 * GIB) == size


@pytest.mark.parametrize(
    "variable, value, found",
    [
        ("redis_user_passwords", ["x"], "a list"),
        ("redis_user_passwords", {"apps": SECRET}, "the user apps"),
        ("redis_user_passwords", {"app": "short"}, "5 characters"),
        ("redis_user_passwords", {"app": ""}, "nothing"),
        ("redis_user_passwords", {"app": 'with"quote-and-length'}, "characters that mean something"),
        ("sentinel_user_passwords", {"exporter": SECRET}, "the user exporter"),
    ],
)
def test_passwords_of_single_users_that_will_not_do(case, variable, value, found):
    case.set(**{variable: value})
    refused(case, variable, found)
    assert not any("with\"quote" in text for text in case.problems())


def test_passwords_of_single_users_that_will_do(case):
    case.set(redis_user_passwords={"exporter": SECRET + "exporter"})
    assert case.problems() == []


def test_passwords_of_single_users_that_differ_between_hosts(case):
    case.set("node1", redis_user_passwords={"exporter": SECRET + "exporter"})
    refused(case, "redis_user_passwords", "different values on the hosts")


@pytest.mark.parametrize("seen, good", [(None, True), (True, True), (False, False)])
def test_a_cluster_keeps_the_transport_it_was_set_up_with(case, seen, good):
    case.know("node2", redis_tls=seen)
    if good:
        assert case.problems() == []
    else:
        refused(case, "redis_tls", "was set up without TLS on node2", "set it to false")


# --- balancers


@pytest.mark.parametrize(
    "values, start, parts",
    [
        ({"balancer_engine": "apache"}, "balancer_engine: found apache; ", ["haproxy or nginx"]),
        ({"balancer_plain": "redirect"}, "balancer_plain: found redirect without TLS; ", ["set balancer_tls to true"]),
        ({"balancer_plain": "off"}, "balancer_plain: found off without TLS; ", []),
        ({"balancer_plain": False}, "balancer_plain: found False; ", ["put off in quotes"]),
        ({"balancer_plain": "both"}, "balancer_plain: found both; ", ["choose one"]),
        ({"balancer_max_body": 0}, "balancer_max_body: found 0; ", []),
        ({"balancer_client_connections": -1}, "balancer_client_connections: found -1; ", []),
        ({"balancer_hsts": -1}, "balancer_hsts: found -1; ", []),
        (
            {"balancer_engine": "nginx", "balancer_token_requests_per_minute": 10},
            "balancer_token_requests_per_minute: found 10 with the engine nginx",
            ["set balancer_engine to haproxy"],
        ),
        ({"balancer_engine": "nginx", "balancer_peers_port": 9000}, "balancer_peers_port: found 9000 with the engine nginx", []),
        ({"balancer_peers_port": 8080}, "balancer_port: found 8080 for the balancer, but the balancers among themselves has", []),
    ],
)
def test_a_balancer_that_cannot_be(case, values, start, parts):
    refused(case.set(**values), start, *parts)


@pytest.mark.parametrize("plain", ["serve", "redirect", "off"])
def test_with_tls_the_plain_port_may_be_anything(case, plain):
    assert case.shape(balancer_tls=True).set(balancer_plain=plain).problems() == []


def test_the_port_for_tls_must_be_free(case):
    refused(case.shape(balancer_tls=True, balancer_tls_port=8080), "balancer_port: found 8080 for the balancer, but the balancer's TLS has")
    assert Case().shape(balancer_tls=False, balancer_tls_port=8080).problems() == []


def test_the_port_for_other_datacenters_must_be_free_where_there_are_any():
    def apart(**values):
        return Case().shape(**values).shape("node1", topology_datacenter="east").shape("node2", "node3", topology_datacenter="west")

    clash = "found 8080 for the balancer, but the balancers of other datacenters has"
    assert any(clash in one for one in apart(balancer_datacenters_port=8080).problems())
    assert not any(clash in one for one in apart().problems() + Case().shape(balancer_datacenters_port=8080).problems())


CERTIFICATE = {"name": "site", "cert": "/tls/site.crt", "key": "/tls/site.key"}


def test_a_certificate_that_cannot_be_used(case):
    case.shape(balancer_tls=True).set(balancer_certificates=[CERTIFICATE])
    case.more["certificates"] = {("/tls/site.crt", "/tls/site.key"): {"problem": "found nothing; allowed a file; correct it"}}
    refused(case, "balancer_certificates entry 1 (site): found nothing; allowed a file; correct it.")
    case.shape(balancer_tls=False)
    assert case.problems() == []


@pytest.mark.parametrize("name, found", [("../site", "a name that is no file's"), ("other", "the name twice")])
def test_names_of_certificates(case, name, found):
    case.shape(balancer_tls=True).set(balancer_certificates=[CERTIFICATE | {"name": name}, CERTIFICATE | {"name": "other"}])
    assert [problem for problem in case.problems() if f"found {found}" in problem]


@pytest.mark.parametrize("days, warned", [(13, True), (14, False)])
def test_a_certificate_that_ends_soon_is_warned_of(case, days, warned):
    case.more["certificates"] = {("/tls/site.crt", "/tls/site.key"): {"days": days}}
    assert [text for text in case.warnings() if f"ends in {days} days" in text] == case.warnings()
    assert bool(case.warnings()) == warned


@pytest.mark.parametrize("engine, seconds, warned", [("nginx", 120, True), ("nginx", 60, False), ("haproxy", 120, False)])
def test_turns_that_nginx_would_cut_are_warned_of(case, engine, seconds, warned):
    case.set(balancer_engine=engine, gateway_turn_timeout=seconds)
    assert bool([text for text in case.warnings() if "504 after 60 s" in text]) == warned


@pytest.mark.parametrize(
    "engine, silence, warned", [("haproxy", 119, True), ("haproxy", "119", True), (None, 119, True), ("haproxy", 120, False), ("nginx", 60, False)]
)
def test_turns_that_haproxy_would_cut_are_warned_of(case, engine, silence, warned):
    # From the command line numbers come as text.
    case.set(balancer_engine=engine, balancer_timeout_server=silence, gateway_turn_timeout=type(silence)(120))
    assert bool([text for text in case.warnings() if text.startswith("balancer_timeout_server: found 119 s")]) == warned


@pytest.mark.parametrize(
    "values, start",
    [
        ({"gateway_rollout_max_unavailable": 0}, "gateway_rollout_max_unavailable: found 0; allowed 1 or more; correct it."),
        ({"gateway_rollout_max_unavailable": "0"}, "gateway_rollout_max_unavailable: found 0; allowed 1 or more; correct it."),
        ({"gateway_rollout_soak": -1}, "gateway_rollout_soak: found -1; allowed 0 or more; correct it."),
    ],
)
def test_a_rollout_that_cannot_be(case, values, start):
    refused(case.set(**values), start)
    assert case.set(**dict.fromkeys(values, 1)).problems() == []
