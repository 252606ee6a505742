"""What next for an event: by table, and what holds for all of them."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openclaw_ingress.decision import (
    COMMITTED,
    DEAD,
    DELIVER,
    FORGET,
    NO_TURN,
    TOO_OLD,
    UNANSWERED,
    UNDELIVERABLE,
    UNSENT,
    WAIT,
    Limits,
    Queued,
    Replica,
    State,
    decide,
    look_again,
    lost,
    order,
    pause,
)

NOW = 10_000.0
LIMITS = Limits(max_age=100, max_attempts=3, quiet=20, gone=5)
REPLICAS = {
    "up": Replica("up", "ok", 5000.0),
    "new": Replica("new", "ok", 9999.0),
    "leaving": Replica("leaving", "draining", 5000.0),
    "down": Replica("down", "down", 5000.0),
    "silent": Replica("silent"),
}


def at(replica, ago=1.0, **more):
    """The state of an event that a replica took some seconds ago."""
    return State(attempts=1, replica=replica, delivered=NOW - ago, started=5000.0) if not more else dataclasses.replace(at(replica, ago), **more)


@pytest.mark.parametrize(
    ("state", "claim", "age", "expected"),
    [
        # queued
        (State(), "", 1, DELIVER),
        (State(), "", 101, TOO_OLD),
        (State(attempts=2), "", 1, DELIVER),
        (State(attempts=3), "", 1, UNDELIVERABLE),
        # queued, but somebody has it: a POST whose answer did not come
        (State(attempts=3), "running", 101, WAIT),
        (State(attempts=3), "done", 101, COMMITTED),
        # delivered, no claim yet
        (at("up"), "", 1, WAIT),
        (at("up", 19), "", 19, WAIT),
        (at("up", 20), "", 20, NO_TURN),
        (at("up", 20, redelivered=True), "", 20, UNANSWERED),
        (at("up", 19, redelivered=True), "", 19, WAIT),
        (at("leaving"), "", 1, WAIT),
        (at("down"), "", 1, DELIVER),
        (at("silent"), "", 1, DELIVER),
        (at("gone"), "", 1, DELIVER),
        (at("new"), "", 1, DELIVER),
        (at("new", started=None), "", 1, WAIT),
        (at("down", 30), "", 30, DELIVER),
        (at("down"), "", 101, TOO_OLD),
        (at("down", attempts=3), "", 1, UNDELIVERABLE),
        # claimed
        (at("up", 90), "running", 101, WAIT),
        (at("down"), "running", 1, WAIT),
        (at("up", 90, claimed=True), "running", 101, WAIT),
        # Its claim is gone: given back, or not renewed while Redis was away.
        (at("up", 90, claimed=True), "", 1, WAIT),
        (at("up", 90, claimed=True, unclaimed=NOW - 4), "", 1, WAIT),
        (at("up", 90, claimed=True, unclaimed=NOW - 5), "", 1, DELIVER),
        (at("up", 90, claimed=True, unclaimed=NOW - 5), "running", 1, WAIT),
        (at("down", claimed=True), "", 1, DELIVER),
        (at("up", 90, claimed=True), "done", 1000, COMMITTED),
        (at("down", claimed=True), "done", 1000, COMMITTED),
        # Its turn is stored, its answer may not be sent yet.
        (at("up", 90, claimed=True), "committed", 1000, WAIT),
        (at("leaving"), "committed", 1, WAIT),
        (at("up", 90, committed=NOW - 19), "committed", 1, WAIT),
        # Nobody knows whether it was.
        (at("up", 90, committed=NOW - 20), "committed", 1, UNSENT),
        (at("down"), "committed", 1, UNSENT),
        (at("new"), "committed", 1, UNSENT),
        (at("up"), "unsent", 1, UNSENT),
        (State(attempts=1), "committed", 1, WAIT),
    ],
)
def test_one_event(state, claim, age, expected):
    ((action, after),) = decide([Queued("1-0", NOW - age, state, claim)], REPLICAS, NOW, LIMITS)
    assert action == expected
    assert after.attempts == state.attempts and after.replica == state.replica
    if action == DELIVER:
        assert after.delivered is None and not after.claimed and after.redelivered == (state.delivered is not None)
    if action == WAIT and claim:
        assert after.claimed and after.unclaimed is None
    if action == WAIT and not claim and state.claimed:
        assert after.unclaimed == (state.unclaimed or NOW)
    assert after.reason == (action if action in DEAD else "")


@pytest.mark.parametrize(
    ("state", "arrival", "claimable", "expected"),
    [
        (at("up", 1), "completed", True, NO_TURN),
        (at("up", 1), "failed", True, UNANSWERED),
        (at("up", 1, redelivered=True), "completed", True, UNANSWERED),
        # What was claimed is decided by its claim: the gateway may be through with it because it gave it back.
        (at("up", 1, claimed=True), "failed", True, WAIT),
        (at("up", 1, claimed=True, unclaimed=NOW - 5), "completed", True, DELIVER),
        # Another replica's word of an earlier delivery.
        (State(attempts=1), "completed", True, DELIVER),
        # A button, an edit: nothing to wait for.
        (at("up", 4), "", False, WAIT),
        (at("up", 5), "", False, NO_TURN),
    ],
)
def test_what_begins_no_turn(state, arrival, claimable, expected):
    ((action, _after),) = decide([Queued("1-0", NOW - 1, state, "", arrival, claimable)], REPLICAS, NOW, LIMITS)
    assert action == expected


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        # (state, claim) of each member
        ([(State(), ""), (State(), "")], [DELIVER, DELIVER]),
        ([(at("up"), ""), (State(), "")], [WAIT, DELIVER]),
        # One turn under one id.
        ([(at("up"), ""), (at("up"), "running")], [WAIT, WAIT]),
        ([(at("up", 30), ""), (at("up", 30), "running")], [WAIT, WAIT]),
        ([(at("up", 30), ""), (at("up", 30), "done")], [COMMITTED, COMMITTED]),
        ([(at("up", 30), "done"), (at("up", 30, claimed=True), "running")], [COMMITTED, WAIT]),
        ([(at("up", claimed=True, unclaimed=NOW - 9), ""), (at("up"), "")], [DELIVER, DELIVER]),
        ([(at("up", 30), ""), (at("up", 30), "committed")], [WAIT, WAIT]),
        ([(at("down"), ""), (at("down"), "")], [DELIVER, DELIVER]),
        # What another replica got is its own affair.
        ([(at("down"), ""), (at("up"), "done")], [DELIVER, COMMITTED]),
        ([(at("up"), ""), (at("down"), "")], [WAIT, DELIVER]),
        ([(at("up", 30), ""), (at("up", 30), "")], [NO_TURN, NO_TURN]),
        ([(at("up", 1), "done"), (State(), "")], [COMMITTED, DELIVER]),
    ],
)
def test_a_group(group, expected):
    batch = [Queued(f"{number}-0", NOW - 1, state, claim) for number, (state, claim) in enumerate(group)]
    assert [action for action, _state in decide(batch, REPLICAS, NOW, LIMITS)] == expected


STATES = st.builds(
    State,
    attempts=st.integers(0, 5),
    replica=st.sampled_from([*REPLICAS, ""]),
    delivered=st.none() | st.floats(NOW - 200, NOW),
    started=st.none() | st.sampled_from([5000.0, 9999.0]),
    claimed=st.booleans(),
    unclaimed=st.none() | st.floats(NOW - 20, NOW),
    redelivered=st.booleans(),
)
EVENTS = st.builds(
    Queued,
    id=st.just("1-0"),
    at=st.floats(NOW - 200, NOW),
    state=STATES,
    claim=st.sampled_from(["", "running", "committed", "unsent", "done"]),
    arrival=st.sampled_from(["", "completed", "failed"]),
    claimable=st.booleans(),
)


@given(st.lists(EVENTS, min_size=1, max_size=5))
def test_what_always_holds(batch):
    plan = decide(batch, REPLICAS, NOW, LIMITS)
    assert len(plan) == len(batch)
    for event, (action, state) in zip(batch, plan):
        # Done is done, what runs is left alone, and what is stored is not run again.
        if event.claim in ("running", "done"):
            assert action == (COMMITTED if event.claim == "done" else WAIT)
        if event.claim == "committed":
            assert action in (UNSENT, WAIT)
        # Nothing is forgotten that no replica has had.
        if action in FORGET and event.claim not in ("committed", "done"):
            assert event.state.delivered is not None
        if action == NO_TURN:
            assert not lost(event.state, REPLICAS.get(event.state.replica))
            assert event.arrival or NOW - event.state.delivered >= (LIMITS.quiet if event.claimable else 5)
        if action == DELIVER:
            assert state.attempts < LIMITS.max_attempts and NOW - event.at <= LIMITS.max_age
        assert State.parse(state.text()) == state


def test_a_state_of_another_version_is_read():
    assert State.parse('{"attempts":2,"colour":"red"}') == State(attempts=2) and State.parse("") == State()


@given(st.lists(st.sampled_from(list(REPLICAS.values())), unique=True), st.sampled_from(["", *REPLICAS]), st.integers(0, 100))
def test_order(replicas, avoid, turn):
    usable = {one.id for one in replicas if one.status in ("ok", "degraded")}
    found = order(replicas, avoid, turn)
    assert len(found) == len(set(found)) and set(found) == (usable - {avoid} or usable)


def test_order_is_a_round_robin():
    replicas = [Replica(name, "ok") for name in "abc"]
    assert ["".join(order(replicas, "", turn)) for turn in range(4)] == ["abc", "bca", "cab", "abc"]
    assert ["".join(order(replicas, "b", turn)) for turn in range(3)] == ["ac", "ca", "ac"]


def test_what_counts_among_those_that_a_replica_has():
    assert at("up", 1).held(NOW) and at("up", 90, claimed=True).held(NOW)
    assert not at("up", 5).held(NOW) and not State(attempts=1, replica="up").held(NOW)


def test_pauses():
    limits = Limits(pause=1, pause_max=60)
    assert [pause(attempts, 3, limits) for attempts in range(1, 10)] == [0, 0, 1, 0, 0, 2, 0, 0, 4]
    assert [pause(attempts, 1, limits) for attempts in (1, 2, 7, 8, 10_000)] == [1, 2, 60, 60, 60]
    assert pause(1, 0, limits) == 1


def test_looks_become_rarer():
    limits = Limits(poll=0.25)
    assert [look_again(State(delivered=NOW - ago), NOW, limits) for ago in (0, 5, 10, 100)] == [0.25, 0.25, 0.5, 1.0]
    assert look_again(State(), NOW, limits) == 0.25
