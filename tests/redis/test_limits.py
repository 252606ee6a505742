"""A full disk, a new password under load, and who is not let in."""

import contextlib
import json
import re

import pytest
import redis

from lab.cluster import ROOT
from lab.cluster import Cluster as LabCluster
from lab.shell import wait_for
from tests.redis import playbook
from tests.redis.run import under_load
from tests.redis.servers import of_lab, redis_client
from tests.redis.writer import LoadOptions

DATA = "/var/lib/redis"
FILLER = f"{DATA}/filler"


def refusal(servers, node):
    """What a Redis says to a write of a gateway; None: it took it."""
    try:
        servers.client(node, "app").rpush("oc:probe", "x")
    except redis.ResponseError as error:
        return str(error)
    return None


def verdict(servers, node):
    """What ``redis_aof_check`` says on a host."""
    access = "{{ redis_access_redis }}"
    play = [
        {
            "hosts": node["host"],
            "gather_facts": False,
            "roles": ["openclaw.ha.topology", "openclaw.ha.redis_access"],
            "tasks": [
                {
                    "openclaw.ha.redis_aof_check": {
                        "directory": DATA, "address": node["address"], "port": node["port"], "redis_access": access,
                    },
                    "register": "found",
                    "ignore_errors": True,
                },
                {"ansible.builtin.debug": {"msg": "VERDICT {{ found.verdict | default('') }} END"}},
            ],
        }
    ]  # fmt: skip
    path = ROOT / ".lab" / servers.cluster / "verdict.json"
    path.write_text(json.dumps(play))
    try:
        return re.search(r"VERDICT (\S*) END", playbook.run_file(servers.cluster, path).output).group(1)
    finally:
        path.unlink()


@contextlib.contextmanager
def small_disk(servers, node):
    """A Redis whose data lies on a small file system of its own, then on the host's disk again."""

    def move(*steps):
        servers.execute(node["host"], "systemctl", "stop", servers.redis_unit)
        try:
            servers.execute(node["host"], "sh", "-ec", "\n".join(steps))
        finally:
            servers.execute(node["host"], "systemctl", "start", servers.redis_unit)

    # The owner and the files are taken over; what is copied back is what the small one holds at the end.
    move(
        "mkdir -p /var/small",
        "mount -t tmpfs -o size=48m,mode=0750,uid=$(id -u redis),gid=$(id -g redis) tmpfs /var/small",
        f"cp -a {DATA}/. /var/small/",
        f"mount --move /var/small {DATA}",
    )
    servers.settle()
    try:
        yield
    finally:
        servers.execute(node["host"], "rm", "-f", FILLER)
        move(f"rm -rf /var/kept && cp -a {DATA} /var/kept", f"umount {DATA}", f"rm -rf {DATA} && mv /var/kept {DATA}")
        servers.settle()


def test_a_full_disk_of_the_primary_loses_nothing(servers, evidence):
    """Writes are refused in plain words, the Sentinels elect another primary, and with space again all is well by itself."""
    seen = {}
    # A replica moves, as stopping the primary would have another one elected; then it becomes the primary.
    node = next(one for one in servers.nodes if one != servers.primary())

    @contextlib.contextmanager
    def full():
        # All that is free, and what is left of the last block.
        servers.execute(node["host"], "sh", "-c", f"cat /dev/zero > {FILLER} 2>/dev/null; true")

        def refused():
            said = refusal(servers, node)
            return said if said and said.startswith("MISCONF") else None

        seen["refusal"] = wait_for("a refused write", refused, 20, 0.01)
        seen["verdict"] = verdict(servers, node)
        yield
        servers.execute(node["host"], "rm", FILLER)

    with small_disk(servers, node):
        playbook.switch(servers, to=node)
        found = under_load(servers, full(), LoadOptions(clients=2, seconds=200), evidence, "disk full")
        recovered = verdict(servers, node)
    assert "No space left on device" in seen["refusal"]
    assert seen["verdict"] == "write_failed"
    assert recovered == "ok"
    assert found["ok"], found["violations"]
    assert found["acknowledged"] > 100


def test_a_new_password_under_load_fails_no_write(servers, cluster, evidence):
    """The clients know the old one all along, as gateways do that are not told yet."""

    @contextlib.contextmanager
    def rotated():
        LabCluster(cluster).rotate("redis_password")
        LabCluster(cluster).rotate("sentinel_password")
        playbook.run(cluster, "site")
        yield

    # A run with --limit, as all of this scenario, leaves the old passwords good: hosts that it does not see may use them.
    options = LoadOptions(clients=3, rate=30, seconds=280)
    found = under_load(servers, rotated(), options, evidence, "rotation")
    assert found["writes"] == found["acknowledged"] > 100, found["errors"]
    assert found["ok"], found["violations"]
    fresh = of_lab(cluster)
    fresh.settle()
    for node in fresh.nodes:
        assert fresh.client(node, "app").ping()
    played = playbook.run(cluster, "site")
    assert not any(played.changed.values()), played.changes


@pytest.mark.smoke
@pytest.mark.parametrize("kind", ["redis", "sentinel"])
def test_nobody_gets_in_without_the_right_credential(servers, kind):
    """From this machine, which is in no group; docs/security.md says what each user may do, and the scenario default tries it."""
    redis_like = kind == "redis"
    nodes = servers.nodes if redis_like else servers.sentinels
    access = servers.access["app"] if redis_like else servers.sentinel_access["client"]
    other = (servers.sentinel_access if redis_like else servers.access)["admin"]
    wrong = {
        "no password": ({"username": None, "password": None}, "AuthenticationError|NOAUTH"),
        "a wrong one": ({"password": "wrong"}, "AuthenticationError: .*invalid username-password|WRONGPASS"),
        "the other servers' one": ({"password": other["password"]}, "AuthenticationError: .*invalid username-password|WRONGPASS"),
        "another user's one": ({"username": "admin"}, "AuthenticationError: .*invalid username-password|WRONGPASS"),
    }
    if access.get("tls_ca"):
        wrong["no certificate"] = ({"tls_cert": None, "tls_key": None}, "certificate required|Connection reset|closed|EOF|alert")
        wrong["no TLS"] = ({"tls_ca": None}, "Connection reset|closed|Error|Protocol")
    for node in nodes:
        assert redis_client.connect(node, access, 2).ping()
        for what, (change, expected) in wrong.items():
            with pytest.raises(redis.RedisError) as refused:
                redis_client.connect(node, {**access, **change}, 2).ping()
            assert re.search(expected, f"{type(refused.value).__name__}: {refused.value}"), f"{node['host']}, {what}: {refused.value!r}"


@pytest.mark.smoke
def test_the_gateways_user_cannot_administrate(servers):
    for node in servers.nodes:
        for words in (("CONFIG", "GET", "*"), ("REPLICAOF", "NO", "ONE"), ("FLUSHALL",), ("ACL", "LIST"), ("GET", "elsewhere")):
            with pytest.raises(redis.exceptions.NoPermissionError):
                servers.client(node, "app").execute_command(*words)
    for node in servers.sentinels:
        with pytest.raises(redis.exceptions.NoPermissionError):
            servers.sentinel(node, "client").execute_command("SENTINEL", "FAILOVER", servers.monitor)
