"""The planner against a model of Redis and Sentinel in which anything may happen between two steps."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.openclaw.ha.plugins.module_utils.redis_switch import RAISED, leftovers, obstacles, plan, priority_of
from ansible_collections.openclaw.ha.plugins.module_utils.redis_view import where

NUMBERS = (1, 2, 3)


def address(number):
    return f"192.0.2.1{number}:6379"


def node(number, role="slave", follows=1, **more):
    master = role == "master"
    return {
        "host": f"node{number}",
        "address": f"192.0.2.1{number}",
        "port": 6379,
        "role": role,
        "primary": None if master else address(follows),
        "link": True,
        "offset": 100,
        "lag": 0,
        "connected": 2 if master else 0,
        "good_replicas": 2 if master else 0,
        "min_replicas": 1,
        "priority": 100,
        "history": "h1",
        "history_before": "0",
        "loading": False,
        "syncing": False,
        "saving": False,
        "aof_enabled": True,
        "aof_write_ok": True,
        "aof_rewrite_ok": True,
        "aof_rewriting": False,
        "paused": False,
        **more,
    }


def sentinel(number, names=1, replicas=(2, 3), **more):
    return {
        "host": f"node{number}",
        "address": f"192.0.2.1{number}",
        "port": 26379,
        "primary": address(names),
        "replicas": len(replicas),
        "known": {address(one): {"flags": "slave", "link": True, "priority": 100} for one in replicas},
        "others": 2,
        "quorum": 2,
        "quorum_ok": True,
        "tilt": False,
        "failover": False,
        "failover_timeout": 10,
        "flags": "master",
        **more,
    }


NODES = [node(1, "master"), node(2), node(3)]
SENTINELS = [sentinel(1), sentinel(2), sentinel(3)]


def changed(nodes, number, **more):
    return [{**one, **more} if one["host"] == f"node{number}" else one for one in nodes]


def silent(of):
    return {**{key: of[key] for key in ("host", "address", "port")}, "error": "Connection refused"}


def step(nodes=None, sentinels=None, leave=address(1), **more):
    return plan(nodes or NODES, sentinels or SENTINELS, leave, **more)


def test_the_steps_of_a_switch_one_after_the_other():
    assert step().action == "pause"
    paused = changed(NODES, 1, paused=True)
    behind = changed(paused, 1, offset=140)
    assert step(behind) == ("wait", None, "Behind the primary: node2 (40 bytes) and node3 (40 bytes).")
    assert step(paused)[:2] == ("failover", address(1))
    running = changed(SENTINELS, 1, failover=True)
    assert step(paused, running)[:2] == ("hold", address(1))
    promoted = [node(1, "master", paused=True), node(2, "master", history="h2", history_before="h1"), node(3)]
    assert step(promoted, running)[:2] == ("demote", address(1))
    after = [node(1, follows=2), node(2, "master", history="h2", history_before="h1"), node(3, follows=1)]
    assert step(after).action == "wait"
    settled = [node(1, follows=2), node(2, "master", history="h2", history_before="h1"), node(3, follows=2)]
    assert step(settled, [sentinel(number, 2, (1, 3)) for number in NUMBERS]).action == "done"


def test_a_wanted_primary_is_preferred_before_anything_is_paused():
    assert step(to=address(3))[:2] == ("prefer", address(2))
    preferred = changed(NODES, 2, priority=100 + RAISED)
    assert step(preferred, to=address(3)) == ("wait", None, "The Sentinels read priorities every 10 s.")
    known = {address(2): {"flags": "slave", "link": True, "priority": 100 + RAISED}, address(3): {"flags": "slave", "link": True, "priority": 100}}
    read = [{**one, "known": known} for one in SENTINELS]
    assert step(preferred, read, to=address(3)).action == "pause"
    switched = [node(1, follows=3), node(2, follows=3, priority=100 + RAISED), node(3, "master")]
    assert step(switched, to=address(3))[:2] == ("restore", address(2))


def test_what_comes_in_the_way_before_the_pause_is_waited_for_and_then_undone():
    preferred = changed(NODES, 2, priority=100 + RAISED)
    in_the_way = changed(preferred, 3, link=False)
    waiting = step(in_the_way, to=address(3))
    assert waiting.action == "wait" and "Redis on node3 (192.0.2.13:6379) has lost its link" in waiting.why
    assert plan(in_the_way, SENTINELS, address(1), address(3), ending="Time is over.")[:2] == ("restore", address(2))
    # A pause is not kept up for it.
    assert step(changed(in_the_way, 1, paused=True), to=address(3))[:2] == ("unpause", address(1))


@pytest.mark.parametrize(
    "priority, former", [(100, 100), (0, 0), (100 + RAISED, 100), (1 + RAISED, 1), (RAISED - 1, RAISED - 1)]
)
def test_a_raised_priority_tells_its_former_value(priority, former):
    assert priority_of({"priority": priority}) == former


@pytest.mark.parametrize(
    "nodes, sentinels, to, words",
    [
        (changed(NODES, 2, link=False), SENTINELS, None, "Redis on node2 (192.0.2.12:6379) has lost its link"),
        (changed(NODES, 2, offset=-(5 * 1024 * 1024)), SENTINELS, None, "Redis on node2 (192.0.2.12:6379) is 5242980 bytes behind"),
        (changed(NODES, 2, lag=3), SENTINELS, None, "node2 (192.0.2.12:6379) has heard nothing from the primary for 3 s"),
        (changed(NODES, 2, loading=True), SENTINELS, None, "node2 (192.0.2.12:6379) is loading"),
        (changed(NODES, 2, syncing=True), SENTINELS, None, "node2 (192.0.2.12:6379) is receiving a full copy"),
        (changed(NODES, 1, aof_write_ok=False), SENTINELS, None, "node1 (192.0.2.11:6379) could not write its append-only file"),
        (changed(NODES, 3, aof_rewrite_ok=False), SENTINELS, None, "node3 (192.0.2.13:6379) failed to rewrite its append-only file"),
        (changed(NODES, 3, aof_rewriting=True), SENTINELS, None, "node3 (192.0.2.13:6379) is rewriting"),
        (changed(NODES, 3, saving=True), SENTINELS, None, "node3 (192.0.2.13:6379) is writing a snapshot"),
        (changed(NODES, 1, good_replicas=0), SENTINELS, None, "node1 counts 0 replicas in time and refuses writes below 1 (min-replicas-to-write)"),
        (changed(NODES, 1, min_replicas=3), SENTINELS, None, "There are 2 replicas, and the primary accepts writes only with 3"),
        (changed(NODES, 3, min_replicas=3), SENTINELS, None, "node3 (192.0.2.13:6379) as primary would refuse writes"),
        (NODES, [*SENTINELS[:2], silent(SENTINELS[2])], None, "Sentinel on node3 (192.0.2.13:26379) does not answer"),
        ([*NODES[:2], silent(NODES[2])], SENTINELS, None, "Redis on node3 (192.0.2.13:6379) does not answer"),
        (NODES, changed(SENTINELS, 2, quorum_ok=False), None, "node2 (192.0.2.12:26379) does not see enough Sentinels"),
        (NODES, changed(SENTINELS, 2, tilt=True), None, "node2 (192.0.2.12:26379) is in tilt mode"),
        (NODES, changed(SENTINELS, 2, failover=True), None, "node2 (192.0.2.12:26379) has a failover in progress"),
        (NODES, changed(SENTINELS, 2, flags="master,s_down"), None, "regards the primary as down (s_down)"),
        (NODES, changed(SENTINELS, 2, others=3), None, "knows 3 other Sentinels, not 2"),
        (NODES, changed(SENTINELS, 2, quorum=1), None, "has quorum 1, not 2"),
        (
            NODES,
            changed(SENTINELS, 2, known={**SENTINELS[1]["known"], "192.0.2.99:6379": {"flags": "slave", "link": True, "priority": 100}}),
            None,
            "knows the replica 192.0.2.99:6379, which is not in the inventory",
        ),
        (
            NODES,
            changed(SENTINELS, 2, known={**SENTINELS[1]["known"], address(2): {"flags": "slave,s_down", "link": True, "priority": 100}}),
            None,
            "does not reach the replica on node2",
        ),
        (
            NODES,
            changed(SENTINELS, 2, known={**SENTINELS[1]["known"], address(2): {"flags": "slave", "link": False, "priority": 100}}),
            None,
            "has not yet seen the link of the replica on node2",
        ),
        (NODES, changed(SENTINELS, 2, primary=address(2)), None, "names 192.0.2.12:6379 as primary"),
        (changed(NODES, 3, priority=0), SENTINELS, address(3), "node3 (192.0.2.13:6379) may not become primary"),
        (NODES, SENTINELS, "192.0.2.99:6379", "The wanted primary 192.0.2.99:6379 is no replica"),
        ([{**one, "priority": 0} for one in NODES], SENTINELS, None, "the replica-priority of each is 0"),
        ([node(1, "master", min_replicas=0)], [sentinel(number, 1, ()) for number in NUMBERS], None, "There is no replica that could take over"),
    ],
)
def test_each_obstacle_is_named_refused_and_ends_a_pause(nodes, sentinels, to, words):
    found = obstacles(nodes, sentinels, quorum=2, to=to)
    assert any(words in one for one in found), found
    refused = step(nodes, sentinels, to=to, quorum=2)
    assert refused.action == "refuse" and words in refused.why
    paused = changed(nodes, 1, paused=True)
    if any(one.get("failover") for one in sentinels):
        assert step(paused, sentinels, to=to, quorum=2).action == "hold"
    else:
        undone = step(paused, sentinels, to=to, quorum=2)
        assert undone[:2] == ("unpause", address(1)) and words in undone.why


def test_two_primaries_that_are_no_succession_are_refused_and_both_named():
    nodes = [node(1, "master", paused=True), node(2, "master", history="other"), node(3)]
    found = step(nodes)
    assert found.action == "refuse"
    assert "node1 (192.0.2.11:6379" in found.why and "node2 (192.0.2.12:6379" in found.why


def test_an_old_primary_that_accepts_writes_is_left_to_the_operator():
    nodes = [node(1, "master"), node(2, "master", history="h2", history_before="h1"), node(3)]
    found = step(nodes)
    assert found.action == "refuse" and "node1 (192.0.2.11:6379) still says it is the primary and accepts writes" in found.why


def test_a_promotion_that_no_sentinel_stands_behind_is_not_followed():
    nodes = [node(1, "master", paused=True), node(2, "master", history="h2", history_before="h1"), node(3)]
    assert step(nodes)[:2] == ("hold", address(1))


def test_a_silent_sentinel_may_be_promoting_what_was_ordered():
    paused = changed(NODES, 1, paused=True)
    sentinels = [silent(SENTINELS[0]), *SENTINELS[1:]]
    assert step(paused, sentinels).action == "unpause"
    assert step(paused, sentinels, sent=True)[:2] == ("hold", address(1))


@pytest.mark.parametrize("replicas, minimum, refused", [(2, 1, False), (2, 2, True), (1, 1, False), (2, 0, False)])
def test_a_replica_may_be_restarted_while_the_others_are_enough(replicas, minimum, refused):
    nodes = [node(1, "master", min_replicas=minimum, connected=replicas), *(node(number) for number in range(2, replicas + 2))]
    sentinels = [sentinel(number, 1, range(2, replicas + 2)) for number in NUMBERS]
    found = obstacles(nodes, sentinels, switching=False)
    assert bool(found) is refused, found


def test_traces_of_an_interrupted_switch():
    assert leftovers(NODES) == (None, False)
    promoted = [node(1, "master", paused=True), node(2, "master", history="h2", history_before="h1"), node(3)]
    assert leftovers(promoted) == (address(1), False)
    assert leftovers([node(1, follows=2, paused=True), node(2, "master"), node(3, follows=2)]) == (address(1), True)


class World:
    """A small Redis with Sentinels: what a step does, and what time does. Writes that clients had acknowledged are counted."""

    def __init__(self, events):
        self.nodes = {where(one): dict(one) for one in NODES}
        self.sentinels = [dict(one) for one in SENTINELS]
        self.promoting = None  # looks until the chosen replica is promoted
        self.converting = None  # looks until the Sentinels themselves make the old primary a replica
        self.pause_left = 0  # looks until the pause ends by itself
        self.chosen = self.old = None
        self.lost = 0
        self.lagging = 0  # looks for which node2 and node3 get nothing, although their links are up
        self.events = list(events)

    def masters(self):
        return [one for one in self.nodes.values() if one["role"] == "master"]

    def look(self):
        event = self.events.pop(0) if self.events else "time"
        getattr(self, f"on_{event}")()
        self.time()
        return [dict(one) for one in self.nodes.values()], [dict(one) for one in self.sentinels]

    def on_time(self):
        """Nothing happens but time."""

    def on_slow(self):
        if self.promoting is not None:
            self.promoting += 2

    def on_abort(self):
        """The Sentinels give a promotion up before they have ordered it."""
        if self.promoting:
            self.promoting = None
            self._failover(False)

    def on_lag(self):
        self.lagging = 3

    def on_link(self):
        self.nodes[address(3)]["link"] = not self.nodes[address(3)]["link"]

    def on_rewrite(self):
        self.nodes[address(2)]["aof_rewriting"] = not self.nodes[address(2)]["aof_rewriting"]

    def on_tilt(self):
        self.sentinels[2]["tilt"] = not self.sentinels[2]["tilt"]

    def _failover(self, running):
        self.sentinels[0]["failover"] = running

    def time(self):
        """One look later."""
        for one in self.sentinels:
            for replica in one["known"]:
                one["known"][replica] = {**one["known"][replica], "priority": self.nodes[replica]["priority"]}
        if self.pause_left:
            self.pause_left -= 1
            if not self.pause_left:
                for one in self.nodes.values():
                    one["paused"] = False
        if self.promoting is not None:
            if self.promoting == 0:
                self._promote()
            else:
                self.promoting -= 1
        elif self.converting is not None:
            if self.converting == 0:
                self.make_replica(self.old)
            else:
                self.converting -= 1
        for one in self.masters():
            if not one["paused"]:
                # A client still holds its connection and writes; lost if it is not the only history that stays.
                one["offset"] += 10
                if len(self.masters()) > 1 and where(one) == self.old:
                    self.lost += 10
        self.lagging = max(0, self.lagging - 1)
        for one in self.nodes.values():
            if self.lagging and where(one) in (address(2), address(3)):
                continue
            if one["role"] == "slave" and one["link"] and self.nodes[one["primary"]]["role"] == "master":
                one["offset"] = self.nodes[one["primary"]]["offset"]

    def _promote(self):
        self.promoting = None
        replicas = [one for one in self.nodes.values() if one["role"] == "slave" and one["link"]]
        if not replicas:
            self._failover(False)
            return
        old = self.masters()[0]
        self.old = where(old)
        new = min(replicas, key=lambda one: (one["priority"], one["host"]))
        self.lost += max(0, old["offset"] - new["offset"])
        self.chosen = where(new)
        new.update(role="master", primary=None, history=old["history"] + "+", history_before=old["history"], connected=2, good_replicas=2)
        for one in self.nodes.values():
            if one["role"] == "slave":
                one["primary"] = self.chosen
        self.converting = 8
        self._failover(False)
        for one in self.sentinels:
            one["primary"] = self.chosen
            others = [name for name in self.nodes if name != self.chosen]
            one["known"] = {name: {"flags": "slave", "link": True, "priority": self.nodes[name]["priority"]} for name in others}

    def make_replica(self, old):
        self.nodes[old].update(role="slave", primary=self.chosen, history=self.nodes[self.chosen]["history"], history_before="0", connected=0)
        self.converting = None

    def do(self, one):
        target = self.nodes.get(one.address)
        if one.action in ("pause", "hold"):
            target["paused"] = True
            self.pause_left = 30
        elif one.action == "unpause":
            # The two promises: no promotion is under way or has happened while this one says it is the primary.
            assert target["role"] == "slave" or (len(self.masters()) == 1 and self.promoting is None)
            target["paused"] = False
        elif one.action == "prefer":
            target["priority"] += RAISED
        elif one.action == "restore":
            target["priority"] -= RAISED
        elif one.action == "failover":
            assert target["paused"] and all(other["offset"] >= target["offset"] for other in self.nodes.values())
            if self.promoting is None:
                self.promoting = 3
                self._failover(True)
        elif one.action == "demote":
            assert len(self.masters()) == 2
            self.make_replica(one.address)
            target["paused"] = False


def run(world, to, looks, killed_after=None):
    """What the modules do with the planner; None when it was killed after so many steps."""
    nodes, sentinels = world.look()
    old, finished = leftovers(nodes)
    masters = [where(one) for one in nodes if one["role"] == "master"]
    leave = (None if finished else old) if old else masters[0] if masters[0] != to else None
    ending, sent, steps = None, any(one["paused"] for one in nodes), []
    for number in range(looks + 80):
        one = plan(nodes, sentinels, leave, to, 2, ending, sent)
        if one.action in ("done", "refuse"):
            return one.action, steps
        if number > looks:
            ending = "Time is over."
        if one.action == "failover" and "failover" in steps:
            ending = "given up"
        elif one.action != "wait":
            if one.action == "unpause" and one.address == leave and len(world.masters()) == 1 and "demote" not in steps:
                ending = one.why
            sent = sent or one.action == "failover"
            world.do(one)
            steps.append(one.action)
            if killed_after is not None and len(steps) > killed_after:
                return None
        nodes, sentinels = world.look()
    raise AssertionError(f"it does not end: {steps[-5:]}, {one}")


EVENTS = st.lists(st.sampled_from(["time", "time", "slow", "abort", "lag", "link", "rewrite", "tilt"]), max_size=25)
WANTED = st.sampled_from([None, address(2), address(3)])


@settings(max_examples=400, deadline=None)
@given(EVENTS, WANTED, st.integers(0, 30))
def test_it_always_ends_loses_nothing_and_leaves_no_pause(events, to, looks):
    world = World(events)
    ended, steps = run(world, to, looks)
    assert world.lost == 0
    assert not any(one["paused"] for one in world.nodes.values())
    if ended == "done":
        assert len(world.masters()) == 1
        assert not any(one["priority"] >= RAISED for one in world.nodes.values())


@settings(max_examples=400, deadline=None)
@given(EVENTS, WANTED, WANTED, st.integers(0, 12), st.integers(0, 6))
def test_a_killed_run_is_finished_or_undone_by_the_next(events, to, then_to, killed_after, idle):
    world = World(events)
    run(world, to, 30, killed_after)
    for _look in range(idle):
        world.look()
    world.events = []  # what was in the way goes away
    for one in world.nodes.values():
        one.update(link=True, aof_rewriting=False)
    world.sentinels[2]["tilt"] = False
    ended, steps = run(world, then_to, 30)
    assert world.lost == 0
    assert not any(one["paused"] for one in world.nodes.values())
    assert ended == "done", steps
    assert not any(one["priority"] >= RAISED for one in world.nodes.values())
