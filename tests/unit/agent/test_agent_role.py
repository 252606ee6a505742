"""What the role renders is what the service can work with."""

from __future__ import annotations

import json
import pathlib

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from openclaw_agent import config

from ansible_collections.openclaw.ha.plugins.module_utils.topology import build

ROLE = pathlib.Path(__file__).resolve().parents[3] / "roles" / "agent"
UNITS = ("openclaw-agent.service", "openclaw-agent-certificates.service")


def templar(**variables):
    loader = DataLoader()
    loader.set_basedir(str(ROLE))
    hosts = {name: {"ansible_host": f"198.18.0.{number}", "gateway_replicas": 3} for number, name in enumerate(("node1", "node2"), 1)}
    known = {"topology_cluster": build({"openclaw_gateways": list(hosts)}, hosts), "inventory_hostname": "node1"}
    known |= {"ansible_managed": "Ansible managed", "role_path": str(ROLE), "ansible_search_path": [str(ROLE)]}
    for source in ("defaults/main.yml", "vars/main.yml"):
        known |= loader.load_from_file(str(ROLE / source), trusted_as_template=True)
    known |= variables
    # Read by lookups, for which all of Ansible would have to be started.
    known["_agent_package"] = {"__init__.py": ""}
    known["_agent_unit"] = unit(Templar(loader=loader, variables=known), UNITS[0])
    return Templar(loader=loader, variables=known)


def unit(with_templar, name):
    """The text of a unit."""
    text = (ROLE / "templates" / f"{name}.j2").read_text()
    # As Jinja includes it: without the line end of the block, and without the last one of the file.
    text = text.replace("{% include 'sandbox.j2' %}\n", (ROLE / "templates/sandbox.j2").read_text().rstrip("\n"))
    return str(with_templar.template(trust_as_template(text))) + "\n"


def rendered(**variables):
    return json.loads(templar(**variables).template(trust_as_template("{{ _agent_config | to_nice_json }}")))


def test_the_configuration_is_accepted_and_knows_the_hosts_replicas():
    found = config.check(rendered())
    assert [(one["id"], one["port"], one["verdict_port"], one["check_port"], one["unit"]) for one in found["replicas"]] == [
        ("node1-1", 18789, 18700, 18650, "openclaw-gateway@1.service"),
        ("node1-2", 18909, 18701, 18651, "openclaw-gateway@2.service"),
    ]
    assert (found["host"], found["address"], found["clock"]) == ("node1", "198.18.0.1", True)


def test_variables_reach_the_service_with_their_types():
    found = config.check(rendered(agent_stalled_after="3", agent_dead_after="9", agent_clock_check="false", agent_partner=["example.org:443"]))
    assert (found["stalled_after"], found["dead_after"], found["clock"], found["partner"]) == (3.0, 9.0, False, ["example.org:443"])


def test_limits_that_contradict_each_other_do_not_reach_a_host():
    with pytest.raises(config.ConfigError, match="dead_after is 1.0"):
        config.check(rendered(agent_dead_after=1.0))


def test_a_changed_unit_is_a_changed_configuration():
    before, after = rendered()["inputs"], rendered(agent_memory_max="1G")["inputs"]
    assert before["package"] == after["package"] and before["unit"] != after["unit"]


def test_documented_defaults_are_the_real_ones():
    options = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    assert {name: option["default"] for name, option in options.items()} == yaml.safe_load((ROLE / "defaults/main.yml").read_text())


def test_what_listens_has_no_rights_and_what_reads_everything_has_no_network():
    service, certificates = (unit(templar(), name).splitlines() for name in UNITS[:2])
    for lines in (service, certificates):
        assert {"User=openclaw-agent", "NoNewPrivileges=yes", "ProtectSystem=strict"} <= set(lines)
    assert {"CapabilityBoundingSet=", "AmbientCapabilities="} <= set(service)
    assert {"CapabilityBoundingSet=CAP_DAC_READ_SEARCH", "PrivateNetwork=yes"} <= set(certificates)


def test_the_clock_may_be_read():
    """Later lines of a filter take out what earlier ones let in, and the group @privileged has adjtimex in it."""
    filters = [line.partition("=")[2].split() for line in unit(templar(), UNITS[0]).splitlines() if line.startswith("SystemCallFilter=")]
    assert filters[-1] == ["adjtimex", "clock_adjtime"]
