"""redis_failover against one primary, two replicas and three Sentinels, all real, with a client that writes all the time."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import redis

from ansible_collections.openclaw.ha.plugins.module_utils import redis_cluster
from ansible_collections.openclaw.ha.plugins.module_utils.redis_cluster import PAUSE
from ansible_collections.openclaw.ha.plugins.module_utils.redis_switch import RAISED
from ansible_collections.openclaw.ha.plugins.modules import redis_failover, sentinel_info
from ansible_collections.openclaw.ha.tests.unit.plugins.modules.redis_servers import NAME, Cluster, Writer, wait_for

#: Runs the module's own code, and is ended by SIGKILL after the step that it is told.
KILLED = textwrap.dedent(
    """
    import json, os, signal, sys
    sys.path[:0] = json.loads(sys.argv[3])
    from ansible_collections.openclaw.ha.plugins.module_utils import redis_cluster

    class Cluster(redis_cluster.Cluster):
        def do(self, step, nodes):
            super().do(step, nodes)
            if step.action == sys.argv[2]:
                os.kill(os.getpid(), signal.SIGKILL)

    arguments = json.loads(sys.argv[1])
    redis_cluster.switch(Cluster(arguments, 1), to=arguments["to"])
    """
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    found = Cluster(tmp_path_factory.mktemp("switch"))
    yield found
    found.stop()


@pytest.fixture
def switch(run_module, cluster):
    def run(check=False, **changes):
        return run_module(redis_failover, check=check, **{**cluster.arguments, "wait": 40, **changes})

    return run


@pytest.fixture
def settled(run_module, cluster):
    """Everybody agrees; the host of the primary."""

    def wait():
        def probe():
            view = run_module(sentinel_info, **cluster.arguments)
            links = [known["link"] for one in view["sentinels"] if "known" in one for known in one["known"].values()]
            return view if view["state"] == "agreed" and not view["problems"] and all(links) else None

        return cluster.at(wait_for("agreement", probe, 60)["primary"])["host"]

    return wait


def kill_after(cluster, step, to):
    arguments = {**cluster.arguments, "redis_access": {}, "sentinel_access": {}, "elsewhere": [], "standby": False, "to": to}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, json.dumps(arguments), step, json.dumps([path for path in sys.path if path])],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_a_switch_loses_nothing_and_names_its_steps(switch, settled, cluster):
    old = settled()
    with Writer(cluster) as writer:
        done = switch()
        assert not done["failed"], done
        count = len(writer.acknowledged)
        wait_for("writes to the new primary", lambda: len(writer.acknowledged) > count + 20)
    assert not writer.lost()
    assert [step["step"] for step in done["steps"]] == ["pause", "failover", "demote"]
    assert done["changed"] and done["lost_bytes"] == 0 and 0 < done["write_gap"] < 10
    assert cluster.at(done["former"])["host"] == old and cluster.at(done["primary"])["host"] == settled()
    assert "Lost: 0 bytes" in done["msg"]
    # What the old one is now stands in its file, so that it comes back as a replica.
    port = done["primary"].rpartition(":")[2]
    assert f"replicaof 127.0.0.1 {port}" in cluster.configs[old][1].read_text()


def test_check_mode_tells_the_first_step_and_does_nothing(switch, settled, cluster):
    before = settled()
    done = switch(check=True)
    assert done["changed"] and [step["step"] for step in done["steps"]] == ["pause"]
    assert len(done["seen"]) == 6 and "primary, 2 replicas" in " ".join(done["seen"])
    cluster.client(cluster.node(before)).publish("nobody", "")  # waits, when writes are paused
    assert settled() == before


def test_the_wanted_host_is_chosen_and_priorities_are_as_before(switch, settled, cluster):
    wanted = next(node["host"] for node in cluster.redis[::-1] if node["host"] != settled())
    with Writer(cluster) as writer:
        done = switch(to=wanted)
    assert not done["failed"], done
    assert settled() == wanted and not writer.lost()
    assert {step["step"] for step in done["steps"]} == {"prefer", "pause", "failover", "demote", "restore"}
    assert {cluster.client(node).config_get("replica-priority")["replica-priority"] for node in cluster.redis} == {"100"}
    again = switch(to=wanted)
    assert again["changed"] is False and "nothing was to be done" in again["msg"]


@pytest.mark.parametrize("step", ["pause", "failover", "demote"])
def test_a_killed_switch_is_finished_or_undone_by_the_next(step, switch, settled, cluster):
    old = settled()
    with Writer(cluster) as writer:
        kill_after(cluster, step, None)
        done = switch(leave=old)
        assert not done["failed"], done
        count = len(writer.acknowledged)
        wait_for("writes afterwards", lambda: len(writer.acknowledged) > count + 20)
    assert not writer.lost()
    assert writer.longest_gap < PAUSE
    assert settled() != old


def test_a_killed_preference_is_taken_back(switch, settled, cluster):
    old = settled()
    wanted = next(node for node in cluster.redis if node["host"] != old)
    kill_after(cluster, "prefer", f"{wanted['address']}:{wanted['port']}")
    assert any(int(cluster.client(node).config_get("replica-priority")["replica-priority"]) > RAISED for node in cluster.redis)
    done = switch(to=old)
    assert [step["step"] for step in done["steps"]] == ["restore"] and "tidied up" in done["msg"]
    assert settled() == old


def refusal(result, *words):
    assert result["failed"], result
    assert all(word in result["msg"] for word in words), result["msg"]
    assert "Nothing was changed." in result["msg"] and result["changed"] is False


def test_refused_while_a_server_is_frozen(switch, settled, cluster):
    frozen = next(node["host"] for node in cluster.redis if node["host"] != settled())
    cluster.signal(frozen, signal.SIGSTOP)
    try:
        refusal(switch(wait=0), f"Redis on {frozen}", "does not answer")
    finally:
        cluster.signal(frozen, signal.SIGCONT)
    settled()


def test_refused_while_a_sentinel_is_frozen(switch, settled, cluster):
    settled()
    cluster.signal("watch2", signal.SIGSTOP)
    try:
        refusal(switch(wait=0), "Sentinel on watch2", "does not answer")
    finally:
        cluster.signal("watch2", signal.SIGCONT)
    settled()


def test_refused_while_a_replica_follows_another_one(switch, settled, cluster):
    primary = settled()
    replica = next(node for node in cluster.redis if node["host"] != primary)
    cluster.client(replica).execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        refusal(switch(wait=0), f"Redis on {replica['host']}", "follows 127.0.0.1:1, not the primary")
    finally:
        cluster.client(replica).execute_command("REPLICAOF", "127.0.0.1", cluster.node(primary)["port"])
    settled()


def test_refused_while_too_few_replicas_count(switch, settled, cluster):
    client = cluster.client(cluster.node(settled()))
    client.config_set("min-replicas-to-write", 3)
    try:
        refusal(switch(wait=0), "min-replicas-to-write")
    finally:
        client.config_set("min-replicas-to-write", 0)


def test_refused_while_the_quorum_is_another(switch, settled, cluster):
    settled()
    watch = cluster.client(cluster.node("watch3"))
    watch.execute_command("SENTINEL", "SET", NAME, "quorum", 3)
    try:
        refusal(switch(wait=0), "Sentinel on watch3", "has quorum 3, not 2")
    finally:
        watch.execute_command("SENTINEL", "SET", NAME, "quorum", 2)


def test_refused_while_the_append_only_file_cannot_be_rewritten(switch, settled, cluster):
    host = settled()
    client = cluster.client(cluster.node(host))
    directory = cluster.configs[host][1].parent / "appendonlydir"
    hidden = directory.with_name("hidden")
    os.rename(directory, hidden)
    directory.write_text("in the way")
    try:
        with pytest.raises(redis.ResponseError, match="Can't execute an AOF background rewriting"):
            client.bgrewriteaof()
        refusal(switch(wait=0), f"Redis on {host}", "aof_last_bgrewrite_status")
    finally:
        directory.unlink()
        os.rename(hidden, directory)
        wait_for("a rewrite", lambda: client.info("persistence")["aof_rewrite_in_progress"] == 0 and client.bgrewriteaof())
        wait_for("the rewrite to succeed", lambda: client.info("persistence")["aof_last_bgrewrite_status"] == "ok")


def test_refused_with_two_primaries_and_both_are_named(switch, settled, cluster):
    primary = settled()
    rebel = next(node for node in cluster.redis if node["host"] != primary)
    cluster.client(rebel).execute_command("REPLICAOF", "NO", "ONE")
    try:
        refusal(switch(wait=20), f"{primary} (127.0.0.1", f"{rebel['host']} (127.0.0.1")
    finally:
        cluster.client(rebel).execute_command("REPLICAOF", "127.0.0.1", cluster.node(primary)["port"])
    assert settled() == primary


def test_an_unknown_host_is_refused(switch):
    assert "no Redis on a host 'nowhere'" in switch(to="nowhere")["msg"]


def test_replicas_that_cannot_catch_up_end_the_pause(switch, settled, cluster, monkeypatch):
    """What is written after the gates were passed, and before the pause, must arrive; a replica that stops for that time does not get it."""
    primary = settled()
    slow = next(node["host"] for node in cluster.redis if node["host"] != primary)
    pause = redis_cluster.Cluster.pause

    def pause_with_a_slow_replica(self, address):
        cluster.signal(slow, signal.SIGSTOP)
        cluster.client(cluster.node(primary)).set("late", "write")
        pause(self, address)

    monkeypatch.setattr(redis_cluster.Cluster, "pause", pause_with_a_slow_replica)
    try:
        done = switch(wait=20)
    finally:
        cluster.signal(slow, signal.SIGCONT)
    assert done["failed"] and [step["step"] for step in done["steps"]] == ["pause", "unpause"], done
    cluster.client(cluster.node(primary)).set("written", "again")  # waits, when writes are paused
    assert settled() == primary


def test_a_step_that_the_server_refuses_is_told_and_undone(switch, settled, cluster):
    """The user may do everything but pause, then everything but restore."""
    primary = settled()
    for node in cluster.redis:
        cluster.client(node).execute_command("ACL", "SETUSER", "limited", "on", ">limited", "~*", "&*", "+@all", "-client|pause")
    access = {"username": "limited", "password": "limited"}
    done = switch(redis_access=access)
    assert done["failed"] and f"Step pause on {primary}" in done["msg"] and "permissions" in done["msg"], done["msg"]
    wanted = next(node for node in cluster.redis if node["host"] != primary)
    kill_after(cluster, "prefer", f"{wanted['address']}:{wanted['port']}")
    for node in cluster.redis:
        cluster.client(node).execute_command("ACL", "SETUSER", "limited", "-config|set")
    done = switch(to=primary, redis_access=access)
    assert done["failed"] and "Step restore on" in done["msg"], done["msg"]
    assert [step["step"] for step in switch(to=primary)["steps"]] == ["restore"]
    assert settled() == primary
