"""redis_restart with real servers; only systemd is played, by a class that starts the processes."""

import pathlib
import re
import time

import jinja2
import pytest
import redis

from ansible_collections.openclaw.ha.plugins.modules import redis_config, redis_restart, sentinel_info
from ansible_collections.openclaw.ha.tests.unit.plugins.modules.redis_servers import Cluster, Writer, wait_for

ROOT = pathlib.Path(redis_restart.__file__).resolve().parents[2]


class Systemd:
    """What the modules use of systemctl, for the process of one host."""

    def __init__(self, cluster, host):
        self.cluster = cluster
        self.host = host
        self.started = time.time()
        self.files = []
        self.verbs = []

    def show(self, unit):
        return {"NeedDaemonReload": "no"}

    def start_and_files(self, unit):
        return self.started, self.files

    def do(self, *words):
        self.verbs.append(words[0])
        if words[0] == "restart":
            process = self.cluster.processes.pop(self.host)
            process.terminate()
            process.wait(timeout=10)
            self.cluster.run(self.host)
            self.started = time.time()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    found = Cluster(tmp_path_factory.mktemp("restart"))
    yield found
    found.stop()


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    found = Cluster(tmp_path_factory.mktemp("single"), replicas=0, sentinels=0)
    wait_for("Redis", lambda: answers(found.client(found.redis[0])))
    yield found
    found.stop()


@pytest.fixture
def restart(run_module, monkeypatch):
    def run(cluster, host, check=False, changed=False, **arguments):
        systemd = Systemd(cluster, host)
        if changed:
            systemd.files = [str(cluster.configs[host][1])]
            systemd.started = 1
        monkeypatch.setattr(redis_restart, "Units", lambda run_command: systemd)
        result = run_module(redis_restart, check=check, host=host, **{**cluster.arguments, "wait": 40, **arguments})
        return {**result, "verbs": systemd.verbs}

    return run


@pytest.fixture
def settled(run_module, cluster):
    def wait():
        view = run_module(sentinel_info, **cluster.arguments, wait=60)
        assert not view["failed"], view
        return cluster.at(view["primary"])["host"]

    return wait


def answers(client):
    try:
        return client.ping()
    except redis.RedisError:
        return False


def set_in_file(cluster, host, name, value):
    cluster.configs[host][1].with_name("settings.conf").write_text(f"{name} {value}\n")


def test_nothing_to_do(restart, settled, cluster):
    settled()
    done = restart(cluster, "node1", settings={"databases": 16, "maxmemory": "1gb"})
    assert done["changed"] is False and done["reasons"] == [] and done["verbs"] == []


def test_all_servers_one_after_the_other_the_primary_last_and_nothing_is_lost(restart, settled, cluster):
    """What the role does: each host with skip_primary, then each host without."""
    first = settled()
    hosts = [node["host"] for node in cluster.redis]
    for host in hosts:
        set_in_file(cluster, host, "databases", 32)
    with Writer(cluster) as writer:
        replicas = {host: restart(cluster, host, settings={"databases": 32}, skip_primary=True) for host in hosts}
        rest = {host: restart(cluster, host, settings={"databases": 32}) for host in hosts}
    for host in hosts:
        assert not replicas[host]["failed"], replicas[host]
        assert not rest[host]["failed"], rest[host]
        assert replicas[host]["changed"] is (host != first)
        assert rest[host]["changed"] is (host == first)
        assert cluster.client(cluster.node(host)).config_get("databases")["databases"] == "32"
    assert "its turn comes last" in replicas[first]["msg"]
    assert rest[first]["role"] == "primary" and rest[first]["switch"]["lost_bytes"] == 0
    assert settled() != first
    assert not writer.lost()


def test_check_mode_says_why_and_restarts_nothing(restart, settled, cluster):
    primary = settled()
    for node in cluster.redis:
        done = restart(cluster, node["host"], check=True, changed=True)
        assert done["changed"] and done["verbs"] == [] and "Changed since it was started" in done["msg"], done
    assert settled() == primary


def test_a_restart_is_refused_while_another_is_away(restart, settled, cluster):
    primary = settled()
    away, asked = [node["host"] for node in cluster.redis if node["host"] != primary]
    cluster.kill(away)
    try:
        done = restart(cluster, asked, changed=True, wait=0)
        assert done["failed"] and f"Redis on {away}" in done["msg"] and "Not restarted." in done["msg"]
        assert done["verbs"] == []
        # A dry run refuses nothing: it says what would be waited for.
        for host in (asked, primary):
            dry = restart(cluster, host, check=True, changed=True)
            assert dry["changed"] and not dry["failed"] and f"Redis on {away}" in dry["msg"] and dry["verbs"] == [], dry
    finally:
        cluster.run(away)
    settled()


def test_a_restart_that_does_not_help_is_told(restart, settled, cluster):
    replica = next(node["host"] for node in cluster.redis if node["host"] != settled())
    done = restart(cluster, replica, settings={"databases": 64}, wait=30)
    # 16 or, where another test came before, 32.
    assert done["failed"] and re.search(r"not all is well\. Setting databases is '\d+', not 64", done["msg"]), done
    assert done["verbs"] == ["daemon-reload", "restart"]
    settled()


def test_sentinels_one_after_the_other(restart, settled, cluster):
    settled()
    for node in cluster.sentinels:
        done = restart(cluster, node["host"], server="sentinel", because=["It shows an older certificate."])
        assert not done["failed"], done
        assert done["changed"] and done["role"] == "sentinel"
    assert restart(cluster, "watch1", server="sentinel")["changed"] is False


def test_a_sentinel_is_not_restarted_while_another_is_away(restart, settled, cluster):
    settled()
    cluster.kill("watch2")
    try:
        done = restart(cluster, "watch1", server="sentinel", changed=True, wait=0)
        assert done["failed"] and "Sentinel on watch2" in done["msg"] and done["verbs"] == []
    finally:
        cluster.run("watch2")
    settled()


def test_a_single_redis_is_restarted_at_once(restart, single):
    set_in_file(single, "node1", "databases", 8)
    done = restart(single, "node1", settings={"databases": 8})
    assert not done["failed"], done
    assert done["role"] == "single" and "nobody can stand in for" in done["msg"]
    assert restart(single, "node1", settings={"databases": 8})["changed"] is False


@pytest.mark.parametrize("save", ["900 1 300 10", ""])
def test_settings_made_live_survive_a_restart(restart, run_module, single, save):
    """With the role's own template, and after Redis has rewritten its file, which it does at every failover."""
    wanted = {"maxmemory": "300mb", "save": save, "maxmemory-policy": "allkeys-lru", "bind": "127.0.0.1", "databases": "8"}
    node = single.redis[0]
    environment = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True)
    environment.filters["combine"] = lambda one, other: {**one, **other}
    template = environment.from_string((ROOT / "roles/redis/templates/settings.conf.j2").read_text())

    def make_live():
        return run_module(redis_config, address=node["address"], port=node["port"], settings=wanted)

    single.configs["node1"][1].with_name("settings.conf").write_text(template.render(_redis_settings=wanted, _redis_secret_settings={}))
    assert make_live()["changed"]
    single.client(node).config_rewrite()
    done = restart(single, "node1", because=["It shall."])
    assert not done["failed"], done
    again = make_live()
    assert again["changed"] is False, again["settings"]


def test_what_needs_a_restart_is_left_to_it(run_module, single):
    node = single.redis[0]
    done = run_module(redis_config, address=node["address"], port=node["port"], settings={"databases": 12, "maxmemory": "64mb"})
    assert not done["failed"], done
    assert done["restart"] == ["databases"] and done["settings"] == ["maxmemory"]


def test_a_host_that_is_none_of_the_servers(restart, cluster):
    assert "is not one of the servers" in restart(cluster, "nowhere")["msg"]
