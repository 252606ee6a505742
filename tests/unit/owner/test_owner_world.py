"""Whatever happens to hosts, gateways and Redis, no two replicas have a singleton at once; and when it is over, one has it."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from owner_world import FAULTS, LIMITS, SINGLETONS, World

#: After the last of the faults: a lease ends, and its linger, and somebody takes it.
CALM = LIMITS.lease + max(SINGLETONS.values()) + LIMITS.down + 30

faults = st.tuples(st.integers(0, 40), st.sampled_from(FAULTS), st.integers(0, 5), st.integers(1, 40))


@settings(max_examples=int(os.environ.get("OWNER_EXAMPLES", "40")), deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32), st.sampled_from([(2, 1), (3, 1), (2, 2)]), st.booleans(), st.lists(faults, max_size=14))
def test_never_two_and_in_the_end_one(seed, size, tells, happens):
    world = World(seed, *size, tells)
    world.run(15)
    for pause, kind, number, seconds in happens:
        world.run(pause / 4)
        world.fault(kind, number, seconds)
    world.run(max((seconds for _pause, _kind, _number, seconds in happens), default=0))
    world.calm = True
    world.run(CALM)
    for name in SINGLETONS:
        assert len(world.on(name)) == 1, world.told()


def test_without_faults_an_owner_stays():
    world = World(1, 3, 1, True)
    world.run(15)
    first = {name: world.on(name) for name in SINGLETONS}
    assert all(len(having) == 1 for having in first.values())
    world.run(300)
    assert {name: world.on(name) for name in SINGLETONS} == first and world.kills == 0


def test_a_gateway_that_stands_still_for_a_while_keeps_what_it_has():
    world = World(3, 2, 1, True)
    world.run(15)
    (before,) = world.on("poll")
    next(one for one in world.gateways if one.name == before).hung_until = world.time + 25
    world.run(60)
    assert world.on("poll") == [before] and world.kills == 0


def test_one_that_is_to_leave_while_its_gateway_begins_with_it_is_not_taken_for_off():
    world = World(4, 2, 1, True)
    while not (beginning := [one for one in world.gateways if "poll" in one.begun]):
        world.step()
    (gateway,) = beginning
    world.run(0.5)
    # A gateway that starts takes its time, and its first start of all channels does not know of a stop.
    gateway.begun["poll"] = world.time + 8
    world.fault_give(None, gateway, 0)
    world.run(60)
    assert len(world.on("poll")) == 1 and world.on("poll") != [gateway.name]


def test_a_gateway_that_hangs_is_killed_before_another_has_what_it_has():
    world = World(2, 2, 1, True)
    world.run(15)
    (before,) = world.on("poll")
    next(one for one in world.gateways if one.name == before).hung_until = world.time + 1000
    while world.on("poll"):
        world.step()
    # It hung for 6 s until it was down, for 30 s more until it was to give up, and then had 3 s.
    assert world.kills == 1 and 53 < world.time < 57
    while not world.on("poll"):
        assert world.time < 90
        world.step()
