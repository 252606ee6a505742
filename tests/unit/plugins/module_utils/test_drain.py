import pytest

from ansible_collections.openclaw.ha.plugins.module_utils import drain
from ansible_collections.openclaw.ha.plugins.module_utils.topology import build

NAMES = ("node1", "node2")
WELL = {"node1-1": "ok", "node2-1": "degraded", "node1-2": "ok"}


def cluster(replicas=3, **variables):
    groups = {"openclaw_balancers": list(NAMES), "openclaw_gateways": list(NAMES)}
    hostvars = {name: {"ansible_host": f"192.0.2.1{number}", "gateway_replicas": replicas, **variables.get(name, {})} for number, name in enumerate(NAMES, 1)}
    return build(groups, hostvars)


def seen(**takes):
    return {host: [{"id": name.replace("_", "-"), "takes": value} for name, value in takes.items()] for host in NAMES}


def plan(what, state="drained", verdicts=None, balancers=None, force=False, **more):
    return drain.plan(cluster(**more), what, state, WELL if verdicts is None else verdicts, balancers or {}, force)


def test_one_replica_or_all_of_a_host():
    assert plan("node1-1") == {"replicas": ["node1-1"], "problem": "", "serving": ["node1-1", "node2-1", "node1-2"]}
    assert plan("node1")["replicas"] == ["node1-1", "node1-2"]
    assert plan("node1", "ready")["problem"] == ""


@pytest.mark.parametrize("what", ["", "node9", "node1-3"])
def test_a_stranger_is_refused_with_what_there_is(what):
    problem = plan(what)["problem"]
    assert problem.startswith(f"drain is {what or 'not set'}; ") and problem.endswith(": node1, node2, node1-1, node2-1, node1-2.")


def test_an_unknown_state_is_refused():
    assert plan("node1", "away")["problem"] == "drain_state is away; it must be drained or ready."


@pytest.mark.parametrize(
    "verdicts, told",
    [
        ({"node1-1": "ok", "node1-2": "ok", "node2-1": "down"}, "node2-1 down"),
        ({"node1-1": "ok", "node1-2": "ok", "node2-1": "draining"}, "node2-1 draining"),
        ({"node1-1": "ok", "node1-2": "ok"}, "node2-1 does not answer"),
        ({"node1-1": "draining", "node1-2": "down", "node2-1": "draining"}, "They do not serve now, and drained they would not when they are well."),
        ({}, "They do not serve now"),
    ],
)
def test_the_last_replicas_that_serve_stay(verdicts, told):
    problem = plan("node1", verdicts=verdicts)["problem"]
    assert problem.startswith("Without node1-1, node1-2 no replica of the datacenter main would serve") and told in problem
    assert plan("node1", verdicts=verdicts, force=True)["problem"] == ""
    assert plan("node1", "ready", verdicts=verdicts)["problem"] == ""


def test_the_only_replica_there_is():
    assert "(there is no other)" in plan("node1-1", replicas=1)["problem"]


def test_what_a_balancer_keeps_requests_from_does_not_serve():
    assert "no replica" in plan("node1", balancers=seen(node2_1=False))["problem"]
    assert plan("node1", balancers=seen(node2_1=None))["problem"] == ""


def test_without_agents_a_balancer_that_checks_is_believed():
    assert plan("node1", verdicts={}, balancers=seen(node1_1=True, node1_2=True, node2_1=True))["problem"] == ""
    assert "no replica" in plan("node1", verdicts={}, balancers=seen(node1_1=True, node1_2=True, node2_1=None))["problem"]


def test_what_serves_nobody_may_be_drained_beside_one_that_serves():
    assert plan("node2", verdicts={"node1-1": "ok", "node2-1": "down"})["problem"] == ""


def test_what_is_drained_may_be_drained_again():
    assert plan("node1", verdicts={"node1-1": "draining", "node1-2": "draining"})["problem"] == ""


def test_each_datacenter_keeps_a_replica_of_its_own():
    apart = {"node1": {"topology_datacenter": "east"}, "node2": {"topology_datacenter": "west"}}
    assert "datacenter west would serve" in plan("node2", **apart)["problem"]


def test_the_table():
    found = plan("node1-1")
    row = {"id": "node1-1", "before": "ready", "after": "drained", "sessions_before": 3, "sessions_after": 0, "cut": 0, "seconds": 1.24}
    lines = drain.table(found, {"node1-1": "draining"}, {"node1": [row], "node2": None})
    assert lines[0].split("  ")[0] == "REPLICA" and lines[1].split() == "node1-1 draining drained, 3 -> 0 - 1.2".split()
    assert drain.table(found, {}, {"node1": [row]}, check=True)[1].split() == "node1-1 no answer ready -> drained, 3 now -".split()
    assert ", 2 cut" in drain.table(found, {}, {"node1": [{**row, "cut": 2}]})[1]
