"""One conversation, several real gateways: nobody forgets anything."""

import re

import requests

from lab.cluster import Cluster as LabCluster
from lab.shell import wait_for


def main_pid(host, unit):
    return host.check_output("systemctl show --property=MainPID --value %s", unit)


def test_a_conversation_moves_between_replicas(cluster, user):
    turns = [f"{user} turn {number}" for number in range(1, 5)]
    first, second, third = cluster.replicas
    answered_by = [cluster.reply(turn, user, via=via)["replica"] for turn, via in zip(turns, (first, second, third, first))]
    assert answered_by[0] == answered_by[3] and len(set(answered_by)) == 3
    assert cluster.shown(user) == [turns[:1], turns[:2], turns[:3], turns[:4]]


def test_the_openai_compatible_path_shares_conversations_too(cluster, user):
    turns = [f"{user} turn {number}" for number in range(1, 4)]
    for turn, via in zip(turns, cluster.replicas):
        body = {"model": "openclaw/default", "user": user, "messages": [{"role": "user", "content": turn}]}
        response = requests.post(
            f"http://{via}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {cluster.token}"}, timeout=120
        )
        assert response.status_code == 200, response.text
        assert turn in response.json()["choices"][0]["message"]["content"]
    assert cluster.shown(user) == [turns[:1], turns[:2], turns[:3]]


def test_two_users_do_not_see_each_other(cluster, user):
    cluster.reply(f"{user} secret of a", f"{user}-a")
    assert "secret of a" not in cluster.reply(f"{user} hello from b", f"{user}-b")["reply"]


def test_killed_gateway_is_replaced_at_once_and_comes_back(cluster, hosts, topology, user):
    turns = [f"{user} turn {number}" for number in range(1, 4)]
    cluster.reply(turns[0], user)
    holder = cluster.reply(turns[1], user)["replica"]
    replica = next(one for one in topology["replicas"] if one["id"] == holder)
    host = hosts[replica["host"]]
    before = main_pid(host, replica["unit"])
    host.check_output(f"kill -KILL {before}")

    answer = cluster.reply(turns[2], user)
    assert answer["replica"] != holder
    assert cluster.shown(user)[-1] == turns

    wait_for(f"{holder} under a new pid", lambda: main_pid(host, replica["unit"]) not in ("0", before))
    wait_for(f"{holder} in rotation", lambda: holder in answering(cluster, user), seconds=120, interval=1)


def answering(cluster, user):
    """The replicas that answer health requests through the balancer."""
    seen = set()
    for _number in range(3 * len(cluster.replicas)):
        response = requests.get(f"{cluster.url}/api/v1/health", timeout=10)
        if response.status_code == 200:
            seen.add(response.json()["replica"])
    return seen


def healthy(via):
    """A replica's health when its status is ok, else None."""
    body = requests.get(f"http://{via}/api/v1/health", timeout=10).json()
    return body if body["status"] == "ok" else None


def test_health_tells_what_an_operator_needs(cluster):
    for via in cluster.replicas:
        # One of them has just been started again.
        body = wait_for(f"{via} to be ok", lambda via=via: healthy(via), 20)
        assert body["redis"] is True and body["ollama"] is True
        assert body["version"] == "2026.9.6"
        assert body["uptime_seconds"] >= 0


def test_the_fallback_answers_while_the_first_provider_is_away(cluster, llm, hosts, topology, user):
    """On the cluster whose Ollama is real, a model really computes the answer; the conversation goes on afterwards."""
    (fallback,) = {node["host"] for node in topology["ollama"]}
    real = hosts[fallback].check_output("head -c 4 /opt/openclaw/ollama/given/bin/ollama | tail -c 3") == "ELF"
    assert real == LabCluster(cluster.name).real_ollama
    turns = [f"{user} turn {number}" for number in range(1, 4)]
    cluster.reply(turns[0], user)
    llm.behave(mode="refuse", seconds=600)
    reply = cluster.reply(turns[1], user)["reply"]
    assert re.fullmatch(r"[\w ,.]+" if real else r"ollama seen 2 .*", reply), reply
    llm.behave(mode="ok")
    # The circuit of the first provider closes within half a minute.
    wait_for("the first provider's answer", lambda: cluster.reply("and now?", user)["reply"].startswith("seen"), 60)
    assert cluster.shown(user)[-1][:2] == turns[:2]


def test_without_the_token_nothing_is_answered(cluster, user):
    for path in ("/api/v1/message", "/v1/chat/completions"):
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            response = requests.post(f"{cluster.url}{path}", json={}, headers=headers, timeout=30)
            assert response.status_code == 401, f"{path}: {response.status_code}"


def test_redis_away_and_back(cluster, hosts, topology, user):
    """Answers go on from local history with a warning, and what was said is not lost when Redis is back."""
    via = cluster.replicas[0]
    replica = next(one for one in topology["replicas"] if f"{one['address']}:{one['port']}" == via)
    journal = hosts[replica["host"]]
    turns = [f"{user} turn {number}" for number in range(1, 5)]
    cluster.reply(turns[0], user, via=via)
    since = journal.check_output("date '+%Y-%m-%d %H:%M:%S'")
    servers = [hosts[node["host"]] for node in topology["redis"]]
    for host in servers:
        host.check_output("systemctl stop redis-sentinel redis-server")
    try:
        # Whichever replica is asked: those that know the conversation are found.
        for number, asked in enumerate(cluster.replicas[1:], 1):
            cluster.reply(turns[number], user, via=asked)
            assert cluster.shown(user)[-1] == turns[: number + 1]
        warning = journal.check_output(f"journalctl --unit={replica['unit']} --since='{since}' --no-pager --output=cat")
        assert "Redis" in warning, "no warning in the journal"
        assert requests.get(f"http://{via}/api/v1/health", timeout=10).json()["redis"] is False
    finally:
        for host in servers:
            host.check_output("systemctl start redis-server redis-sentinel")
    for address in cluster.replicas:
        wait_for(
            f"{address} reconnected",
            lambda address=address: requests.get(f"http://{address}/api/v1/health", timeout=10).json()["redis"],
        )
    for address in cluster.replicas:
        wait_for(
            f"the spool of {address} is replayed",
            lambda address=address: requests.get(f"http://{address}/api/v1/health", timeout=10).json()["spooled"] == 0,
        )
    cluster.reply(turns[3], user, via=cluster.replicas[1])
    assert cluster.shown(user)[-1] == turns
