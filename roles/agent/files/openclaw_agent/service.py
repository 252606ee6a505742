# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The service: background checks, and answers from what they found last. An answer never waits for a check."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import logging
import os
import signal
import socket
import time

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from . import checks, config, drain, probes
from .metrics import ReplicaCollector
from .verdict import DOWN, Finding, Gateway, Limits, Unit, document, judge

log = logging.getLogger("openclaw_agent")

#: Seconds between two looks at its own clock: an agent that does not look takes no time for a gateway's silence.
HEARTBEAT = 0.1
#: Seconds between two signs of life for systemd's watchdog.
WATCHDOG = 3.0
#: Seconds that systemctl, the health route and a look at the disk may take.
DEADLINE = 3.0
#: A health answer that is older tells nothing of Redis and the provider.
HEALTH_AGE = 10.0
#: The list of certificates is written by a timer of its own; it may miss this many turns.
CERTIFICATE_TURNS = 3


class Watched:
    """What was seen of one replica's gateway."""

    def __init__(self, replica, now):
        self.replica, self.heard, self.gone, self.seen = replica, now, False, ""
        self.answer = checks.Answer()
        self.health, self.health_at = {}, None
        self.restarts = checks.Restarts()
        self.unit = Unit()
        self.lasted = {}
        self.looked = asyncio.Event()

    def gateway(self, now):
        """The :class:`Gateway` as of ``now`` (seconds of attention)."""
        answer = self.answer
        return Gateway(answer.says, max(0.0, now - self.heard), self.gone, self.seen, answer.version, answer.uptime)


class Service:
    """All replicas of this host in one process."""

    def __init__(self, settings):
        self.config = settings
        self.limits = Limits(settings["stalled_after"], settings["dead_after"])
        self._attention = checks.Attention(time.monotonic())
        self.watched = {one["id"]: Watched(one, 0.0) for one in settings["replicas"]}
        self.findings = {name: Finding() for name in ("disk", "partner", "certificate", "clock")}
        self.spaces, self.certificate_days, self.unit_restarts, self.clock = {}, {}, {}, None
        self._partner_ends = {}
        self._lasted = {}
        self._session = None
        self._tasks, self._runners, self._servers = [], [], []
        self._told = {}
        # A path that hangs (a lost NFS server) holds up this thread, and nothing else.
        self._disk_thread = concurrent.futures.ThreadPoolExecutor(1, "disk")
        self._disk_look = None

    # --- answers

    def now(self):
        """Seconds for which this process has paid attention."""
        return self._attention.read(time.monotonic())

    def verdict(self, replica):
        """(Gateway, Verdict, drain switch) of a replica, from memory."""
        now = self.now()
        watched = self.watched[replica["id"]]
        gateway = watched.gateway(now)
        switch = drain.read(self.config["drain_directory"], replica["id"])
        return gateway, judge(gateway, watched.unit, {**self.findings, **self._health(watched, now)}, switch, self.limits), switch

    def lasted(self, replica):
        """Name of each background check -> seconds that its latest run took."""
        return {**self._lasted, **self.watched[replica["id"]].lasted}

    def _health(self, watched, now):
        if watched.health_at is None or now - watched.health_at > HEALTH_AGE:
            return {}
        return watched.health

    # --- background checks

    async def _every(self, name, interval, look, lasted=None):
        """Run ``look`` for ever, ``interval`` from start to start, late ones at once; what it raises is not its end."""
        lasted = self._lasted if lasted is None else lasted
        while True:
            start = time.monotonic()
            try:
                await look()
            except Exception:  # pylint: disable=broad-except
                log.exception("The check %s failed.", name)
            lasted[name] = time.monotonic() - start
            await asyncio.sleep(max(0.0, start + interval - time.monotonic()))

    async def _look_at_gateway(self, watched):
        timeout = self.config["gateway_timeout"]
        try:
            async with asyncio.timeout(timeout):
                answer = checks.startup(*await probes.get(self._session, watched.replica["port"], "/startupz"))
        except TimeoutError:
            watched.seen = f"no answer within {timeout:g} s"
        except aiohttp.ClientConnectorError as error:
            # Until it answers again: a port that listens is not yet a gateway that serves.
            watched.gone = watched.gone or isinstance(error.os_error, ConnectionRefusedError)
            watched.seen = error.os_error.strerror or str(error.os_error)
        except (aiohttp.ClientError, OSError) as error:
            watched.seen = str(error) or type(error).__name__
        else:
            watched.seen = answer.seen
            if answer.says:
                watched.answer, watched.heard, watched.gone = answer, self.now(), False
        watched.looked.set()
        self._tell(watched)

    async def _look_at_health(self, watched):
        if watched.gone:
            watched.health_at = None
            return
        try:
            async with asyncio.timeout(DEADLINE):
                watched.health = checks.health(*await probes.get(self._session, watched.replica["port"], "/api/v1/health"))
        except TimeoutError:
            watched.health = checks.no_health(f"the gateway does not tell within {DEADLINE:g} s")
        except (aiohttp.ClientError, OSError) as error:
            watched.health = checks.no_health(str(error) or type(error).__name__)
        watched.health_at = self.now()

    async def _look_at_units(self):
        names = [watched.replica["unit"] for watched in self.watched.values()]
        try:
            async with asyncio.timeout(DEADLINE):
                shown = await probes.units(names)
        except (TimeoutError, OSError) as error:
            log.warning("systemd does not tell of the units: %s", error or "no answer in time")
            shown = {}
        for replica, watched in self.watched.items():
            found = shown.get(watched.replica["unit"])
            if found is not None:
                counter = found.get("NRestarts", "0")
                self.unit_restarts[replica] = watched.restarts.observe(int(counter) if counter.isdecimal() else 0, time.monotonic())
            watched.unit = checks.unit(found, self.unit_restarts.get(replica, 0), self.config["restarts"])

    async def _look_at_disk(self):
        if self._disk_look is None or self._disk_look.done():
            self._disk_look = self._disk_thread.submit(probes.spaces, self.config["disk_paths"])
        try:
            self.spaces = await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(self._disk_look)), DEADLINE)
            found = self.spaces
        except TimeoutError:
            found = {path: f"no answer within {DEADLINE:g} s" for path in self.config["disk_paths"]}
        self.findings["disk"] = checks.disk(found, self.config["disk_free_percent"], self.config["disk_inodes_percent"])

    async def _look_at_partner(self):
        timeout, ca_file = self.config["partner_timeout"], self.config["partner_ca"]
        where = self.config["partner"]
        seen = await asyncio.gather(*(probes.handshake(*config.endpoint(one), ca_file, timeout) for one in where))
        self.findings["partner"] = checks.partner({one: error for one, (error, _ends) in zip(where, seen)})
        # Of a partner that cannot be reached now, what is known goes on.
        self._partner_ends |= {one: ends for one, (_error, ends) in zip(where, seen) if ends is not None}
        await self._look_at_certificates()

    async def _look_at_certificates(self):
        now, days = time.time(), {}
        if self.config["certificates"]:
            try:
                with open(self.config["certificates_file"], encoding="utf-8") as file:
                    listed = json.load(file)
                days = {path: (ends - now) / 86400 if isinstance(ends, (int, float)) else ends for path, ends in listed["ends"].items()}
                if now - listed["looked_at"] > CERTIFICATE_TURNS * self.config["certificate_interval"]:
                    days = {path: "nobody has looked at it lately; see openclaw-agent-certificates.timer" for path in days}
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                days = {"certificates": "nobody has looked at them yet; see openclaw-agent-certificates.service"}
        self.certificate_days = days | {where: (ends - now) / 86400 for where, ends in self._partner_ends.items()}
        self.findings["certificate"] = checks.certificate(self.certificate_days, self.config["certificate_days"])

    async def _look_at_clock(self):
        try:
            self.clock = probes.clock()
            self.findings["clock"] = checks.clock(self.clock, self.config["clock_max_offset"])
        except OSError as error:
            self.findings["clock"] = Finding(False, f"the kernel does not tell: {error.strerror}")

    async def _pay_attention(self):
        # By the clock, not by attention: systemd counts the seconds in which this process did nothing, too.
        signalled = float("-inf")
        while True:
            now = time.monotonic()
            if now - signalled >= WATCHDOG:
                signalled = now
                _notify("WATCHDOG=1")
            await asyncio.sleep(HEARTBEAT)

    def _tell(self, watched):
        """A line in the journal whenever the verdict's status changes."""
        _gateway, verdict, switch = self.verdict(watched.replica)
        replica = watched.replica["id"]
        if self._told.get(replica) == verdict.status:
            return
        self._told[replica] = verdict.status
        why = "; ".join(verdict.problems) or (f"drained by {switch['by']}" if switch else "nothing is wrong")
        log.log(logging.WARNING if verdict.status == DOWN else logging.INFO, "%s is %s: %s", replica, verdict.status, why)

    # --- HTTP and agent-check

    def application(self, replica):
        """The web application of one replica's port."""
        registry = CollectorRegistry()
        collector = ReplicaCollector(self, replica)
        app = web.Application()

        async def health(_request):
            gateway, verdict, switch = self.verdict(replica)
            body = document(replica, gateway, verdict, switch, self.config["host"])
            return web.json_response(body, status=503 if verdict.status == DOWN else 200, headers={"Cache-Control": "no-store"})

        async def metrics(_request):
            return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

        app.router.add_get("/health", health)
        app.router.add_get("/metrics", metrics)
        registry.register(collector)
        return app

    def _checked(self, replica):
        """Answers HAProxy's agent-check: one line, then the end."""

        def answer(_reader, writer):
            writer.write(self.verdict(replica)[1].line.encode())
            writer.close()

        return answer

    # --- life

    async def start(self):
        """Begin to look, and answer once each gateway has been looked at: before that nothing would be true."""
        self._attention = checks.Attention(time.monotonic())
        connector = aiohttp.TCPConnector(force_close=True, limit=0)
        self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None), cookie_jar=aiohttp.DummyCookieJar())
        settings = self.config
        loops = [self._pay_attention()]
        for watched in self.watched.values():
            for name, look in (("gateway", self._look_at_gateway), ("health", self._look_at_health)):
                loops.append(self._every(name, settings[f"{name}_interval"], lambda look=look, one=watched: look(one), watched.lasted))
        if self.watched:
            loops.append(self._every("unit", settings["unit_interval"], self._look_at_units))
        if settings["disk_paths"]:
            loops.append(self._every("disk", settings["disk_interval"], self._look_at_disk))
        if settings["partner"]:
            loops.append(self._every("partner", settings["partner_interval"], self._look_at_partner))
        if settings["certificates"]:
            # Reading its list costs nothing, and a renewed certificate is seen soon after the timer has.
            loops.append(self._every("certificate", min(60.0, settings["certificate_interval"]), self._look_at_certificates))
        if settings["clock"]:
            loops.append(self._every("clock", settings["clock_interval"], self._look_at_clock))
        self._tasks = [asyncio.ensure_future(loop) for loop in loops]
        await asyncio.gather(*(watched.looked.wait() for watched in self.watched.values()))
        for watched in self.watched.values():
            await self._listen(watched.replica)

    async def _listen(self, replica):
        addresses = list(dict.fromkeys((self.config["address"], "127.0.0.1")))
        runner = web.AppRunner(self.application(replica), access_log=None)
        self._runners.append(runner)
        await runner.setup()
        for address in addresses:
            await web.TCPSite(runner, address, replica["verdict_port"]).start()
        self._servers.append(await asyncio.start_server(self._checked(replica), addresses[0], replica["check_port"]))

    async def stop(self):
        """End everything that :meth:`start` began."""
        for server in self._servers:
            server.close()
        for runner in self._runners:
            await runner.cleanup()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session:
            await self._session.close()
        self._disk_thread.shutdown(wait=False, cancel_futures=True)


async def serve(settings):
    """Run until SIGTERM or SIGINT."""
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    service = Service(settings)
    try:
        await service.start()
        _notify("READY=1")
        log.info("The verdict on %s is served.", ", ".join(service.watched) or "no replica")
        await ended.wait()
    finally:
        await service.stop()


def _notify(text):
    """Tell systemd, when it has started this."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
        notifier.setblocking(False)
        try:
            notifier.sendto(text.encode(), "\0" + path[1:] if path.startswith("@") else path)
        except OSError as error:
            log.warning("systemd cannot be told %s: %s", text, error)
