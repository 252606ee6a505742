"""Ingresses as processes: what is acknowledged reaches a turn once and in order, whatever dies in between."""

from __future__ import annotations

import contextlib
import datetime
import http.client
import ipaddress
import json
import os
import pathlib
import signal
import subprocess
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from ingress_rig import HEADER, SECRETS, Replica, account, at_once, claim_key, twice, until, update
from redis import ConnectionError as ConnectionFailed
from redis import Redis as Client

from tests.ports import free_port


COMMITTED = json.dumps({"state": "committed", "fingerprint": ""})


def looks(redis):
    """How often somebody has looked at a conversation."""
    return int(redis.get("oc:ingress:token") or 0)


def stored(redis):
    """Number of events in the journal, waiting or dead."""
    return redis.xlen("oc:ingress:journal")


def empty(redis):
    """Nothing of an event is left but the note that it was seen."""
    lasting = {"oc:ingress:journal", "oc:ingress:token", "oc:ingress:size"}
    left = [key for key in redis.keys("oc:ingress:*") if ":seen:" not in key and key not in lasting]
    return not left and not stored(redis) and not [one for one in redis.hmget("oc:ingress:size", "bytes", "dead_bytes") if int(one or 0)]


# --- from the door to the turn


def test_an_event_goes_to_a_replica_and_is_forgotten_when_its_turn_is_committed(redis, replicas, ingress):
    (replica,) = replicas(1, "hold")
    running = ingress([replica])
    document = update(1)
    assert running.post(document, SECRETS[1], **{"X-Custom": "kept"})[0] == 200
    until(lambda: redis.get(claim_key(42, 1)))
    ((headers, body),) = replica.received
    assert json.loads(body) == document
    # As the provider sent it, but for the secret: the first one is the gateways'.
    assert (headers[HEADER], headers["Content-Type"], headers["User-Agent"], headers["X-Custom"]) == (SECRETS[0], "application/json", "Telegram", "kept")
    assert headers["X-Forwarded-For"] is None
    assert stored(redis) == 1 and running.metric("committed_total") == 0
    replica.finish(1)
    until(lambda: empty(redis))
    # A metric follows what is seen in Redis.
    until(lambda: running.metric("committed_total", account="telegram/default") == running.metric("commit_seconds_count") == 1)
    assert replica.messages == [1] and running.metric("delivered_total") == running.metric("accepted_total") == 1
    assert not [one for one in SECRETS if one in json.dumps(redis.keys())]


def test_no_secret_is_stored(redis, replicas, ingress):
    running = ingress(replicas(1, 503))
    running.send(update(1))
    ((_id, fields),) = redis.xrange("oc:ingress:journal")
    assert not [one for one in SECRETS if one in json.dumps(fields)]
    running.stop()


def test_a_conversation_is_delivered_in_order_one_at_a_time_and_others_beside_it(redis, replicas, ingress):
    one, two = replicas(2, "hold")
    running = ingress([one, two])
    running.send(update(1), update(2), update(3), update(4, chat=43))

    def got():
        return sorted(one.messages + two.messages)

    for expected, number in (([1, 4], 1), ([1, 2, 4], 2), ([1, 2, 3, 4], 3)):
        until(lambda: got() == expected and any(number in replica.running for replica in (one, two)))
        until(lambda: redis.hlen("oc:ingress:state") == 2 and redis.get(claim_key(42, number)))
        assert got() == expected
        next(replica for replica in (one, two) if number in replica.running).finish(number)
    until(lambda: 4 in one.running or 4 in two.running)
    (one if 4 in one.running else two).finish(4)
    until(lambda: empty(redis))


def test_an_album_goes_together_to_one_replica(redis, replicas, ingress):
    one, two = replicas(2, "silent")
    running = ingress([one, two], quiet_seconds=30)
    running.send(*(update(number, media_group_id="album") for number in (1, 2, 3)), update(4))
    album = until(lambda: next((replica for replica in (one, two) if len(replica.received) == 3), None))
    assert album.messages == [1, 2, 3] and len(one.received + two.received) == 3
    # The gateway makes one turn of it, under one id.
    album.turn({"chat": {"id": 42}, "message_id": 2}, False)
    until(lambda: len(one.received + two.received) == 4)
    until(lambda: running.metric("committed_total") == 3)
    assert running.metric("no_turn_total") == 0


def test_within_an_album_nothing_overtakes(redis, replicas, ingress):
    (replica,) = replicas(1, 503)
    running = ingress([replica], max_attempts=1000)
    running.send(*(update(number, media_group_id="album") for number in (1, 2, 3)))
    until(lambda: len(replica.received) >= 5)
    replica.mode = "commit"
    until(lambda: empty(redis))
    assert list(dict.fromkeys(replica.messages)) == [1, 2, 3] and replica.messages == sorted(replica.messages) and replica.turns[0] == 1


def test_the_same_update_many_times_at_two_ingresses_is_one_turn(redis, replicas, ingress):
    both = replicas(2)
    first, second = ingress(both, 2)
    answers = at_once(12, lambda number: (first, second)[number % 2].post(update(1))[0], range(12))
    assert answers == [200] * 12
    until(lambda: empty(redis))
    assert [first.post(update(1))[0], second.post(update(1))[0]] == [200, 200]
    assert len(both[0].received + both[1].received) == 1
    assert first.metric("accepted_total") + second.metric("accepted_total") == 1
    assert first.metric("duplicates_total") + second.metric("duplicates_total") == 13


def test_a_burst_of_500_is_accepted_and_every_turn_happens_once_and_in_order(redis, replicas, ingress):
    both = replicas(2)
    pair = ingress(both, 2)

    def conversation(chat):
        return [pair[number % 2].post(update(chat * 1000 + number, chat=chat))[0] for number in range(10)]

    assert at_once(25, conversation, range(1, 51)) == [[200] * 10] * 50
    until(lambda: empty(redis), 40)
    turns = both[0].turns + both[1].turns
    assert len(turns) == 500 and not twice(turns)
    for replica in both:
        for chat in range(1, 51):
            mine = [one for one in replica.messages if one // 1000 == chat]
            assert mine == sorted(mine)
    until(lambda: all(one.metric("queue_events") == 0 for one in pair))


def test_a_replica_has_no_more_than_it_may_have(redis, replicas, ingress):
    """What a gateway cannot begin soon is better off in the journal."""
    both = replicas(2, "hold")
    running = ingress(both, replica_events=2)
    running.send(*(update(number, chat=number) for number in range(1, 11)))
    until(lambda: len(both[0].running) == len(both[1].running) == 2)
    before = looks(redis)
    until(lambda: looks(redis) > before + 20)
    assert len(both[0].received + both[1].received) == 4 and stored(redis) == 10
    both[0].finish(next(iter(both[0].running)))
    until(lambda: len(both[0].running) == 3)
    for one in both:
        one.mode = "commit"
        for number in list(one.running):
            one.finish(number)
    until(lambda: empty(redis))
    assert sorted(both[0].turns + both[1].turns) == list(range(1, 11)) and redis.exists("oc:ingress:held", "oc:ingress:holding") == 0


def test_what_nobody_claims_leaves_its_place(redis, replicas, ingress):
    """A stranger's message begins no turn: many of them must not keep the others out."""
    (replica,) = replicas(1, "silent")
    running = ingress([replica], replica_events=1, quiet_seconds=60)
    running.send(update(1, chat=1), update(2, chat=2))
    until(lambda: len(replica.received) == 2)
    assert running.metric("no_turn_total") == 0 and not empty(redis), "both are waited for"


def test_the_next_message_waits_until_the_gateway_is_through_with_the_first(redis, replicas, ingress):
    (replica,) = replicas(1, "hold")
    running = ingress([replica], quiet_seconds=60)
    running.send(update(1), update(2))
    until(lambda: 1 in replica.running)
    redis.set(claim_key(42, 1), COMMITTED)
    before = looks(redis)
    until(lambda: looks(redis) > before + 10)
    assert replica.messages == [1]
    replica.finish(1)
    until(lambda: 2 in replica.running)
    replica.finish(2)
    until(lambda: empty(redis))


def test_a_claim_that_is_gone_for_a_moment_is_no_second_chance(redis, replicas, ingress):
    """While Redis is away nobody renews: the one who runs the turn takes the claim again when it is back."""
    one, two = replicas(2, "hold")
    running = ingress([one, two], gone_seconds=30)
    running.send(update(1))
    has = until(lambda: next((replica for replica in (one, two) if 1 in replica.running), None))
    until(lambda: '"claimed":true' in str(redis.hvals("oc:ingress:state")))
    key = claim_key(42, 1)
    held = redis.getdel(key)
    until(lambda: '"unclaimed":null' not in str(redis.hvals("oc:ingress:state")))
    redis.set(key, held, px=60000)
    until(lambda: '"unclaimed":null' in str(redis.hvals("oc:ingress:state")))
    has.finish(1)
    until(lambda: empty(redis))
    assert len(one.received + two.received) == 1


# --- replicas die


def test_a_replica_dies_between_its_200_and_the_claim(redis, replicas, ingress):
    one, two = replicas(2, "silent")
    running = ingress([one, two], quiet_seconds=60)
    running.send(update(1))
    dead = until(lambda: next((replica for replica in (one, two) if replica.received), None))
    until(lambda: redis.hget("oc:ingress:state", redis.xrange("oc:ingress:journal")[0][0]).count('"delivered":null') == 0)
    living = two if dead is one else one
    living.mode = "commit"
    dead.die()
    until(lambda: empty(redis))
    assert living.turns == [1] and running.metric("redelivered_total") == 1


def test_a_replica_starts_anew_between_its_200_and_the_claim(redis, replicas, ingress):
    (replica,) = replicas(1, "silent")
    running = ingress([replica], quiet_seconds=60)
    running.send(update(1))
    until(lambda: running.metric("delivered_total") == 1)
    replica.restart("commit")
    until(lambda: empty(redis))
    assert replica.messages == [1, 1] and replica.turns == [1] and running.metric("redelivered_total") == 1


def test_a_replica_dies_between_the_claim_and_the_commit(redis, replicas, ingress):
    one, two = replicas(2, "hold")
    running = ingress([one, two], quiet_seconds=60)
    running.send(update(1), update(2))
    dead = until(lambda: next((replica for replica in (one, two) if 1 in replica.running), None))
    until(lambda: '"claimed":true' in str(redis.hvals("oc:ingress:state")))
    living = two if dead is one else one
    living.mode = "commit"
    # Its agent goes on, and says so; what decides is the claim's end.
    dead.status, dead.alive = "ok", False
    until(lambda: 1 in living.turns)
    dead.die()
    until(lambda: empty(redis))
    assert living.turns == [1, 2] and dead.messages == [1]


def test_a_replica_dies_between_the_commit_and_its_answer(redis, replicas, ingress):
    one, two = replicas(2, "hold")
    running = ingress([one, two], quiet_seconds=60)
    running.send(update(1))
    dead = until(lambda: next((replica for replica in (one, two) if 1 in replica.running), None))
    until(lambda: '"claimed":true' in str(redis.hvals("oc:ingress:state")))
    dead.die()
    redis.set(claim_key(42, 1), COMMITTED)
    until(lambda: running.metric("dead_total", reason="unsent") == 1)
    assert len(one.received + two.received) == 1, "nobody runs it again"
    (letter,) = json.loads(running.command("list", "--dead", "--json")[1])
    code, _out, error = running.command("replay", letter["id"])
    assert code == 2 and letter["id"] in error and "nobody runs it again" in error
    assert running.command("replay", "--all")[0] == 0 and stored(redis) == 1
    assert running.command("drop", letter["id"])[0] == 0


def test_an_agent_that_is_away_for_a_moment_is_no_death_of_its_replica(redis, replicas, ingress):
    (replica,) = replicas(1, "silent")
    running = ingress([replica], quiet_seconds=60, verdict_grace=5)
    running.send(update(1))
    until(lambda: running.metric("delivered_total") == 1)
    replica.status, asked = None, replica.looks
    until(lambda: replica.looks > asked + 5)
    before = looks(redis)
    until(lambda: looks(redis) > before + 3)
    assert running.health()[1]["replicas"] == {"r1": "ok"} and len(replica.received) == 1
    until(lambda: '"redelivered":true' in str(redis.hvals("oc:ingress:state")))  # but not for ever
    assert running.health()[1]["replicas"] == {"r1": ""}
    replica.mode, replica.status = "commit", "ok"
    until(lambda: empty(redis))
    assert replica.turns == [1]


def test_a_turn_that_takes_its_time_is_not_delivered_again(redis, replicas, ingress):
    one, two = replicas(2, "hold")
    running = ingress([one, two], quiet_seconds=0.1)
    running.send(update(1))
    has = until(lambda: next((replica for replica in (one, two) if 1 in replica.running), None))
    before = looks(redis)
    until(lambda: looks(redis) > before + 10)
    assert len(one.received + two.received) == 1 and running.metric("no_turn_total") == 0
    has.status = "draining"
    until(lambda: running.health()[1]["replicas"][has.name] == "draining")
    has.finish(1)
    until(lambda: empty(redis))
    assert len(one.received + two.received) == 1


def test_an_event_that_begins_no_turn_is_forgotten_after_a_while(redis, replicas, ingress):
    (replica,) = replicas(1, "silent")
    running = ingress([replica], quiet_seconds=0.2)
    running.send(update(1), {"update_id": 5, "callback_query": {"id": "1", "from": {"id": 42}, "message": update(1)["message"]}, "message": {"message_id": 9}})
    until(lambda: empty(redis))
    until(lambda: running.metric("no_turn_total") == 2)
    assert running.metric("committed_total") == 0


def test_what_a_gateway_is_through_with_holds_nobody_up(redis, replicas, ingress):
    """A stranger's message, words in a group that are not for the bot: the gateway says that it is through, and nobody has claimed it."""
    (replica,) = replicas(1, "silent")
    running = ingress([replica], quiet_seconds=3600)
    running.send(update(1), update(2))
    until(lambda: replica.messages == [1])
    redis.set("oc:inbound:telegram/default/1001", "completed")
    until(lambda: replica.messages == [1, 2])
    redis.set("oc:inbound:telegram/default/1002", "failed")
    until(lambda: running.metric("dead_total", reason="unanswered") == 1)
    assert running.metric("no_turn_total") == 1


def test_what_a_dead_replica_had_and_nobody_began_again_is_told(redis, replicas, ingress):
    (replica,) = replicas(1, "silent")
    # Long enough that the death is seen first, however busy the machine.
    running = ingress([replica], quiet_seconds=4)
    running.send(update(1))
    until(lambda: replica.received)
    replica.status = "down"
    # Until the event itself was looked at: a replica that is called dead for less than that is not dead to it.
    until(lambda: '"redelivered":true' in str(redis.hvals("oc:ingress:state")))
    assert running.health()[1]["replicas"] == {replica.name: "down"}
    replica.status = "ok"
    until(lambda: running.metric("dead_total", reason="unanswered") == 1)
    assert len(replica.received) == 2 and running.metric("no_turn_total") == 0


def test_only_undrained_living_replicas_get_events(redis, replicas, ingress):
    one, two, three = replicas(3)
    one.status, two.status = "draining", "down"
    running = ingress([one, two, three])
    running.send(*(update(number, chat=number) for number in range(1, 10)))
    until(lambda: empty(redis))
    assert not one.received and not two.received and len(three.turns) == 9
    one.status = three.status = "degraded"
    until(lambda: set(running.health()[1]["replicas"].values()) == {"degraded", "down"})
    running.send(*(update(number, chat=number) for number in range(10, 20)))
    until(lambda: empty(redis))
    assert len(one.turns) > 2 and len(three.turns) > 11 and not two.received


@pytest.mark.parametrize("trouble", [503, 404, "hang", "refuse"])
def test_what_one_replica_does_not_take_another_one_gets(redis, replicas, ingress, trouble):
    one, two = replicas(2)
    running = ingress([one, two], post_timeout=0.3, verdict_grace=60)
    if trouble == "refuse":
        one.die()  # its last verdict is still believed
    else:
        one.mode = trouble
    running.send(*(update(number, chat=number) for number in range(1, 7)))
    until(lambda: empty(redis))
    assert sorted(two.turns) == [1, 2, 3, 4, 5, 6]
    assert running.metric("delivery_failures_total", replica="r1") >= 2 and running.metric("redelivered_total") == 0


def test_a_hanging_replica_costs_no_lease(redis, replicas, ingress):
    (replica,) = replicas(1, "hang")
    first, second = ingress([replica], 2, post_timeout=30, lease_seconds=0.3)
    first.send(update(1))
    until(lambda: replica.received)
    before = redis.hget("oc:ingress:leases", "telegram/default/42")
    score = redis.zscore("oc:ingress:due", "telegram/default/42")
    until(lambda: redis.zscore("oc:ingress:due", "telegram/default/42") > score + 600)  # renewed twice the lease
    assert redis.hget("oc:ingress:leases", "telegram/default/42") == before and len(replica.received) == 1
    replica.mode = "commit"
    until(lambda: empty(redis))
    assert [first.stop(), second.stop()] == [0, 0]


# --- ingresses die


def test_an_ingress_is_killed_with_events_under_way_and_another_one_goes_on(redis, replicas, ingress):
    one, two = replicas(2, "hang")
    first, second = ingress([one, two], 2, post_timeout=30, replica_events=20)
    first.send(*(update(number, chat=number) for number in range(1, 21)), update(21, chat=1))
    until(lambda: len(one.received + two.received) == 20)
    owners = [lease.partition("/")[0] for lease in redis.hvals("oc:ingress:leases")]
    assert len(owners) == 20 and "ingress1" in owners
    first.stop(signal.SIGKILL)
    # Nothing was claimed: those that the second one has under way fail, and those of the first one are taken when their leases end.
    one.mode = two.mode = "commit"
    until(lambda: empty(redis), 20)
    turns = one.turns + two.turns
    assert sorted(turns) == list(range(1, 22)) and not twice(turns)
    assert second.process.poll() is None


def test_a_delivered_event_outlives_the_ingress_that_delivered_it(redis, replicas, ingress):
    (replica,) = replicas(1, "hold")
    first = ingress([replica])
    first.send(update(1))
    until(lambda: '"claimed":true' in str(redis.hvals("oc:ingress:state")))
    first.stop(signal.SIGKILL)
    second = ingress([replica])
    replica.finish(1)
    until(lambda: empty(redis))
    until(lambda: second.metric("committed_total") == 1)
    assert replica.messages == [1]


def test_a_graceful_stop_gives_leases_back(redis, replicas, ingress):
    (replica,) = replicas(1, "hang")
    running = ingress([replica], post_timeout=60, lease_seconds=60, stop_seconds=0.2)
    running.send(update(1))
    until(lambda: replica.received)
    assert running.stop() == 0
    assert "(attempt 1): the ingress stops." in running.log()
    assert redis.hlen("oc:ingress:leases") == 0 and stored(redis) == 1
    assert redis.zscore("oc:ingress:due", "telegram/default/42") <= int(redis.time()[0]) * 1000 + 1000
    replica.mode = "commit"
    ingress([replica])
    until(lambda: empty(redis))
    assert replica.turns == [1]


def test_a_graceful_stop_lets_a_delivery_finish(redis, replicas, ingress):
    (replica,) = replicas(1, "hang")
    running = ingress([replica], post_timeout=60, stop_seconds=30)
    running.send(update(1))
    until(lambda: replica.received)
    running.process.send_signal(signal.SIGTERM)
    until(lambda: running.post(update(2))[0] == 503)  # no new requests
    replica.mode = 200
    assert running.stop() == 0
    assert stored(redis) == 1 and redis.hlen("oc:ingress:leases") == 0


# --- limits


def test_what_is_too_old_after_an_outage_is_a_dead_letter(redis, replicas, ingress):
    (replica,) = replicas(1)
    replica.status = "down"
    running = ingress([replica], max_age_seconds=0.3)
    running.send(update(1), update(2))
    until(lambda: running.metric("dead_total", reason="too_old") == 2)
    replica.status = "ok"
    running.send(update(3))
    until(lambda: replica.turns == [3])
    assert replica.messages == [3] and redis.zcard("oc:ingress:dead") == 2


def test_what_no_replica_takes_is_a_dead_letter_and_lets_others_pass(redis, replicas, ingress):
    one, two = replicas(2, 500)
    running = ingress([one, two], max_attempts=5)
    running.send(update(1))
    until(lambda: running.metric("dead_total", reason="undeliverable") == 1)
    assert len(one.received) + len(two.received) == 5 and abs(len(one.received) - len(two.received)) == 1
    one.mode = two.mode = "commit"
    running.send(update(2))
    until(lambda: one.turns + two.turns == [2])


def test_dead_letters_are_bounded(redis, replicas, ingress):
    running = ingress(replicas(1, 500), max_attempts=1, dead_max_events=3, dead_max_age_seconds=60)
    running.send(*(update(number) for number in range(1, 7)))
    until(lambda: running.metric("dead_total") == 6)
    assert redis.zcard("oc:ingress:dead") == stored(redis) == redis.hlen("oc:ingress:state") == 3
    for identity in redis.zrange("oc:ingress:dead", 0, -1):
        redis.zincrby("oc:ingress:dead", -61000, identity)
    until(lambda: empty(redis))


def test_a_full_journal_refuses_and_tells_once_of_its_high_water_mark(redis, replicas, ingress):
    (replica,) = replicas(1)
    replica.status = "down"
    running = ingress([replica], max_events=10, high_ratio=0.8, low_ratio=0.2, retry_after=7)
    running.send(*(update(number, chat=number) for number in range(10)))
    status, _body, headers = running.post(update(10))
    assert (status, headers["Retry-After"]) == (503, "7") and stored(redis) == 10
    assert running.metric("refused_total", reason="full") == 1
    running.send(update(3, chat=3))  # a repetition of what it has

    def events():
        return [(one["type"], one["replica"], json.loads(one["detail"])) for _id, one in redis.xrange("oc:events")]

    ((kind, host, detail),) = events()
    assert (kind, host, detail["events"], detail["max_events"]) == ("ingress_high_water", "ingress1", 8, 10)
    replica.status = "ok"
    until(lambda: empty(redis))
    running.send(update(10))
    until(lambda: empty(redis))
    assert [one[0] for one in events()] == ["ingress_high_water", "ingress_low_water"]
    assert running.log().count("high-water mark") == 1 and running.log().count("low-water mark") == 1


def test_bytes_are_bounded_too(redis, replicas, ingress):
    (replica,) = replicas(1)
    replica.status = "down"
    running = ingress([replica], max_bytes=5000, body_max_bytes=4000)
    running.send(update(1, filler="x" * 3000))
    assert running.post(update(2, filler="x" * 3000))[0] == 503
    running.send(update(3))
    assert stored(redis) == 2


# --- Redis


def test_without_confirmation_nothing_is_acknowledged_and_the_retry_is_when_it_is_safe(redis_server, tmp_path, ingress):
    primary = redis_server(tmp_path / "primary", "repl-diskless-sync-delay 0")
    assert primary.start()
    follower = redis_server(tmp_path / "follower")
    assert follower.start(f"replicaof 127.0.0.1 {primary.port}")
    client = primary.client()
    until(lambda: client.info("replication").get("slave0", {}).get("state") == "online")
    gateway = Replica("r1", client, "commit")
    try:
        running = ingress([gateway], server=primary, wait_replicas=1, wait_timeout=0.3)
        until(lambda: running.post(update(1))[0] == 200)
        os.kill(follower.process.pid, signal.SIGSTOP)
        status, _body, headers = running.post(update(2))
        assert status == 503 and headers["Retry-After"] and running.metric("refused_total", reason="unconfirmed") >= 1
        assert running.post(update(2))[0] == 503
        os.kill(follower.process.pid, signal.SIGCONT)
        until(lambda: running.post(update(2))[0] == 200)
        until(lambda: empty(client))
        assert gateway.turns == [1, 2] and follower.client().exists("oc:ingress:seen:telegram/default/1002")
        # A second replica is waited for and does not come: one is enough, unless both are asked for.
        running.stop()
        running.config |= {"wait_replicas": 2, "wait_timeout": 0.5}
        running.write()
        running.start().ready()
        running.send(update(3), update(4))
        running.stop()
        running.config |= {"enough_replicas": 2}
        running.write()
        assert running.start().ready().post(update(5))[0] == 503
    finally:
        os.kill(follower.process.pid, signal.SIGCONT)
        gateway.die()


def test_redis_goes_away_and_comes_back(redis_server, tmp_path, ingress):
    server = redis_server(tmp_path / "data", "appendfsync always")
    assert server.start()
    gateway = Replica("r1", server.client(), "commit")
    gateway.status = "down"
    try:
        running = ingress([gateway], server=server)
        running.send(update(1), update(2))
        server.stop(kill=True)
        status, _body, headers = running.post(update(3))
        assert status == 503 and headers["Retry-After"] and running.metric("refused_total", reason="redis_away") == 1
        until(lambda: running.health()[0] == 503)
        assert running.ask("GET", "/health")[0] == 503
        until(lambda: running.metric("redis_up") == 0)
        assert server.start()
        until(lambda: running.health()[0] == 200)
        running.send(update(3))
        gateway.status = "ok"
        until(lambda: empty(server.client()))
        assert gateway.turns == [1, 2, 3]
        assert running.log().count("Redis is away") == 1 and running.log().count("Redis is back") == 1
    finally:
        gateway.die()


def test_the_primary_is_found_through_sentinel_also_after_a_failover(redis_server, tmp_path, ingress):
    server, follower = (redis_server(tmp_path / name, "repl-diskless-sync-delay 0") for name in ("data", "follower"))
    assert server.start() and follower.start(f"replicaof 127.0.0.1 {server.port}")
    client = server.client()
    until(lambda: client.info("replication").get("slave0", {}).get("state") == "online")
    sentinel = Sentinel(tmp_path, server.port)
    gateway = Replica("r1", client, "commit")
    try:
        running = ingress([gateway], server=server, redis={"sentinels": ["127.0.0.1:1", f"127.0.0.1:{sentinel.port}"], "monitor": "openclaw"})
        running.send(update(1))
        until(lambda: gateway.turns == [1] and empty(client))
        until(lambda: sentinel.client.execute_command("SENTINEL", "REPLICAS", "openclaw"))
        sentinel.client.execute_command("SENTINEL", "FAILOVER", "openclaw")
        until(lambda: asked(lambda: follower.client().info("replication")["role"]) == "master", 20)
        until(lambda: asked(lambda: server.client().replicaof("127.0.0.1", follower.port)))  # as a planned switch does, before a Sentinel would
        gateway.redis = follower.client()
        until(lambda: running.post(update(2))[0] == 200)
        until(lambda: gateway.turns == [1, 2] and asked(lambda: empty(follower.client())))
    finally:
        gateway.die()
        sentinel.close()


def asked(call):
    """What a call gives; None when its connection was cut, as a Sentinel does with all clients of a server that it gives another role."""
    with contextlib.suppress(ConnectionFailed):
        return call()
    return None


class Sentinel:
    """A real one, of a primary that is called openclaw."""

    def __init__(self, directory, primary):
        self.port = free_port()
        file = directory / "sentinel.conf"
        file.write_text(f"port {self.port}\nbind 127.0.0.1\ndir {directory}\nsentinel monitor openclaw 127.0.0.1 {primary} 1\n")
        with open(directory / "sentinel.log", "w", encoding="utf-8") as log:
            self._process = subprocess.Popen(["redis-server", str(file), "--sentinel"], stdout=log, stderr=log)
        self.client = Client(port=self.port, decode_responses=True)
        until(self._answers)

    def _answers(self):
        with contextlib.suppress(ConnectionFailed):
            return self.client.ping()
        return False

    def close(self):
        self._process.terminate()
        self._process.wait(10)


# --- what is refused


def test_what_is_refused_leaves_nothing(redis, ingress):
    running = ingress(body_max_bytes=2000)
    good = json.dumps(update(1)).encode()
    for expected, answer in (
        (401, running.post(update(1), "wrong")),
        (401, running.post(update(1), "")),
        (401, running.post(b"{", "wrong")),
        (404, running.ask("POST", "/webhook/other", good, {HEADER: SECRETS[0]})),
        (405, running.ask("GET", "/webhook/telegram", None, {HEADER: SECRETS[0]})),
        (405, running.ask("PUT", "/webhook/telegram", good, {HEADER: SECRETS[0]})),
        (413, running.post(update(1, filler="x" * 3000))),
        (413, running.ask("POST", "/webhook/telegram", iter([b"x" * 1500] * 2), {HEADER: SECRETS[0]})),
        (415, running.post(update(1), **{"Content-Encoding": "gzip"})),
        (400, running.post(good[:-1])),
        (400, running.post(b"")),
        (400, running.post(b"[" * 1900)),
        (400, running.post({"message": update(1)["message"]})),
        (400, running.post({"update_id": "1"})),
    ):
        assert answer[0] == expected, answer
    assert redis.keys("*") == []
    assert running.metric("refused_total", reason="wrong_secret") == 3 and running.metric("refused_total", reason="malformed") == 5
    assert running.metric("accepted_total") == 0
    running.send(update(1))


def test_a_slow_body_is_not_waited_for(redis, ingress):
    running = ingress(body_timeout=0.2)
    connection = http.client.HTTPConnection("127.0.0.1", running.config["port"], timeout=10)
    connection.putrequest("POST", "/webhook/telegram")
    connection.putheader(HEADER, SECRETS[0])
    connection.putheader("Content-Length", "100")
    connection.endheaders()
    assert connection.getresponse().status == 408
    connection.close()


def test_the_status_port_is_of_this_host_alone_and_health_tells_what_waits(redis, replicas, ingress):
    (replica,) = replicas(1)
    replica.status = "down"
    running = ingress([replica])
    running.send(update(1))
    until(lambda: running.health()[1]["events"] == 1)
    status, body = running.health()
    assert (status, body["status"], body["redis"], body["replicas"]) == (200, "ok", True, {"r1": "down"})
    assert running.metric("queue_events") == 1 and running.metric("queue_bytes") > 100 and running.metric("oldest_seconds") >= 0
    assert running.ask("GET", "/metrics")[0] == 404  # not at the door


# --- the command line


def test_the_command_line(redis, replicas, ingress):
    (replica,) = replicas(1, 500)
    running = ingress([replica], max_attempts=2)

    def command(*words, code=0):
        status, out, err = running.command(*words)
        assert status == code, err
        return err if code else out

    running.send(update(1), update(2))
    until(lambda: running.metric("dead_total") == 2)
    dead = json.loads(command("list", "--dead", "--json"))
    assert [(one["event"], one["reason"], one["attempts"], one["conversation"]) for one in dead] == [
        ("1001", "undeliverable", 2, "42"),
        ("1002", "undeliverable", 2, "42"),
    ]
    first, second = (one["id"] for one in dead)
    table = command("list", "--dead").splitlines()
    assert table[0].split() == ["ID", "ACCOUNT", "EVENT", "CONVERSATION", "SINCE", "ATTEMPTS", "BYTES", "STATE"]
    assert table[1].split()[:3] == [first, "telegram/default", "1001"] and table[1].endswith("undeliverable")
    assert json.loads(command("list", "--json")) == []
    shown = command("show", first)
    assert "private" not in shown and "undeliverable" in shown
    body = json.loads(command("show", first, "--body", "--json"))
    assert json.loads(body["body"]) == update(1) and not [one for one in SECRETS if one in json.dumps(body)]
    assert json.loads(command("status", "--json"))["dead"] == 2 and "2 dead letters" in command("status")
    replica.mode = "commit"
    assert command("replay", first) == f"{first}: replayed\n"
    until(lambda: replica.turns == [1])
    assert command("drop", second) == f"{second}: dropped\n"
    until(lambda: empty(redis))
    for words in (("replay", first), ("drop", second), ("show", first)):
        assert "no such event" in command(*words, code=1)
    assert "not the id" in command("show", "x", code=2)
    assert "name the events" in command("replay", code=2)


def test_a_replayed_event_is_the_last_of_its_conversation_and_young_again(redis, replicas, ingress):
    (replica,) = replicas(1)
    replica.status = "down"
    running = ingress([replica], max_age_seconds=0.3)
    running.send(update(1))
    until(lambda: running.metric("dead_total") == 1)
    running.stop()
    running.config["max_age_seconds"] = 60
    running.write()
    running.start().ready()
    running.send(update(2))
    assert running.command("replay", "--all")[0] == 0
    assert [one["event"] for one in json.loads(running.command("list", "--json")[1])] == ["1002", "1001"]
    replica.status = "ok"
    until(lambda: replica.turns == [2, 1])
    until(lambda: empty(redis))


def test_a_waiting_event_can_be_dropped(redis, replicas, ingress):
    (replica,) = replicas(1)
    replica.status = "down"
    running = ingress([replica])
    running.send(update(1), update(2))
    first = json.loads(running.command("list", "--json")[1])[0]["id"]
    assert running.command("drop", first)[0] == 0
    replica.status = "ok"
    until(lambda: empty(redis))
    assert replica.messages == [2]


def test_the_command_line_is_patient_with_a_busy_redis(redis_server, tmp_path, ingress):
    server = redis_server(tmp_path / "data")
    assert server.start()
    running = ingress(server=server)
    os.kill(server.process.pid, signal.SIGSTOP)
    # For longer than the service would wait.
    threading.Timer(1.5, os.kill, (server.process.pid, signal.SIGCONT)).start()
    assert running.command("status")[0] == 0


def test_the_command_line_without_redis_or_configuration(tmp_path, redis_primary, ingress):
    running = ingress()
    running.config["redis"] = {"address": "127.0.0.1:1"}
    running.write()
    code, _out, err = running.command("list")
    assert code == 1 and err.startswith("openclaw-ingress: Redis is away: ") and err.count("\n") == 1
    running.config["accounts"] = [account(tmp_path, secrets=[])]
    running.write()
    code, _out, err = running.command("check")
    assert code == 2 and "accounts[0].secrets is []; it must be a list that is not empty" in err


# --- access


#: All that the ingress does in Redis.
COMMANDS = "eval wait time get set incr pexpire expire exists xadd xdel xrange zadd zrem zcard zrange zscore rpush lrange lrem hget hset hsetnx hdel hincrby"


def test_a_redis_user_of_its_own_and_tls(redis_server, tmp_path, ingress):
    made, port = certificates(tmp_path), free_port()
    server = redis_server(
        tmp_path / "data", f"tls-port {port}", f"tls-ca-cert-file {made['ca']}", f"tls-cert-file {made['cert']}", f"tls-key-file {made['key']}"
    )
    assert server.start()
    client = server.client()
    rules = ["on", ">pa55", "~oc:ingress:*", "~oc:events", "%R~oc:dedupe:*", "%R~oc:inbound:*", *(f"+{one}" for one in COMMANDS.split())]
    client.execute_command("ACL", "SETUSER", "ingress", *rules)
    (tmp_path / "password").write_text("pa55\n")
    gateway = Replica("r1", client, 500)
    try:
        access = {"address": f"127.0.0.1:{port}", "user": "ingress", "password_file": str(tmp_path / "password"), "tls": made}
        running = ingress([gateway], server=server, redis=access, redis_timeout=5, max_attempts=1, max_events=3, high_ratio=0.3, low_ratio=0.1)
        running.send(update(1), update(2))
        until(lambda: client.zcard("oc:ingress:dead") == 2)
        gateway.mode = "commit"
        first, second = (one["id"] for one in json.loads(running.command("list", "--dead", "--json")[1]))
        assert running.command("show", first, "--body")[0] == running.command("status")[0] == 0
        assert running.command("drop", second)[0] == running.command("replay", first)[0] == 0
        running.send(update(3), update(3))
        until(lambda: sorted(gateway.turns) == [1, 3] and empty(client))
        assert client.execute_command("ACL", "LOG") == [] and client.xlen("oc:events") >= 2
    finally:
        gateway.die()


def certificates(directory):
    """Paths of an authority, and of a certificate of it for 127.0.0.1 with its key."""
    now = datetime.datetime.now(datetime.timezone.utc)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _number in range(2)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, one)]) for one in ("authority", "host")]
    paths = {name: str(directory / f"{name}.pem") for name in ("ca", "cert", "key")}
    for kind, key, name in (("ca", keys[0], names[0]), ("cert", keys[1], names[1])):
        builder = x509.CertificateBuilder(names[0], name, key.public_key(), x509.random_serial_number(), now, now + datetime.timedelta(days=1))
        builder = builder.add_extension(x509.BasicConstraints(kind == "ca", None), critical=True)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        pathlib.Path(paths[kind]).write_bytes(builder.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    private = keys[1].private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    pathlib.Path(paths["key"]).write_bytes(private)
    return paths
