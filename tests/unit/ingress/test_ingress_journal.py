"""The journal's scripts on a real Redis: leases are fenced, bounds hold, nothing is counted twice."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from openclaw_ingress.channels import Event
from openclaw_ingress.config import NUMBERS
from openclaw_ingress.decision import State
from openclaw_ingress.journal import Journal
from openclaw_ingress.primary import Primary, RedisAway


@pytest.fixture
def journal(redis, redis_primary):
    """``journal(coroutine function, **settings)`` runs it with two journals, of two owners."""

    def run(work, **more):
        configured = {name: one[0] for name, one in NUMBERS.items()} | {"host": "node1", "key_prefix": "oc:", "wait_replicas": 0}
        configured |= {"redis": {"address": f"127.0.0.1:{redis_primary.port}"}} | more

        async def inside():
            primary = Primary(configured)
            try:
                return await work(Journal(configured, primary, "a"), Journal(configured, primary, "b"))
            finally:
                await primary.close()

        return asyncio.run(inside())

    return run


def test_a_lease_is_one_owners_until_it_ends(journal, redis):
    async def work(a, b):
        await a.accept("x/y", Event("1", "c"), (("A", "b"),), b"body")
        ((mine,), due) = await a.take(5)
        assert (await b.take(5))[0] == [] and 0 < due <= 0.2
        (event,) = mine.batch
        assert mine.metas[0].headers == (("A", "b"),) and await a.body(event.id) == b"body"
        assert await a.save(mine, [(event.id, State(attempts=1))])
        redis.zadd("oc:ingress:due", {mine.conversation: 0})  # its time is over
        assert await a.save(mine)  # nobody has taken it, so it is still ours
        redis.zadd("oc:ingress:due", {mine.conversation: 0})
        (theirs,), _due = await b.take(5)
        assert theirs.batch[0].state == State(attempts=1)
        # The former owner can do nothing any more.
        assert not await a.save(mine, [(event.id, State(attempts=9))])
        assert await a.finish(mine, [(event.id, "forget", State())], 0) == (False, False)
        assert await b.finish(theirs, [(event.id, "keep", State(attempts=2))], 30) == (True, False)
        assert (await a.take(5))[0] == [] and redis.xlen("oc:ingress:journal") == 1
        redis.zadd("oc:ingress:due", {mine.conversation: 0})
        (mine,), _due = await a.take(5)
        assert mine.batch[0].state == State(attempts=2)
        assert await a.finish(mine, [(event.id, "forget", State())], 0) == (True, False)
        assert (await a.look()).events == redis.xlen("oc:ingress:journal") == redis.exists("oc:ingress:leases", "oc:ingress:due") == 0

    journal(work, lease_seconds=0.2)


def test_a_replica_gets_no_more_than_it_may_have(journal, redis):
    async def work(a, b):
        for number in range(3):
            await a.accept("x/y", Event(str(number), str(number)), (), b"body")
        taken, _due = await a.take(3)
        sent = State().sent("r1")
        for one in taken[:2]:
            assert await a.send(one, one.batch[0].id, sent, "r1", 2) > 0
        third = taken[2]
        assert await a.send(third, third.batch[0].id, sent, "r1", 2) < 0, "it has enough"
        assert redis.hget("oc:ingress:state", third.batch[0].id) is None, "nothing is noted of what does not go"
        assert await a.send(third, third.batch[0].id, State().sent("r2"), "r2", 2) > 0
        assert redis.hgetall("oc:ingress:holding") == {"r1": "2", "r2": "1"}
        # Again, or to another one: it is counted once.
        first = taken[0]
        assert await a.send(first, first.batch[0].id, sent, "r1", 2) > 0
        assert await a.send(first, first.batch[0].id, State().sent("r2"), "r2", 2) > 0
        assert redis.hgetall("oc:ingress:holding") == {"r1": "1", "r2": "2"}
        assert await a.finish(first, [(first.batch[0].id, "free", State())], 0) == (True, False)
        assert await a.finish(third, [(third.batch[0].id, "dead", State())], 0) == (True, False)
        assert await b.drop([taken[1].batch[0].id])
        assert redis.exists("oc:ingress:holding", "oc:ingress:held") == 0
        assert await a.send(taken[1], taken[1].batch[0].id, sent, "r1", 2) == 0, "what is gone goes nowhere"

    journal(work)


def test_many_at_once_share_a_bounded_number_of_connections(redis, redis_primary):
    """After an outage all that wait would make one each, and so be the next outage."""
    configured = {"redis": {"address": f"127.0.0.1:{redis_primary.port}"}, "redis_timeout": 5, "wait_timeout": 5}

    async def work():
        primary = Primary(configured)
        others = redis.info("clients")["connected_clients"]
        # Nobody confirms, so each of them has its connection for a while.
        waiting = [asyncio.ensure_future(primary.run(lambda client: client.execute_command("WAIT", 1, 100))) for _number in range(100)]
        most = 0
        while not all(one.done() for one in waiting):
            most = max(most, redis.info("clients")["connected_clients"])
            await asyncio.sleep(0.01)
        await asyncio.gather(*waiting)
        await primary.close()
        return most - others

    assert 2 < asyncio.run(work()) <= 32


def test_names_with_any_characters_are_kept_apart(journal, redis):
    async def work(a, _b):
        for event, conversation in (("1", "a/b"), ("1/2", "a"), ("ä\n", "a:b"), ("%", "")):
            assert (await a.accept("x/y", Event(event, conversation), (), b"\x00\xff")).status == "accepted"
        assert (await a.accept("x/z", Event("1", "a/b"), (), b"")).status == "accepted"
        assert (await a.look()).conversations == 5

    journal(work)


def test_a_full_memory_refuses_new_events_and_still_drains(journal, redis):
    async def work(a, _b):
        await a.accept("x/y", Event("1", "c"), (), b"body")
        redis.config_set("maxmemory", 1)
        try:
            with pytest.raises(RedisAway, match="maxmemory") as caught:
                await a.accept("x/y", Event("2", "c"), (), b"body")
            assert "EVAL" not in str(caught.value)  # nor what came with it
            (taken,), _due = await a.take(1)
            assert await a.save(taken, [(taken.batch[0].id, State(attempts=1))])
            assert await a.finish(taken, [(taken.batch[0].id, "forget", State())], 0) == (True, False)
            assert (await a.look()).events == 0
        finally:
            redis.config_set("maxmemory", 0)

    journal(work)


def test_the_list_has_pages(journal, redis):
    async def work(a, _b):
        for number in range(450):
            await a.accept("x/y", Event(str(number), str(number % 7)), (), b"body")
        assert [one.meta.event async for one in a.entries()] == [str(number) for number in range(450)]

    journal(work)


def test_a_command_is_not_cut_off_and_a_dead_server_is_told(redis_server, tmp_path):
    """A Redis that hangs costs its timeout, and the next command is not given its belated answer."""
    import os
    import signal

    server = redis_server(tmp_path / "data")
    assert server.start()
    configured = {"redis": {"address": f"127.0.0.1:{server.port}"}, "redis_timeout": 0.2, "wait_timeout": 0.1}

    async def work():
        primary = Primary(configured)
        assert await primary.run(lambda client: client.echo("one")) == b"one"
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            with pytest.raises(RedisAway):
                await primary.run(lambda client: client.echo("two"))
            assert primary.serves is False
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        assert await primary.run(lambda client: client.echo("three")) == b"three" and primary.serves
        await primary.close()

    asyncio.run(work())


def test_whatever_happens_the_books_are_right(redis, redis_primary):
    """Any order of steps, by two owners: every accepted event is waiting, dead or gone, once, and sizes are what is there."""
    configured = {name: one[0] for name, one in NUMBERS.items()} | {"host": "node1", "key_prefix": "oc:", "wait_replicas": 0}
    configured |= {"redis": {"address": f"127.0.0.1:{redis_primary.port}"}, "max_events": 6, "high_ratio": 0.7, "low_ratio": 0.3, "dead_max_events": 3}
    loop = asyncio.new_event_loop()
    primary = Primary(configured)
    owners = [Journal(configured, primary, name) for name in "ab"]
    owner = st.sampled_from(owners)

    def do(coroutine):
        return loop.run_until_complete(coroutine)

    class Books(RuleBasedStateMachine):
        @initialize()
        def begin(self):
            redis.flushall()
            self.taken = []

        @rule(one=owner, event=st.integers(0, 12), group=st.sampled_from(["", "g"]))
        def accept(self, one, event, group):
            before = redis.zcard("oc:ingress:live")
            seen = redis.exists(f"oc:ingress:seen:x/y/{event}")
            status = do(one.accept("x/y", Event(str(event), str(event % 3), group), (), b"x" * event)).status
            assert status == ("duplicate" if seen else "full" if before >= 6 else "accepted")

        @rule(one=owner, expire=st.booleans())
        def take(self, one, expire):
            if expire:
                for conversation in redis.zrange("oc:ingress:due", 0, -1):
                    redis.zadd("oc:ingress:due", {conversation: 0})
            self.taken += [(one, taken) for taken in do(one.take(2))[0]]

        @rule(which=st.integers(0, 100), replica=st.sampled_from(["r1", "r2"]))
        def send(self, which, replica):
            if self.taken:
                one, taken = self.taken[which % len(self.taken)]
                do(one.send(taken, taken.batch[0].id, State().sent(replica), replica, 2))

        @rule(which=st.integers(0, 100), verb=st.sampled_from(["keep", "free", "forget", "dead"]))
        def finish(self, which, verb):
            if not self.taken:
                return
            one, taken = self.taken.pop(which % len(self.taken))
            held = redis.hget("oc:ingress:leases", taken.conversation) == taken.lease
            assert do(one.finish(taken, [(event.id, verb, State(reason=verb)) for event in taken.batch], 0))[0] is held

        @rule(one=owner, which=st.integers(0, 100))
        def replay(self, one, which):
            dead = redis.zrange("oc:ingress:dead", 0, -1)
            if dead:
                assert do(one.replay([dead[which % len(dead)], "1-1"])) == [dead[which % len(dead)]]

        @rule(one=owner, which=st.integers(0, 100))
        def drop(self, one, which):
            ids = [identity for identity, _fields in redis.xrange("oc:ingress:journal")]
            if ids:
                assert do(one.drop([ids[which % len(ids)]])) == [ids[which % len(ids)]]

        @invariant()
        def right(self):
            entries = dict(redis.xrange("oc:ingress:journal"))
            live, dead = redis.zrange("oc:ingress:live", 0, -1), redis.zrange("oc:ingress:dead", 0, -1)
            assert sorted(live + dead) == sorted(entries) and len(dead) <= 3
            queued = [one for key in redis.keys("oc:ingress:queue:*") for one in redis.lrange(key, 0, -1)]
            assert sorted(queued) == sorted(live)
            size = {name: int(one) for name, one in redis.hgetall("oc:ingress:size").items()}
            for name, ids in (("bytes", live), ("dead_bytes", dead)):
                assert size.get(name, 0) == sum(len(entries[one]["meta"]) + len(entries[one]["body"]) for one in ids)
            waiting = {key.removeprefix("oc:ingress:queue:") for key in redis.keys("oc:ingress:queue:*")}
            assert waiting <= set(redis.zrange("oc:ingress:due", 0, -1))
            held = redis.hgetall("oc:ingress:held")
            assert set(held) <= set(live)
            counts = {name: list(held.values()).count(name) for name in set(held.values())}
            assert {name: int(count) for name, count in redis.hgetall("oc:ingress:holding").items()} == counts and max(counts.values(), default=0) <= 2
            assert set(redis.hkeys("oc:ingress:state")) <= set(entries) and set(redis.hkeys("oc:ingress:leases")) <= set(redis.zrange("oc:ingress:due", 0, -1))

    try:
        run_state_machine_as_test(
            Books, settings=settings(max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        )
    finally:
        do(primary.close())
        loop.close()
