"""The scripts on a real Redis, as a user that may do nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest
from openclaw_ingress.primary import Primary, RedisAway
from openclaw_owner import units
from openclaw_owner.config import NUMBERS
from openclaw_owner.lease import Leases

NAME, KEY = "telegram/poll", "oc:owner:telegram/poll"
#: What the daemon needs, and no more.
COMMANDS = "eval wait time hmget hset xadd expire"


@pytest.fixture
def leases(redis, redis_primary, tmp_path):
    """``leases(coroutine function, **settings)`` runs it with the leases of two hosts."""
    (tmp_path / "password").write_text("pa55\n")
    redis.acl_setuser(
        "owner", enabled=True, reset=True, passwords=["+pa55"], keys=["oc:owner:*", "oc:events"], commands=[f"+{one}" for one in COMMANDS.split()]
    )

    def run(work, **more):
        made = []
        for host in ("h1", "h2"):
            settings = {name: one[0] for name, one in NUMBERS.items()} | {"host": host, "key_prefix": "oc:", "wait_replicas": 0, "lease_seconds": 5}
            settings |= {"redis": {"address": f"127.0.0.1:{redis_primary.port}", "user": "owner", "password_file": str(tmp_path / "password")}} | more
            made.append((Leases, settings, Primary(settings)))

        async def inside():
            try:
                return await work(*(kind(settings, primary) for kind, settings, primary in made))
            finally:
                for _kind, _settings, primary in made:
                    await primary.close()

        return asyncio.run(inside())

    yield run
    redis.acl_deluser("owner")


def test_a_lease_is_granted_once_renewed_by_its_token_and_free_when_it_is_given_back(redis, leases):
    async def work(one, two):
        first = await one.acquire(NAME, "r1", 35)
        assert (first.granted, first.token, first.confirmed) == (True, 1, True) and abs(first.since - redis.time()[0]) <= 2
        second = await two.acquire(NAME, "r2", 35)
        assert (second.granted, second.holder, second.host) == (False, "r1", "h1") and 38 < second.wait <= 40
        # Not even its own, without the end of the former one.
        assert not (await one.acquire(NAME, "r1", 35)).granted
        assert await one.renew(NAME, "r1", 1) == (True, True)
        for replica, token in (("r2", 1), ("r1", 2), ("r1", 0)):
            assert await two.renew(NAME, replica, token) == (False, True) and not await two.release(NAME, replica, token)
        assert await one.release(NAME, "r1", 1) and not await one.release(NAME, "r1", 1)
        assert await one.renew(NAME, "r1", 1) == (False, True)
        third = await two.acquire(NAME, "r2", 35)
        assert (third.granted, third.token) == (True, 2)

    leases(work)
    held = {"holder": "r2", "host": "h2", "token": "2", "since": "", "expires": "", "released": "0", "faults": "0"}
    assert redis.hgetall(KEY) | {"since": "", "expires": ""} == held
    assert redis.ttl(KEY) == -1 and "oc:events" not in redis.keys()


def test_a_lease_ends_with_its_linger(redis, leases):
    async def work(one, two):
        await one.acquire(NAME, "r1", 0)
        seconds, microseconds = redis.time()
        now = seconds * 1000 + microseconds // 1000
        redis.hset(KEY, "expires", now - 3000)
        (found,) = (await two.look({NAME: 10}, 7.0)).values()
        assert (found.holder, found.host, found.token, found.released, found.at) == ("r1", "h1", 1, False, 7.0) and 6 < found.wait <= 7
        assert not (await two.acquire(NAME, "r2", 10)).granted
        # Who was merely late has it still.
        assert await one.renew(NAME, "r1", 1) == (True, True)
        redis.hset(KEY, "expires", now - 3000)
        assert (await two.look({NAME: 2}, 7.0))[NAME].wait == 0
        assert (await two.acquire(NAME, "r2", 2)).token == 2
        assert await one.renew(NAME, "r1", 1) == (False, True)

    leases(work)


def test_what_is_not_there(leases):
    async def work(one, _two):
        assert await one.look({}, 0.0) == {}
        found = (await one.look({NAME: 5, "cron": 0}, 0.0))["cron"]
        assert (found.holder, found.token, found.released, found.wait) == ("", 0, True, 0)
        assert await one.renew(NAME, "r1", 1) == (False, True) and not await one.release(NAME, "r1", 1)

    leases(work)


def test_without_replicas_nothing_is_confirmed(leases):
    async def work(one, _two):
        grant = await one.acquire(NAME, "r1", 0)
        assert grant.granted and not grant.confirmed
        assert await one.renew(NAME, "r1", 1) == (True, False)

    leases(work, wait_replicas=2, enough_replicas=1, wait_timeout=0.02)


def test_with_a_full_memory_leases_go_on(redis, leases):
    async def work(one, _two):
        assert (await one.acquire(NAME, "r1", 0)).granted
        assert (await one.renew(NAME, "r1", 1))[0] and await one.release(NAME, "r1", 1)

    redis.config_set("maxmemory", 1)
    try:
        leases(work)
    finally:
        redis.config_set("maxmemory", 0)


def test_events(redis, leases):
    leases(lambda one, _two: one.tell("owner_on", {"singleton": NAME}))
    ((_id, fields),) = redis.xrange("oc:events")
    assert (fields["type"], fields["replica"], json.loads(fields["detail"])) == ("owner_on", "h1", {"singleton": NAME})
    assert int(fields["at"]) > 1.7e12 and 604000 < redis.ttl("oc:events") <= 604800
    redis.delete("oc:events")
    # Without the right to set its end.
    redis.acl_setuser("owner", enabled=True, commands=["-expire"])
    leases(lambda one, _two: one.tell("owner_on", {}))
    assert redis.xlen("oc:events") == 1


def test_redis_that_is_away(leases):
    async def work(one, _two):
        for call in (one.acquire(NAME, "r1", 0), one.renew(NAME, "r1", 1), one.release(NAME, "r1", 1), one.look({NAME: 0}, 0.0)):
            with pytest.raises(RedisAway):
                await call

    leases(work, redis={"address": "127.0.0.1:1"})


# --- processes


@pytest.fixture
def unit(tmp_path):
    """(systemctl, a process that is the unit's, function that changes what systemctl says)."""
    said, tool = tmp_path / "said", tmp_path / "systemctl"
    tool.write_text(f'#!/bin/sh\n[ "$*" = "show --property=MainPID,ActiveState -- x.service" ] || exit 1\ncat {said}\n')
    tool.chmod(0o755)
    process = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])

    def say(pid=process.pid, state="active"):
        said.write_text(f"MainPID={pid}\nActiveState={state}\n")

    say()
    yield str(tool), process, say
    process.kill()
    process.wait()


def test_the_main_process_of_a_unit(unit):
    tool, process, say = unit
    main = asyncio.run(units.show(tool, "x.service"))
    assert (main.pid, main.stopping) == (process.pid, False) and main.started == units.started(process.pid) <= main.at <= units.now()
    assert units.now() - main.started < 60 and units.lives((process.pid, main.started)) and not units.lives((process.pid, main.started - 1))
    say(state="deactivating")
    assert asyncio.run(units.show(tool, "x.service")).stopping
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    # A zombie has nothing open any more.
    assert asyncio.run(units.show(tool, "x.service")).pid == 0 and units.started(process.pid) is None and not units.lives(None)
    say(pid="")
    with pytest.raises(OSError, match="says nothing of MainPID"):
        asyncio.run(units.show(tool, "x.service"))
    with pytest.raises(OSError):
        asyncio.run(units.show(tool, "y.service"))


def test_a_process_that_is_hidden_is_not_gone(unit, monkeypatch):
    tool, process, _say = unit
    kept = units.started(process.pid)

    def hidden(*_arguments, **_more):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("builtins.open", hidden)
    with pytest.raises(OSError, match="hides the process"):
        asyncio.run(units.show(tool, "x.service"))
    assert units.lives((process.pid, kept))


def test_fencing_kills_the_main_process_and_no_other(unit):
    tool, process, say = unit
    main = asyncio.run(units.show(tool, "x.service"))
    assert asyncio.run(units.fence(tool, "x.service", (main.pid, main.started))) == [process.pid]
    assert process.wait(30) == -signal.SIGKILL
    say(0)
    # What has its number since is another one.
    other = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    try:
        assert asyncio.run(units.fence(tool, "x.service", (other.pid, units.started(other.pid) - 5))) == [] and other.poll() is None
        assert asyncio.run(units.fence(tool, "x.service", (other.pid, units.started(other.pid)))) == [other.pid]
    finally:
        other.kill()
        other.wait()


def test_a_unit_that_has_another_main_process_by_now_is_left_alone(unit, tmp_path):
    tool, process, _say = unit
    # It says one pid when it is asked first, and another one then.
    pathlib.Path(tool).write_text(
        f"#!/bin/sh\nprintf 'ActiveState=active\\nMainPID='\ncat {tmp_path}/second 2>/dev/null || echo {process.pid}\necho 0 > {tmp_path}/second\n"
    )
    assert asyncio.run(units.fence(tool, "x.service", None)) == [] and process.poll() is None


def test_what_kills_each_replica_that_has_it_does_not_kill_them_all(redis, leases):
    async def work(one, _two):
        waits = []
        for _number in range(6):
            grant = await one.acquire(NAME, "r1", 0)
            assert grant.granted and await one.release(NAME, "r1", grant.token, fault=True)
            refused = await one.acquire(NAME, "r1", 0)
            waits.append(0 if refused.granted else round(refused.wait))
            if refused.granted:
                assert await one.release(NAME, "r1", refused.token)
            else:
                assert abs((await one.look({NAME: 0}, 1.0))[NAME].wait - refused.wait) < 1
                redis.hset(KEY, "pause", 0)
        # One that dies after a long time begins a new count.
        grant = await one.acquire(NAME, "r1", 0)
        redis.hincrby(KEY, "since", -600)
        await one.release(NAME, "r1", grant.token, fault=True)
        return waits, (await one.acquire(NAME, "r1", 0)).granted

    redis.delete(KEY)
    waits, again = leases(work)
    assert waits == [0, 15, 60, 240, 300, 300] and again
