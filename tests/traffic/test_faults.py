# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What clients that never repeat a request see while something breaks, with both engines.

Each run leaves its evidence in ``.cache/traffic/<cluster>/<engine>/<fault>``; ``python -m tests.traffic table DIRECTORY`` makes the
table of docs/balancer.md from it. nginx notices a frozen replica only by requests that fail, and knows no drain by the agent: what it
cannot do is its own part of the table of requirements.
"""

import sys

import pytest
import requests

from tests.traffic.faults import FAULTS, OF_VIP, holders
from tests.traffic.load import TrafficOptions
from tests.traffic.report import heading, row
from tests.traffic.run import Timing, run

#: Seconds without a good answer that a takeover may take, by the profile of the virtual address.
TAKEOVER = {"haproxy": 10, "nginx": 10, "haproxy, fast profile": 5}
#: Fault -> (seconds it stays, seconds that the load may last). Those of 0 seconds are over when they have been brought about.
RUNS = {
    "none": (15, 120),
    "replica killed": (15, 240),
    "two of three killed": (15, 300),
    "replica frozen": (15, 240),
    "drain, restart, ready": (0, 600),
    "redis away": (25, 240),
    "provider away": (25, 240),
    "balancer's host killed": (20, 420),
    "balancer killed": (15, 240),
    "keepalived stopped": (15, 240),
    "balancers apart": (15, 240),
    "one replica more and less": (0, 900),
}
assert RUNS.keys() == FAULTS.keys()
#: Share of GETs that nginx may lose with two of three replicas dead.
MISSED = 0.02
NONE = {"get": 0, "message": 0, "stream": 0}
#: What an engine has no part in is not repeated with the other one.
NGINX = ("none", "replica killed", "two of three killed", "replica frozen", "drain, restart, ready", "balancer killed", "one replica more and less")
#: The profile is about these alone.
FAST = ("balancer's host killed", "balancer killed", "keepalived stopped", "balancers apart")
#: Those of `make test`, with HAProxy: a replica that dies.
#: The address that moves is tests/e2e's, a host that dies tests/failover's. What is taken out in good order is tests/rolling's.
SMOKE = ("replica killed",)


def runs():
    """(engine, or "fast" for HAProxy with the fast profile, and fault) of each test."""
    for chosen, names in (("haproxy", RUNS), ("fast", FAST), ("nginx", NGINX)):
        for name in names:
            yield pytest.param(chosen, name, marks=[pytest.mark.smoke] if chosen == "haproxy" and name in SMOKE else [])


def verdicts(cluster):
    """What the agents say of each replica."""
    return {
        replica["id"]: requests.get(f"http://{replica['address']}:{replica['verdict_port']}/health", timeout=5).json()
        for replica in cluster.topology["replicas"]
    }


@pytest.mark.parametrize(("balanced_by", "name"), runs(), indirect=["balanced_by"])
def test_what_clients_see(cluster, evidence_directory, balanced_by, name):
    """One test a fault: what issue 5 asks of it."""
    hold, seconds = RUNS[name]
    result = run(
        TrafficOptions(seconds=seconds),
        FAULTS[name],
        cluster=cluster,
        directory=evidence_directory / balanced_by / name.replace(" ", "-").replace(",", "").replace("'", ""),
        name=name,
        timing=Timing(hold=hold),
        variant="fast profile" if balanced_by == "fast" else "",
        look=verdicts if REQUIRED[name] is _degraded else lambda _cluster: {},
    )
    print(f"\n{heading()}\n{row(result)}", file=sys.stderr)
    traffic, fault = result["traffic"], result["traffic"]["fault"]
    assert not any(traffic[kind]["unsent"] for kind in ("get", "message", "stream")), "the load could not keep its pace"
    # No acknowledged turn is lost, doubled or reordered, whatever breaks.
    assert result["history"]["ok"], result["history"]["violations"][:10] or result["history"]["unsettled"]
    REQUIRED[name](result, traffic, fault, cluster)


def _nothing_fails(traffic, streams=True):
    for kind in ("get", "message"):
        assert not traffic[kind]["failed"], traffic[kind]["reasons"]
    if streams:
        assert not traffic["stream"]["failed"] and not traffic["stream"]["cut"], traffic["stream"]


def _all_fine(_result, traffic, _fault, _cluster):
    _nothing_fails(traffic)


def _killed(result, traffic, fault, _cluster):
    assert fault["back_after"] is not None, "it never answered again"
    # What was in flight on it is lost with it, and each stream is named.
    assert {cut["replica"] for cut in traffic["stream"]["cut"]} <= set(fault["replicas"])
    if result["engine"] == "haproxy":
        _nothing_fails(traffic, streams=False)
        # Nor does anybody send a stream again that it had got and not begun to answer: it has no key.
        assert set(traffic["stream"]["reasons"]) <= {"502 balancer"}, traffic["stream"]["reasons"]
        assert fault["bad_after_out"]["stream"] == fault["bad_otherwise"]["stream"] == 0, fault
        return
    assert fault["bad_otherwise"] == NONE
    if len(fault["replicas"]) == 1:
        assert fault["bad_after_out"] == NONE
        # A stream that a replica has got it does not send again.
        _nothing_fails(traffic, streams=False)
    else:
        # It tries two replicas, and asks dead ones again every 15 s: both tries may meet a dead one.
        assert traffic["get"]["failed"] <= MISSED * traffic["get"]["sent"], traffic["get"]["reasons"]


def _frozen(result, _traffic, fault, _cluster):
    assert fault["back_after"] is not None, "it never answered again"
    assert fault["bad_otherwise"] == NONE
    if result["engine"] == "nginx":
        return  # it has no active checks: it asks a frozen replica again every fail_timeout
    assert fault["out_of_rotation"] is not None and fault["out_of_rotation"] <= 3, fault
    assert fault["bad_after_out"]["message"] == 0 and fault["bad_after_out"]["get"] == 0


def _degraded(result, traffic, fault, cluster):
    _nothing_fails(traffic)
    replicas = {replica["id"] for replica in cluster.topology["replicas"]}
    assert set(fault["answered_during"]) == replicas, "not all replicas stayed in rotation"
    assert {name: one["status"] for name, one in result["seen"].items()} == dict.fromkeys(replicas, "degraded")
    assert set(result["history"]["counts"].values()) == {0}


def _takeover(result, traffic, fault, cluster):
    assert traffic["get"]["longest_gap"] <= TAKEOVER[result["engine"]], traffic["get"]
    assert len(holders(cluster)) == 1
    assert fault["bad_otherwise"] == NONE


def _apart(result, traffic, _fault, cluster):
    # Both hold the address meanwhile, and both serve.
    assert traffic["get"]["longest_gap"] <= TAKEOVER[result["engine"]], traffic["get"]
    assert len(holders(cluster)) == 1


REQUIRED = {
    "none": _all_fine,
    "replica killed": _killed,
    "two of three killed": _killed,
    "replica frozen": _frozen,
    "drain, restart, ready": _all_fine,
    "redis away": _degraded,
    "provider away": _degraded,
    **dict.fromkeys(OF_VIP, _takeover),
    "balancers apart": _apart,
    "one replica more and less": _all_fine,
}
