"""Back up, write more, restore: on running hosts every conversation is as it was, on every server.

The hosts of a lab cluster see no common file system, so each has a repository of its own, and before a restore they get that of the host which saved.
"""

import json
import subprocess
import tempfile

import pytest

from lab.shell import wait_for
from tests.redis import playbook
from tests.redis.servers import of_lab

PASSWORD = "a password of the lab"
REPOSITORY = "/var/backups/openclaw-test"
VARIABLES = {
    "backup_repository": REPOSITORY,
    "backup_password": PASSWORD,
    "backup_schedule": "*-*-* 04:00:00",
    "backup_randomized_delay": "0",
    "backup_load_within": 120,
}
TALKS = {f"oc:conv:test:restore{number}": [f"turn {turn}" for turn in range(number + 1)] for number in range(5)}


@pytest.fixture(scope="module")
def set_up(cluster):
    """The role on all Redis hosts, with a repository that is new."""
    found = of_lab(cluster)
    found.settle()
    for node in found.nodes:
        found.execute(node["host"], "rm", "-rf", REPOSITORY, "/var/lib/openclaw-backup", "/var/lib/openclaw-restore", "/etc/openclaw-backup")
        found.execute(node["host"], "mkdir", "-p", REPOSITORY)
    playbook.run(cluster, "site", variables=VARIABLES)
    found.settle()
    yield found
    playbook.run(cluster, "site", variables={**VARIABLES, "backup_repository": ""})
    for node in found.nodes:
        found.execute(node["host"], "sh", "-c", f"rm -rf {REPOSITORY} /var/lib/openclaw-backup /var/lib/redis/before-restore-* /var/lib/redis/openclaw-restore")


def status(servers, node):
    return json.loads(servers.execute(node["host"], "openclaw-backup", "status"))


def saver(servers):
    """The host that saved Redis last."""
    for node in servers.nodes:
        record = status(servers, node)["records"].get("make", {})
        if any(part["what"] == "redis" for part in record.get("good", [])):
            return node
    raise AssertionError("no host has saved Redis")


def talks(servers, node):
    client = servers.client(node)
    return {key: client.lrange(key, 0, -1) for key in client.scan_iter("oc:conv:test:*")}


@pytest.fixture
def saved(set_up):
    """Conversations, saved and proven; the host that did it."""
    admin = set_up.client(set_up.primary())
    for key in list(admin.scan_iter("oc:conv:test:*")):
        admin.delete(key)
    for key, turns in TALKS.items():
        admin.rpush(key, *turns)
    wait_for("every replica has them", lambda: all(talks(set_up, node) == TALKS for node in set_up.nodes), 30)
    played = playbook.run(set_up.cluster, "backup", variables={**VARIABLES, "backup_prove": True})
    assert PASSWORD not in played.output
    return saver(set_up)


@pytest.mark.smoke
def test_one_replica_saves_and_proves(set_up, saved):
    assert saved != set_up.primary()
    record = status(set_up, saved)["records"]
    assert record["prove"]["ok"] and record["prove"]["parts"][0]["equal"]
    assert record["make"]["parts"][0]["conversations"] >= len(TALKS)
    assert set(status(set_up, saved)["timers"].values()) == {"active"}
    assert set_up.execute(saved["host"], "stat", "--format=%a", "/etc/openclaw-backup/config.json") == "600"


def test_the_timers_own_unit_makes_one(set_up, saved):
    before = status(set_up, saved)["records"]
    for action in ("make", "prove", "check"):
        set_up.execute(saved["host"], "systemctl", "start", f"openclaw-backup-{action}.service")
        record = status(set_up, saved)["records"][action]
        assert record["ok"] and not record.get("skipped"), record
        assert record["ended"] > before.get(action, {"ended": 0})["ended"]


def everywhere(servers, saved):
    """The saver's repository on all hosts: what a shared one is by itself."""
    with tempfile.TemporaryDirectory() as directory:
        copy = f"{directory}/repository"
        subprocess.run(["docker", "cp", f"{servers.containers[saved['host']]}:{REPOSITORY}", copy], check=True, capture_output=True, timeout=120)
        for node in servers.nodes:
            if node != saved:
                servers.execute(node["host"], "sh", "-c", f"rm -rf {REPOSITORY} /var/lib/openclaw-backup/*.id /var/lib/openclaw-backup/cache")
                subprocess.run(["docker", "cp", copy, f"{servers.containers[node['host']]}:{REPOSITORY}"], check=True, capture_output=True, timeout=120)


def restore(servers, check=True, options=(), **more):
    return playbook.run(servers.cluster, "restore", *options, variables={**VARIABLES, "restore_snapshot": "latest", **more}, check=check)


@pytest.mark.smoke
def test_restored_as_it_was(set_up, saved):
    everywhere(set_up, saved)
    admin = set_up.client(set_up.primary())
    admin.rpush("oc:conv:test:restore0", "written after the backup")
    admin.rpush("oc:conv:test:later", "written after the backup")
    admin.delete("oc:conv:test:restore1")
    after = talks(set_up, set_up.primary())

    refused = restore(set_up, check=False)
    assert refused.code != 0 and "restore_over=true" in refused.output and "Nothing was changed" in refused.output
    assert talks(set_up, set_up.primary()) == after
    dry = restore(set_up, options=["--check"], restore_over=True)
    assert dry.code == 0 and talks(set_up, set_up.primary()) == after

    primary = set_up.primary()
    played = restore(set_up, restore_over=True)
    assert PASSWORD not in played.output and "conversations are as they were in the backup" in played.output
    set_up.settle()
    assert set_up.primary() == primary
    for node in set_up.nodes:
        assert talks(set_up, node) == TALKS, node["host"]
        assert set_up.execute(node["host"], "sh", "-c", "ls -d /var/lib/redis/before-restore-*")
    # A restart proves that it is in the append-only files, and that the guard takes them.
    replica = next(node for node in set_up.nodes if node != primary)
    set_up.execute(replica["host"], "systemctl", "restart", set_up.redis_unit)
    set_up.settle()
    playbook.switch(set_up, replica)
    set_up.execute(primary["host"], "systemctl", "restart", set_up.redis_unit)
    set_up.settle()
    assert all(talks(set_up, node) == TALKS for node in set_up.nodes)


def test_from_servers_that_have_lost_everything(set_up, saved):
    """All files of Redis gone on all hosts: the guard does not let it start, and the restore brings it back."""
    everywhere(set_up, saved)
    for node in set_up.nodes:
        set_up.execute(node["host"], "systemctl", "stop", set_up.redis_unit)
    for node in set_up.nodes:
        set_up.execute(node["host"], "sh", "-c", "rm -rf /var/lib/redis/appendonlydir /var/lib/redis/dump.rdb")
        set_up.execute(node["host"], "systemctl", "start", set_up.redis_unit, check=False)
    restore(set_up, restore_over=True)
    set_up.settle()
    assert all(talks(set_up, node) == TALKS for node in set_up.nodes)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"backup_password": "not-the-right-word"}, "its password is another one; set backup_password"),
        ({"restore_snapshot": "0123abcd"}, "found no snapshot '0123abcd'"),
        ({"backup_repository": "/var/backups/nothing-there"}, "there is no repository"),
    ],
)
@pytest.mark.smoke
def test_refused_before_anything_is_changed(set_up, saved, variables, words):
    everywhere(set_up, saved)
    before = {node["host"]: set_up.client(node).info("server")["run_id"] for node in set_up.nodes}
    played = restore(set_up, check=False, restore_over=True, **variables)
    assert played.code != 0 and words in played.output and "Nothing was changed" in played.output
    assert {node["host"]: set_up.client(node).info("server")["run_id"] for node in set_up.nodes} == before
