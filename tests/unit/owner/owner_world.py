"""A cluster in which time is a number: hosts with a daemon each, gateways that do what their files say with some delay, and Redis with its replicas.

The daemons are nothing but :mod:`openclaw_owner.decision`; what is around it does as :mod:`openclaw_owner.service` does.
"""

from __future__ import annotations

import copy
import dataclasses
import random

from openclaw_owner import decision
from openclaw_owner.decision import ACQUIRE, FENCE, FREE, GIVING_UP, OWNED, RELEASE, RELEASING, RENEW, Answer, Lease, Limits, Main, Replica, Seen, State

STEP = 0.25
LIMITS = Limits()
#: As systemd would have them: a daemon that stands is killed, one that has died comes back.
WATCHDOG, RESTART = 5.0, 1.0
#: A request that is not answered.
TIMEOUT = 1.5
#: A gateway begins with a singleton so long after the file was written, has it then, and has no more what the file is without for so long.
BEGINS, HAS, ENDS = 0.5, 2.0, 1.25
SINGLETONS = {"poll": 35.0, "cron": 0.0}


class Redis:
    """A primary and two replicas, as lists of what was written."""

    def __init__(self):
        self.records, self.copies, self.lagging = {}, [{}, {}], [False, False]
        self.down, self.skew = False, 0.0

    def now(self, time):
        return time + self.skew

    def write(self, name, record):
        self.records[name] = record
        self.copy()

    def copy(self):
        for number, lags in enumerate(self.lagging):
            if not lags:
                self.copies[number] = copy.deepcopy(self.records)

    @property
    def confirmed(self):
        return not all(self.lagging)

    def fail_over(self, skew):
        """The replica that has most is the primary; what none has is lost."""
        best = 0 if not self.lagging[0] else 1
        self.records, self.skew = copy.deepcopy(self.copies[best]), skew
        self.down, self.lagging = False, [False, False]
        self.copy()

    def run(self, action, name, replica, host, token, time):
        """(answer, confirmed), as the scripts have it."""
        now, record = self.now(time), self.records.get(name)
        if action == ACQUIRE:
            if record and not record["released"] and now <= record["expires"] + SINGLETONS[name]:
                return None, True
            token = (record["token"] if record else 0) + 1
            self.write(name, {"holder": replica, "host": host, "token": token, "expires": now + LIMITS.lease, "released": False})
            return token, self.confirmed
        if not record or record["released"] or (record["holder"], record["token"]) != (replica, token):
            return False, True
        self.write(name, record | ({"expires": now + LIMITS.lease} if action == RENEW else {"released": True}))
        return True, self.confirmed


class Gateway:
    """One replica's process."""

    def __init__(self, world, name, tells):
        self.world, self.name, self.tells = world, name, tells
        self.file, self.written = {one: False for one in SINGLETONS}, dict.fromkeys(SINGLETONS, -100.0)
        self.changed = 0.0
        self.drained, self.hung_until, self.heard, self.born_at, self.busy_until = False, 0.0, 0.0, 0.0, 0.0
        #: What its own method has stopped: it is off, whatever the file says.
        self.pid, self.on, self.begun, self.stopped = 0, set(), {}, set()

    def write(self, content):
        for one, on in content.items():
            if on != self.file[one]:
                self.file[one], self.written[one] = on, self.world.time
                self.changed = self.world.time

    def die(self, back=1.0):
        self.pid, self.on, self.begun, self.stopped, self.born_at = 0, set(), {}, set(), self.world.time + back

    def step(self):
        time = self.world.time
        if not self.pid and time >= self.born_at:
            self.pid, self.started, self.on, self.begun, self.hung_until = next(self.world.pids), time, set(), {}, 0.0
        if not self.pid or time < self.hung_until:
            return
        self.heard = time
        for one, wanted in self.file.items():
            since = time - max(self.written[one], self.started)
            if wanted and since >= BEGINS and one not in self.on | self.stopped:
                self.begun.setdefault(one, time + HAS - BEGINS)
            if one in self.begun and time >= self.begun[one]:
                # What has begun comes up, also when the file says something else by now.
                del self.begun[one]
                self.on.add(one)
                # A start that was under way does not know of a stop.
                self.stopped.discard(one)
            elif not wanted and since >= ENDS and one not in self.begun:
                self.on.discard(one)

    def answer(self, leaving, keeping):
        """As lib/handover.js and lib/owned.js do: it stops what is to leave, unless it is busy, and does not say "off" of what is about to begin."""
        if not self.tells or not self.pid or self.hung:
            return None
        self.stopped -= keeping
        if self.world.time >= self.busy_until:
            self.stopped |= leaving
            self.on -= leaving
        return Answer(self.pid, frozenset(self.on | set(self.begun)), self.world.time, frozenset(leaving - self.stopped))

    @property
    def hung(self):
        return self.world.time < self.hung_until

    @property
    def status(self):
        if not self.pid or self.world.time - self.heard > 6:
            return "down"
        return "draining" if self.drained else "degraded" if self.hung else "ok"


class Host:
    """One daemon, and what it finds on its host."""

    def __init__(self, world, name, replicas, tells):
        self.world, self.name = world, name
        self.gateways = {f"{name}-{number + 1}": Gateway(world, f"{name}-{number + 1}", tells) for number in range(replicas)}
        self.linked, self.frozen_until, self.frozen_since = True, 0.0, None
        self.notes, self.dead_until, self.stopped_at = {}, None, None
        self.begin()

    def begin(self):
        self.stopped_at = None
        self.dead_until, self.states, self.busy, self.fencing, self.requests, self.looked = None, {}, {}, set(), [], None
        self.leases = None
        for name in SINGLETONS:
            state = self.notes.get(name, State())
            if state.phase != FREE:
                on = self.gateways[state.replica].file[name]
                state = decision.resumed(dataclasses.replace(state, on=on and state.phase not in (GIVING_UP, RELEASING)))
            self.states[name] = state

    def die(self):
        """And ``off`` is run."""
        self.dead_until, self.frozen_since = self.world.time + RESTART, None
        for gateway in self.gateways.values():
            gateway.write(dict.fromkeys(SINGLETONS, False))

    def step(self):
        time = self.world.time
        if self.dead_until is not None:
            if time >= self.dead_until:
                self.begin()
            return
        if self.frozen_since is not None:
            if time < self.frozen_until:
                if time - self.frozen_since >= WATCHDOG:
                    self.die()
                return
            self.frozen_since = None
        self.hear()
        self.tick()
        idle = not self.busy and all(s.phase == FREE for s in self.states.values())
        if self.stopped_at is not None and (time - self.stopped_at >= LIMITS.finish + LIMITS.stop or idle):
            self.die()

    def tick(self):
        time = self.world.time
        if self.looked is None or time - self.looked >= 1:
            self.looked = time
            self.request("look", "", "", 0)
        self.answers = {replica: gateway.answer(*self.asks(replica)) for replica, gateway in self.gateways.items()}
        for name in SINGLETONS:
            state, action, replica = decision.decide(name, self.states[name], self.seen(name), time, LIMITS)
            self.states[name] = state
            if action == FENCE:
                self.fencing.add(replica)
                gateway = self.gateways[replica]
                self.requests.append((time + STEP, lambda gateway=gateway, replica=replica: self.fenced(gateway, replica)))
            elif action:
                self.busy[name] = replica if action == ACQUIRE else None
                self.request(action, name, replica, state.token)
        self.notes = {name: state for name, state in self.states.items() if state.phase != FREE}
        for replica, gateway in self.gateways.items():
            on = {}
            for name, state in self.states.items():
                on[name] = state.replica == replica and state.on and (gateway.file[name] or time < state.valid - LIMITS.stop)
            gateway.write(on)
            for name, state in self.states.items():
                if state.replica == replica:
                    self.states[name] = decision.wrote(state, gateway.changed)

    def asks(self, replica):
        """What the service asks of a gateway: singletons that are to leave, and to stay."""
        ours = {name: one for name, one in self.states.items() if one.held and one.replica == replica}
        leaving = {name for name, one in ours.items() if one.phase == GIVING_UP or one.leaving is not None}
        return leaving, {name for name, one in ours.items() if one.phase == OWNED and name not in leaving}

    def fenced(self, gateway, replica):
        gateway.die()
        self.fencing.discard(replica)
        self.world.kills += 1

    def seen(self, name):
        state = self.states[name]
        replicas = {one: self.replica(one, gateway) for one, gateway in self.gateways.items()}
        lives = any(state.process == (one.pid, one.started) for one in self.gateways.values() if one.pid)
        stopping = self.stopped_at is not None
        return Seen(self.name, replicas, (self.leases or {}).get(name), name in self.busy, state.replica in self.fencing, stopping, True, lives)

    def replica(self, name, gateway):
        time = self.world.time
        owned = sum(s.phase != FREE and s.replica == name for s in self.states.values()) + sum(one == name for one in self.busy.values())
        main = Main(gateway.pid, gateway.started if gateway.pid else 0.0, time)
        down = max(0.0, time - gateway.heard - 6) if gateway.status == "down" else 0.0
        return Replica(name, gateway.status, 0.0, gateway.heard, main, self.answers[name], gateway.tells, owned, down=down)

    def request(self, action, name, replica, token):
        """To Redis: it arrives, or not, or late; and so does the answer."""
        world, sent = self.world, self.world.time
        there, back = (world.random.choice((0, 1) if world.calm else (0, 0, 0, 1, 2, 8)) * STEP for _way in range(2))
        box = {}

        def arrive():
            if self.linked and not world.redis.down:
                box["answer"] = self.look() if action == "look" else world.redis.run(action, name, replica, self.name, token, world.time)

        def answer(box_at):
            if "answer" in box and self.linked and box_at - sent <= TIMEOUT:
                self.answered(action, name, replica, sent, *box["answer"])
            else:
                self.failed(action, name)

        world.later(sent + there, arrive)
        at = min(sent + there + back, sent + TIMEOUT + STEP)
        self.requests.append((at, lambda: answer(at)))

    def look(self):
        world, found = self.world, {}
        for name, linger in SINGLETONS.items():
            record = world.redis.records.get(name)
            if record:
                wait = 0.0 if record["released"] else max(0.0, record["expires"] + linger - world.redis.now(world.time))
                found[name] = (record["holder"], record["host"], record["token"], 0.0, record["released"], wait)
            else:
                found[name] = ()
        return found, True

    def hear(self):
        time = self.world.time
        due = [one for one in self.requests if one[0] <= time]
        self.requests = [one for one in self.requests if one[0] > time]
        for _at, work in due:
            work()

    def answered(self, action, name, replica, sent, answer, confirmed):
        time = self.world.time
        if action == "look":
            self.leases = {one: dataclasses.replace(Lease(*fields), at=sent) for one, fields in answer.items()}
            return
        del self.busy[name]
        state = self.states[name]
        if action == ACQUIRE:
            if answer is None:
                state = decision.refused(state, time, LIMITS)
            else:
                state = decision.granted(state, replica, answer, 0.0, sent, confirmed, time, LIMITS)
        elif action == RENEW:
            state = decision.renewed(state, sent, confirmed, time, LIMITS) if answer else decision.lost(state, time)
        elif action == RELEASE:
            state = decision.released(state, time)
        self.states[name] = state

    def failed(self, action, name):
        if action == "look":
            self.leases = None
            return
        del self.busy[name]
        if action == ACQUIRE:
            self.states[name] = decision.refused(self.states[name], self.world.time, LIMITS)


class World:
    """All of it. Where it is calm, requests to Redis arrive in time."""

    def __init__(self, seed, hosts, replicas, tells):
        self.random, self.time, self.kills, self.calm = random.Random(seed), 0.0, 0, False
        self.pids = iter(range(100, 10**9))
        self.redis, self.events = Redis(), []
        self.hosts = [Host(self, f"h{number + 1}", replicas, tells) for number in range(hosts)]
        self.thawed = {}

    @property
    def gateways(self):
        return [one for host in self.hosts for one in host.gateways.values()]

    def later(self, at, work):
        self.events.append((at, work))

    def on(self, name):
        """Names of the gateways that have a singleton."""
        return [one.name for one in self.gateways if one.pid and name in one.on]

    def step(self):
        self.time += STEP
        due = [one for one in self.events if one[0] <= self.time]
        self.events = [one for one in self.events if one[0] > self.time]
        for _at, work in due:
            work()
        for one in self.gateways:
            one.step()
        hosts = list(self.hosts)
        self.random.shuffle(hosts)
        for one in hosts:
            one.step()
        for name in SINGLETONS:
            having = self.on(name)
            assert len(having) <= 1, f"at {self.time:.2f} s {', '.join(having)} have {name}: {self.told()}"

    def told(self):
        """What the daemons think."""
        return {host.name: {name: (s.phase, s.replica, s.token, round(s.valid - self.time, 2)) for name, s in host.states.items()} for host in self.hosts}

    def run(self, seconds):
        for _number in range(int(seconds / STEP)):
            self.step()

    def fault(self, kind, number, seconds):
        """Let something happen, for so long."""
        host = self.hosts[number % len(self.hosts)]
        gateway = self.gateways[number % len(self.gateways)]
        owner = next((one for one in self.gateways if one.pid and one.on), gateway)
        getattr(self, f"fault_{kind}")(host, owner if number % 2 else gateway, seconds)

    def fault_cut(self, host, _gateway, seconds):
        host.linked = False
        self.later(self.time + seconds, lambda: setattr(host, "linked", True))

    def fault_cut_owner(self, _host, gateway, seconds):
        self.fault_cut(next(one for one in self.hosts if gateway.name in one.gateways), gateway, seconds)

    def fault_redis_down(self, _host, _gateway, seconds):
        self.redis.down = True
        self.later(self.time + seconds, lambda: setattr(self.redis, "down", False))

    def fault_lag(self, _host, _gateway, seconds):
        """No replica gets what is written, and then the primary is lost, or they get it."""
        self.redis.lagging = [True, True]

        def end():
            if self.random.random() < 0.7:
                self.redis.fail_over(self.random.uniform(-1, 1))
            else:
                self.redis.lagging = [False, False]
                self.redis.copy()

        self.later(self.time + seconds, end)

    def fault_fail_over(self, _host, _gateway, _seconds):
        self.redis.lagging = [self.random.random() < 0.5, False]
        self.redis.fail_over(self.random.uniform(-1, 1))

    def fault_kill(self, _host, gateway, seconds):
        gateway.die(min(seconds, 5))

    def fault_hang(self, _host, gateway, seconds):
        gateway.hung_until = self.time + seconds

    def fault_busy(self, _host, gateway, seconds):
        gateway.busy_until = self.time + seconds

    def fault_drain(self, _host, gateway, seconds):
        gateway.drained = True
        self.later(self.time + seconds, lambda: setattr(gateway, "drained", False))

    def fault_freeze(self, _host, gateway, seconds):
        """A daemon stands still; it does so once within the time that a lease leaves for that."""
        host = next(one for one in self.hosts if gateway.name in one.gateways)
        if host.dead_until is None and host.frozen_since is None and self.time >= self.thawed.get(host.name, 0.0):
            host.frozen_since, host.frozen_until = self.time, self.time + seconds
            self.thawed[host.name] = self.time + LIMITS.lease

    def fault_daemon(self, _host, gateway, _seconds):
        host = next(one for one in self.hosts if gateway.name in one.gateways)
        if host.dead_until is None and host.frozen_since is None:
            host.die()

    def fault_stop(self, _host, gateway, _seconds):
        host = next(one for one in self.hosts if gateway.name in one.gateways)
        if host.dead_until is None and host.frozen_since is None and host.stopped_at is None:
            host.stopped_at = self.time

    def fault_give(self, _host, gateway, _seconds):
        host = next(one for one in self.hosts if gateway.name in one.gateways)
        for name, state in host.states.items():
            host.states[name] = decision.give(state, self.time, 20.0)


FAULTS = sorted(name.removeprefix("fault_") for name in dir(World) if name.startswith("fault_"))
