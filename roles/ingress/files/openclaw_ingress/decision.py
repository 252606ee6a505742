# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is to be done next with the events at the head of a conversation, and which replica is to get one. Pure: times are given, nothing is asked.

An event is *queued* until a replica has answered 2xx, then *delivered* until its turn is committed. Gateways claim a message before they run its turn,
so to deliver once too often is harmless, and to forget too early is not.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

DELIVER, WAIT, COMMITTED, NO_TURN = "deliver", "wait", "committed", "no_turn"
TOO_OLD, UNDELIVERABLE, UNANSWERED, UNSENT = "too_old", "undeliverable", "unanswered", "unsent"
#: Actions that make a dead letter of the event.
DEAD = (TOO_OLD, UNDELIVERABLE, UNANSWERED, UNSENT)
#: Actions after which the event is forgotten.
FORGET = (COMMITTED, NO_TURN)

#: Seconds by which two readings of the same start of a gateway may differ: clocks, rounding, and the age of a verdict.
_SAME_START = 4.0
#: Seconds until a delivered event without a claim leaves its place to another one. It is waited for all the same.
_UNCLAIMED = 5.0


@dataclass(frozen=True)
class State:
    """What is kept of an event beside itself; times are seconds of Redis's clock.

    attempts: POSTs that were begun; replica: who got the latest; delivered: when it answered 2xx, None while queued; started: when that replica's
    gateway had started, None when unknown; claimed: its claim was seen since; unclaimed: when that claim was first seen gone, None while it is there;
    committed: when its turn was first seen to be stored; redelivered: it had been delivered before
    """

    attempts: int = 0
    replica: str = ""
    delivered: float | None = None
    started: float | None = None
    claimed: bool = False
    unclaimed: float | None = None
    committed: float | None = None
    redelivered: bool = False
    reason: str = ""

    @classmethod
    def parse(cls, text):
        """From JSON; of what a newer version wrote, what is known."""
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in json.loads(text).items() if name in names}) if text else cls()

    def text(self):
        """As JSON."""
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"))

    def sent(self, replica):
        """One more POST begins."""
        return dataclasses.replace(self, attempts=self.attempts + 1, replica=replica)

    def accepted(self, now, started):
        """The replica has answered 2xx."""
        return dataclasses.replace(self, delivered=now, started=started, claimed=False, unclaimed=None, committed=None)

    def again(self):
        """Queued once more."""
        redelivered = self.redelivered or self.delivered is not None
        return dataclasses.replace(self, delivered=None, started=None, claimed=False, unclaimed=None, committed=None, redelivered=redelivered)

    def held(self, now):
        """Does it count among those that its replica has? One that nobody has claimed by now may be nobody's business (a stranger's message)."""
        return self.delivered is not None and (self.claimed or now - self.delivered < _UNCLAIMED)


@dataclass(frozen=True)
class Queued:
    """An event at the head of its conversation: its id, when it was accepted, its state, and what its claim says.

    claim: "" none; running; committed: the turn is stored, its gateway is not through with it; unsent: the provider did not take the answer; done
    arrival: what a gateway says of the event: "" nothing yet; completed or failed, it is through with it
    claimable: may begin a turn under its own message's claim; an edit or a button does not
    """

    id: str
    at: float
    state: State = State()
    claim: str = ""
    arrival: str = ""
    claimable: bool = True


@dataclass(frozen=True)
class Replica:
    """What is known of a replica. status: of its verdict, "" when it cannot be had; started: when its gateway started (seconds), None when unknown."""

    id: str
    status: str = ""
    started: float | None = None

    @property
    def usable(self):
        """May it get an event?"""
        return self.status in ("ok", "degraded")

    @property
    def lives(self):
        """Does it go on with what it has?"""
        return self.status in ("ok", "degraded", "draining")


@dataclass(frozen=True)
class Limits:
    """Seconds and counts, as in the configuration. gone: how long a claim must be gone before its message is given to another one."""

    max_age: float = 3600.0
    max_attempts: int = 30
    quiet: float = 120.0
    gone: float = 5.0
    poll: float = 0.25
    pause: float = 1.0
    pause_max: float = 60.0


def decide(batch, replicas, now, limits):
    """What is to be done with each of some events that go together.

    :param batch: list of :class:`Queued`, one event, or those of one group
    :param replicas: id -> :class:`Replica`
    :returns: list of (action, state), in the order of ``batch``; of an event to deliver or to wait for, the state is the one to go on with
    """
    found = [_alone(event, replicas, now, limits) for event in batch]
    if len(batch) > 1:
        found = [_shared(number, batch, found) for number in range(len(batch))]
    return [_bounded(action, event, state, now, limits) for event, (action, state) in zip(batch, found)]


def _shared(number, batch, found):
    """A gateway makes one turn of a group, under the id of one of its messages: the others that it got have no claim, and share that one's fate."""
    event, alone = batch[number], found[number]
    if event.state.delivered is None or event.state.claimed or event.claim:
        return alone
    there = [(one, action) for one, (action, _state) in zip(batch, found) if one.state.replica == event.state.replica]
    if any(action == COMMITTED for _one, action in there):
        return COMMITTED, event.state
    if any(action == DELIVER and one.state.delivered is not None for one, action in there):
        return DELIVER, event.state.again()
    if any(one.claim for one, _action in there):
        return WAIT, event.state
    return alone


def _alone(event, replicas, now, limits):
    state = event.state
    if event.claim == "done":
        return COMMITTED, state
    dead = state.delivered is not None and lost(state, replicas.get(state.replica))
    if event.claim == "unsent":
        return UNSENT, state
    if event.claim == "committed":
        # Nobody runs a turn again that is stored. Of a gateway that died with it nobody knows whether it has sent the answer.
        since = now if state.committed is None else state.committed
        return UNSENT if dead or now - since >= limits.quiet else WAIT, dataclasses.replace(state, claimed=True, unclaimed=None, committed=since)
    if event.claim:
        return WAIT, dataclasses.replace(state, claimed=True, unclaimed=None)
    if state.delivered is None:
        return DELIVER, state
    if dead:
        return DELIVER, state.again()
    # It was given back, or its lease ended: while Redis was away nobody could renew it, and its gateway takes it again as soon as it can.
    if state.claimed and state.unclaimed is None:
        return WAIT, dataclasses.replace(state, unclaimed=now)
    if state.claimed:
        return (DELIVER, state.again()) if now - state.unclaimed >= limits.gone else (WAIT, state)
    # Who may begin a turn claims it first. What is never claimed is known by the gateway's word, or, without it, by time.
    quiet = limits.quiet if event.claimable else min(limits.quiet, _UNCLAIMED)
    if event.arrival or now - state.delivered >= quiet:
        # A gateway knows what it had before it died, and does not begin it again: with no other replica it stays unanswered, and that is told.
        return UNANSWERED if state.redelivered or event.arrival == "failed" else NO_TURN, state
    return WAIT, state


def _bounded(action, event, state, now, limits):
    """An event that is too old, or was tried too often, is not delivered (again)."""
    if action == DELIVER and now - event.at > limits.max_age:
        action = TOO_OLD
    elif action == DELIVER and state.attempts >= limits.max_attempts:
        action = UNDELIVERABLE
    return action, dataclasses.replace(state, reason=action) if action in DEAD else state


def lost(state, replica):
    """Has the replica died, or started anew, since it took the event?"""
    if replica is None or not replica.lives:
        return True
    return None not in (state.started, replica.started) and replica.started - state.started > _SAME_START


def order(replicas, avoid, turn):
    """The ids of the replicas for the next POST, the first choice first; [] when there is none.

    :param replicas: those that have a listener for the event's account, in their order
    :param avoid: id of the one that had the event last; it gets it again only when there is no other
    :param turn: a number that grows, for the round robin
    """
    usable = [one.id for one in replicas if one.usable]
    others = [one for one in usable if one != avoid] or usable
    first = turn % len(others) if others else 0
    return others[first:] + others[:first]


def pause(attempts, replicas, limits):
    """Seconds until the next POST after a failed one: none within a round over the replicas, growing between rounds."""
    if replicas and attempts % replicas:
        return 0.0
    rounds = attempts // max(1, replicas)
    return min(limits.pause_max, limits.pause * 2.0 ** min(rounds - 1, 60))


def look_again(state, now, limits):
    """Seconds until the next look at a delivered event: a fresh one is looked at often, one that takes its time less so."""
    waited = now - state.delivered if state.delivered is not None else 0.0
    return min(max(limits.poll, waited / 20), 4 * limits.poll)
