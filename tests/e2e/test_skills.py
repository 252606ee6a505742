"""A skill that changes on the hosts reaches every replica without a restart."""

import time

import pytest
import requests

from lab.shell import wait_for

SKILL = """---
name: tracking
description: Tell where a parcel is. Use it for every question about parcels.
---
Ask for the tracking number.
"""


def system_prompt(cluster, via):
    """Length of the system prompt of a new conversation's first model call, as the LLM double notes it."""
    user = f"skills-{time.time_ns()}"
    cluster.reply(user, user, via=via)
    call = requests.get(f"{cluster.llm_url}/requests", params={"match": user}, timeout=10).json()[-1]
    return [message["content"] for message in call["messages"] if message["role"] == "system"]


@pytest.fixture
def skill(hosts):
    """Puts a skill on every host, as a run of the role would; gone afterwards."""

    def write():
        for host in hosts.values():
            host.check_output("mkdir -p /opt/openclaw/skills/tracking")
            host.check_output("printf '%s' '" + SKILL + "' > /opt/openclaw/skills/tracking/SKILL.md")

    yield write
    for host in hosts.values():
        host.check_output("rm -rf /opt/openclaw/skills/tracking")


def test_a_new_skill_reaches_every_replica_without_a_restart(cluster, hosts, topology, skill):
    def pids():
        return [
            hosts[one["host"]].check_output("systemctl show --property=MainPID --value %s", one["unit"])
            for one in topology["replicas"]
        ]

    before, started = [system_prompt(cluster, via) for via in cluster.replicas], pids()
    skill()
    for via, old in zip(cluster.replicas, before):
        wait_for(f"{via} knows the skill", lambda via=via, old=old: system_prompt(cluster, via) != old, interval=1)
    assert pids() == started
