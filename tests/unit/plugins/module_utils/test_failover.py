# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import re

import pytest

from ansible_collections.openclaw.ha.plugins.module_utils.failover import MAX_BEHIND, page, paragraph, plan, plan_back, report

ALL = ["openclaw_gateways", "openclaw_redis", "openclaw_sentinels", "openclaw_balancers"]


def seen(role="standby", claim=("main", 1), behind=0, main="master"):
    """What a Redis host of ``west`` said."""
    nodes = [{"host": "main1", "address": "192.0.2.1", "port": 6379, **({"role": main} if main else {"error": "no route to host"})}]
    return {"role": role, "claim": {"datacenter": claim[0], "epoch": claim[1]} if claim else None, "behind": behind, "seen": {"main": nodes}}


def hosts(answer=None, **changes):
    """Two datacenters of two hosts each; ``changes`` by host."""
    found = {
        name: {"datacenter": name[:-1], "groups": ALL, "reached": True, "seen": None, "gateways": [], "fenced": False, "contact": None}
        for name in ("main1", "main2", "west1", "west2")
    }
    found["west1"].update(seen=answer or seen(), gateways=[{"id": "west1-1", "healthy": True}])
    found["west2"].update(gateways=[{"id": "west2-1", "healthy": True}])
    for name, change in changes.items():
        found[name].update(change)
    return found


def test_a_planned_failover():
    found = plan(hosts(), "west", gone=False)
    assert not found["problem"] and found["epoch"] == 2 and found["active"] == "main"
    assert found["leaves"] == found["rests"] == ["main1", "main2"] and found["reached"] == ["west1", "west2"]
    assert "nothing is lost" in found["says"] and "west1-1, west2-1" in found["says"]


def test_one_that_an_earlier_run_began_goes_on():
    found = plan(hosts(seen("active", ("west", 2))), "west", gone=False)
    assert not found["problem"] and not found["leaves"] and found["epoch"] == 2 and "already" in found["says"]


@pytest.mark.parametrize(
    "case, gone, said",
    [
        (hosts(west1={"seen": None}), False, "No Redis host of west could be asked"),
        (hosts(west1={"reached": False}), True, "No Redis host of west could be asked (west1 not reached)"),
        (hosts(seen("none", None)), False, "No datacenter has claimed"),
        (hosts(west1={"gateways": [{"id": "west1-1", "healthy": False}]}, west2={"gateways": []}), False, "No gateway of west runs"),
        (hosts(main2={"reached": False}), False, "main2 cannot be reached. Where main is gone for good, -e dr_gone=true"),
        (hosts(west2={"reached": False}), False, "west2 cannot be reached"),
        (hosts(seen(behind=None)), False, "nobody knows whether west has all of it"),
        (hosts(seen(behind=MAX_BEHIND + 1)), False, "bytes behind main: wait"),
        (hosts(), True, "main is not gone: its Redis at 192.0.2.1:6379 answers to west"),
    ],
)
def test_what_is_refused(case, gone, said):
    assert said in plan(case, "west", gone)["problem"]


def test_a_datacenter_that_is_gone():
    gone = {"reached": False}
    found = plan(hosts(seen(behind=None, main=None), main1=gone, main2=gone, west2=gone), "west", gone=True)
    assert not found["problem"] and found["reached"] == ["west1"] and "given up" in found["says"] and not found["rests"]


def test_one_that_ended_while_it_fenced_goes_on_without_a_primary_to_catch_up_with():
    half = hosts(seen(behind=None, main=None), main1={"fenced": True}, west2={"contact": {"offset": 500, "own": 500}})
    found = plan(half, "west", gone=False)
    assert not found["problem"] and found["leaves"] == ["main1", "main2"] and not found["rests"] and "earlier run had begun to fence main" in found["says"]
    # What the standby has seen last says that something is missing, or it says nothing.
    for contact in ({"offset": 500, "own": 499}, {"offset": 500, "own": None}, None):
        half["west2"]["contact"] = contact
        assert "nobody knows whether west has all of it" in plan(half, "west", gone=False)["problem"]


def test_fail_back_empties_what_is_fenced():
    active = seen("active", ("west", 2), main=None)
    fenced = {"fenced": True}
    found = plan_back(hosts(active, main1=fenced, main2=fenced), "main")
    assert not found["problem"] and found["emptied"] == ["main1", "main2"] and "kept aside" in found["says"]
    # An earlier run has emptied one of them.
    assert plan_back(hosts(active, main1=fenced), "main")["emptied"] == ["main1"]
    assert plan_back(hosts(active), "main")["emptied"] == []


@pytest.mark.parametrize(
    "case, said",
    [
        (hosts(seen("active", ("west", 2), main=None), main2={"reached": False}), "main2 cannot be reached"),
        (hosts(), "nobody to be joined to"),
        (hosts(seen("active", ("west", 2))), "main1 (master) of main runs with what it had before west took over (epoch 2): it has to be fenced first"),
    ],
)
def test_what_cannot_be_joined_is_refused(case, said):
    found = plan_back(case, "main")
    assert said in found["problem"] and not found["emptied"]


MOMENTS = {"rested": 1003.0, "fenced": 1005.0, "promoted": 1006.5, "answered": 1009.0, "dns": None}
FACTS = {"to": "west", "active": "main", "epoch": 2, "gone": False, "offset": 500, "contact": None, "unfenced": []}


def test_the_report_of_a_planned_failover():
    found = report(1000.0, MOMENTS, FACTS)
    assert [(step["step"], step["seconds"]) for step in found["steps"]] == [("rested", 3.0), ("fenced", 5.0), ("promoted", 6.5), ("answered", 9.0)]
    assert found["rto_seconds"] == 9.0 and found["detection_seconds"] is None and found["rpo"] == {"turns": 0, "bytes": 0, "seconds": 0.0}
    assert "RTO: 9.0 s" in paragraph(found) and "no turn" in paragraph(found)


def test_the_report_of_one_that_gave_something_up():
    contact = {"seen": "1970-01-01T00:16:20.000+00:00", "offset": 700, "own": 690}
    found = report(1000.0, MOMENTS, {**FACTS, "gone": True, "contact": contact, "unfenced": ["main1"]})
    assert found["detection_seconds"] == 20.0 and found["rto_seconds"] == 29.0
    assert found["rpo"] == {"turns": None, "bytes": 200, "seconds": 25.0}
    told = paragraph(found)
    for part in ("at least 200 bytes", "25.0 s", "20.0 s of them before", "Not fenced, since they could not be reached: main1"):
        assert part in told
    unknown = report(1000.0, {}, {**FACTS, "gone": True, "offset": None})
    assert unknown["rto_seconds"] is None and "unknown number of bytes" in paragraph(unknown)
    resumed = report(1000.0, MOMENTS, {**FACTS, "active": None})
    assert resumed["rpo"] == {"turns": None, "bytes": None, "seconds": None} and "as the run that left the other one has told" in paragraph(resumed)


def test_the_page_shows_every_step_and_escapes_what_it_shows():
    text = page(report(1000.0, MOMENTS, {**FACTS, "to": "<west>"}))
    assert text.count("<rect") == 4 and "&lt;west&gt;" in text and "<west>" not in text
    assert not re.search(r"(src|href)=", text)
