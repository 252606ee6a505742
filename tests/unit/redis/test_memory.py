"""What a full memory does to the keys of the gateways' plugin, under each policy. The keys are made by the plugin's
own scripts."""

from __future__ import annotations

import json
import pathlib
import re

import pytest
import redis

SCRIPTS = (pathlib.Path(__file__).resolve().parents[3] / "roles/gateway/files/shared_state/lib/scripts.js").read_text()
WEEK, LEASE = 604800, 10000


def script(name):
    source = re.search(rf"const {name} = `(.*?)`;", SCRIPTS, re.DOTALL)[1]
    return re.sub(r"\$\{(\w+)\}", lambda part: script(part[1]), source)


BEGIN, COMMIT, CLAIM, RENEW, RELEASE, COMPACT = map(script, ("BEGIN", "COMMIT", "CLAIM", "RENEW", "RELEASE", "COMPACT"))


class Plugin:
    """What a gateway sends, in the same order and with the same lifetimes."""

    def __init__(self, client):
        self.client, self.turns = client, 0

    def begin(self, conv):
        return self.client.eval(
            BEGIN, 3, f"oc:lock:{conv}", f"oc:session:{conv}", f"oc:conv:{conv}", "me", LEASE, WEEK, "", 1000
        )

    def commit(self, conv, text, key=""):
        keys = [f"oc:{kind}:{conv}" for kind in ("conv", "session", "seen", "lock")] + [f"oc:idem:{conv}:{key}", "oc:idle"]
        seq = self.client.hget(keys[1], "turns") or 0
        self.turns += 1
        turn = json.dumps({"id": f"turn-{self.turns}", "at": 1, "messages": [text]})
        answer = json.dumps({"state": "done", "reply": text}) if key else ""
        return self.client.eval(
            COMMIT,
            len(keys),
            *keys,
            turn,
            f"turn-{self.turns}",
            "me",
            seq,
            "",
            WEEK,
            1,
            1000,
            "web",
            conv,
            "node1-1",
            answer,
            86400,
            "next",
            1,
            conv,
        )

    def claim(self, name):
        return self.client.eval(CLAIM, 1, f"oc:dedupe:{name}", "me", LEASE, "")

    def turn(self, conv, key=""):
        self.begin(conv)
        return self.commit(conv, "x" * 1000, key)


@pytest.fixture(scope="module")
def server(tmp_path_factory, redis_server):
    found = redis_server(tmp_path_factory.mktemp("memory") / "data", "maxmemory-samples 10")
    assert found.start()
    return found


@pytest.fixture
def memory(server):
    """``memory(policy)`` empties the server and leaves room for about 2 MB."""

    def limit(policy):
        client = server.client()
        client.config_set("maxmemory", 0)
        client.flushall()
        client.config_resetstat()
        client.config_set("maxmemory-policy", policy)
        client.config_set("maxmemory", client.info("memory")["used_memory"] + 2_000_000)
        return client, Plugin(client)

    return limit


def fill(plugin, turns=3000):
    """Conversations until that many turns or the first refusal; returns how many were stored."""
    for number in range(turns):
        try:
            plugin.turn(f"u{number // 2}", key=f"k{number}")
        except redis.OutOfMemoryError:
            return number
    return turns


def names(client):
    return {
        kind: set(client.scan_iter(f"oc:{kind}:*", count=1000))
        for kind in ("conv", "session", "seen", "lock", "idem", "dedupe")
    }


def test_every_key_of_the_plugin_but_its_index_carries_a_ttl(memory):
    """So every policy that evicts may take any of them: locks, the numbers that fence (session), the journals (seen,
    idem, dedupe)."""
    client, plugin = memory("noeviction")
    plugin.turn("u", key="k")
    plugin.begin("u")
    plugin.claim("m")
    found = {key: client.pttl(key) for key in client.scan_iter() if key != "oc:idle"}
    assert {key.split(":")[1] for key in found} == {"conv", "session", "seen", "lock", "idem", "dedupe"}
    assert all(left > 0 for left in found.values()), found
    # volatile-ttl takes those first that end first.
    assert max(found, key=found.get).split(":")[1] in ("conv", "session", "seen")
    assert {key.split(":")[1] for key, left in found.items() if left <= LEASE} == {"lock", "dedupe"}


def test_noeviction_refuses_and_keeps_everything(memory):
    client, plugin = memory("noeviction")
    plugin.begin("held")
    plugin.claim("m")
    stored = fill(plugin)
    assert 100 < stored < 3000
    kept = names(client)
    assert client.info("stats")["evicted_keys"] == 0
    assert (
        len(kept["conv"]) == len(kept["session"]) == len(kept["seen"]) == (stored + 1) // 2
        and len(kept["idem"]) == stored
    )
    assert "oc:lock:held" in kept["lock"] and "oc:dedupe:m" in kept["dedupe"]
    # A refused script has written nothing.
    before = client.hgetall("oc:session:u0"), client.lrange("oc:conv:u0", 0, -1)
    with pytest.raises(redis.OutOfMemoryError):
        plugin.commit("u0", "one more")
    assert (client.hgetall("oc:session:u0"), client.lrange("oc:conv:u0", 0, -1)) == before
    # What is held can be prolonged and given back, and everything be read.
    assert client.eval(RENEW, 1, "oc:lock:held", "me", LEASE) == 1
    assert client.eval(RELEASE, 1, "oc:lock:held", "me") == 1
    assert client.llen("oc:conv:u0") == 2
    # Where idle conversations go, but neither their numbers nor their journals, there is room again.
    for number in range(50):
        client.delete(f"oc:conv:u{number}")
    assert plugin.turn("after")[0] == "committed"
    assert plugin.turn("u0")[1] == 3  # the number goes on


def test_volatile_ttl_takes_locks_and_claims_first(memory):
    client, plugin = memory("volatile-ttl")
    for number in range(20):
        plugin.begin(f"held{number}")
        plugin.claim(f"m{number}")
    assert fill(plugin) == 3000
    kept = names(client)
    held = {key for key in kept["lock"] if "held" in key}
    assert len(held) + len(kept["dedupe"]) <= 4, (held, kept["dedupe"])
    assert len(kept["conv"]) > 100


@pytest.mark.parametrize("policy", ["volatile-lru", "volatile-lfu", "volatile-random"])
def test_volatile_policies_take_numbers_and_journals_but_nothing_without_a_ttl(policy, memory):
    client, plugin = memory(policy)
    client.set("lasting", "x" * 1000)
    plugin.begin("held")
    assert fill(plugin) == 3000
    kept, evicted = names(client), client.info("stats")["evicted_keys"]
    assert evicted > 500 and client.exists("lasting")
    for kind, written in (("session", 1501), ("seen", 1500), ("idem", 3000)):
        assert len(kept[kind]) < written, kind
    if policy == "volatile-lru":
        assert "oc:lock:held" not in kept["lock"]  # taken long ago and not renewed since, though its lease runs


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random"])
def test_allkeys_policies_take_what_has_no_ttl_too(policy, memory):
    client, plugin = memory(policy)
    for number in range(50):
        client.set(f"lasting:{number}", "x" * 1000)
    assert fill(plugin) == 3000
    assert client.exists(*(f"lasting:{number}" for number in range(50))) < 50


def test_a_number_that_was_evicted_starts_again(memory):
    """Why the numbers must not be evicted: a turn that is long overtaken looks like the successor of what it has
    seen."""
    client, plugin = memory("volatile-lru")
    plugin.turn("u")
    plugin.turn("u")
    client.delete("oc:session:u")  # what an eviction does
    plugin.begin("u")
    assert plugin.commit("u", "third")[1] == 1
    assert client.llen("oc:conv:u") == 3
