# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The service: looks at replicas and leases in the background, decides in ticks, and does what is decided. A tick waits for nobody."""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import logging
import os
import signal
import time

import aiohttp
import yarl
from aiohttp import web
from openclaw_ingress.config import secret
from openclaw_ingress.primary import Primary, RedisAway
from openclaw_ingress.systemd import notify
from openclaw_ingress.tasks import end
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from . import decision, files, units
from .config import ConfigError
from .decision import ACQUIRE, FENCE, FREE, GIVING_UP, OWNED, RELEASE, RELEASING, RENEW, RESUMING, Answer, Limits, Replica, Seen, State
from .lease import Leases
from .metrics import Metrics
from .units import now as clock

log = logging.getLogger("openclaw_owner")

#: Seconds between two looks at what is on in a gateway, and which its process is, while all is well.
CALM = 1.0
#: Seconds by which a tick may be late before that is held to be the host's doing, and not the agents'.
LATE = 1.0


class Watched:
    """What was seen of one replica."""

    def __init__(self, replica, configured, attention):
        self.replica, self.configured = replica, configured
        self.status, self.heard, self.alive = "", attention, decision.NEVER
        self.main = self.answer = None
        self.looked = decision.NEVER
        self.fencing = False
        #: Since when its agent calls it dead, in seconds of this daemon's attention.
        self.down_since = None


class Service:
    """All replicas of this host in one process."""

    def __init__(self, settings):
        self.config = settings
        self.metrics = Metrics()
        #: What a gateway asks of those who want to know what is on in it.
        self._token = {"Authorization": f"Bearer {secret(settings['proof_token_file']).decode()}"} if "proof_token_file" in settings else {}
        names = ("lease", "renew", "stop", "finish", "proof", "dead", "down", "refuse", "stopping", "fence", "settle", "retry", "step")
        self.limits = Limits(grace=settings["verdict_grace"], **{one: settings[f"{one}_seconds"] for one in names})
        self._primary = Primary(settings)
        self._leases = Leases(settings, self._primary)
        self.singletons = {one["id"]: one for one in settings["singletons"]}
        self._configured = set(self.singletons)
        self.watched = {one["id"]: Watched(one, True, 0.0) for one in settings["replicas"]}
        self.states = {}
        #: As Redis said last, and whether that was just now.
        self.leases, self._fresh = {}, False
        self._attention, self._ticked = 0.0, clock()
        self._changed = {}
        self._saved = None
        self._busy, self._tasks, self._runners, self._lock = {}, [], [], None
        self._aside = set()
        self._wake = asyncio.Event()
        self._session = None
        self._broken = {}
        self.stopping = False

    # --- what a former life has left

    def restore(self):
        """Take over the leases of a former life, and what the files say.

        :raises ConfigError: when another daemon has the state's file
        """
        path = self.config["state_file"]
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        self._lock = open(f"{path}.lock", "w", encoding="utf-8")  # pylint: disable=consider-using-with
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"state_file is {path!r}; another daemon that runs has it.") from None
        noted = files.read(path)[1]
        for name, entry in noted.items():
            try:
                self._restore(name, entry)
            except (KeyError, TypeError, ValueError):
                log.warning("%s: the note of a former life cannot be read.", name)
        for name, one in self.singletons.items():
            if name not in self.states:
                self.states[name] = self._unnoted(one)
        for name, state in self.states.items():
            if state.phase != FREE:
                why = f", because {state.reason}" if state.reason else ""
                log.warning(
                    "%s: a former life has left it to %s, %s%s (token %d, %.1f s of the lease)", name, state.replica, state.phase, why, *self._left(state)
                )

    def _restore(self, name, entry):
        known = {field.name for field in dataclasses.fields(State)}
        state = State(**{key: value for key, value in entry["state"].items() if key in known})
        if state.valid > clock() + self.limits.lease or state.begun > clock():
            return  # of another boot: what it tells of is gone
        self.singletons.setdefault(name, entry["singleton"])
        self.watched.setdefault(state.replica, Watched(entry["replica"], False, 0.0))
        on = self._says(state.replica, self.singletons[name])
        self.states[name] = decision.resumed(dataclasses.replace(state, process=tuple(state.process) if state.process else None, on=on))
        if state.phase in (GIVING_UP, RELEASING):
            self.states[name] = dataclasses.replace(self.states[name], on=False)

    def _says(self, replica, singleton):
        path = self.watched[replica].replica["sections"].get(singleton["section"])
        return bool(path) and files.within(singleton["content"], files.read(path)[1])

    def _unnoted(self, singleton):
        """What is on without a lease is to be off, and nobody knows who else has it."""
        for name in self.watched:
            if self._says(name, singleton):
                return decision.give_up(State(replica=name), "it is on, and nobody here knows of a lease", clock())
        return State()

    def _save(self):
        noted = {}
        for name, state in self.states.items():
            if state.phase != FREE:
                # Seconds since never are no JSON.
                values = {key: value for key, value in dataclasses.asdict(state).items() if value != decision.NEVER}
                noted[name] = {"state": values, "singleton": self.singletons[name], "replica": self.watched[state.replica].replica}
        if noted != self._saved:
            files.write(self.config["state_file"], files.text(noted))
            self._saved = noted

    # --- a tick

    def tick(self):
        """Decide what is next with each singleton, do what is quick at once, and begin the rest."""
        now = clock()
        # A host, or a daemon, that stood still has not listened: that is no silence of the agents.
        self._attention += min(now - self._ticked, LATE)
        self._ticked = now
        begun = []
        for name in list(self.states):
            state, action, replica = decision.decide(name, self.states[name], self._seen(name, now), now, self.limits)
            self._set(name, state)
            if action == FENCE:
                begun.append((self._fence, name, replica))
                self.watched[replica].fencing = True
            elif action:
                self._busy[name] = replica if action == ACQUIRE else None
                begun.append((self._ask, name, action, replica))
        # Before anything is turned on, there is the note that it may be.
        try:
            self._save()
            self._mend("state_file")
        except OSError as error:
            self._break("state_file", f"{self.config['state_file']} cannot be written: {error.strerror}")
        self._write()
        for function, *arguments in begun:
            self._start(function(*arguments))
        self._measure(now)

    def _seen(self, name, now):
        state = self.states[name]
        lease = self.leases.get(name) if self._fresh else None
        watched = self.watched.get(state.replica)
        return Seen(
            self.config["host"],
            {one: self._replica(one) for one in self.watched},
            lease,
            name in self._busy,
            bool(watched and watched.fencing),
            self.stopping,
            name in self._configured,
            state.phase == GIVING_UP and units.lives(state.process),
        )

    def _replica(self, name):
        one = self.watched[name]
        owned = sum(state.phase != FREE and state.replica == name for state in self.states.values())
        owned += sum(replica == name for replica in self._busy.values())
        silent, tells = self._attention - one.heard, bool(one.replica.get("proof_url"))
        down = 0.0 if one.down_since is None else self._attention - one.down_since
        return Replica(name, one.status, silent, one.alive, one.main, one.answer, tells, owned, one.configured, down)

    def _start(self, work):
        task = asyncio.ensure_future(work)
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)

    # --- files

    def _write(self):
        """Make the files say what the states do."""
        for replica, watched in self.watched.items():
            for section, path in watched.replica["sections"].items():
                states = {name: one for name, one in self.states.items() if one.replica == replica and self.singletons[name]["section"] == section}
                try:
                    since = self._write_one(path, states, watched)
                except OSError as error:
                    self._break(path, f"{path} cannot be written: {error.strerror}")
                    continue
                self._mend(path)
                for name, state in states.items():
                    self.states[name] = decision.wrote(state, since)

    def _write_one(self, path, states, watched):
        """When the file was changed last.

        :raises OSError: when it cannot be written
        """
        found, content = files.read(path)
        was = {name for name in states if files.within(self.singletons[name]["content"], content)}
        # Nothing is turned on without a note of it, or near the end of its lease; the tick that comes next sees that.
        ends = {name: state.valid - self.limits.stop for name, state in states.items() if state.on and name not in was}
        late = {name for name, end in ends.items() if clock() >= end or "state_file" in self._broken}
        on = {name for name, state in states.items() if state.on} - late
        wanted = files.text(files.merged(self.singletons[name]["content"] for name in states if name in on))
        if found != wanted:
            end = min((ends[name] for name in on - was), default=float("inf"))
            if not files.write(path, wanted, lambda: clock() < end):
                return self._write_one(path, states, watched)
            self._changed[path] = clock()
            for name in on ^ was:
                self.metrics.changes.labels(name).inc()
        elif self._unheard(path, states, on, watched):
            log.warning("%s has not heard of %s: it is written once more", watched.replica["id"], path)
            files.write(path, wanted)
            self._changed[path] = clock()
        if path not in self._changed:
            # Of a former life. A step of the clock back makes it look younger than it is, at worst.
            self._changed[path] = clock() - max(0.0, time.time() - os.stat(path).st_ctime)
        return self._changed[path]

    def _unheard(self, path, states, on, watched):
        """Does the gateway, asked long after the change, say something else than its file? It may not have noticed the change (seen)."""
        answer, changed = watched.answer, self._changed.get(path)
        if not answer or changed is None or answer.at < changed + self.config["nudge_seconds"]:
            return False
        # What is to leave is stopped before its file says so.
        return any((name in answer.on) != (name in on) for name, state in states.items() if state.leaving is None or not state.on)

    def _break(self, what, why):
        if self._broken.get(what) != why:
            log.error("%s", why)
        self._broken[what] = why

    def _mend(self, what):
        self._broken.pop(what, None)

    # --- Redis

    async def _ask(self, name, action, replica):
        """One request about one lease. Its time is that before it was sent: it is valid no longer than Redis holds it to be."""
        sent, state = clock(), self.states[name]
        try:
            if action == ACQUIRE:
                grant = await self._leases.acquire(name, replica, self.singletons[name]["linger_seconds"])
                if grant.granted:
                    after = (replica, grant.token, grant.since, sent, grant.confirmed, clock(), self.limits)
                    self._set(name, decision.granted(self.states[name], *after))
                else:
                    log.info("%s: %s may not take it: %s at %s has it for another %.1f s", name, replica, grant.holder, grant.host, grant.wait)
                    self._set(name, decision.refused(self.states[name], clock(), self.limits))
            elif action == RENEW:
                theirs, confirmed = await self._leases.renew(name, replica, state.token)
                if not theirs or not confirmed:
                    self.metrics.failed.labels(name).inc()
                before = self.states[name]
                self._set(name, decision.renewed(before, sent, confirmed, clock(), self.limits) if theirs else decision.lost(before, clock()))
            elif action == RELEASE:
                theirs = await self._leases.release(name, replica, state.token, state.fault)
                self._set(name, decision.released(self.states[name], clock()))
                if theirs:
                    self._tell("owner_off", name, replica, state)
        except RedisAway:
            self._failed(name, action)
        except Exception:  # pylint: disable=broad-except
            log.exception("%s: the request to %s its lease failed.", name, action)
            self._failed(name, action)
        finally:
            del self._busy[name]
            self._wake.set()

    def _failed(self, name, action):
        if action == ACQUIRE:
            self._set(name, decision.refused(self.states[name], clock(), self.limits))
        elif action == RENEW:
            self.metrics.failed.labels(name).inc()

    async def _look(self):
        """Ask for all leases at once."""
        fresh = False
        try:
            self.leases = await self._leases.look({name: one["linger_seconds"] for name, one in self.singletons.items()}, clock())
            fresh = True
        except RedisAway:
            pass
        finally:
            self._fresh = fresh
            self._wake.set()

    def _tell(self, kind, name, replica, state):
        async def tell():
            try:
                await self._leases.tell(kind, {"singleton": name, "replica": replica, "token": state.token, "reason": state.reason})
            except RedisAway:
                pass

        self._start(tell())

    # --- processes

    async def _fence(self, name, replica):
        watched, state = self.watched[replica], self.states[name]
        unit = watched.replica["unit"]
        log.error("%s: not proven off, %s of %s is killed (%.1f s of the lease are left)", name, unit, replica, max(0.0, state.valid - clock()))
        try:
            killed = await units.fence(self.config["systemctl"], unit, state.process)
            self.metrics.fenced.labels(replica).inc(len(killed))
            log.error("%s: of %s, killed and gone: %s", name, unit, ", ".join(map(str, killed)) or "nothing, there was no process")
            await self._look_at_main(watched)
            if killed:
                self._tell("owner_fenced", name, replica, state)
        except (OSError, TimeoutError) as error:
            log.error("%s: %s cannot be killed: %s", name, unit, error or "it is not gone in time")
        finally:
            watched.fencing = False
            self._wake.set()

    async def _look_at_main(self, watched):
        unit = watched.replica["unit"]
        try:
            watched.main = await units.show(self.config["systemctl"], unit)
            self._mend(unit)
        except (OSError, TimeoutError) as error:
            watched.main = None
            self._break(unit, f"the process of {unit} is not known: {str(error) or 'systemd does not answer in time'}")

    async def _look_at_answer(self, watched):
        at = clock()
        ours = {name: one for name, one in self.states.items() if one.held and one.replica == watched.replica["id"]}
        leaving = [name for name, one in ours.items() if one.phase == GIVING_UP or one.leaving is not None]
        keeping = [name for name, one in ours.items() if one.phase == OWNED and name not in leaving]
        wanted = {key: ",".join(names) for key, names in (("leaving", leaving), ("keeping", keeping)) if names}
        url = yarl.URL(watched.replica["proof_url"]).update_query(wanted)
        try:
            found = await self._get(url, self.limits.proof / 2, self._token)
            watched.answer = Answer(int(found["pid"]), frozenset(map(str, found["on"])), at, frozenset(map(str, found.get("busy") or ())))
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError, TypeError):
            watched.answer = None

    async def _look_at_process(self, watched):
        """While it has a singleton: which is its process, and what is on in it."""
        states = [one for one in self.states.values() if one.held and one.replica == watched.replica["id"]]
        hurry = any(one.phase == GIVING_UP or one.leaving is not None for one in states)
        if not states or not hurry and clock() - watched.looked < CALM:
            return
        watched.looked = clock()
        looks = [self._look_at_main(watched)]
        if watched.replica.get("proof_url"):
            looks.append(self._look_at_answer(watched))
        await asyncio.gather(*looks)
        if hurry:
            self._wake.set()

    async def _look_at_verdict(self, watched):
        at, heard = clock(), self._attention
        try:
            found = await self._get(watched.replica["verdict_url"], max(self.limits.grace, self.config["interval"]))
            status, alive = str(found["status"]), at - float(found.get("observed_seconds") or 0)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError, TypeError, AttributeError):
            return
        if watched.status != status:
            log.info("Replica %s is %s.", watched.replica["id"], status)
        watched.status, watched.heard, watched.alive = status, heard, alive
        if status != "down":
            watched.down_since = None
        elif watched.down_since is None:
            watched.down_since = heard

    async def _get(self, url, seconds, headers=None):
        async with asyncio.timeout(seconds), self._session.get(url, headers=headers, allow_redirects=False) as response:
            return await response.json(content_type=None)

    # --- what people are told

    def _left(self, state):
        return state.token, max(0.0, state.valid - clock())

    def _set(self, name, state):
        """A line for each change: who, what, why, token, seconds."""
        before, self.states[name] = self.states[name], state
        if before.phase == state.phase:
            return
        token, left = self._left(state)
        lasted = clock() - before.begun if before.begun != decision.NEVER else 0.0
        if state.phase == OWNED:
            log.info("%s: %s has it (token %d, a lease of %.1f s)", name, state.replica, token, left)
            if before.phase == FREE:
                self._tell("owner_on", name, state.replica, state)
        elif state.phase == GIVING_UP:
            log.warning("%s: %s gives it up, because %s (token %d, %.1f s of the lease are left)", name, state.replica, state.reason, token, left)
        elif state.phase == RELEASING and before.phase == FREE:
            log.warning("%s: %s gives it back at once, because %s (token %d)", name, state.replica, state.reason, token)
        elif state.phase == RELEASING:
            log.info("%s: %s has it no more after %.1f s, because %s (token %d)", name, state.replica, lasted, state.reason, token)
        elif state.phase == FREE:
            log.info("%s: the lease of %s is given back, or over (token %d)", name, before.replica, before.token)
        self._wake.set()

    def _measure(self, now):
        metrics = self.metrics
        for name, state in self.states.items():
            lease = self.leases.get(name)
            for replica in self.watched:
                metrics.owned.labels(name, replica).set(state.phase == OWNED and state.replica == replica)
            metrics.held.labels(name).set(bool(lease and not lease.released and lease.wait > now - lease.at))
            metrics.since.labels(name).set(lease.since if lease and not lease.released else 0)
            metrics.left.labels(name).set(max(0.0, state.valid - now) if state.token else 0)
            metrics.changes.labels(name)
            metrics.failed.labels(name)
        for replica in self.watched:
            metrics.fenced.labels(replica)
        metrics.redis.set(self._primary.serves is True)

    def document(self):
        """What /health answers."""
        now = clock()
        late = [name for name, one in self.states.items() if one.phase == GIVING_UP and now - one.begun > self.limits.proof]
        serves = self._primary.serves is True
        problems = list(self._broken.values()) + [f"{name} is not proven off" for name in late] + ([] if serves else ["Redis is away"])
        return {
            "status": "degraded" if problems else "ok",
            "host": self.config["host"],
            "redis": serves,
            "stopping": self.stopping,
            "problems": problems,
            "replicas": {name: one.status if self._attention - one.heard <= self.limits.grace else "" for name, one in self.watched.items()},
            "singletons": {name: self._described(name, state, now) for name, state in self.states.items()},
        }

    def _described(self, name, state, now):
        lease = self.leases.get(name)
        held = bool(lease and lease.holder and not lease.released)
        word = {FREE: "elsewhere" if held and lease.wait > now - lease.at else "free", GIVING_UP: GIVING_UP, RELEASING: GIVING_UP}.get(state.phase, "owned")
        return {
            "holder": lease.holder if held else None,
            "host": lease.host if held else None,
            "since": lease.since if held else None,
            "token": lease.token if lease else 0,
            "state": word,
            "replica": state.replica if state.phase != FREE else None,
            "on": state.on,
            "lease_seconds_left": round(max(0.0, state.valid - now), 1) if state.token else 0.0,
            "waiting_seconds": round(max(0.0, lease.wait - (now - lease.at)), 1) if held else 0.0,
        }

    async def _health(self, _request):
        return web.json_response(self.document(), headers={"Cache-Control": "no-store"})

    async def _metrics(self, _request):
        return web.Response(body=generate_latest(self.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _give(self, request):
        """Body {"id": ...}: 200 when it is given up now, 404 when there is none of that name, 409 when this host does not have it."""
        try:
            name = str((await request.json())["id"])
        except (ValueError, KeyError, TypeError):
            return web.json_response({"error": 'the body must be {"id": ID}'}, status=400)
        if name not in self.states:
            return web.json_response({"error": f"there is no singleton {name}"}, status=404)
        state = self.states[name]
        if state.phase not in (RESUMING, OWNED):
            return web.json_response({"error": f"no replica of this host has {name} (it is {self._described(name, state, clock())['state']})"}, status=409)
        self._set(name, decision.give(state, clock(), self.config["give_seconds"]))
        return web.json_response({"id": name, "replica": state.replica, "seconds": self.config["give_seconds"]})

    # --- life

    async def start(self):
        """:raises ConfigError: when another daemon has the state's file"""
        self.restore()
        connector = aiohttp.TCPConnector(force_close=True, limit=0)
        self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None), cookie_jar=aiohttp.DummyCookieJar())
        # What is not ours is off before anything is asked.
        self.tick()
        status = web.Application()
        status.router.add_get("/health", self._health)
        status.router.add_get("/metrics", self._metrics)
        status.router.add_post("/give", self._give)
        runner = web.AppRunner(status, access_log=None, handle_signals=False)
        self._runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.config["status_port"]).start()
        loops = [self._every(self.config["look_seconds"], self._look)]
        for one in self.watched.values():
            loops += [self._every(self.config["interval"], look, one) for look in (self._look_at_process, self._look_at_verdict)]
        self._tasks = [asyncio.ensure_future(one) for one in loops]

    @staticmethod
    async def _every(seconds, look, *arguments):
        """Run ``look`` for ever; what it raises is not its end."""
        while True:
            try:
                await look(*arguments)
            except Exception:  # pylint: disable=broad-except
                log.exception("A look failed.")
            await asyncio.sleep(seconds)

    async def run(self, ended):
        """Tick until ``ended`` is set, then until nothing is on here any more, at most for the time that a lease leaves for that."""
        deadline = None
        while True:
            if ended.is_set() and not self.stopping:
                self.stopping, deadline = True, clock() + self.limits.finish + self.limits.stop
                log.info("All that this host has is given up.")
            self._wake.clear()
            try:
                self.tick()
                # A loop that fails is one to be ended.
                notify("WATCHDOG=1")
            except Exception:  # pylint: disable=broad-except
                log.exception("A tick failed.")
            if self.stopping and (clock() >= deadline or not self._busy and all(one.phase == FREE for one in self.states.values())):
                return
            try:
                async with asyncio.timeout(self.config["interval"]):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def wake(self):
        """Tick now."""
        self._wake.set()

    async def stop(self):
        """End everything that :meth:`start` began."""
        for runner in self._runners:
            await runner.cleanup()
        await end([*self._tasks, *self._aside])
        if self._session:
            await self._session.close()
        await self._primary.close()
        if self._lock:
            self._lock.close()


async def serve(settings):
    """Run until SIGTERM or SIGINT."""
    ended = asyncio.Event()
    service = Service(settings)

    def end():
        ended.set()
        service.wake()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end)
    try:
        await service.start()
        notify("READY=1")
        log.info("An owner of %s is elected.", ", ".join(service.singletons) or "nothing")
        await service.run(ended)
    finally:
        notify("STOPPING=1")
        await service.stop()
