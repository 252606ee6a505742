# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All Redis servers and Sentinels of a cluster: looks at them and does to them what :mod:`redis_switch` plans."""

from __future__ import annotations

import concurrent.futures
import time

from ansible_collections.openclaw.ha.plugins.module_utils import redis_client, redis_switch
from ansible_collections.openclaw.ha.plugins.module_utils.redis_view import where

#: Seconds after which a pause ends by itself. The Sentinels make an old primary a replica about 10 s after a promotion, whatever
#: became of the one who ordered it; until then its writes must be held back.
PAUSE = 30

#: Seconds that the replicas may take to catch up while writes are paused.
CATCH_UP = 5

#: Seconds between two looks that a Sentinel takes at what a server says of itself.
INFO_PERIOD = 10

#: Steps that may fail before a switch is given up where it stands.
MOST_FAILURES = 5

#: Options that name the cluster, for the modules that work on it.
OPTIONS = {
    "redis": {"type": "list", "elements": "dict", "required": True},
    "sentinels": {"type": "list", "elements": "dict", "required": True},
    "name": {"type": "str", "required": True},
    "quorum": {"type": "int"},
    "elsewhere": {"type": "list", "elements": "str", "default": []},
    "standby": {"type": "bool", "default": False},
    "redis_access": redis_client.ACCESS,
    "sentinel_access": redis_client.ACCESS,
}


class Refused(RuntimeError):
    """Something was not begun or not ended as wanted; the text tells why, and what the state is. ``report`` is what was done."""

    def __init__(self, text, report=None):
        super().__init__(text)
        self.report = report or {}


class Cluster:
    """The servers behind one set of :data:`OPTIONS`; connections are kept between two looks."""

    def __init__(self, parameters, timeout=2):
        self.nodes = parameters["redis"]
        self.sentinels = parameters["sentinels"]
        self.name = parameters["name"]
        self.quorum = parameters["quorum"]
        #: ``address:port`` of the Redis servers of other datacenters, one of which a standby's follow.
        self.elsewhere = parameters["elsewhere"]
        self.standby = parameters["standby"]
        self._timeout = timeout
        self._access = {"redis": parameters["redis_access"], "sentinel": parameters["sentinel_access"]}
        self._clients = {}
        self._pauses = {}
        self._pool = concurrent.futures.ThreadPoolExecutor(max_workers=max(4, len(self.nodes), len(self.sentinels)))

    def client(self, node, kind="redis"):
        """The connection to a node (dict with ``address`` and ``port``)."""
        key = (kind, where(node))
        if key not in self._clients:
            self._clients[key] = redis_client.connect(node, self._access[kind], self._timeout)
        return self._clients[key]

    def at(self, address):
        """The connection to the Redis server at ``address:port``."""
        return self.client(next(node for node in self.nodes if where(node) == address))

    def host(self, address):
        """``host (address:port)`` for messages."""
        return next((f"{node['host']} ({address})" for node in self.nodes if where(node) == address), str(address))

    def look(self, among=None):
        """Everything seen now, as ``(nodes, sentinels)``; the Sentinels are asked first, see :func:`redis_switch.plan`.

        :param among: ``address:port`` of the Redis servers that are asked; None for all
        """
        sentinels = list(self._pool.map(self._see_sentinel, self.sentinels))
        nodes = list(self._pool.map(self._see_redis, [node for node in self.nodes if among is None or where(node) in among]))
        now = time.monotonic()
        return [{**node, "paused": now < self._pauses.get(where(node), 0)} for node in nodes], sentinels

    def find_pauses(self, renew):
        """Find out where writes are paused by someone else, an earlier run above all.

        :param renew: whether such a pause is taken over; else it is only seen
        """
        nodes = [self._see_redis(node) for node in self.nodes]
        list(self._pool.map(lambda node: self._find_pause(node, renew), (node for node in nodes if not node.get("error"))))

    def _see_redis(self, node):
        return self._see(node, "redis", lambda client: redis_client.describe_redis(node, client))

    def _see_sentinel(self, node):
        return self._see(node, "sentinel", lambda client: redis_client.describe_sentinel(node, self.name, client, self.elsewhere))

    def _see(self, node, kind, describe):
        try:
            try:
                return describe(self.client(node, kind))
            except redis_client.redis.TimeoutError:
                raise
            except redis_client.redis.ConnectionError:
                # A failover cuts the connections of all clients, this one's too.
                return describe(self.client(node, kind))
        except redis_client.redis.RedisError as error:
            return {**node, "error": str(error)}

    def _find_pause(self, node, renew):
        """A server that answers otherwise lets a publish wait during a pause, as it does with all that could change data."""
        connection = redis_client.connect(node, self._access["redis"], self._timeout).connection_pool.make_connection()
        try:
            connection.send_command("PUBLISH", "openclaw.ha:probe", "")
            if connection.can_read(timeout=0.5):
                return
            if renew and node["role"] == "master":
                self.pause(where(node))
                if connection.can_read(timeout=0):
                    # It ended before it was renewed, so that something may have been written.
                    self._pauses.pop(where(node))
            else:
                self._pauses[where(node)] = time.monotonic() + PAUSE
        except redis_client.redis.RedisError:
            return
        finally:
            connection.disconnect()

    def pause(self, address):
        """Hold writes back, for :data:`PAUSE` seconds from now; an earlier pause is only made longer."""
        ends = time.monotonic() + PAUSE - self._timeout
        self.at(address).execute_command("CLIENT", "PAUSE", PAUSE * 1000, "WRITE")
        self._pauses[address] = ends

    def hold(self, address):
        """Renew a pause that has less than two thirds left."""
        if self._pauses.get(address, 0) - time.monotonic() < PAUSE * 2 / 3:
            self.pause(address)

    def unpause(self, address):
        """End the pause."""
        self.at(address).execute_command("CLIENT", "UNPAUSE")
        self._pauses.pop(address, None)

    def demote(self, address, new):
        """Make an old primary the replica of the new one, and send its clients away, before anything can be written to it."""
        transaction = self.at(address).pipeline(transaction=True)
        transaction.execute_command("REPLICAOF", new["address"], new["port"])
        transaction.execute_command("CONFIG", "REWRITE")
        transaction.execute_command("CLIENT", "KILL", "TYPE", "normal")
        transaction.execute_command("CLIENT", "UNPAUSE")
        replies = transaction.execute(raise_on_error=False)
        if not isinstance(replies[0], Exception):
            self._pauses.pop(address, None)
        errors = [str(reply) for reply in replies if isinstance(reply, Exception)]
        if errors:
            raise redis_client.redis.ResponseError("; ".join(errors))

    def failover(self):
        """Let one Sentinel promote a replica."""
        redis_client.sentinel(self.client(self.sentinels[0], "sentinel"), "FAILOVER", self.name)

    def prefer(self, address):
        """Raise a replica's priority out of the way."""
        self._set_priority(address, lambda priority: priority + redis_switch.RAISED)

    def restore(self, address):
        """Give a server its former priority, in its file too: a failover writes what it finds."""
        self._set_priority(address, lambda priority: priority % redis_switch.RAISED)
        self.at(address).config_rewrite()

    def _set_priority(self, address, change):
        client = self.at(address)
        client.config_set("replica-priority", change(int(client.config_get("replica-priority")["replica-priority"])))

    def do(self, step, nodes):
        """One step of a plan that was made for ``nodes``."""
        if step.action == "failover":
            self.failover()
        elif step.action == "demote":
            self.demote(step.address, next(node for node in nodes if node.get("role") == "master" and where(node) != step.address))
        else:
            {"pause": self.pause, "hold": self.hold, "unpause": self.unpause, "prefer": self.prefer, "restore": self.restore}[step.action](
                step.address
            )


def switch(cluster, to=None, leave=None, patience=60, dry=False):
    """Switch the primary without losing a write, or finish a switch that was interrupted.

    :param to: ``address:port`` of the wanted new primary; nothing is switched when it is primary already
    :param leave: ``address:port`` that shall not be primary; nothing is switched when it is not. Without both, the present one.
    :param patience: seconds for obstacles to go away before the switch, and again for all to agree after it
    :param dry: only tell what would be done
    :returns: dict with ``changed``, ``primary``, ``former``, ``steps`` (dicts: ``step``, ``node``, ``why``, ``seconds`` since the first look),
        ``write_gap`` (seconds without a primary that takes writes, None without a switch), ``lost_bytes``, ``seconds``
    :raises Refused: with all reasons
    """
    report = _Report(cluster)
    cluster.find_pauses(renew=not dry)
    nodes, sentinels = cluster.look()
    leave = _what_to_leave(nodes, to, leave)
    report.former = leave
    report.lines = redis_switch.describe(nodes, sentinels)
    # A pause that was found may be that of a run which ordered the promotion before it was killed.
    sent = any(node["paused"] for node in nodes)
    ending, failures, limit = None, 0, time.monotonic() + (0 if dry else patience)
    while True:
        report.seen(nodes)
        step = redis_switch.plan(nodes, sentinels, leave, to, cluster.quorum, ending, sent)
        late = time.monotonic() >= limit
        if step.action == "done":
            if failures:
                raise Refused(report.sentence(f"{ending} All servers and Sentinels agree.", nodes), report.result(nodes))
            return report.result(nodes, to)
        if step.action == "refuse" and (ending or late or report.steps or _primaries(nodes) > 1):
            raise Refused(report.sentence(step.why, nodes), report.result(nodes))
        if dry:
            report.begin(step)
            return report.result(nodes)
        if step.action in ("wait", "hold", "refuse"):
            if late and ending:
                # Only what cannot be undone safely gets here: the pause is no longer renewed, and ends by itself.
                raise Refused(report.sentence(f"{ending} {step.why}", nodes), report.result(nodes))
            if late:
                ending, limit = f"Time is over. {step.why}", time.monotonic() + PAUSE
            time.sleep(0.05 if report.gap_open else 0.3)  # between two looks, until the limit; sooner while writes stand still
        elif step.action == "failover" and report.did("failover"):
            ending = "The Sentinels gave the promotion up; their logs tell why."
            step = None
        if step and step.action not in ("wait", "refuse"):
            undone = step.action == "unpause" and step.address == leave and _primaries(nodes) == 1 and not report.did("demote")
            if step.action != "hold":
                report.begin(step)
            sent = sent or step.action == "failover"
            try:
                cluster.do(step, nodes)
            except redis_client.redis.RedisError as error:
                ending = f"Step {step.action} on {cluster.host(step.address)} failed: {error}."
                failures += 1
                if failures == MOST_FAILURES:
                    raise Refused(report.sentence(ending, nodes), report.result(nodes)) from error
            if step.action == "prefer":
                limit = time.monotonic() + 3 * INFO_PERIOD
            elif step.action == "pause":
                limit = time.monotonic() + CATCH_UP
            elif step.action == "failover":
                report.offset = next(node["offset"] for node in nodes if where(node) == step.address)
                limit = time.monotonic() + max(sentinel["failover_timeout"] for sentinel in sentinels) + 10
            elif step.action == "demote":
                limit = time.monotonic() + max(patience, 3 * INFO_PERIOD)
            elif undone:
                ending = step.why
        nodes, sentinels = cluster.look()


def _primaries(nodes):
    return sum(node.get("role") == "master" for node in nodes)


def _what_to_leave(nodes, to, leave):
    """The primary that is to be left: that of an interrupted switch first of all; None when there is nothing to switch."""
    old, finished = redis_switch.leftovers(nodes)
    if old:
        return None if finished else old
    masters = [where(node) for node in nodes if node.get("role") == "master"]
    if len(masters) != 1:
        return leave
    return masters[0] if masters[0] != to and leave in (None, masters[0]) else None


class _Report:
    """What was done and seen, and when."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.start = time.monotonic()
        self.steps = []
        self.former = None
        self.lines = []
        self.offset = None
        self.lost = None
        self.paused_at = None
        self.gap = None

    def begin(self, step):
        now = time.monotonic()
        if step.action == "pause":
            self.paused_at = now
        if step.action == "unpause" and self.paused_at and self.gap is None:
            self.gap = now - self.paused_at
        node = self.cluster.host(step.address) if step.address else None
        self.steps.append({"step": step.action, "node": node, "why": step.why, "seconds": round(now - self.start, 3)})

    def did(self, action):
        return any(step["step"] == action for step in self.steps)

    @property
    def gap_open(self):
        """Whether writes are held back at this moment."""
        return self.paused_at is not None and self.gap is None

    def seen(self, nodes):
        """Note the first look at which the new primary takes writes, and whether its history has all of the old one's."""
        new = next((node for node in nodes if node.get("role") == "master" and where(node) != self.former), None)
        if new is None or not self.former:
            return
        if self.offset is not None and self.lost is None:
            self.lost = max(0, self.offset - (new["branched_at"] - 1))
        if self.gap_open and new["good_replicas"] >= new["min_replicas"]:
            self.gap = time.monotonic() - self.paused_at

    def sentence(self, why, nodes):
        """``why``, and what the state is now as far as it is not as before."""
        held = [self.cluster.host(where(node)) for node in nodes if node.get("paused")]
        if held:
            why += f" Writes are still paused on {' and '.join(held)}; that ends by itself within {PAUSE} s."
        return f"{why} Done so far: {', '.join(step['step'] for step in self.steps)}." if self.steps else f"{why} Nothing was changed."

    def result(self, nodes, to=None):
        primary = next((where(node) for node in nodes if node.get("role") == "master" and where(node) != self.former), self.former)
        found = {
            "changed": bool(self.steps),
            "primary": primary,
            "former": self.former,
            "steps": self.steps,
            "seen": self.lines,
            "write_gap": None if self.gap is None else round(self.gap, 2),
            "lost_bytes": self.lost,
            "seconds": round(time.monotonic() - self.start, 2),
        }
        if self.lost:
            raise Refused(f"{self.cluster.host(primary)} is the primary, but lacks {self.lost} bytes that the old one had written.", found)
        if to and primary != to:
            raise Refused(f"{self.cluster.host(primary)} is the primary now, not the wanted {to}; run again to switch once more.", found)
        return found


def paragraph(cluster, done, dry=False):
    """A switch's result as an operator reads it."""
    primary = cluster.host(done["primary"])
    if dry and done["changed"]:
        first = done["steps"][0]
        return f"The first step would be: {first['step']}{' on ' + first['node'] if first['node'] else ''}. {first['why']}"
    if not done["former"]:
        return f"{primary} is the primary; " + ("an interrupted switch was tidied up." if done["changed"] else "nothing was to be done.")
    gap = "unknown, since another run began the switch" if done["write_gap"] is None else f"{done['write_gap']:.1f} s"
    return (
        f"{primary} is the primary now, in place of {cluster.host(done['former'])}, which is its replica. "
        f"Write gap: {gap}. Lost: {done['lost_bytes'] or 0} bytes. All servers and Sentinels agree after {done['seconds']:.1f} s."
    )
