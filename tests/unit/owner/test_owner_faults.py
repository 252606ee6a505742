"""Daemons, gateways and Redis that die, hang or stand still: what is not proven off is killed, and what has no lease is off."""

from __future__ import annotations

import json
import signal

from owner_rig import POLL, lines, token, until

LEASE = "oc:owner:telegram/poll"
#: Times for tests that wait for the end of a lease.
SHORT = {"lease_seconds": 6, "stop_seconds": 3, "proof_seconds": 2, "fence_seconds": 0.5, "redis_timeout": 0.3}


def test_a_daemon_that_is_killed_goes_on_with_its_lease(redis, cluster):
    pair = cluster(2)
    gateway, daemon = pair.owner()
    daemon.kill()
    assert gateway.file() == {}
    until(lambda: not gateway.on())
    daemon.start().ready()
    assert pair.owner()[0] is gateway and token(redis) == 1
    assert lines(daemon, f"a former life has left it to {gateway.name}, resuming", "token 1")


def test_a_daemon_that_is_killed_alone_goes_on_without_a_switch(redis, cluster):
    pair = cluster(2)
    gateway, daemon = pair.owner()
    daemon.signal(signal.SIGKILL)
    daemon.process.wait(30)
    daemon.start().ready()
    until(lambda: daemon.singleton()["state"] == "owned" and daemon.metric("renewals_failed_total") == 0 and daemon.metric("lease_seconds_left") > 40)
    until(lambda: lines(daemon, "has it (token 1"), 30)
    assert [on for _pid, on in gateway.history()] == [["telegram/poll"]] and token(redis) == 1


def test_a_daemon_that_is_killed_and_has_lost_its_lease_stays_off(redis, cluster):
    pair = cluster(2)
    gateway, daemon = pair.owner()
    daemon.kill()
    until(lambda: not gateway.on())
    redis.hset(LEASE, "expires", 1)
    pair.owner(gateway)
    daemon.start().ready()
    until(lambda: daemon.singleton()["state"] == "elsewhere")
    assert gateway.file() == {} and [on for _pid, on in gateway.history()] == [["telegram/poll"], []] and gateway.process.poll() is None
    assert lines(daemon, "gives it up", "the lease is lost") and token(redis) == 2


def test_what_is_on_without_a_lease_is_off_before_anything_else(redis, cluster):
    one = cluster(1, started=False)
    (gateway,), (daemon,) = one.gateways, one.daemons
    (gateway.directory / "channels.json").write_text(json.dumps(POLL["content"]))
    until(gateway.on)
    redis.hset(LEASE, mapping={"holder": "x", "host": "x", "token": 5, "released": 0, "expires": 10**15})
    daemon.start().ready()
    # It holds nothing that would give the gateway time.
    until(lambda: not gateway.on() and gateway.file() == {})
    assert lines(daemon, f"left it to {gateway.name}, giving_up, because it is on, and nobody here knows of a lease") and token(redis) == 5


def test_a_daemon_that_stood_still_past_its_lease_turns_off_and_needs_a_new_one(redis, cluster):
    pair = cluster(2, **SHORT)
    gateway, daemon = pair.owner()
    other = next(one for one in pair.gateways if one is not gateway)
    daemon.signal(signal.SIGSTOP)
    # Nobody kills it, as its watchdog would, and the gateway goes on: what else keeps the other one from it is its end, and then the linger.
    gateway.process.send_signal(signal.SIGSTOP)
    until(lambda: token(redis) == 2 and other.file() == POLL["content"])
    assert gateway.file() == POLL["content"]
    daemon.signal(signal.SIGCONT)
    until(lambda: gateway.file() == {})
    until(lambda: gateway.process.poll() is not None)
    gateway.die()
    gateway.start()
    until(lambda: daemon.singleton()["state"] == "elsewhere" and daemon.health()["replicas"][gateway.name] == "ok")
    assert gateway.file() == {} and gateway.on() == [] and pair.owners() == [other] and token(redis) == 2
    assert lines(daemon, "gives it up", "is not renewed, and ends in 0.0 s")


def test_without_redis_the_owner_is_off_before_its_lease_ends(redis_server, tmp_path, cluster):
    server = redis_server(tmp_path / "own")
    assert server.start()
    pair = cluster(2, server=server, **SHORT | {"proof_seconds": 2})
    gateway, daemon = pair.owner()
    server.stop(kill=True)
    until(lambda: not gateway.on())
    # Its lease was not over when it was off: it says how much was left.
    (line,) = until(lambda: lines(daemon, "gives it up", "its lease is not renewed"))
    until(lambda: lines(daemon, "has it no more"))
    assert float(line.rpartition("token 1, ")[2].split()[0]) > 0.5 and gateway.process.poll() is None
    health = daemon.health()
    assert (health["status"], health["redis"]) == ("degraded", False) and daemon.metric("renewals_failed_total") > 0 and daemon.metric("redis_up") == 0
    until(lambda: daemon.singleton()["replica"] is None)
    assert server.start()
    pair.owner()
    assert int(server.client().hget(LEASE, "token")) >= 1


def test_a_grant_that_is_not_confirmed_is_given_back(redis, cluster):
    one = cluster(1, wait_replicas=1, enough_replicas=1, wait_timeout=0.05)
    (gateway,), (daemon,) = one.gateways, one.daemons
    until(lambda: token(redis) >= 3)
    assert gateway.file() == {} and gateway.history() == [] and daemon.singleton()["state"] != "owned"
    assert lines(daemon, "gives it back at once", "not confirmed by enough replicas")


def test_a_gateway_that_does_not_turn_it_off_is_killed(redis, cluster):
    pair = cluster(2, proof_seconds=1)
    gateway, daemon = pair.owner()
    before = gateway.process.pid
    gateway.deaf()
    gateway.said = "draining"
    assert gateway.process.wait(30) == -signal.SIGKILL
    until(lambda: lines(daemon, "killed and gone", str(before)))
    # Its unit starts it anew, and it reads what the files say now.
    gateway.deaf(False)
    gateway.start()
    pair.owner(gateway)
    until(lambda: daemon.metric("fenced_total", replica=gateway.name) == 1)
    assert token(redis) == 2 and [event["type"] for _id, event in redis.xrange("oc:events")].count("owner_fenced") == 1


def test_a_gateway_that_systemd_stops_is_not_killed_for_it(redis, cluster):
    pair = cluster(2, proof_seconds=0.5, stopping_seconds=60)
    gateway, daemon = pair.owner()
    gateway.deaf()
    gateway.show("deactivating")
    gateway.said = "draining"
    until(lambda: lines(daemon, "gives it up", "draining"))
    # Its lease is renewed while it takes its time.
    renewed = int(redis.hget(LEASE, "expires"))
    until(lambda: int(redis.hget(LEASE, "expires")) > renewed + 2000)
    assert gateway.process.poll() is None and gateway.on() and token(redis) == 1
    gateway.die(signal.SIGTERM)
    pair.owner(gateway)
    assert daemon.metric("fenced_total") == 0


def test_a_process_that_its_unit_has_lost_is_killed_too(redis, cluster):
    one = cluster(1, proof_seconds=0.5)
    gateway, daemon = one.owner()
    gateway.deaf()
    until(lambda: str(gateway.process.pid) in open(daemon.config["state_file"], encoding="utf-8").read())
    (gateway.units / gateway.unit).write_text("MainPID=0\nActiveState=inactive\n")
    # It is no unit's any more, but it is the one in which the singleton was turned on.
    gateway.said = "down"
    assert gateway.process.wait(30) == -signal.SIGKILL
    until(lambda: int(redis.hget(LEASE, "released")) == 1)


def test_a_host_that_has_lost_its_notes_gives_back_what_it_proves_off(redis, cluster):
    one = cluster(1, started=False)
    (gateway,), (daemon,) = one.gateways, one.daemons
    redis.hset(LEASE, mapping={"holder": gateway.name, "host": daemon.name, "token": 5, "released": 0, "expires": 10**15})
    daemon.start().ready()
    one.owner()
    assert token(redis) == 6 and lines(daemon, "gives it up", "nobody here knows of its lease", "token 5")
