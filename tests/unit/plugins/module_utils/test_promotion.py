# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.openclaw.ha.plugins.module_utils.datacenter import Claim
from ansible_collections.openclaw.ha.plugins.module_utils.promotion import candidate, gap, plan
from ansible_collections.openclaw.ha.plugins.module_utils.redis_view import where

OLD, NEW = Claim("main", 1), Claim("west", 2)
FAR = "198.51.100.2:6379"


def server(number, offset=100, **more):
    """A Redis server of a standby."""
    return {
        "host": f"west{number}",
        "address": f"192.0.2.{number}",
        "port": 6379,
        "role": "slave",
        "primary": FAR,
        "link": True,
        "offset": offset,
        "connected": 0,
        "priority": 0,
        "min_replicas": 1,
        "good_replicas": 0,
        "claim": OLD,
        **more,
    }


def watcher(number, primary=None):
    return {
        "host": f"west{number}",
        "address": f"192.0.2.{number}",
        "port": 26379,
        "primary": primary,
        "replicas": 4 if primary else 0,
        "quorum_ok": bool(primary),
        "tilt": False,
        "failover": False,
    }


def do(step, nodes, sentinels):
    """What becomes of the servers by a step, as Redis and Sentinel would have it a moment later."""
    nodes, sentinels = [dict(node) for node in nodes], [dict(one) for one in sentinels]
    node = next((one for one in nodes if where(one) == step.address), None)
    if step.action == "promote":
        node.update(role="master", primary=None, link=True, priority=100)
    elif step.action == "attach":
        master = next(one for one in nodes if not one.get("error") and one["role"] == "master")
        node.update(primary=where(master), link=True, priority=100)
    elif step.action == "electable":
        node["priority"] = 100
    elif step.action == "claim":
        for one in nodes:
            if not one.get("error"):
                one["claim"] = NEW
    elif step.action in ("unwatch", "watch"):
        (sentinel,) = [one for one in sentinels if where(one) == step.address]
        master = next(one for one in nodes if not one.get("error") and one["role"] == "master")
        sentinel.update(watcher(1, where(master) if step.action == "watch" else None), host=sentinel["host"], address=sentinel["address"])
    masters = [one for one in nodes if not one.get("error") and one["role"] == "master"]
    for one in masters:
        one["good_replicas"] = one["connected"] = sum(other.get("primary") == where(one) for other in nodes)
    return nodes, sentinels


def walk(nodes, sentinels, until=40):
    """The steps to the end."""
    steps = []
    while len(steps) < until:
        step = plan(nodes, sentinels, NEW, 2)
        steps.append(step)
        if step.action in ("done", "refuse", "wait"):
            return steps, nodes
        nodes, sentinels = do(step, nodes, sentinels)
    raise AssertionError(f"no end: {[step.action for step in steps]}")


def test_the_one_that_has_most_takes_over_and_all_are_told():
    steps, _nodes = walk([server(1), server(2, offset=120), server(3)], [watcher(number) for number in (1, 2, 3)])
    assert [step.action for step in steps] == ["promote", "attach", "attach", "claim", "watch", "watch", "watch", "done"]
    assert steps[0].address == "192.0.2.2:6379" == steps[-1].address


def test_sentinels_that_watch_something_else_forget_it_first_all_of_them():
    steps, _nodes = walk([server(1), server(2)], [watcher(1, FAR), watcher(2), watcher(3, FAR)])
    assert [step.action for step in steps if "watch" in step.action] == ["unwatch", "unwatch", "watch", "watch", "watch"]


def silent(one):
    return {**{key: one[key] for key in ("host", "address", "port")}, "error": "no route to host"}


def test_a_server_that_is_down_holds_nobody_up():
    steps, _nodes = walk([silent(server(1)), server(2), server(3)], [silent(watcher(1)), watcher(2), watcher(3)])
    assert steps[-1].action == "done"


def test_writes_that_would_be_refused_are_waited_for():
    steps, _nodes = walk([server(1), silent(server(2))], [])
    assert steps[-1].action == "wait" and "accepts writes with 1" in steps[-1].why


@pytest.mark.parametrize(
    "nodes, said",
    [
        ([silent(server(1))], "None of its Redis servers answers"),
        ([server(1, role="master"), server(2, role="master")], "More than one"),
        ([server(1, claim=Claim("main", 3)), server(2)], "knows of epoch 3"),
    ],
)
def test_what_cannot_be_promoted_is_refused(nodes, said):
    step = plan(nodes, [], NEW, 2)
    assert step.action == "refuse" and said in step.why


def test_what_is_missing_is_counted_by_offsets():
    nodes = [server(1), server(2, offset=120), silent(server(3))]
    assert candidate(nodes)["host"] == "west2" and candidate([silent(server(1))]) is None
    assert gap({"offset": 150}, nodes) == 30 and gap({"offset": 90}, nodes) == 0 and gap({"offset": 90}, []) is None


@given(
    offsets=st.lists(st.integers(0, 5), min_size=2, max_size=5),
    silent_ones=st.sets(st.integers(1, 5), max_size=2),
    killed_after=st.integers(0, 12),
    watches=st.lists(st.sampled_from([None, FAR]), min_size=3, max_size=3),
)
def test_it_always_ends_and_can_be_interrupted_anywhere(offsets, silent_ones, killed_after, watches):
    nodes = [server(number, offset=100 + offset) for number, offset in enumerate(offsets, 1)]
    nodes = [silent(node) if number in silent_ones else node for number, node in enumerate(nodes, 1)]
    best = candidate(nodes)
    sentinels = [watcher(number, primary) for number, primary in enumerate(watches, 1)]
    # An earlier run did some of it.
    for _step in range(killed_after):
        step = plan(nodes, sentinels, NEW, 2)
        if step.action in ("done", "refuse", "wait"):
            break
        nodes, sentinels = do(step, nodes, sentinels)
    steps, nodes = walk(nodes, sentinels)
    alive = [node for node in nodes if not node.get("error")]
    if not alive:
        assert steps[-1].action == "refuse"
    elif len(alive) == 1:
        assert steps[-1].action == "wait"
    else:
        assert steps[-1].action == "done" and steps[-1].address == where(best)
        assert {node["claim"] for node in alive} == {NEW} and all(node["priority"] for node in alive)
