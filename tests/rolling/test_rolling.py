# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Replicas are changed under load: nobody notices, a bad release undoes itself, and a run that dies can be made again.

Evidence: ``.cache/rolling/<cluster>/<test>``, in the form of tests/traffic. What stays behind is a variable in the gateways' environment, which the
next site.yml takes away.
"""

import contextlib
import json
import re
import sys
import time

import pytest
import requests
import yaml

from lab.cluster import ROOT
from lab.image import OPENCLAW_VERSIONS
from lab.shell import wait_for
from tests.history.faults import execute, main_pid, started
from tests.redis.playbook import killed_at
from tests.redis.playbook import run as play
from tests.rolling.packages import SUFFIX, newer, stale, versions
from tests.rolling.releases import BAD, bad_release
from tests.traffic.engines import engine
from tests.traffic.faults import Broken, one_holder
from tests.traffic.load import TrafficOptions
from tests.traffic.report import heading, row
from tests.traffic.run import Timing, run

#: Half of what tests/traffic sends: the run itself takes one of the lab's two cores, and one replica is always out.
LOAD = TrafficOptions(gets=5, messages=0.25, streams=0.1, seconds=880)
#: Another published release, which the lab's hosts can install.
(OTHER,) = OPENCLAW_VERSIONS[1:]
#: Short, so that a bad release is known to be bad while the test is young; as text, as numbers come from the command line. A good one has started by then
#: on a slow machine, too.
LIMITS = {"gateway_health_deadline": "120", "gateway_rollout_soak": "45", "gateway_rollout_error_percent": "1.0", "gateway_turn_timeout": "120"}


def roll(cluster, **variables):
    return play(cluster.name, "rolling_upgrade", variables={**LIMITS, "balancer_engine": engine(cluster), **variables}, check=False, seconds=800)


def processes(cluster):
    """The processes of all replicas."""
    return {replica["id"]: main_pid(cluster, replica["host"], replica["unit"]) for replica in cluster.topology["replicas"]}


def version(cluster, replica):
    environment = execute(cluster, replica["host"], "cat", f"/etc/openclaw/gateway/{replica['instance']}/replica.env")
    return next(line.rsplit("/", 1)[1].strip('"') for line in environment.splitlines() if line.startswith("OPENCLAW_RELEASE="))


def leftovers(cluster):
    """Switches and records that a run has left."""
    hosts = sorted({replica["host"] for replica in cluster.topology["replicas"]})
    look = "ls -d /var/lib/openclaw/rolling/* /var/lib/openclaw-agent/drain/* 2>/dev/null || true"
    return {host: found for host in hosts if (found := execute(cluster, host, "sh", "-c", look))}


def under_load(cluster, directory, name, change):
    """Change something while clients talk; what they saw, and what the change returned."""
    changed = []

    @contextlib.contextmanager
    def fault(cluster):
        at = time.monotonic()
        changed.append(change(cluster))
        yield Broken(at)

    result = run(LOAD, fault, cluster=cluster, directory=directory / name.replace(" ", "-"), name=name, timing=Timing(hold=0))
    print(f"\n{heading()}\n{row(result)}", file=sys.stderr)
    assert result["history"]["ok"], result["history"]["violations"][:10] or result["history"]["unsettled"]
    return result["traffic"], changed[0]


def nothing_failed(traffic):
    for kind in ("get", "message", "stream"):
        assert not traffic[kind]["failed"] and not traffic[kind]["cut"] and not traffic[kind]["unsent"], (kind, traffic[kind])


@pytest.fixture
def good(cluster):
    """The version that all replicas run, before the test and after it."""
    (found,) = {version(cluster, replica) for replica in cluster.topology["replicas"]}
    assert not leftovers(cluster)
    yield found
    assert {version(cluster, replica) for replica in cluster.topology["replicas"]} == {found}
    assert not leftovers(cluster)


@pytest.mark.smoke
def test_a_setting_is_changed_and_nobody_notices(cluster, good, evidence_directory):
    before = processes(cluster)
    changed = {"gateway_environment": {"ROLLED": f"{time.time()}"}, "gateway_rollout_soak": 10}
    reports = evidence_directory / "report"
    traffic, played = under_load(cluster, evidence_directory, "a setting", lambda one: roll(one, gateway_rollout_report=str(reports), **changed))
    assert played.code == 0, played.output[-3000:]
    nothing_failed(traffic)
    after = processes(cluster)
    assert all(after[name] != before[name] for name in before)
    assert not leftovers(cluster)
    told = json.loads((reports / "rollout.json").read_text())
    for one in told["replicas"]:
        print(f"{one['id']}: {one['total_seconds']} s, floor {one['floor_seconds']} s, ratio {one['ratio']}", file=sys.stderr)
    assert {one["id"]: one["outcome"] for one in told["replicas"]} == dict.fromkeys(before, "done")
    assert all(one["ratio"] >= 1 for one in told["replicas"]) and sum(one["requests"] for one in told["traffic"]) > 0


def test_what_openclaw_takes_over_while_it_runs_restarts_nobody(cluster, good, evidence_directory):
    before = processes(cluster)
    usual = yaml.safe_load((ROOT / "roles/gateway/defaults/main.yml").read_text())
    asked = {"match": usual["gateway_rollout_turn"]}
    (tool, *_others) = requests.get(f"{cluster.llm_url}/requests", timeout=60).json()[-1]["tools"]
    known = {call["id"] for call in requests.get(f"{cluster.llm_url}/requests", params=asked, timeout=60).json()}
    change = {"gateway_tools_deny": [*usual["gateway_tools_deny"], tool], "gateway_rollout_soak": "5"}
    try:
        traffic, played = under_load(cluster, evidence_directory, "a live setting", lambda one: roll(one, **change))
        assert played.code == 0, played.output[-3000:]
        nothing_failed(traffic)
        proofs = [call for call in requests.get(f"{cluster.llm_url}/requests", params=asked, timeout=60).json() if call["id"] not in known]
        assert len(proofs) == len(before) and all(tool not in call["tools"] for call in proofs), proofs
    finally:
        played = roll(cluster)
    assert played.code == 0, played.output[-3000:]
    assert processes(cluster) == before and not leftovers(cluster)


def test_two_published_releases_there_and_back(cluster, good, evidence_directory):
    assert good != OTHER
    for wanted in (OTHER, good):
        before = processes(cluster)
        traffic, played = under_load(cluster, evidence_directory, f"to {wanted}", lambda one, to=wanted: roll(one, gateway_version=to))
        assert played.code == 0, played.output[-3000:]
        nothing_failed(traffic)
        assert {version(cluster, replica) for replica in cluster.topology["replicas"]} == {wanted}
        after = processes(cluster)
        assert all(after[name] != before[name] for name in before) and not leftovers(cluster)


def test_canary_then_parallel(cluster, good, evidence_directory):
    # Two of three may be out: the third one carries all.
    before = processes(cluster)
    reports = evidence_directory / "parallel"
    changed = {
        "gateway_environment": {"ROLLED": f"{time.time()}"},
        "gateway_rollout_strategy": "canary_then_parallel",
        "gateway_rollout_max_unavailable": "2",
        "gateway_rollout_report": str(reports),
    }
    traffic, played = under_load(cluster, evidence_directory, "canary, then two", lambda one: roll(one, **changed))
    assert played.code == 0, played.output[-3000:]
    nothing_failed(traffic)
    after = processes(cluster)
    assert all(after[name] != before[name] for name in before) and not leftovers(cluster)
    told = json.loads((reports / "rollout.json").read_text())["replicas"]
    began = sorted(next(one["at"] for one in replica["phases"] if one["phase"] == "drain") for replica in told)
    ended = sorted(max(one["at"] + one["seconds"] for one in replica["phases"]) for replica in told)
    assert began[1] >= ended[0] and began[2] < ended[1], told


def test_all_at_once(cluster, good):
    before = processes(cluster)
    played = roll(cluster, gateway_environment={"ROLLED": f"{time.time()}"}, gateway_rollout_strategy="none")
    assert played.code == 0, played.output[-3000:]
    after = processes(cluster)
    assert all(after[name] != before[name] for name in before) and not leftovers(cluster)
    assert "Turn the switch of its agent" not in "".join(played.changes)


def test_a_bad_secret_undoes_itself(cluster, good):
    before = processes(cluster)
    played = roll(cluster, gateway_environment={"NODE_OPTIONS": "--require /nowhere/lab.js"})
    first = [name for name, pid in processes(cluster).items() if pid != before[name]]
    assert played.code == 2 and len(first) == 1, played.output[-3000:]
    assert "is not healthy" in played.output and "It is back to what it was before, serves again" in played.output
    for replica in cluster.topology["replicas"]:
        assert "/nowhere/lab.js" not in execute(cluster, replica["host"], "cat", f"/etc/openclaw/gateway/{replica['instance']}/secrets.env")
        assert started(replica) and not leftovers(cluster)


#: What is replaced with each engine.
PACKAGES = {"haproxy": ("redis-server", "redis-sentinel", "redis-tools", "haproxy"), "nginx": ("nginx", "nginx-common")}


def upgraded(cluster, before):
    """Versions that the roles should have brought: the lab's hosts have a balancer's packages also where they are none."""
    balancers = {balancer["host"] for balancer in cluster.topology["balancers"]}
    return {
        host: {name: number + SUFFIX * (host in balancers or name.startswith("redis")) for name, number in found.items()}
        for host, found in before.items()
    }


@pytest.mark.parametrize("balanced_by", PACKAGES, indirect=True)
def test_newer_packages(cluster, good, balanced_by, evidence_directory):
    names = PACKAGES[balanced_by]
    before, gateways = versions(cluster, *names), processes(cluster)
    primary = cluster.redis().info("server")["redis_build_id"]
    with newer(cluster, *names):
        name = f"packages of {balanced_by}"
        traffic, played = under_load(cluster, evidence_directory, name, lambda one: roll(one, openclaw_packages="latest"))
    assert played.code == 0, played.output[-3000:]
    nothing_failed(traffic)
    assert versions(cluster, *names) == upgraded(cluster, before)
    wanted = {name for found in before.values() for name in found}
    assert wanted and not stale(cluster), "everything that runs is what is installed"
    if "redis-server" in wanted:
        assert cluster.redis().info("server")["redis_build_id"] != primary
    assert processes(cluster) == gateways and one_holder(cluster)
    assert not leftovers(cluster)


def test_a_newer_keepalived_moves_the_address_once(cluster, good, evidence_directory):
    holder = one_holder(cluster)
    before = versions(cluster, "keepalived")
    with newer(cluster, "keepalived"):
        traffic, played = under_load(cluster, evidence_directory, "packages of keepalived", lambda one: roll(one, openclaw_packages="latest"))
    assert played.code == 0, played.output[-3000:]
    assert versions(cluster, "keepalived") == upgraded(cluster, before)
    # The holder is the last one, and the address stays where it went.
    assert not stale(cluster) and one_holder(cluster) != holder
    assert traffic["get"]["longest_gap"] <= 3, traffic["get"]


def test_more_replicas_and_fewer(cluster, good, evidence_directory):
    # What other tests have left in the environment would restart all of them.
    assert roll(cluster).code == 0
    before = processes(cluster)
    count = len(before)
    seconds = {}
    host, older = cluster.topology["replicas"][0]["host"], "/opt/openclaw/plugins/shared_state-older"
    execute(cluster, host, "mkdir", older)

    def scale(number):
        def change(one):
            began = time.monotonic()
            reports = evidence_directory / f"replicas-{number}"
            variables = {**LIMITS, "gateway_replicas": number, "gateway_rollout_report": str(reports)}
            played = play(one.name, "site", variables=variables, check=False, seconds=800)
            assert played.code == 0, played.output[-3000:]
            starts = [replica["floor_seconds"] for replica in json.loads((reports / "rollout.json").read_text())["replicas"]]
            seconds[number] = f"{time.monotonic() - began:.0f} s, of which gateways took {sum(starts):.0f} s to start ({len(starts)})"
            return played

        return change

    try:
        more, _played = under_load(cluster, evidence_directory, f"{count} to {count + 2} replicas", scale(count + 2))
        nothing_failed(more)
    finally:
        fewer, _played = under_load(cluster, evidence_directory, f"{count + 2} to {count} replicas", scale(count))
    nothing_failed(fewer)
    # Those that stay have not been touched by either, and what nobody runs any more is gone.
    assert processes(cluster) == before
    assert older not in execute(cluster, host, "find", "/opt/openclaw/plugins", "-maxdepth", "1").splitlines()
    print(*(f"site.yml to {number} replicas: {took}" for number, took in seconds.items()), sep="\n", file=sys.stderr)


@pytest.mark.parametrize("how", [pytest.param(how, marks=[pytest.mark.smoke] if how == "fails every turn" else []) for how in BAD])
def test_a_bad_release_undoes_itself(cluster, good, evidence_directory, how):
    before = processes(cluster)
    with bad_release(cluster, how, good) as bad:
        traffic, played = under_load(cluster, evidence_directory, how, lambda one: roll(one, gateway_version=bad, gateway_rollout_soak="100"))
        first = [name for name, pid in processes(cluster).items() if pid != before[name]]
        assert played.code == 2 and len(first) == 1, played.output[-3000:]
        assert f"{first[0]} did not take {bad} or its new settings: " in played.output
        assert "It is back to what it was before, serves again, and all other replicas were left alone." in played.output
        assert {version(cluster, replica) for replica in cluster.topology["replicas"]} == {good}
        assert not leftovers(cluster)
    said = {
        "never ready": "is not healthy after",
        "fails every turn": "a message was answered with HTTP",
        "leaks": "of its memory limit, and 80 % counts as a leak",
    }[how]
    assert re.search(said, played.output), played.output[-3000:]
    if how == "leaks":
        # It serves while it is watched, and is drained again: even so nothing fails.
        assert f"{first[0]}: after " in played.output
    nothing_failed(traffic)


#: What a run prints when it comes to a step: there the controller dies.
STEPS = ("Turn the switch of its agent]", "Have each balancer make it drained", "Configure and run", "Have it prove that", "Have each balancer make it ready")


@pytest.mark.parametrize("step", STEPS)
def test_a_run_that_is_killed_can_be_made_again(cluster, good, step):
    changed = {"KILLED": f"{step} {time.time()}"}
    killed_at(cluster.name, "rolling_upgrade", step, {**LIMITS, "gateway_environment": changed, "gateway_rollout_soak": 0})
    if step == STEPS[3]:
        # The address moves in between, so that the next run would come to the one that was left last of all.
        holder = one_holder(cluster)
        execute(cluster, holder, "systemctl", "restart", "keepalived.service")
        wait_for("another holder of the virtual address", lambda: one_holder(cluster) != holder, 30)
    played = roll(cluster, gateway_environment=changed, gateway_rollout_soak=0)
    assert played.code == 0, played.output[-3000:]
    assert not leftovers(cluster)
    for replica in cluster.topology["replicas"]:
        running = execute(cluster, replica["host"], "sh", "-c", f"tr '\\0' '\\n' < /proc/{main_pid(cluster, replica['host'], replica['unit'])}/environ")
        assert started(replica) and f"KILLED={changed['KILLED']}" in running.splitlines()


def test_a_peer_that_dies_stops_the_run_before_the_next_drain(cluster, good):
    # Its host has its turn last, so others are asked first. Its unit runs all the same: it is frozen.
    (last,) = [replica for replica in cluster.topology["replicas"] if replica["host"] == one_holder(cluster)]
    before = processes(cluster)
    execute(cluster, last["host"], "kill", "-STOP", before[last["id"]])
    try:
        wait_for("the agent's word", lambda: '"down"' in execute(cluster, last["host"], "openclaw-agent", "status", "--json", last["id"]), 30)
        played = roll(cluster, gateway_environment={"PEER": f"{time.time()}"}, gateway_rollout_patience=2)
        assert played.code == 2 and f"is left as it is: {last['id']} is down" in played.output, played.output[-3000:]
        assert processes(cluster) == before
        assert not leftovers(cluster)
    finally:
        execute(cluster, last["host"], "kill", "-CONT", before[last["id"]])
    wait_for(f"{last['id']} is back", lambda: started(last), 120)


def test_one_that_does_not_run_holds_nobody_up(cluster, good):
    (last,) = [replica for replica in cluster.topology["replicas"] if replica["host"] == one_holder(cluster)]
    before = processes(cluster)
    execute(cluster, last["host"], "systemctl", "stop", last["unit"])
    wait_for("the agent's word", lambda: '"down"' in execute(cluster, last["host"], "openclaw-agent", "status", "--json", last["id"]), 30)
    played = roll(cluster, gateway_environment={"IDLE": f"{time.time()}"}, gateway_rollout_patience=20, gateway_rollout_soak=0)
    assert played.code == 0, played.output[-3000:]
    after = processes(cluster)
    assert all(after[name] not in (before[name], "0") for name in before) and not leftovers(cluster)
