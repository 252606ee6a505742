# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A second datacenter is built beside the live one, takes over, proves how much was lost, and gives back. In the order of this file.

Clients hold conversations meanwhile, and repeat what was not answered with its key, at the other balancers. Evidence: ``.cache/dr``.
"""

import collections
import json
import os
import pathlib
import sys
import time
from concurrent import futures

import pytest
import requests

from lab.cluster import ROOT
from lab.shell import wait_for
from tests.dr.sites import Sites, Visitors, resolver, talking, until_active, verdict
from tests.history.load import LoadOptions
from tests.history.run import heading, row
from tests.redis.playbook import killed_at
from tests.redis.playbook import run as play

NAME = os.environ.get("MOLECULE_SCENARIO_NAME") or os.environ.get("CLUSTER") or "dr"
EVIDENCE = ROOT / ".cache/dr"
MAIN, WEST = "main", "west"
#: Some conversations, for as long as a playbook takes; each client waits for its answer.
TALK = LoadOptions(conversations=4, turns=150, seconds=600, route="replicas", attempt_timeout=20, patience=120)


@pytest.fixture(scope="module")
def sites():
    found = Sites.of_lab(NAME)
    if not (found.lab.authority / "ca.pem").exists():
        play(NAME, "site", "--limit", MAIN)
    return found


def move(sites, name, seconds=600, check=True, **variables):
    """Run a dr_ playbook; its report, if it has written one."""
    reports = EVIDENCE / "reports" / str(time.time_ns())
    began = time.monotonic()
    played = play(NAME, name, variables={**variables, "dr_report": str(reports)}, check=check, seconds=seconds)
    took = time.monotonic() - began
    found = json.loads((reports / "failover.json").read_text()) if (reports / "failover.json").exists() else {}
    print(f"\n{name} {variables}: {took:.0f} s, steps {[(one['step'], one['seconds']) for one in found.get('steps', [])]}", file=sys.stderr)
    return played, found


def leads_to(sites):
    """Share of answers of each name server that lead to each datacenter, by real queries."""
    doors = {site: topology["vips"][0]["address"] for site, topology in sites.topologies.items()}
    found = {}
    for node in sites.cluster.topology["dns"]:
        asked = resolver(node)
        answers = [asked.resolve("claw.example.org", "A")[0].address for _query in range(50)]
        found[node["host"]] = {site: answers.count(address) / len(answers) for site, address in doors.items()}
    return found


def nothing_lost(sites, load, directory, site, name):
    result = verdict(sites, load, TALK, directory, site, name)
    print(f"\n{heading()}\n{row(result)}", file=sys.stderr)
    assert result["totals"]["acknowledged"] > 20
    assert result["ok"], result["violations"][:10] or result["unsettled"] or result["porcupine"]


def pids(sites, site):
    """Processes of all that must not be touched."""
    units = ("redis-server", "redis-sentinel", "openclaw-gateway@1", "haproxy", "openclaw-agent")
    return {host: sites.execute(host, "systemctl", "show", "--property=MainPID", "--value", *units) for host in sites.hosts(site)}


def names(sites, site):
    return [replica["id"] for replica in sites.topologies[site]["replicas"]]


def full_copies(sites, site, without=None):
    """How often the Redis servers of a datacenter, but for one host, have given somebody a full copy."""
    return sum(sites.redis(node).info("stats")["sync_full"] for node in sites.topologies[site]["redis"] if node["host"] != without)


def in_sync(sites, site):
    """Whether every server of a standby follows a replica of the active datacenter, and has what that has."""
    active = sites.other(site)
    primary = sites.leader(active)
    if primary is None:
        return False
    others = {f"{node['address']}:{node['port']}" for node in sites.topologies[active]["redis"]} - {f"{primary['address']}:{primary['port']}"}
    found = sites.upstreams(site)
    return all(one and one[0] in others and one[1] == "up" for one in found.values())


def test_the_second_datacenter_is_built_beside_the_live_one(sites):
    before = pids(sites, MAIN)
    directory = EVIDENCE / "rollout"
    with talking(sites, TALK, directory) as load:
        played, _found = move(sites, "dr_rollout", seconds=900, dr_to=WEST)
        assert "west is standby; main has the conversations (epoch 1)" in played.output
    nothing_lost(sites, load, directory, MAIN, "dr_rollout.yml")
    assert pids(sites, MAIN) == before and sites.state(WEST) == "standby"
    assert in_sync(sites, WEST)
    for node in sites.topologies[WEST]["redis"]:
        assert sites.redis(node).config_get("replica-priority") == {"replica-priority": "0"}
    # Only its own replicas count for what the primary promises.
    assert sites.primary(MAIN).info("replication")["connected_slaves"] == 2
    # Whoever comes to a standby is served by the active one.
    assert requests.get(f"http://{sites.cluster.replicas[1]}/api/v1/health", timeout=10).json()["replica"] in names(sites, MAIN)
    assert requests.get(f"http://{sites.cluster.replicas[1]}/balancer-health", timeout=10).status_code == 503
    played = play(NAME, "dr_rollout", variables={"dr_to": WEST})
    assert not any(played.changed.values()), played.changes


def test_status_tells_what_each_one_is(sites):
    path = EVIDENCE / "status.json"
    played = play(NAME, "status", variables={"status_json": str(path)})
    found = json.loads(path.read_text())
    assert {name: one["datacenter"]["state"] for name, one in found.items()} == {MAIN: "active", WEST: "standby"}
    assert found[WEST]["datacenter"]["behind"] is not None
    assert found[MAIN]["problems"] == [] and found[WEST]["problems"] == [], played.output[-3000:]


def test_a_standby_follows_a_failover_of_the_active_one_by_itself(sites):
    primary = sites.leader(MAIN)
    copies = full_copies(sites, MAIN, without=primary["host"])
    sites.execute(primary["host"], "systemctl", "stop", "redis-server")
    try:
        wait_for("another primary", lambda: sites.leader(MAIN), 60)
        wait_for("a standby that follows it", lambda: in_sync(sites, WEST), 30)
        assert full_copies(sites, MAIN, without=primary["host"]) == copies
    finally:
        sites.execute(primary["host"], "systemctl", "start", "redis-server")
    wait_for("all servers of the active one", lambda: (one := sites.leader(MAIN)) and sites.redis(one).info("replication")["connected_slaves"] == 2, 60)


def test_a_link_that_was_away_is_caught_up_with_without_a_full_copy(sites):
    copies = full_copies(sites, MAIN)
    with sites.cut(WEST):
        wait_for("a lost link", lambda: not any(one and one[1] == "up" for one in sites.upstreams(WEST).values()), 60)
        sites.primary(MAIN).set("oc:metrics:test", "written meanwhile")
    wait_for("a link", lambda: in_sync(sites, WEST), 60)
    assert all(sites.redis(node).get("oc:metrics:test") == "written meanwhile" for node in sites.topologies[WEST]["redis"])
    assert full_copies(sites, MAIN) == copies


#: Short windows; what is counted is real.
RAMP = {"dns_ttl": 2, "dns_ramp_start": 10, "dns_ramp_step": 45, "dns_ramp_window": 12, "dns_ramp_interval": 2, "dns_ramp_minimum_requests": 10}


def ramp(sites, to, spoil=None):
    """Run dns_ramp.yml with visitors; what it said, its report, and what became of the visitors. ``spoil`` runs beside it, and is given the visitors."""
    reports = EVIDENCE / "reports" / str(time.time_ns())
    with Visitors(sites) as visitors, futures.ThreadPoolExecutor() as beside:
        spoiling = beside.submit(spoil, visitors) if spoil else None
        played = play(NAME, "dns_ramp", variables={**RAMP, "dns_ramp_to": to, "dns_ramp_report": str(reports)}, check=not spoil)
        if spoiling:
            spoiling.result(60)
    report = json.loads((reports / "dns_ramp.json").read_text())
    statuses = collections.Counter((site, status) for _at, site, status in visitors.seen)
    print(f"\nramp to {to}: {report['outcome']} {report['why']}; visitors {dict(statuses)}", file=sys.stderr)
    return played, report, visitors.seen


def test_a_ramp_brings_clients_in_steps_and_none_of_them_fails(sites):
    for to in (WEST, MAIN):
        played, report, seen = ramp(sites, to)
        assert report["outcome"] == "reached" and all(f"{to} at {percent} % for" in played.output for percent in (10, 55, 100))
        assert {status for _at, _site, status in seen} == {200}
        first = next(at for at, site, _status in seen if site == to)
        early = [site == to for at, site, _status in seen if first <= at < first + RAMP["dns_ramp_window"] - 2]
        print(f"{sum(early)} of {len(early)} visitors while it had 10 %", file=sys.stderr)
        assert 0.03 < sum(early) / len(early) < 0.2
        assert all(shares[to] == 1 for shares in leads_to(sites).values())
    # The conversations have not moved.
    assert sites.state(MAIN) == "active" and sites.state(WEST) == "standby"


def test_a_ramp_goes_back_by_itself_when_requests_fail_there(sites):
    def cut(visitors):
        wait_for("clients there", lambda: any(site == WEST for _at, site, _status in visitors.seen), 60)
        with sites.cut(WEST):
            wait_for("clients that do not get there any more", lambda: all(site == MAIN for _at, site, _status in visitors.seen[-200:]), 60)

    played, report, _seen = ramp(sites, WEST, cut)
    assert played.code == 2 and report["outcome"] == "went back" and "times as fast" in report["why"], played.output[-3000:]
    assert all(shares[MAIN] == 1 for shares in leads_to(sites).values())
    wait_for("a link", lambda: in_sync(sites, WEST), 60)


@pytest.mark.parametrize(
    "name, variables, said",
    [
        ("dr_failover", {"dr_to": WEST, "dr_gone": True}, "main is not gone: its Redis at"),
        ("dr_failover", {"dr_to": "east"}, "dr_to is east; say which datacenter is meant, with -e dr_to=main or -e dr_to=west"),
        ("dr_failback", {"dr_to": MAIN}, "No other datacenter has the conversations"),
        ("site", {}, "The hosts of this run belong to main and west"),
    ],
)
def test_what_would_lose_something_is_refused(sites, name, variables, said):
    played = play(NAME, name, variables=variables, check=False)
    assert played.code == 2 and said in " ".join(played.output.split()), played.output[-3000:]
    assert sites.state(MAIN) == "active" and sites.state(WEST) == "standby"


def cannot_take_a_write(sites, site):
    """Nothing of a fenced datacenter starts, however one asks for it."""
    for host in sites.hosts(site):
        sites.execute(host, "systemctl", "start", "redis-server", "redis-sentinel", check=False)
        sites.execute(host, "systemctl", "start", "openclaw-gateway@1", check=False)
    units = [(host, unit) for host in sites.hosts(site) for unit in ("redis-server", "redis-sentinel", "openclaw-gateway@1")]
    assert not [one for one in units if sites.execute(one[0], "systemctl", "is-active", one[1], check=False) == "active"]


def test_a_planned_failover_and_back_loses_nothing(sites):
    for site in (WEST, MAIN):
        other = sites.other(site)
        directory = EVIDENCE / f"planned-to-{site}"
        with talking(sites, TALK, directory) as load:
            if site == MAIN:
                played, found = move(sites, "dr_failback", seconds=1200, dr_to=site)
                assert f" has 0 turns of 0 conversations that {other} does not have" in played.output
            else:
                _played, found = move(sites, "dr_failover", dr_to=site)
            wanted = load.acknowledged + 10
            wait_for("answers of the other one", lambda load=load, wanted=wanted: load.acknowledged >= wanted, 60)
        nothing_lost(sites, load, directory, site, f"planned to {site}")
        assert sites.state(site) == "active" and sites.state(other) == "fenced"
        assert found["rpo"] == {"turns": 0, "bytes": 0, "seconds": 0.0} and found["rto_seconds"] < 120
        assert all(shares[site] == 1 for shares in leads_to(sites).values()), leads_to(sites)
        cannot_take_a_write(sites, other)
        # Whoever still has its address is served.
        answer = requests.get(f"http://{sites.topologies[other]['vips'][0]['address']}:8080/api/v1/health", timeout=10)
        assert answer.json()["replica"] in names(sites, site)
    # Again, it has nothing to do.
    played = play(NAME, "dr_failover", variables={"dr_to": MAIN})
    assert not any(played.changed.values()), played.changes


def rejoin(sites, site):
    """Make a fenced datacenter a standby again; the turns that only it had."""
    played, _found = move(sites, "dr_failback", seconds=1200, dr_to=site, dr_switch=False)
    assert sites.state(site) == "standby"
    return played.output


def left_over(output):
    """How many turns only the old files have, by server, as dr_failback.yml says."""
    return [int(line.split(" turns of ")[0].rsplit(" ", 1)[1]) for line in output.splitlines() if " turns of " in line and "does" in line]


def lost_tokens(result):
    return {one["token"] for one in result["violations"] if one["kind"] == "lost"}


def test_a_datacenter_that_is_gone_is_replaced_and_cannot_come_back_by_itself(sites):
    old = sites.active()
    new = sites.other(old)
    rejoin(sites, new)
    directory = EVIDENCE / "gone"
    with talking(sites, TALK, directory) as load:
        wait_for("some turns", lambda: load.acknowledged > 30, 120)
        with sites.killed(old):
            died = time.monotonic()
            played, _found = move(sites, "dr_failover", check=False, dr_to=new)
            assert played.code == 2 and f"cannot be reached. Where {old} is gone for good, -e dr_gone=true" in " ".join(played.output.split())
            _played, found = move(sites, "dr_failover", dr_to=new, dr_gone=True)
            wanted = load.acknowledged + 10
            wait_for("answers of the other one", lambda: load.acknowledged >= wanted, 60)
    result = verdict(sites, load, TALK, directory, new, f"{old} killed")
    print(f"\n{heading()}\n{row(result)}\n{found['rpo']}, RTO {found['rto_seconds']} s", file=sys.stderr)
    # What was acknowledged and had not been sent is lost, and nothing else; it was acknowledged just before.
    ends = {operation.token: operation.attempts[-1].returned for operation in load.outcome[0]}
    assert all(died - ends[token] < 5 for token in lost_tokens(result)), lost_tokens(result)
    assert found["rpo"]["turns"] is None and found["rto_seconds"] is not None and found["unfenced"] == sites.hosts(old)
    wait_for("the old one to be fenced by itself", lambda: sites.state(old) == "fenced", 120)
    cannot_take_a_write(sites, old)
    counts = left_over(rejoin(sites, old))
    print(f"turns that only the old files have, by server: {counts}", file=sys.stderr)
    assert counts and max(counts) >= len(lost_tokens(result)), (counts, lost_tokens(result))


def test_two_live_datacenters_that_do_not_see_each_other_end_as_one(sites):
    old = sites.active()
    new = sites.other(old)
    if sites.state(new) != "standby":
        rejoin(sites, new)
    directory = EVIDENCE / "cut"
    with talking(sites, TALK, directory) as load:
        wait_for("some turns", lambda: load.acknowledged > 10, 120)
        apart = time.monotonic()
        with sites.cut(old):
            wait_for("a lost link", lambda: not any(one and one[1] == "up" for one in sites.upstreams(new).values()), 60)
            played, _found = move(sites, "dr_failover", dr_to=new, dr_gone=True, check=False)
            assert played.code == 0, played.output[-3000:]
        healed = time.monotonic()
        wait_for("one of them to be fenced", lambda: sites.state(old) == "fenced", 30)
        fenced = time.monotonic()
        print(f"\nfenced {fenced - healed:.1f} s after the link was back", file=sys.stderr)
    assert sites.state(new) == "active"
    cannot_take_a_write(sites, old)
    result = verdict(sites, load, TALK, directory, new, "link cut")
    # Lost is what the old one acknowledged while nobody else saw it, and nothing else; that is what the fail-back finds.
    ends = {operation.token: operation.attempts[-1].returned for operation in load.outcome[0]}
    lost = lost_tokens(result)
    assert all(apart - 5 < ends[token] < fenced + 1 for token in lost), lost
    counts = left_over(rejoin(sites, old))
    print(f"{len(lost)} of {result['totals']['acknowledged']} acknowledged turns lost; only the old files have, by server: {counts}", file=sys.stderr)
    assert max(counts) >= len(lost)


#: What the failover prints when it comes to a step: there the controller dies.
STEPS = (
    "Turn the switches of its agents]",
    "Have the standby take over the last writes",
    "Stop what could take",
    "Remember who has",
    "Take over]",
    "Turn the switches of their agents]",
)


def test_a_failover_that_is_killed_again_and_again_comes_to_its_end(sites):
    site = sites.other(sites.active())
    rejoin(sites, site)
    sites.primary(sites.active()).set("oc:metrics:test", "before all of it")
    wait_for("it at the standby", lambda: all(sites.redis(node).get("oc:metrics:test") for node in sites.topologies[site]["redis"]), 30)
    for step in STEPS:
        killed_at(NAME, "dr_failover", step, {"dr_to": site})
    move(sites, "dr_failover", dr_to=site)
    until_active(sites, site)
    assert sites.primary(site).get("oc:metrics:test") == "before all of it"
    assert requests.get(f"http://{sites.topologies[site]['vips'][0]['address']}:8080/api/v1/health", timeout=10).json()["redis"] is True


def test_no_secret_was_printed(sites):
    secrets = [path.read_text().strip() for path in pathlib.Path(sites.lab.secret("redis_password")).parent.iterdir() if path.is_file()]
    played = play(NAME, "dr_failover", "-vvv", "--diff", variables={"dr_to": sites.active()})
    assert not [one for one in secrets if one in played.output]
    for host in sites.hosts(sites.active()):
        assert sites.execute(host, "stat", "-c", "%a", "/etc/openclaw-datacenter/password", "/etc/openclaw-datacenter/config.json").split() == ["600", "600"]
