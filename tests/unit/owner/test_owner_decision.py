"""What next with a singleton: one case after the other; what holds for all of them together is in test_owner_world.py."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openclaw_owner import decision
from openclaw_owner.decision import (
    ACQUIRE,
    FENCE,
    FREE,
    GIVING_UP,
    NEVER,
    OWNED,
    RELEASE,
    RELEASING,
    RENEW,
    RESUMING,
    Answer,
    Lease,
    Limits,
    Main,
    Replica,
    Seen,
    State,
)

NAME, LIMITS, NOW = "telegram/poll", Limits(), 1000.0
MAIN = Main(7, 500.0, NOW)
GOOD = Replica("r1", "ok", 0.1, NOW, MAIN, Answer(7, frozenset(), NOW), True)
HELD = State(OWNED, "r1", 3, NOW + 19, True, begun=NOW - 30, asked=NOW - 1, process=(7, 500.0), said_on=7)
NOBODY = Lease(at=NOW - 0.5)


def seen(*replicas, **more):
    return Seen("h1", {one.id: one for one in replicas or (GOOD,)}, **{"lease": NOBODY} | more)


def next_of(state, what=None, now=NOW):
    """(phase, action, replica)"""
    state, action, replica = decision.decide(NAME, state, what or seen(), now, LIMITS)
    return state.phase, action, replica


def changed(one, **more):
    return dataclasses.replace(one, **more)


# --- free


def acquired_after(what, state=State(), now=NOW):
    """Seconds until it asks for the lease, None when it does not within 10."""
    for number in range(1000):
        state, action, replica = decision.decide(NAME, state, what, now + number / 100, LIMITS)
        if action == ACQUIRE:
            assert state.clean
            return number / 100, replica
    return None


def test_a_free_one_is_taken_after_a_moment_that_is_its_own():
    seconds, replica = acquired_after(seen())
    assert replica == "r1" and 0 < seconds <= 0.31 and abs(seconds - decision.jitter(NAME, "r1", 0.3)) < 0.02
    assert decision.jitter(NAME, "r1", 0.3) != decision.jitter(NAME, "r2", 0.3)


def test_who_has_some_waits_and_of_two_the_one_with_fewer_is_taken():
    busy = changed(GOOD, owned=3)
    assert acquired_after(seen(busy))[0] > 0.9
    assert acquired_after(seen(busy, changed(GOOD, id="r2", owned=1)))[1] == "r2"
    assert acquired_after(seen(changed(GOOD, id="r3"), changed(GOOD, id="r2")))[1] == "r2"


@pytest.mark.parametrize("status", ["", "draining", "down", "?"])
def test_a_replica_that_does_not_serve_takes_nothing(status):
    assert acquired_after(seen(changed(GOOD, status=status))) is None


@pytest.mark.parametrize(
    "what",
    [
        seen(lease=None),
        seen(busy=True),
        seen(stopping=True),
        seen(configured=False),
        seen(changed(GOOD, silent=3.1)),
        seen(changed(GOOD, configured=False)),
        seen(lease=Lease("x", "h2", 1, 0, False, 30, NOW)),
    ],
)
def test_nothing_is_asked_for(what):
    assert acquired_after(what) is None


def test_it_waits_until_the_lease_of_another_is_over():
    seconds, _replica = acquired_after(seen(lease=Lease("x", "h2", 1, 0, False, 5, NOW)))
    assert 5 < seconds < 5.4


def test_what_was_asked_before_the_phase_began_tells_nothing():
    assert acquired_after(seen(), State(begun=NOW - 0.4)) is None
    assert acquired_after(seen(), State(begun=NOW - 0.6))
    assert acquired_after(seen(), State(begun=NOW - 0.6, not_before=NOW + 5))[0] >= 5


def test_a_grant_that_was_not_heard_is_given_back_and_one_that_nobody_knows_of_must_be_proven_off():
    ours = seen(lease=Lease("r1", "h1", 9, 0, False, 30, NOW - 0.1))
    assert next_of(State(clean=True), ours) == (RELEASING, RELEASE, "r1")
    state, action, _replica = decision.decide(NAME, State(), ours, NOW, LIMITS)
    assert (state.phase, state.token, state.on, state.written, action) == (GIVING_UP, 9, False, None, RENEW)
    assert next_of(State(clean=True), seen(lease=Lease("r1", "h2", 9, 0, False, 30, NOW - 0.1)))[0] == FREE


# --- a grant, a renewal


def granted(sent=NOW - 0.1, confirmed=True, **more):
    return decision.granted(State(**more), "r1", 4, 5.0, sent, confirmed, NOW, LIMITS)


def test_a_grant_is_valid_from_before_it_was_asked_for():
    state = granted()
    assert (state.phase, state.replica, state.token, state.since, state.on, state.valid) == (OWNED, "r1", 4, 5.0, True, NOW - 0.1 + 20)


@pytest.mark.parametrize("more", [{"confirmed": False}, {"sent": NOW - 13}, {"not_before": NOW + 1}])
def test_a_grant_that_is_not_to_be_relied_upon_is_given_back_at_once(more):
    state = granted(**more)
    assert (state.phase, state.on) == (RELEASING, False) and next_of(state) == (RELEASING, RELEASE, "r1")
    assert state.not_before > NOW


def test_renewals():
    assert next_of(HELD) == (OWNED, None, "")
    assert next_of(changed(HELD, asked=NOW - 2)) == (OWNED, RENEW, "r1")
    assert next_of(changed(HELD, asked=NOW - 2), seen(busy=True)) == (OWNED, None, "")
    assert decision.renewed(HELD, NOW - 0.5, True, NOW, LIMITS).valid == NOW + 19.5
    assert decision.renewed(HELD, NOW - 0.5, False, NOW, LIMITS) == HELD
    assert decision.renewed(HELD, NOW - 9, True, NOW, LIMITS).valid == HELD.valid
    assert decision.renewed(State(), NOW, True, NOW, LIMITS) == State()


def test_a_lease_of_a_former_life_is_renewed_before_anything_is_on():
    state = decision.resumed(changed(HELD, on=False))
    assert next_of(state) == (RESUMING, RENEW, "r1")
    after = decision.renewed(state, NOW, True, NOW, LIMITS)
    assert (after.phase, after.on, after.token) == (OWNED, True, 3)
    assert decision.renewed(state, NOW, False, NOW, LIMITS).phase == RESUMING
    assert decision.lost(state, NOW).phase == GIVING_UP
    leaving = decision.resumed(decision.give_up(HELD, "x", NOW - 1))
    assert (leaving.phase, leaving.on, leaving.written) == (GIVING_UP, False, None)


# --- it is given up


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        (seen(stopping=True), "the daemon stops"),
        (seen(changed(GOOD, status="draining")), "its replica is draining"),
        (seen(changed(GOOD, status="down", down=30.0)), "its replica is down"),
        (seen(changed(GOOD, status="down", main=Main(0, 0.0, NOW))), "its replica is down"),
        (seen(changed(GOOD, silent=3.2)), "the agent of its replica has been silent for 3.2 s"),
        (seen(configured=False), "it is not configured any more"),
        (seen(changed(GOOD, configured=False)), "it is not configured any more"),
        (seen(changed(GOOD, id="r2")), "it is not configured any more"),
    ],
)
@pytest.mark.parametrize("phase", [OWNED, RESUMING])
def test_why_it_is_given_up(phase, what, reason):
    state, _action, _replica = decision.decide(NAME, changed(HELD, phase=phase), what, NOW, LIMITS)
    assert (state.phase, state.reason, state.on, state.written, state.begun) == (GIVING_UP, reason, False, None, NOW)


def test_a_gateway_that_does_not_answer_for_a_while_keeps_what_it_has():
    assert next_of(HELD, seen(changed(GOOD, status="down", down=29.9)))[0] == OWNED
    # Another process than the one that has it: that one is gone.
    state = changed(HELD, process=(6, 1.0), on=False)
    assert next_of(state, seen(changed(GOOD, status="down")))[0] == GIVING_UP


def test_a_gateway_that_does_not_turn_it_on_gives_way_to_another_one():
    off = changed(GOOD, tells=True, answer=Answer(7, frozenset(), NOW))
    assert next_of(changed(HELD, begun=NOW - 59), seen(off))[0] == OWNED
    state, _action, _replica = decision.decide(NAME, changed(HELD, begun=NOW - 60), seen(off), NOW, LIMITS)
    assert (state.phase, state.reason, state.fault) == (GIVING_UP, "its replica does not turn it on", True)
    assert next_of(changed(HELD, begun=NOW - 60), seen(changed(off, answer=None)))[0] == OWNED
    assert next_of(changed(HELD, begun=NOW - 60), seen(changed(off, tells=False)))[0] == OWNED


def test_whose_fault_it_was_is_remembered():
    dead, _action, _replica = decision.decide(NAME, HELD, seen(changed(GOOD, status="down", down=30.0)), NOW, LIMITS)
    assert dead.fault and not decision.decide(NAME, HELD, seen(stopping=True), NOW, LIMITS)[0].fault


def test_a_lease_that_is_not_renewed_is_given_up_while_there_is_time():
    assert next_of(changed(HELD, valid=NOW + 8.1))[0] == OWNED
    assert next_of(changed(HELD, valid=NOW + 7.9))[0] == GIVING_UP


def test_a_degraded_replica_and_one_that_was_not_judged_yet_keep_it():
    for status in ("ok", "degraded", ""):
        assert next_of(HELD, seen(changed(GOOD, status=status)))[0] == OWNED


def test_give():
    state, _action, _replica = decision.decide(NAME, decision.give(HELD, NOW, 60), seen(), NOW, LIMITS)
    assert (state.phase, state.reason, state.not_before, state.asked_for) == (GIVING_UP, "somebody asked for it", NOW + 60, False)
    assert decision.released(state, NOW).not_before == NOW + 60
    assert decision.give(State(), NOW, 60) == State(not_before=NOW + 60)


BUSY = changed(GOOD, answer=Answer(7, frozenset({NAME}), NOW + 0.3, frozenset({NAME})))


@pytest.mark.parametrize(
    ("what", "asked_for"),
    [(seen(changed(BUSY, status="draining")), False), (seen(BUSY, stopping=True), False), (seen(BUSY), True)],
)
def test_where_nothing_is_wrong_its_gateway_stops_it_by_itself(what, asked_for):
    held = changed(HELD, asked_for=asked_for, valid=NOW + 40)
    state, action, _replica = decision.decide(NAME, held, what, NOW, LIMITS)
    assert (state.phase, state.on, state.leaving, action) == (OWNED, True, NOW, None)
    # It goes on being renewed meanwhile, and it is a bound.
    state, action, _replica = decision.decide(NAME, state, what, NOW + 24.9, LIMITS)
    assert (state.phase, state.leaving, action) == (OWNED, NOW, RENEW)
    assert next_of(state, what, NOW + 25)[0] == GIVING_UP
    # What it has to do for others does not matter.
    (replica,) = what.replicas.values()
    others = changed(replica, answer=changed(replica.answer, busy=frozenset({"telegram/other"})))
    assert next_of(state, changed(what, replicas={"r1": others}), NOW + 1)[0] == GIVING_UP


def test_what_it_said_before_it_was_told_is_no_answer_and_one_that_does_not_tell_is_not_waited_for():
    early = changed(GOOD, status="draining", answer=changed(GOOD.answer, at=NOW - 0.1))
    assert next_of(HELD, seen(early))[0] == OWNED
    assert next_of(HELD, seen(changed(early, answer=None)))[0] == OWNED
    assert next_of(HELD, seen(changed(early, tells=False)))[0] == GIVING_UP


def test_one_that_its_gateway_has_stopped_as_it_was_asked_to_is_nobodys_fault():
    stopped = changed(GOOD, status="draining", answer=Answer(7, frozenset(), NOW))
    state, _action, _replica = decision.decide(NAME, changed(HELD, begun=NOW - 600), seen(stopped), NOW, LIMITS)
    assert (state.phase, state.reason, state.fault) == (GIVING_UP, "its replica is draining", False)


@pytest.mark.parametrize("status", ["", "down"])
def test_one_that_was_leaving_when_its_replica_went_down_is_nobodys_fault(status):
    state = changed(HELD, leaving=NOW - 1)
    live = changed(GOOD, status=status)
    kept, _action, _replica = decision.decide(NAME, state, seen(live), NOW, LIMITS)
    assert (kept.phase, kept.leaving) == (OWNED, NOW - 1)
    gone, _action, _replica = decision.decide(NAME, state, seen(changed(live, status="down", main=Main(0, 0.0, NOW))), NOW, LIMITS)
    assert (gone.phase, gone.fault) == (GIVING_UP, False)


def test_it_does_not_leave_when_its_replica_is_not_drained_any_more_nor_wait_while_its_lease_ends():
    drained = seen(changed(BUSY, status="draining"))
    state, _action, _replica = decision.decide(NAME, HELD, drained, NOW, LIMITS)
    back, _action, _replica = decision.decide(NAME, state, seen(BUSY), NOW + 1, LIMITS)
    assert (back.phase, back.leaving, back.begun) == (OWNED, None, NOW + 1)
    assert next_of(changed(state, valid=NOW + 8.9), drained, NOW + 1)[0] == GIVING_UP
    assert next_of(state, seen(changed(BUSY, status="down", down=30.0)), NOW + 1)[0] == GIVING_UP
    assert decision.resumed(state).leaving is None


# --- proof

LEAVING = decision.wrote(decision.give_up(HELD, "x", NOW - 1), NOW - 1)


def proven(state=LEAVING, replica=GOOD, lives=True, now=NOW):
    return decision.proven(NAME, state, replica, lives, LIMITS, now)


SILENT = changed(GOOD, answer=None, tells=False)


@pytest.mark.parametrize(
    ("state", "replica", "lives", "proof"),
    [
        # what its process says
        (LEAVING, GOOD, True, "its process says so"),
        (changed(LEAVING, written=None), GOOD, True, ""),
        (LEAVING, changed(GOOD, answer=None), True, ""),
        (LEAVING, changed(GOOD, answer=Answer(7, frozenset({NAME}), NOW)), True, ""),
        (LEAVING, changed(GOOD, answer=Answer(7, frozenset(), NOW - 1.1)), True, ""),
        (LEAVING, changed(GOOD, answer=Answer(8, frozenset(), NOW)), True, ""),
        (LEAVING, changed(GOOD, main=None), True, ""),
        (LEAVING, changed(GOOD, main=Main(7, 500.0, NOW - 1.1)), True, ""),
        # never seen on: it may be about to begin
        (changed(LEAVING, said_on=0), GOOD, True, ""),
        (changed(LEAVING, said_on=6), GOOD, True, ""),
        (changed(LEAVING, said_on=0, written=NOW - 3), GOOD, True, "its process says so"),
        # its process
        (LEAVING, changed(GOOD, main=Main(0, 0.0, NOW)), False, "its process is gone"),
        (LEAVING, changed(GOOD, main=Main(0, 0.0, NOW)), True, ""),
        (LEAVING, changed(GOOD, main=Main(8, NOW - 0.5, NOW), answer=None), False, "its process is gone"),
        (LEAVING, changed(GOOD, main=Main(8, NOW - 1.5, NOW), answer=None), False, ""),
        # one that does not tell
        (LEAVING, SILENT, True, ""),
        (changed(LEAVING, written=NOW - 3), SILENT, True, "its process has served for 3.0 s without it"),
        (changed(LEAVING, written=NOW - 3), changed(SILENT, alive=NOW - 1.5), True, ""),
        (changed(LEAVING, written=NOW - 3), changed(SILENT, status="draining"), True, "its process has served for 3.0 s without it"),
        (changed(LEAVING, written=NOW - 3), changed(SILENT, status="down"), True, ""),
        (LEAVING, None, True, ""),
    ],
)
def test_proof(state, replica, lives, proof):
    assert proven(state, replica, lives) == proof


def test_what_is_proven_off_is_given_back_until_redis_has_heard_it():
    state, action, replica = decision.decide(NAME, LEAVING, seen(), NOW, LIMITS)
    assert (state.phase, action, replica, state.clean) == (RELEASING, RELEASE, "r1", True)
    assert next_of(state, now=NOW + 0.1) == (RELEASING, None, "")
    assert next_of(state, now=NOW + 0.6) == (RELEASING, RELEASE, "r1")
    assert next_of(state, seen(lease=None), NOW + 20) == (FREE, None, "")
    assert next_of(changed(LEAVING, token=0)) == (FREE, None, "")


# --- fencing

ON = changed(GOOD, answer=Answer(7, frozenset({NAME}), NOW))


def leaving(ago, left, **more):
    return changed(decision.wrote(decision.give_up(HELD, "x", NOW - ago), NOW - ago), valid=NOW + left, asked=NOW, **more)


@pytest.mark.parametrize(
    ("state", "what", "fenced"),
    [
        (leaving(3.9, 7), seen(ON), False),
        (leaving(4, 7), seen(ON), True),
        (leaving(4, 7), seen(ON, fencing=True), False),
        (leaving(4, 7, written=None), seen(ON), True),
        (leaving(6, 7, fenced=NOW - 2), seen(ON), False),
        (leaving(9, 7, fenced=NOW - 4), seen(ON), True),
        # while its lease is renewed there is time
        (leaving(19.9, 10), seen(ON), False),
        (leaving(20, 10), seen(ON), True),
        (leaving(4, 10, token=0), seen(ON), True),
        # near the end of the lease it must be off at the first look
        (leaving(0.1, 2.1), seen(ON), False),
        (leaving(0.1, 1.9), seen(ON), True),
        (leaving(0.1, -50), seen(ON), True),
        (leaving(0.1, 1.9), seen(changed(ON, answer=None)), False),
        (leaving(0.5, 1.9), seen(changed(ON, answer=None)), True),
        (leaving(0.1, 1.9), seen(SILENT), True),
        (leaving(0.1, 1.9, written=None), seen(ON), False),
        (leaving(0.5, 1.9, written=None), seen(ON), True),
        # what its agent calls dead has less
        (leaving(2.9, 10), seen(changed(ON, status="down", down=30.0)), False),
        (leaving(3, 10), seen(changed(ON, status="down", down=30.0)), True),
        (leaving(3, 10), seen(changed(ON, status="down", down=29.0)), False),
        (leaving(3, 10), seen(changed(ON, status="draining")), False),
        (leaving(3, 10), seen(changed(ON, status="down", down=30.0, main=changed(MAIN, stopping=True))), False),
        # what systemd stops has its time, but for the end of the lease
        (leaving(19, 10), seen(changed(ON, main=changed(MAIN, stopping=True))), False),
        (leaving(20, 10), seen(changed(ON, main=changed(MAIN, stopping=True))), True),
        (leaving(0.1, 1.9), seen(changed(ON, main=changed(MAIN, stopping=True))), True),
    ],
)
def test_when_a_gateway_is_killed(state, what, fenced):
    after, action, _replica = decision.decide(NAME, state, what, NOW, LIMITS)
    assert (action == FENCE) == fenced and after.phase == GIVING_UP
    assert after.fenced == (NOW if fenced else state.fenced)


def test_while_it_may_be_on_its_lease_is_renewed_unless_it_is_lost():
    assert next_of(changed(leaving(1, 10), asked=NOW - 2), seen(ON)) == (GIVING_UP, RENEW, "r1")
    gone = decision.lost(leaving(1, 10), NOW)
    assert (gone.phase, gone.token) == (GIVING_UP, 0) and next_of(changed(gone, asked=NEVER), seen(ON)) == (GIVING_UP, None, "")


@given(
    st.sampled_from([FREE, RESUMING, OWNED, GIVING_UP, RELEASING]),
    st.floats(-100, 100),
    st.sampled_from(["", "ok", "degraded", "draining", "down"]),
    st.floats(0, 60),
    st.booleans(),
    st.booleans(),
)
def test_it_is_never_on_without_time_to_turn_it_off(phase, left, status, down, busy, on):
    state = changed(HELD, phase=phase, valid=NOW + left, on=on and phase in (OWNED, RESUMING))
    after, action, _replica = decision.decide(NAME, state, seen(changed(GOOD, status=status, down=down), busy=busy), NOW, LIMITS)
    able = status in ("", "ok", "degraded") or status == "down" and down < LIMITS.down
    assert not after.on or left >= LIMITS.stop and after.phase in (OWNED, RESUMING) and able
    assert not (busy and action in (ACQUIRE, RENEW, RELEASE))
