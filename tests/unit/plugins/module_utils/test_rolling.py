"""The planner of a rolling change: sentences for single situations, and whole rollouts that hypothesis makes up."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.openclaw.ha.plugins.module_utils.rolling import GO, REASON, Limits, Mine, Peer, error_rates, judge_canary, next_step

WELL = (Peer("a-1", "ok"), Peer("b-1", "degraded"))
RECORD = {"began": "2026-11-20T20:00:00+00:00"}


@pytest.mark.parametrize(
    "mine, peers, action, why",
    [
        (Mine(behind=False), WELL, "skip", "it runs what it should"),
        (Mine(behind=True), WELL, "take", "a-1, b-1 serve"),
        (Mine(behind=True), WELL[:1], "take", "a-1 serves"),
        (Mine(behind=True), (), "take", "it is the only one"),
        (Mine(behind=True, runs=False), (Peer("a-1", "down"),), "start", "it does not run"),
        (Mine(behind=True, live=True), WELL, "live", "a-1, b-1 serve"),
        (Mine(behind=True, live=True), (Peer("a-1", "down"),), "wait", "a-1 is down"),
        (Mine(behind=True, live=True, runs=False), WELL, "start", "it does not run"),
        (Mine(behind=True), (Peer("a-1", "down"), *WELL), "wait", "a-1 is down"),
        (Mine(behind=True), (Peer("a-1", ""),), "wait", "a-1 gives no verdict"),
        (Mine(behind=True), (Peer("a-1", "draining", "new disk"),), "wait", "a-1 is drained (new disk)"),
        (Mine(behind=True), (Peer("a-1", "draining", ""),), "wait", "a-1 is drained (no reason given)"),
        (Mine(behind=True), (Peer("a-1", "draining"),), "wait", "a-1 is draining"),
        (Mine(behind=True), (Peer("a-1", "draining", REASON), WELL[1]), "wait", "a-1 is out already, and 1 may be"),
        (Mine(behind=True, reason=REASON, record=RECORD), (Peer("a-1", "down"),), "resume", "a run that began 2026-11-20T20:00:00+00:00 has left it drained"),
        (Mine(behind=False, reason=REASON, record=RECORD), WELL, "resume", "a run that began 2026-11-20T20:00:00+00:00 has left it drained"),
        # Killed after it had written the record and before it drained: nothing has been touched.
        (Mine(behind=True, record=RECORD), (Peer("a-1", "down"),), "wait", "a-1 is down"),
        # Killed after it had put it back.
        (Mine(behind=False, record=RECORD), WELL, "close", "an earlier run has finished it"),
    ],
)
def test_one_step(mine, peers, action, why):
    step = next_step(mine, peers, Limits(1, 10.0))
    assert (step.action, step.why) == (action, why)


def test_patience_ends():
    step = next_step(Mine(behind=True), (Peer("a-1", "down"),), Limits(1, 10.0), 10.0)
    assert (step.action, step.why) == ("stop", "a-1 is down, for 10 s")


def test_the_last_one_that_serves_is_left_alone_whatever_may_be_out():
    peers = (Peer("a-1", "draining", REASON), Peer("b-1", "draining", REASON))
    assert next_step(Mine(behind=True), peers, Limits(5)).why == "no other replica would serve"
    assert next_step(Mine(behind=True), (*peers, Peer("c-1", "ok")), Limits(5)).action == "take"


# ---- whole rollouts
#
# A world of replicas on hosts, and the run as the playbook makes it: hosts in turn, so many at a time and in step, the replicas of a host one
# after the other. Things happen at any moment: a peer falls ill or gets well, a gate fails, the controller dies and the run is made again.


@dataclasses.dataclass
class Replica:
    id: str
    host: str
    version: str = "old"
    sick: bool = False
    runs: bool = True
    reason: str | None = None
    record: dict | None = None

    @property
    def status(self):
        if self.sick or not self.runs:
            return "down"
        return "draining" if self.reason is not None else "ok"

    def serves(self):
        return self.status == "ok"


class Died(Exception):
    """The controller."""


class World:
    def __init__(self, layout, limits, events):
        self.replicas = [Replica(f"h{host}-{number}", f"h{host}") for host, count in enumerate(layout) for number in range(1, count + 1)]
        self.limits, self.events, self.log, self.moment = limits, events, [], 0
        self.bad = set()

    def pass_moment(self):
        """Something may happen between any two steps."""
        for event in self.events.pop(self.moment, ()):
            kind, number = event
            one = self.replicas[number % len(self.replicas)]
            if kind == "ill" and one.reason is None:
                one.sick = True
            elif kind == "well":
                one.sick = False
            elif kind == "bad":
                self.bad.add(one.id)
            elif kind == "die":
                self.moment += 1
                raise Died
        self.moment += 1

    def ask(self, one, waited):
        peers = [Peer(other.id, other.status, other.reason) for other in self.replicas if other is not one]
        mine = Mine(behind=one.version != "new", runs=one.runs, reason=one.reason, record=one.record)
        return next_step(mine, peers, self.limits, waited), peers

    def change(self, one, action):
        """What the tasks do with a replica; a generator that stops wherever the controller may die. Returns whether the gate was passed."""
        one.record = {"began": "then"}
        yield
        if action != "start":
            one.reason = REASON
            yield
        before, one.version = one.version, "new"
        one.runs = True
        yield
        passed = one.id not in self.bad and not one.sick
        if not passed:
            one.version = before
            one.sick = False
            yield
        one.reason = None
        yield
        one.record = None
        return passed

    def run(self, batch):
        """One run. Returns done or stopped."""
        hosts = list(dict.fromkeys(one.host for one in self.replicas))
        for start in range(0, len(hosts), batch):
            queues = [[one for one in self.replicas if one.host == host] for host in hosts[start : start + batch]]
            while any(queues):
                turn = [queue.pop(0) for queue in queues if queue]
                if not self.turn(turn):
                    return "stopped"
        return "done"

    def turn(self, turn):
        """A replica of each host of the batch, in step."""
        steps, waited = {}, 0.0
        while len(steps) < len(turn):
            self.pass_moment()
            # All of a batch are asked before any of them is touched.
            for one in turn:
                if one.id not in steps:
                    step, peers = self.ask(one, waited)
                    if step.action == "stop":
                        return False
                    if step.action != "wait":
                        steps[one.id] = step
                        self.judge(one, step, peers)
            waited += 5.0
        for one in turn:
            if steps[one.id].action == "close":
                one.record = None
        work = [(one, self.change(one, steps[one.id].action)) for one in turn if steps[one.id].action in GO]
        passed = True
        while work:
            self.pass_moment()
            for item in list(work):
                try:
                    next(item[1])
                except StopIteration as end:
                    work.remove(item)
                    passed = passed and end.value
                self.count()
        return passed

    def judge(self, one, step, peers):
        self.log.append((one.id, step.action))
        if step.action == "take":
            assert all(peer.serves or peer.is_rolling for peer in peers), "taken while a peer was sick"

    def count(self):
        out = [one.id for one in self.replicas if one.reason is not None]
        assert len(out) <= self.limits.max_unavailable, f"{out} are out at once"


EVENTS = st.dictionaries(st.integers(0, 60), st.lists(st.tuples(st.sampled_from(["ill", "well", "bad", "die"]), st.integers(0, 9)), max_size=3), max_size=12)


@settings(max_examples=1500, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=5), st.integers(1, 3), EVENTS)
def test_whatever_happens_nobody_is_left_out_and_it_ends(layout, most, events):
    world = World(layout, Limits(most, 20.0), events)
    outcome = None
    for _run in range(80):  # each death of the controller is an event, so there are fewer
        try:
            outcome = world.run(most)
            break
        except Died:
            continue
    assert outcome in ("done", "stopped")
    if outcome == "done":
        # Who was skipped runs the new version already.
        assert all(one.version == "new" or one.id in world.bad for one in world.replicas)
    # Whatever stopped it, another run brings it to an end once all is well: nobody stays drained, no record stays.
    world.events.clear()
    world.bad.clear()
    for one in world.replicas:
        one.sick = False
    assert world.run(most) == "done"
    assert all((one.version, one.reason, one.record) == ("new", None, None) for one in world.replicas)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=5), st.integers(0, 9))
def test_nothing_is_taken_after_a_gate_that_failed(layout, number):
    world = World(layout, Limits(1, 20.0), {})
    bad = world.replicas[number % len(world.replicas)]
    world.bad.add(bad.id)
    assert world.run(1) == "stopped"
    taken = [name for name, action in world.log if action in GO]
    assert taken[-1] == bad.id and len(taken) == len(set(taken))
    for one in world.replicas:
        assert one.version == ("new" if one.id in taken[:-1] else "old") and one.reason is None


# ---- the canary's errors


def seen(name, requests, errors):
    return {"id": name, "requests": requests, "errors": errors}


BEFORE = {"x": [seen("a-1", 100, 1), seen("b-1", 100, 1)], "y": [seen("a-1", 10, 0), seen("b-1", 10, 0)]}


@pytest.mark.parametrize(
    "after, rates, problem",
    [
        ({"x": [seen("a-1", 200, 1), seen("b-1", 200, 1)], "y": None}, (0.0, 0.0, 100), ""),
        ({"x": [seen("a-1", 200, 6), seen("b-1", 200, 1)], "y": [seen("a-1", 110, 5), seen("b-1", 10, 0)]}, (5.0, 0.0, 200),
         "5 % of its 200 requests failed, of the others' 0 %; 1 % may"),
        # The provider is away: all of them fail.
        ({"x": [seen("a-1", 200, 51), seen("b-1", 200, 41)], "y": None}, (50.0, 40.0, 100), ""),
        # A reload meanwhile.
        ({"x": [seen("a-1", 50, 25), seen("b-1", 50, 0)]}, (50.0, 0.0, 50), "50 % of its 50 requests failed, of the others' 0 %; 1 % may"),
        # It is the only one, or the others had nothing to do.
        ({"x": [seen("a-1", 110, 11)]}, (100.0, None, 10), "100 % of its 10 requests failed, of the others' none was counted; 1 % may"),
        ({"x": [seen("a-1", 100, 1), seen("b-1", 200, 1)]}, (None, 0.0, 0), ""),
        # nginx does not count by replica.
        ({"x": [seen("a-1", None, None)]}, (None, None, 0), ""),
    ],
)  # fmt: skip
def test_a_canary_is_judged_by_what_the_balancers_counted(after, rates, problem):
    assert error_rates(BEFORE, after, "a-1") == rates
    assert judge_canary(BEFORE, after, "a-1", 1.0) == problem
