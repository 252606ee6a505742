"""Runs of the published playbook after things have happened to Redis: it follows what is true, and undoes no failover."""

import contextlib

import pytest

from tests.redis import playbook
from tests.redis.run import under_load
from tests.redis.writer import LoadOptions

KEY = "oc:kept"
SENTINEL_CONF = "/etc/redis/openclaw/sentinel.conf"
SETTINGS = "/etc/redis/openclaw/settings.conf"


@pytest.fixture
def elected(servers):
    """The primary, which is not the inventory's first host, holding some data."""
    if servers.primary() == servers.nodes[0]:
        playbook.switch(servers)
    primary = servers.primary()
    assert primary != servers.nodes[0]
    servers.client(primary, "app").set(KEY, "still here")
    return primary


def unchanged(played):
    return len(played.changed) == 3 and not any(played.changed.values())


def run_ids(servers):
    return {node["host"]: servers.client(node).info("server")["run_id"] for node in servers.nodes}


def setting(servers, name):
    return {servers.client(node).config_get(name)[name] for node in servers.nodes}


@pytest.mark.smoke
def test_a_run_after_a_failover_changes_nothing(servers, elected):
    before = run_ids(servers)
    played = playbook.run(servers.cluster, "site")
    assert unchanged(played), played.changes
    assert servers.primary() == elected
    assert run_ids(servers) == before


def test_sentinels_that_lost_their_files_are_healed(servers, elected):
    before = run_ids(servers)
    for node in servers.sentinels:
        servers.execute(node["host"], "systemctl", "stop", servers.sentinel_unit)
        servers.execute(node["host"], "rm", SENTINEL_CONF)
    playbook.run(servers.cluster, "site")
    servers.settle()
    assert servers.primary() == elected
    assert run_ids(servers) == before, "Redis was restarted"
    assert all(servers.client(node, "app").get(KEY) == "still here" for node in servers.nodes)


@pytest.mark.smoke
def test_two_nodes_that_claim_to_be_primary_are_refused_by_name(servers, elected):
    other = next(node for node in servers.nodes if node != elected)
    # Without the Sentinels, which would decide it within seconds.
    for node in servers.sentinels:
        servers.execute(node["host"], "systemctl", "stop", servers.sentinel_unit)
    try:
        servers.client(other).replicaof("NO", "ONE")
        files = [servers.execute(node["host"], "stat", "--format=%Y %s", SETTINGS) for node in servers.nodes]
        played = playbook.run(servers.cluster, "site", variables={"redis_maxmemory": "300mb"}, check=False)
        assert played.code != 0
        for node in (elected, other):
            assert f"{node['host']} ({node['address']}:{node['port']}" in played.output
        assert "More than one Redis says it is the primary" in played.output
        assert [servers.execute(node["host"], "stat", "--format=%Y %s", SETTINGS) for node in servers.nodes] == files
        assert setting(servers, "maxmemory") == {str(256 * 1024**2)}
        assert servers.client(other).info("replication")["role"] == "master", "the run decided it"
    finally:
        servers.client(other).replicaof(elected["address"], elected["port"])
        for node in servers.sentinels:
            servers.execute(node["host"], "systemctl", "start", servers.sentinel_unit)


def test_a_changed_setting_goes_live_without_a_restart_and_survives_one(servers, elected):
    before = run_ids(servers)
    playbook.run(servers.cluster, "site", variables={"redis_maxmemory": "200mb"})
    assert setting(servers, "maxmemory") == {str(200 * 1024**2)}
    assert run_ids(servers) == before
    replica = next(node for node in servers.nodes if node != elected)
    servers.execute(replica["host"], "systemctl", "restart", servers.redis_unit)
    servers.settle()
    assert run_ids(servers)[replica["host"]] != before[replica["host"]]
    assert setting(servers, "maxmemory") == {str(200 * 1024**2)}


def test_a_setting_that_needs_a_restart_is_rolled_under_load(servers, elected, evidence):
    """Also takes back what the test before it has set."""
    before = run_ids(servers)

    @contextlib.contextmanager
    def rolled():
        playbook.run(servers.cluster, "site", variables={"redis_extra_settings": {"databases": "17"}})
        yield

    found = under_load(servers, rolled(), LoadOptions(clients=2, rate=30, seconds=280), evidence, "rolled restart")
    assert found["ok"], found["violations"]
    assert found["acknowledged"] > 300
    assert found["gap"] <= found["down_after"] + 6
    after = run_ids(servers)
    assert not set(after.values()) & set(before.values()), "not every server was restarted"
    assert setting(servers, "databases") == {"17"}
    assert setting(servers, "maxmemory") == {str(256 * 1024**2)}
    # A second run finds nothing left to restart.
    played = playbook.run(servers.cluster, "site", variables={"redis_extra_settings": {"databases": "17"}})
    assert unchanged(played), played.changes
    assert run_ids(servers) == after
