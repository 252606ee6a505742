"""Daemons as processes: one replica has a singleton, another has it when it is to, and never both."""

from __future__ import annotations

import json
import os
import signal
import socket

import pytest
from owner_rig import CRON, POLL, lines, token, until

LEASE = "oc:owner:telegram/poll"


def test_one_replica_of_three_has_it_and_all_say_so(redis, cluster):
    three = cluster(3)
    gateway, daemon = three.owner()
    assert gateway.file() == POLL["content"] and gateway.file("cron") == {}
    assert (gateway.directory / "channels.json").stat().st_mode & 0o777 == 0o640
    lease = redis.hgetall(LEASE)
    assert (lease["holder"], lease["host"], lease["released"], lease["token"]) == (gateway.name, daemon.name, "0", "1") and redis.ttl(LEASE) == -1
    for one in three.daemons:
        found = until(lambda one=one: one.singleton()["holder"] and one.singleton())
        assert (found["holder"], found["host"], found["token"], found["since"]) == (gateway.name, daemon.name, 1, int(lease["since"]))
        assert found["state"] == ("owned" if one is daemon else "elsewhere") and found["replica"] == (gateway.name if one is daemon else None)
        until(lambda one=one: one.metric("since_timestamp_seconds", singleton="telegram/poll") == int(lease["since"]))
        assert one.metric("owned", singleton="telegram/poll") == (one is daemon) and one.metric("redis_up") == 1
    assert daemon.metric("owned", replica=gateway.name) == daemon.metric("changes_total") == 1 and daemon.metric("lease_seconds_left") > 40
    assert lines(daemon, "telegram/poll", f"{gateway.name} has it", "token 1")
    # It stays: renewals go on, under the same token.
    until(lambda: int(redis.hget(LEASE, "expires")) > int(lease["expires"]) + 500)
    assert token(redis) == 1 and three.owners() == [gateway]
    assert [len(one.history()) for one in three.gateways if one is not gateway] == [0, 0]
    (event,) = [fields for _id, fields in redis.xrange("oc:events")]
    assert (event["type"], event["replica"], json.loads(event["detail"])["replica"]) == ("owner_on", daemon.name, gateway.name)


def test_two_replicas_of_a_host_share_the_singletons(cluster):
    one = cluster(1, 2, singletons=[POLL, CRON])
    first, _daemon = one.owner()
    second, _daemon = one.owner(name="cron")
    assert first is not second and (first.file("cron"), second.file("channels")) == ({}, {})


def test_a_replica_that_is_killed_is_succeeded_at_once(redis, cluster):
    pair = cluster(2)
    gateway, daemon = pair.owner()
    gateway.die()
    # With a lease of 60 s nothing but the release lets the other have it so soon.
    after, _other = pair.owner(gateway)
    assert token(redis) == 2 and after.file() == POLL["content"] and gateway.file() == {}
    assert lines(daemon, gateway.name, "gives it up", "its replica is down") and lines(daemon, "has it no more", "its process is gone")
    assert daemon.metric("fenced_total") == 0


@pytest.mark.parametrize("proof", [True, False])
def test_a_replica_that_is_drained_hands_it_over_first(redis, cluster, proof):
    pair = cluster(2, proof=proof)
    gateway, daemon = pair.owner()
    gateway.said = "draining"
    pair.owner(gateway)
    assert [on for _pid, on in gateway.history()] == [["telegram/poll"], []] and gateway.process.poll() is None
    why = "its process says so" if proof else "its process has served for"
    assert lines(daemon, "has it no more", why) and token(redis) == 2
    # Nobody takes it back from a healthy one.
    gateway.said = None
    until(lambda: daemon.health()["replicas"][gateway.name] == "ok")
    changes = [one.metric("changes_total") for one in pair.daemons]
    renewed = redis.hget(LEASE, "expires")
    until(lambda: int(redis.hget(LEASE, "expires")) > int(renewed) + 1000)
    assert [one.metric("changes_total") for one in pair.daemons] == changes and token(redis) == 2


def test_a_drained_one_stops_it_by_itself_before_it_is_turned_off(redis, cluster):
    pair = cluster(2, finish_seconds=60)
    gateway, daemon = pair.owner()
    (gateway.directory / "busy").touch()
    until((gateway.directory / "keeping").exists)
    assert not (gateway.directory / "leaving").exists()
    gateway.said = "draining"
    until((gateway.directory / "leaving").exists)
    renewed = redis.hget(LEASE, "expires")
    until(lambda: int(redis.hget(LEASE, "expires")) > int(renewed) + 500)
    assert pair.owners() == [gateway] and daemon.singleton()["state"] == "owned" and token(redis) == 1
    (gateway.directory / "busy").unlink()
    pair.owner(gateway)
    assert token(redis) == 2 and not lines(daemon, "killed")


def test_a_playbook_waits_until_a_drained_replica_has_nothing(cluster):
    pair = cluster(2, finish_seconds=60)
    gateway, daemon = pair.owner()
    other = next(one for one in pair.daemons if one is not daemon)
    assert other.command("wait", gateway.name) == (2, "", f"openclaw-owner: {gateway.name} is no replica of this host.\n")
    assert other.command("wait", other.gateways[0].name) == (0, "", "")
    said = (1, "", f"openclaw-owner: after 0.1 s {gateway.name} still has telegram/poll.\n")
    assert daemon.command("wait", gateway.name, "--seconds", "0.1") == said
    gateway.said = "draining"
    assert daemon.command("wait", gateway.name, "--seconds", "30") == (0, "", "")
    assert gateway.on() == [] and gateway.file() == {}


def test_one_that_never_stops_it_is_not_waited_for_for_ever(redis, cluster):
    pair = cluster(2, finish_seconds=0.5)
    gateway, _daemon = pair.owner()
    (gateway.directory / "busy").touch()
    gateway.said = "draining"
    pair.owner(gateway)
    assert token(redis) == 2


def test_a_degraded_replica_keeps_it(redis, cluster):
    pair = cluster(2)
    gateway, daemon = pair.owner()
    gateway.said = "degraded"
    until(lambda: daemon.health()["replicas"][gateway.name] == "degraded")
    renewed = redis.hget(LEASE, "expires")
    until(lambda: int(redis.hget(LEASE, "expires")) > int(renewed) + 1000)
    assert token(redis) == 1 and pair.owners() == [gateway]


def test_give_hands_it_to_another_host(redis, cluster):
    pair = cluster(2)
    gateway, daemon = pair.owner()
    other = next(one for one in pair.daemons if one is not daemon)
    assert other.command("give", "telegram/poll")[0] == 1
    assert "no replica of this host has telegram/poll" in other.command("give", "telegram/poll")[2]
    assert daemon.command("give", "x") == (1, "", "openclaw-owner: there is no singleton x.\n")
    code, out, err = daemon.command("give", "telegram/poll")
    assert (code, err) == (0, "") and out == f"telegram/poll: {gateway.name} gives it up, and this host does not take it for 60 s\n"
    pair.owner(gateway)
    assert lines(daemon, "gives it up", "somebody asked for it") and token(redis) == 2


def test_a_daemon_that_is_ended_hands_over_first(redis, cluster):
    pair = cluster(2)
    gateway, daemon = pair.owner()
    assert daemon.stop() == 0
    assert gateway.on() == [] and gateway.file() == {} and int(redis.hget(LEASE, "token")) <= 2
    pair.owner(gateway)
    assert token(redis) == 2 and json.loads(open(daemon.config["state_file"], encoding="utf-8").read()) == {}
    assert lines(daemon, "gives it up", "the daemon stops")


def test_what_left_the_configuration_is_given_up(redis, cluster):
    pair = cluster(2)
    gateway, daemon = pair.owner()
    other = next(one for one in pair.daemons if one is not daemon)
    daemon.signal(signal.SIGKILL)
    daemon.process.wait(30)
    daemon.config["replicas"] = []
    daemon.write()
    daemon.start().ready()
    assert pair.owner(gateway)[1] is other
    assert gateway.file() == {} and lines(daemon, "gives it up", "not configured any more") and token(redis) == 2


def test_a_second_daemon_of_the_host_does_not_start(cluster):
    one = cluster(1)
    (daemon,) = one.daemons
    first = daemon.process
    daemon.start()
    second, daemon.process = daemon.process, first
    assert second.wait(30) == 2 and lines(daemon, "another daemon that runs has it")


def test_status(cluster):
    one = cluster(1, singletons=[POLL, CRON | {"linger_seconds": 5}])
    gateway, daemon = one.owner()
    one.owner(name="cron")
    until(lambda: all(entry["holder"] for entry in daemon.health()["singletons"].values()))
    code, out, err = daemon.command("status")
    head, *rows = out.splitlines()
    assert (code, err) == (0, "") and head.split() == ["SINGLETON", "STATE", "HOLDER", "HOST", "SINCE", "TOKEN", "FREE", "IN"]
    assert [row.split()[:4] for row in rows] == [["cron", "owned", gateway.name, "h1"], ["telegram/poll", "owned", gateway.name, "h1"]]
    found = json.loads(daemon.command("status", "--json")[1])
    assert found["status"] == "ok" and 50 < found["singletons"]["cron"]["waiting_seconds"] <= 65
    assert daemon.command("check") == (0, "", "")
    daemon.stop()
    code, out, err = daemon.command("status")
    assert (code, out) == (1, "") and err.startswith("openclaw-owner: the daemon of this host does not answer: ")


def test_systemd_is_told_that_it_lives(tmp_path, cluster, monkeypatch):
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        cluster(1)
        told = [listener.recv(100) for _number in range(4)]
    assert told == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1", b"WATCHDOG=1"]


def test_off_says_what_it_cannot_write(cluster):
    one = cluster(1, started=False)
    (gateway,), (daemon,) = one.gateways, one.daemons
    (gateway.directory / "channels.json").write_text(json.dumps(POLL["content"]))
    os.mkdir(gateway.directory / "cron.json")
    code, _out, err = daemon.command("off")
    assert code == 1 and "cron.json cannot be written" in err and gateway.file() == {}


def test_one_that_is_killed_and_back_leaves_on_what_is_on(redis, cluster, monkeypatch):
    one = cluster(1, lease_seconds=9, stop_seconds=3, proof_seconds=2, fence_seconds=0.5)
    (gateway,), (daemon,) = one.gateways, one.daemons
    until(gateway.on)
    monkeypatch.setenv("SERVICE_RESULT", "watchdog")
    content = gateway.file()
    daemon.signal(signal.SIGKILL)
    daemon.process.wait(30)
    assert daemon.command("off") == (0, "", "") and gateway.file() == content != {}
    daemon.start().ready()
    until(lambda: daemon.singleton()["state"] == "owned")
    assert gateway.file() == content and token(redis) == 1, "the same lease"
    # One whose next lives come to nothing: what is on is off before its lease ends.
    daemon.signal(signal.SIGKILL)
    daemon.process.wait(30)
    until(lambda: daemon.command("off") == (0, "", "") and gateway.file() == {})
    assert redis.exists("oc:owner:telegram/poll")


@pytest.mark.parametrize("result", ["success", "exit-code", "timeout"])
def test_one_that_is_not_back_leaves_nothing_on(cluster, monkeypatch, result):
    one = cluster(1)
    (gateway,), (daemon,) = one.gateways, one.daemons
    until(gateway.on)
    monkeypatch.setenv("SERVICE_RESULT", result)
    daemon.signal(signal.SIGKILL)
    daemon.process.wait(30)
    assert daemon.command("off") == (0, "", "") and gateway.file() == {}


def test_a_gateway_that_has_missed_a_change_is_told_once_more(redis, cluster):
    one = cluster(1, started=False)
    (gateway,), (daemon,) = one.gateways, one.daemons
    (gateway.directory / "misses").touch()
    daemon.start().ready()
    until(gateway.on)
    assert lines(daemon, f"{gateway.name} has not heard of", "it is written once more") and token(redis) == 1
