"""The filters of the dr_ playbooks, over what a run leaves in hostvars."""

import json

from ansible_collections.openclaw.ha.plugins.filter import failover

HOSTVARS = {
    "localhost": {"_dr_fenced_at": "1005.0"},
    "main1": {"topology_cluster": {"hosts": {"main1": {"datacenter": "main", "groups": ["openclaw_redis"]}}}, "_dr_fence": {"unreachable": True}},
    "west1": {
        "topology_cluster": {"hosts": {"west1": {"datacenter": "west", "groups": ["openclaw_redis"]}}},
        "_dr_fence": {"stat": {"exists": False}},
        "_dr_seen": {
            "role": "standby",
            "claim": {"datacenter": "main", "epoch": 1},
            "behind": None,
            "seen": {"main": [{"address": "192.0.2.1", "port": 6379, "error": "gone"}]},
        },
        "_dr_gateways": {"replicas": [{"id": "west1-1", "healthy": True}]},
        "_dr_last": {"stdout": json.dumps({"contact": {"seen": "1970-01-01T00:16:20+00:00", "offset": 700, "own": 690}})},
        "_sentinel_promoted": {"offset": 690},
        "_dr_promoted_at": 1006.5,
        "_dr_answered_at": 1009.0,
    },
    "west2": {"_dr_last": {"stdout": "not JSON"}, "_dr_promoted_at": "1006.7"},
}


def test_a_plan_from_what_hosts_have_said():
    plan = failover.failover_plan(HOSTVARS, ["main1", "west1"], "west", True)
    assert not plan["problem"] and plan["epoch"] == 2 and plan["leaves"] == ["main1"] and plan["reached"] == ["west1"]
    assert "main1 cannot be reached" in failover.failover_plan(HOSTVARS, ["main1", "west1"], "west", False)["problem"]
    assert "main1 cannot be reached" in failover.failback_plan(HOSTVARS, ["main1", "west1"], "main")["problem"]


def test_a_report_from_what_a_run_has_left_some_of_it_as_text():
    told = failover.failover_seen(HOSTVARS, ["west1", "west2"], ["main1"])
    assert told["moments"] == {"fenced": 1005.0, "rested": None, "promoted": 1006.7, "answered": 1009.0, "dns": None}
    assert told["offset"] == 690 and told["contact"]["offset"] == 700
    facts = {"to": "west", "active": "main", "epoch": "2", "gone": True, "offset": "690", "contact": told["contact"], "unfenced": []}
    report = failover.failover_report("1000.0", told["moments"], facts)
    assert report["rpo"]["bytes"] == 10 and report["rto_seconds"] == 29.0 and report["epoch"] == 2
