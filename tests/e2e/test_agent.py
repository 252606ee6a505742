"""The agent on running hosts: a verdict for every replica at one path, a unit without rights, and the switch."""

import json
import re
import shlex

import pytest
import requests

from lab.shell import wait_for

#: systemd-analyze security: 0 is nothing exposed, 10 everything.
MOST_EXPOSED = 2.0


def verdict(replica):
    """The verdict on a replica, asked from outside its host."""
    return requests.get(f"http://{replica['address']}:{replica['verdict_port']}/health", timeout=10)


@pytest.fixture
def replica(topology, hosts):
    """The last replica, ready again afterwards."""
    chosen = topology["replicas"][-1]
    yield chosen
    hosts[chosen["host"]].check_output("openclaw-agent ready %s", chosen["id"])


def test_every_replica_has_its_verdict_at_the_same_path(topology):
    for replica in topology["replicas"]:
        wait_for(f"a good verdict on {replica['id']}", lambda one=replica: verdict(one).json()["status"] == "ok", 60)
        answer = verdict(replica)
        body = answer.json()
        assert answer.status_code == 200
        assert (body["replica"], body["host"], body["zone"]) == (replica["id"], replica["host"], replica["zone"])
        assert re.fullmatch(r"\d+\.\d+\.\d+", body["version"]) and body["uptime_seconds"] > 0 and body["observed_seconds"] < 5
        assert body["problems"] == [] and body["drain"] is None
        for name in ("disk", "gateway", "unit", "redis", "provider"):
            assert body["checks"][name] is True, body
        assert body["checks"]["partner"] is None and body["checks"]["clock"] is None


def test_certificates_are_watched_by_somebody_who_cannot_read_keys(hosts, topology, cluster):
    for replica in topology["replicas"]:
        assert verdict(replica).json()["checks"]["certificate"] is (True if cluster.tls else None)
        if cluster.tls:
            metrics = requests.get(f"http://{replica['address']}:{replica['verdict_port']}/metrics", timeout=10).text
            days = re.search(r'openclaw_agent_certificate_days\{certificate="/etc/openclaw/tls/cert.pem",.*\} ([\d.]+)', metrics)
            assert days and 30 < float(days[1]) <= 366, metrics


def test_haproxy_is_told_about_every_replica(hosts, topology):
    for replica in topology["replicas"]:
        ask = f"import socket; print(socket.create_connection(('{replica['address']}', {replica['check_port']}), 5).makefile().read(), end='')"
        for name, host in hosts.items():
            assert host.check_output(f"python3 -c {shlex.quote(ask)}") in ("up 100%", "up 1%"), name


def test_the_unit_has_no_rights(hosts, topology):
    for name in {replica["host"] for replica in topology["replicas"]}:
        host = hosts[name]
        shown = dict(
            line.split("=", 1)
            for line in host.check_output(
                "systemctl show openclaw-agent --property=User,NoNewPrivileges,ProtectSystem,CapabilityBoundingSet,AmbientCapabilities,MemoryMax,WatchdogUSec"
            ).splitlines()
        )
        assert shown["User"] == "openclaw-agent" and shown["NoNewPrivileges"] == "yes" and shown["ProtectSystem"] == "strict"
        assert shown["CapabilityBoundingSet"] == shown["AmbientCapabilities"] == "" and shown["MemoryMax"].isdigit() and shown["WatchdogUSec"] == "15s"
        pid = host.check_output("systemctl show --property=MainPID --value openclaw-agent")
        status = host.file(f"/proc/{pid}/status").content_string
        assert re.search(r"^CapEff:\s0+$", status, re.M) and re.search(r"^NoNewPrivs:\s1$", status, re.M)
        assert f"\nUid:\t{host.user('openclaw-agent').uid}\t" in status
        overall = host.run("systemd-analyze security --no-pager openclaw-agent.service").stdout.splitlines()[-1]
        exposure = re.search(r": ([\d.]+) ", overall)
        print(f"{name}: {overall.strip()}")
        assert exposure and float(exposure[1]) <= MOST_EXPOSED, overall


def test_the_agent_can_read_no_secret(hosts, topology, cluster):
    """Files with secrets are closed to its user, and what it is given holds none."""
    for name in {replica["host"] for replica in topology["replicas"]}:
        host = hosts[name]
        secrets = ["/etc/openclaw/gateway/1/secrets.env", "/etc/openclaw/gateway/1/openclaw.json", "/var/lib/openclaw/1"]
        secrets += ["/etc/openclaw/tls/key.pem"] if cluster.tls else []
        if "openclaw_redis" in topology["hosts"][name]["groups"]:
            secrets += ["/etc/openclaw/redis-admin", "/etc/redis/openclaw/settings.conf", "/etc/redis/openclaw/users.acl"]
        for path in secrets:
            assert host.file(path).exists, path
            assert host.run(f"runuser -u openclaw-agent -- test -r {path}").rc == 1, f"{name}: the agent can read {path}"
        known = host.file("/run/openclaw-agent-certificates/ends.json")
        assert set(json.loads(known.content_string)) == {"looked_at", "ends"} and "PRIVATE" not in known.content_string
        for path in (known.path, "/run/openclaw-agent/config.json"):
            for secret, value in cluster.secrets.items():
                assert value not in host.file(path).content_string, f"{name}: {secret} is in {path}"


def test_drain_and_ready_by_the_command(hosts, topology, replica):
    host = hosts[replica["host"]]
    (result,) = json.loads(host.check_output("openclaw-agent drain %s --reason e2e --json", replica["id"]))
    assert result["changed"] and result["drain"]["by"] == "root" and result["drain"]["reason"] == "e2e"
    assert verdict(replica).json()["status"] == "draining" and verdict(replica).status_code == 200
    (again,) = json.loads(host.check_output("openclaw-agent drain %s --json", replica["id"]))
    assert not again["changed"] and again["drain"] == result["drain"]

    host.check_output("systemctl restart openclaw-agent")
    assert verdict(replica).json()["drain"] == result["drain"], "the switch did not survive the agent"

    assert host.check_output("openclaw-agent ready %s", replica["id"]) == f"{replica['id']}: ready"
    assert verdict(replica).json()["drain"] is None
    wait_for("the verdict to be good again", lambda: verdict(replica).json()["status"] == "ok", 30)
    refused = host.run(f"runuser -u openclaw-agent -- /usr/local/bin/openclaw-agent drain {replica['id']}")
    assert refused.rc == 1 and "run this as root" in refused.stderr


def test_what_runs_is_what_is_written_and_what_is_invalid_is_refused(hosts, topology):
    host = hosts[topology["replicas"][0]["host"]]
    path = "/etc/openclaw-agent/config.json"
    assert host.file(path).sha256sum == host.file("/run/openclaw-agent/config.json").sha256sum
    assert host.run("echo '{}' > /tmp/wrong.json; openclaw-agent --config /tmp/wrong.json check; rc=$?; rm /tmp/wrong.json; exit $rc").rc == 2
