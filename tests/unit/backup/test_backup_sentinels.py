"""What restore.yml does to the files of Redis and Sentinel, on real servers: another primary than before, and nobody goes back to the old one."""

from __future__ import annotations

import pathlib
import re
import signal

import pytest
import yaml
from openclaw_backup import plan

from ansible_collections.openclaw.ha.plugins.module_utils.redis_client import inspect_redis, inspect_sentinel
from ansible_collections.openclaw.ha.plugins.module_utils.redis_view import agree
from ansible_collections.openclaw.ha.tests.unit.plugins.modules.redis_servers import NAME, Cluster, wait_for

ROOT = pathlib.Path(__file__).resolve().parents[3]


def edits(primary):
    """The regular expressions of the playbook, with their replacements."""
    play = next(one for one in yaml.safe_load((ROOT / "playbooks/restore.yml").read_text()) if one["name"] == "Let the Sentinels watch it")
    tasks = [one["ansible.builtin.replace"] for one in play["tasks"][0]["block"] if "ansible.builtin.replace" in one]
    assert len(tasks) == 2
    values = {"topology_cluster.monitor.name | regex_escape": NAME, "_restore_target.address": primary["address"], "_restore_target.port": str(primary["port"])}

    def filled(text):
        return re.sub(r"\{\{ (.*?) \}\}", lambda found: values[found[1]], text)

    return [(filled(one["regexp"]), filled(one.get("replace", ""))) for one in tasks]


@pytest.fixture
def cluster(tmp_path):
    made = Cluster(tmp_path)
    yield made
    made.stop()


def problems(cluster):
    nodes = [inspect_redis(node, {}, 1) for node in cluster.redis]
    sentinels = [inspect_sentinel(node, NAME, {}, 1) for node in cluster.sentinels]
    view = agree(nodes, sentinels, quorum=2)
    return view["problems"] or (view["state"] != "agreed" and [view["state"]]), view["primary"]


def test_the_sentinels_follow_the_server_that_got_the_data(cluster):
    wait_for("all agree", lambda: not problems(cluster)[0], 60)
    for host in [node["host"] for node in [*cluster.sentinels, *cluster.redis]]:
        cluster.signal(host, signal.SIGTERM)
        cluster.processes.pop(host).wait(timeout=30)
    primary = cluster.redis[2]
    for node in cluster.redis:
        path = cluster.configs[node["host"]][1]
        path.write_text(plan.redis_conf(path.read_text(), None if node is primary else (primary["address"], primary["port"])))
    for node in cluster.sentinels:
        path = cluster.configs[node["host"]][1]
        before = path.read_text()
        assert f"sentinel monitor {NAME} 127.0.0.1 {cluster.redis[0]['port']} 2" in before and f"sentinel known-replica {NAME} " in before
        text = before
        for regexp, replacement in edits(primary):
            text = re.sub(regexp, replacement, text, flags=re.MULTILINE)
        assert "known-replica" not in text and f"sentinel monitor {NAME} 127.0.0.1 {primary['port']} 2\n" in text
        assert len(before.splitlines()) - len(text.splitlines()) == 2 and "known-sentinel" in text
        path.write_text(text)
    for node in [primary, *cluster.redis[:2], *cluster.sentinels]:
        cluster.run(node["host"])
    wait_for("all agree again", lambda: problems(cluster) == (False, f"127.0.0.1:{primary['port']}"), 60)
