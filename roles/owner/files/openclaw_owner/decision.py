# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is to be done next with one singleton on this host. Pure: times are given, nothing is asked.

::

    free --acquire--> owned --> giving_up --off is proven--> releasing --> free
    resuming --renew--> owned, or --> giving_up           (a lease of the daemon's former life)

Owned by a replica that is drained, or when somebody asks for it, its gateway first stops it by itself, between two messages (``leaving``).

What keeps two replicas from having a singleton: it is turned on only under a lease that is confirmed, that ends on this host's clock before it ends on
Redis's, and it is proven off, or its process killed, before that end. Times are seconds of a clock that goes on while the host is suspended.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

FREE, RESUMING, OWNED, GIVING_UP, RELEASING = "free", "resuming", "owned", "giving_up", "releasing"
ACQUIRE, RENEW, RELEASE, FENCE = "acquire", "renew", "release", "fence"

NEVER = float("-inf")

_DEAD, _REFUSES = "its replica is down", "its replica does not turn it on"

#: Seconds that a process has to say that a singleton is off, where there is no time to wait for it.
_URGENT = 0.5
#: Before a singleton is settled its gateway must have been heard this share of the time after the file was written.
_HEARD = 2 / 3


@dataclass(frozen=True)
class Limits:
    """Seconds, as in the configuration."""

    lease: float = 20.0
    renew: float = 2.0
    stop: float = 8.0
    finish: float = 25.0
    proof: float = 4.0
    dead: float = 3.0
    down: float = 30.0
    refuse: float = 60.0
    stopping: float = 20.0
    fence: float = 2.0
    settle: float = 3.0
    grace: float = 3.0
    retry: float = 0.5
    step: float = 0.3


@dataclass(frozen=True)
class Main:
    """The main process of a unit. pid: 0 when there is none; started: when it had started; at: when that was asked; stopping: systemd ends it."""

    pid: int
    started: float
    at: float
    stopping: bool = False


@dataclass(frozen=True)
class Answer:
    """What a gateway's process says of itself. on: the singletons that are on in it; busy: those that it has not stopped yet; at: when it was asked."""

    pid: int
    on: frozenset
    at: float
    busy: frozenset = frozenset()


@dataclass(frozen=True)
class Replica:
    """What is known of a replica of this host.

    status: of its verdict, "" before the first; silent: seconds since its agent was heard; alive: when its gateway was last seen to serve; main: a
    :class:`Main`, answer: an :class:`Answer`, each None when unknown; tells: it is one that answers; owned: singletons that it has or is to get; down:
    seconds for which its agent has called it dead
    """

    id: str
    status: str = ""
    silent: float = 0.0
    alive: float = NEVER
    main: Main | None = None
    answer: Answer | None = None
    tells: bool = False
    owned: int = 0
    configured: bool = True
    down: float = 0.0


@dataclass(frozen=True)
class Lease:
    """A singleton's record in Redis, asked for at ``at``. wait: seconds from then until anybody may take it; since: seconds since 1970."""

    holder: str = ""
    host: str = ""
    token: int = 0
    since: float = 0.0
    released: bool = True
    wait: float = 0.0
    at: float = NEVER


@dataclass(frozen=True)
class Seen:
    """What is known as of a tick.

    replicas: id -> :class:`Replica`; lease: None while Redis is away; busy: a request to Redis is under way; fencing: a process is being killed;
    stopping: this daemon ends; configured: the singleton is; lives: the process that is noted in the state does
    """

    host: str
    replicas: dict
    lease: Lease | None = None
    busy: bool = False
    fencing: bool = False
    stopping: bool = False
    configured: bool = True
    lives: bool = False


@dataclass(frozen=True)
class State:
    """One singleton on this host.

    token: of the lease, 0 when there is none to give back; valid: its end; on: the file is to have it; written: since when the file is without it, None
    while that is not certain; begun: of the phase; since: seconds since 1970; reason: of the phase; asked: latest request to Redis; fenced: latest kill;
    said_on: pid of the process that said that it is on; process: (pid, started) that it was turned on in; clean: it is known to be off; takeable: since
    when it may be taken; not_before: it is not taken before then; fault: its replica died of something while it had it; asked_for: somebody wants another
    host to have it; leaving: since when its gateway is asked to stop it by itself, None while it is to stay
    """

    phase: str = FREE
    replica: str = ""
    token: int = 0
    valid: float = NEVER
    on: bool = False
    written: float | None = None
    begun: float = NEVER
    since: float = 0.0
    reason: str = ""
    asked: float = NEVER
    fenced: float = NEVER
    said_on: int = 0
    process: tuple | None = None
    clean: bool = False
    takeable: float | None = None
    not_before: float = NEVER
    fault: bool = False
    asked_for: bool = False
    leaving: float | None = None

    @property
    def held(self):
        """Is its replica one that has it, or may have it?"""
        return self.phase in (RESUMING, OWNED, GIVING_UP)


def decide(name, state, seen, now, limits):
    """(next :class:`State`, action, its replica): the action is None when there is nothing to do now."""
    if state.held:
        state = _noted(name, state, seen)
    if state.phase in (RESUMING, OWNED):
        state, reason = _leaving(name, state, seen, now, limits)
        if reason := _why_not(name, state, seen, now, limits) or reason:
            state = dataclasses.replace(give_up(state, reason, now), fault=state.leaving is None and reason in (_DEAD, _REFUSES))
        elif not seen.busy and now - state.asked >= (limits.renew if state.phase == OWNED else min(limits.renew, limits.retry)):
            return dataclasses.replace(state, asked=now), RENEW, state.replica
        else:
            return state, None, ""
    if state.phase == GIVING_UP:
        return _giving_up(name, state, seen, now, limits)
    if state.phase == RELEASING:
        return _releasing(state, seen, now, limits)
    return _free(name, state, seen, now, limits)


# --- what an action, or somebody, has brought about


def granted(state, replica, token, since, sent, confirmed, now, limits):
    """A lease is granted, by a request of ``sent``. One that cannot be relied upon is given back: nothing was turned on."""
    state = dataclasses.replace(state, replica=replica, token=token, valid=sent + limits.lease, begun=now, asked=sent, takeable=None, since=since)
    if confirmed and state.valid - now > limits.stop and now >= state.not_before:
        return dataclasses.replace(state, phase=OWNED, reason="", on=True, written=None, said_on=0, process=None, clean=False, fenced=NEVER)
    reason = "the lease is not confirmed by enough replicas of Redis" if not confirmed else "the lease came too late"
    later = max(state.not_before, now + 2 * limits.retry)
    return dataclasses.replace(state, phase=RELEASING, reason=reason, clean=True, asked=NEVER, not_before=later)


def refused(state, now, limits):
    """A lease was not granted, or nobody knows whether it was: what Redis says from now on tells."""
    return dataclasses.replace(state, begun=now, takeable=None, not_before=max(state.not_before, now + limits.retry))


def renewed(state, sent, confirmed, now, limits):
    """A lease was renewed; without confirmation it is as if it had not been."""
    if not confirmed or not state.held:
        return state
    state = dataclasses.replace(state, valid=max(state.valid, sent + limits.lease))
    if state.phase == RESUMING and state.valid - now > limits.stop:
        return dataclasses.replace(state, phase=OWNED, reason="", on=True, written=None, begun=now)
    return state


def lost(state, now):
    """Redis says that the lease is not ours."""
    if state.phase in (RESUMING, OWNED):
        state = give_up(state, "the lease is lost", now)
    return dataclasses.replace(state, token=0)


def released(state, now):
    """The lease is given back, or is none of ours any more."""
    return State(begun=now, clean=True, not_before=state.not_before)


def give_up(state, reason, now):
    """Begin to turn it off."""
    return dataclasses.replace(state, phase=GIVING_UP, reason=reason, begun=now, on=False, written=None, fenced=NEVER, asked_for=False)


def give(state, now, seconds):
    """Somebody wants another host to have it."""
    return dataclasses.replace(state, not_before=now + seconds, asked_for=state.phase in (RESUMING, OWNED))


def wrote(state, since):
    """The replica's file is without it, ``since`` its latest change."""
    return dataclasses.replace(state, written=since) if state.phase == GIVING_UP and state.written is None else state


def resumed(state):
    """What a daemon's former life has left: its lease must be renewed before anything is turned on by it."""
    return dataclasses.replace(state, phase=RESUMING, asked=NEVER, leaving=None) if state.phase == OWNED else dataclasses.replace(state, written=None)


# --- phases


def _free(name, state, seen, now, limits):
    lease = seen.lease
    # What was asked before the phase began tells of another time.
    if lease is None or lease.at <= state.begun or seen.busy:
        return state, None, ""
    if lease.holder in seen.replicas and lease.host == seen.host and not lease.released:
        return _unremembered(name, state, seen, now, limits)
    if lease.wait - (now - lease.at) > 0:
        return dataclasses.replace(state, takeable=None), None, ""
    replica = choose(seen.replicas.values(), limits)
    if replica is None or seen.stopping or not seen.configured:
        return dataclasses.replace(state, takeable=None), None, ""
    state = dataclasses.replace(state, takeable=now if state.takeable is None else state.takeable)
    if now < max(state.takeable + limits.step * replica.owned + jitter(name, replica.id, limits.step), state.not_before):
        return state, None, ""
    # If its answer is not heard, the lease is one under which nothing was turned on.
    return dataclasses.replace(state, asked=now, clean=True), ACQUIRE, replica.id


def _unremembered(name, state, seen, now, limits):
    """A lease of a replica of this host that nobody here has: its grant was not heard, or it is of a life that left no note."""
    lease = seen.lease
    state = dataclasses.replace(state, replica=lease.holder, token=lease.token, valid=now + limits.lease, asked=NEVER, begun=now, takeable=None)
    if state.clean:
        return _releasing(dataclasses.replace(state, phase=RELEASING, reason="its grant was not heard"), seen, now, limits)
    return _giving_up(name, give_up(state, "nobody here knows of its lease", now), seen, now, limits)


def _giving_up(name, state, seen, now, limits):
    replica = seen.replicas.get(state.replica)
    if proof := proven(name, state, replica, seen.lives, limits, now):
        state = dataclasses.replace(state, phase=RELEASING, reason=proof, begun=now, asked=NEVER, clean=True)
        return _releasing(state, seen, now, limits)
    if not seen.fencing and replica and now - state.fenced >= limits.proof and _must_fence(state, replica, now, limits):
        return dataclasses.replace(state, fenced=now, fault=True), FENCE, state.replica
    # While it may be on, nobody else is to get it.
    if state.token and not seen.busy and now - state.asked >= limits.renew:
        return dataclasses.replace(state, asked=now), RENEW, state.replica
    return state, None, ""


def _must_fence(state, replica, now, limits):
    # What systemd ends, ends: it may need its time for what it has, and the lease is renewed meanwhile.
    patience = limits.proof
    if replica.main and replica.main.stopping or state.token and state.valid - now >= limits.stop:
        # The lease is renewed, so nobody else waits for anything but this gateway, which may be short of time like its host.
        patience = max(limits.stopping, limits.proof)
    if replica.down >= limits.down and not (replica.main and replica.main.stopping):
        # What has not answered for so long will not tell either.
        patience = min(limits.dead, limits.proof)
    if now - state.begun >= patience:
        return True
    if state.valid - now >= limits.fence:
        return False
    looked = state.written is not None and replica.main and replica.main.at >= state.written
    answered = not replica.tells or (replica.answer and looked and replica.answer.at >= state.written)
    return bool(looked and answered) or now - state.begun >= _URGENT


def _releasing(state, seen, now, limits):
    if not state.token or now > state.valid:
        return released(state, now), None, ""
    if not seen.busy and now - state.asked >= limits.retry:
        return dataclasses.replace(state, asked=now), RELEASE, state.replica
    return state, None, ""


# --- parts


def _noted(name, state, seen):
    """What the processes tell while it may be on: kept, because what was seen on and is not any more is off."""
    replica = seen.replicas.get(state.replica)
    if not replica:
        return state
    main, answer = replica.main, replica.answer
    if state.on and main and main.pid:
        state = dataclasses.replace(state, process=(main.pid, main.started))
    if answer and name in answer.on and (main is None or main.pid == answer.pid) and answer.at >= state.begun:
        state = dataclasses.replace(state, said_on=answer.pid)
    return state


def _leaving(name, state, seen, now, limits):
    """(next :class:`State`, why it is given up now): where nothing has gone wrong, its gateway first stops it by itself, within a bound."""
    reason = _why_leave(state, seen)
    replica = seen.replicas.get(state.replica)
    if not reason and state.leaving is not None and replica and not eligible(replica.status):
        # It was to leave, and is going down: that is no word of staying.
        return state, ""
    if not reason:
        # Stopped by its gateway meanwhile, it takes its time to be on again.
        return state if state.leaving is None else dataclasses.replace(state, leaving=None, begun=now), ""
    state = dataclasses.replace(state, leaving=now if state.leaving is None else state.leaving)
    answer = replica and replica.answer
    # Asked before, it had not been told. What is not on needs no stop.
    idle = not (replica and replica.tells) or (answer and answer.at >= state.leaving and (name not in answer.busy or name not in answer.on))
    return state, reason if idle or now - state.leaving >= limits.finish else ""


def _why_leave(state, seen):
    """Why another replica, or nobody, is to have it, "" when nothing says so."""
    replica = seen.replicas.get(state.replica)
    if seen.stopping:
        return "the daemon stops"
    if state.asked_for:
        return "somebody asked for it"
    return "its replica is draining" if replica and replica.status == "draining" else ""


def _why_not(name, state, seen, now, limits):
    """Why it must be given up at once, "" when nothing says so."""
    replica = seen.replicas.get(state.replica)
    if not replica or not replica.configured or not seen.configured:
        return "it is not configured any more"
    # One that is to leave has been stopped by its gateway, as it was asked to.
    answer = replica.answer if state.phase == OWNED and state.leaving is None and replica.tells else None
    if answer and name not in answer.on and answer.at >= state.begun + limits.refuse:
        return _REFUSES
    if replica.silent > limits.grace:
        return f"the agent of its replica has been silent for {replica.silent:.1f} s"
    if replica.status == "down":
        # Loading a channel alone can keep a gateway from answering for longer than its agent waits: that is no reason to load it in the next one.
        if _gone(state, replica) or replica.down >= limits.down:
            return _DEAD
    elif replica.status and replica.status != "draining" and not eligible(replica.status):
        return f"its replica is {replica.status}"
    if state.valid - now < limits.stop:
        return f"its lease is not renewed, and ends in {max(0.0, state.valid - now):.1f} s"
    return ""


def _gone(state, replica):
    """Is the process gone that it was turned on in?"""
    main = replica.main
    return bool(main and (not main.pid or state.process and main.pid != state.process[0]))


def eligible(status):
    """May a replica with such a verdict have singletons?"""
    return status in ("ok", "degraded")


def choose(replicas, limits):
    """The :class:`Replica` for one more singleton: the one with fewest; None when there is none that may."""
    able = [one for one in replicas if one.configured and eligible(one.status) and one.silent <= limits.grace]
    return min(able, key=lambda one: (one.owned, one.id), default=None)


def jitter(name, replica, most):
    """Seconds, the same each time: hosts that see a free singleton at once do not ask for it at once."""
    number = int.from_bytes(hashlib.sha256(f"{name} {replica}".encode()).digest()[:4], "big")
    return most * number / 2**32


def proven(name, state, replica, lives, limits, now):
    """What proves that a singleton is off since its file says so, in words; "" when nothing does.

    :param lives: whether the process lives in which it was turned on
    """
    written = state.written
    if written is None or replica is None:
        return ""
    main = replica.main
    if main is None or main.at < written:
        return ""
    if not main.pid or main.started >= written:
        # One that has started since has read what the file says now.
        return "" if lives and state.process and state.process[0] != main.pid else "its process is gone"
    if replica.tells:
        answer = replica.answer
        if not answer or answer.at < written or answer.pid != main.pid or name in answer.on:
            return ""
        # What was never seen on may be about to begin, by what the file said a moment ago.
        return "its process says so" if state.said_on == main.pid or answer.at >= written + limits.settle else ""
    settled = now - written >= limits.settle and replica.alive >= written + limits.settle * _HEARD
    return f"its process has served for {now - written:.1f} s without it" if settled and replica.status in ("ok", "degraded", "draining") else ""
