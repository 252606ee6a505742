# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The planned switch of the Redis primary, as a function from what is seen to the next step. Pure.

A plain SENTINEL FAILOVER loses what clients still write to the old primary until the Sentinels have made it a replica, 8 s later.
So writes are paused first, every replica must have them all, and the old primary becomes a replica before its pause ends.

Nothing is remembered between two steps, so that a run which was killed is finished, or undone, by the next one:

- the pause has a time limit, and is seen from outside by a publish that is not answered;
- a priority that was raised for the time of the switch tells its former value: see :data:`RAISED`;
- the old primary is made a replica, saved as such, rid of its clients and unpaused in one transaction.
"""

from __future__ import annotations

import collections

from ansible_collections.openclaw.ha.plugins.module_utils.redis_view import agree, where

#: Added to the replica-priority of those that shall not be chosen. Sentinel takes the lowest, and 0 never.
RAISED = 1_000_000

#: Bytes that a replica may be behind before the pause; with more, catching up would make the pause long.
MAX_BEHIND = 4 * 1024 * 1024

#: ``action`` (see :func:`plan`), ``address`` of the node it is done to or None, ``why`` (a sentence).
Step = collections.namedtuple("Step", "action address why")


def priority_of(node):
    """The replica-priority that a node has when no switch is on its way."""
    return node["priority"] % RAISED if node["priority"] >= RAISED else node["priority"]


def raised(node):
    """Whether a node still has the priority of a switch."""
    return node["priority"] >= RAISED


def obstacles(nodes, sentinels, quorum=None, to=None, switching=True, elsewhere=None):
    """Why neither a restart nor a switch would be safe now, one sentence each; empty when all gates are open.

    :param nodes: as :func:`redis_view.agree` takes them, with ``priority``, ``min_replicas``, ``good_replicas``, ``loading``, ``syncing``,
        ``saving``, ``aof_enabled``, ``aof_write_ok``, ``aof_rewrite_ok``, ``aof_rewriting``
    :param to: ``address:port`` of the wanted new primary, or None
    :param switching: whether the primary is to be switched (else: a replica is to be restarted)
    :param elsewhere: see :func:`redis_view.agree`
    """
    view = agree(nodes, sentinels, quorum=quorum, elsewhere=elsewhere)
    found = list(view["problems"])
    alive = [node for node in nodes if not node.get("error")]
    primary = next((node for node in alive if where(node) == view["primary"]), None)
    for node in alive:
        label = f"Redis on {node['host']} ({where(node)})"
        if node["loading"]:
            found.append(f"{label} is loading its data.")
        if node["syncing"]:
            found.append(f"{label} is receiving a full copy from the primary.")
        if node["aof_enabled"] and not node["aof_write_ok"]:
            found.append(f"{label} could not write its append-only file (aof_last_write_status); see its disk and its log.")
        if node["aof_enabled"] and not node["aof_rewrite_ok"]:
            found.append(f"{label} failed to rewrite its append-only file (aof_last_bgrewrite_status); see its disk and its log.")
        if node["aof_rewriting"]:
            found.append(f"{label} is rewriting its append-only file; wait until it has finished.")
        if node["saving"]:
            found.append(f"{label} is writing a snapshot; wait until it has finished.")
        if primary and node is not primary and node["role"] == "slave":
            behind = primary["offset"] - node["offset"]
            if behind > MAX_BEHIND:
                found.append(f"{label} is {behind} bytes behind the primary.")
            if node["link"] and node["lag"] > 2:
                found.append(f"{label} has heard nothing from the primary for {node['lag']} s.")
    if primary is None:
        return found

    replicas = [node for node in alive if node is not primary and node["role"] == "slave"]
    if len(replicas) < primary["min_replicas"]:
        found.append(
            f"There are {len(replicas)} replicas, and the primary accepts writes only with {primary['min_replicas']} (min-replicas-to-write)."
        )
    elif primary["good_replicas"] < primary["min_replicas"]:
        found.append(
            f"The primary on {primary['host']} counts {primary['good_replicas']} replicas in time and refuses writes below "
            f"{primary['min_replicas']} (min-replicas-to-write)."
        )
    if not switching:
        # A single replica can never be restarted otherwise: writes are refused for that time, and nothing is lost.
        if 1 < len(replicas) <= primary["min_replicas"]:
            found.append(
                f"With one of the {len(replicas)} replicas away the primary would refuse writes: min-replicas-to-write is {primary['min_replicas']}."
            )
        return found

    electable = [node for node in replicas if priority_of(node)]
    if not replicas:
        found.append("There is no replica that could take over.")
    elif not electable:
        found.append("No replica may become primary: the replica-priority of each is 0.")
    for node in electable:
        if len(alive) - 1 < node["min_replicas"]:
            found.append(
                f"Redis on {node['host']} ({where(node)}) as primary would refuse writes: its min-replicas-to-write is {node['min_replicas']}, "
                f"and {len(alive) - 1} replicas would be left."
            )
    if to is not None and to != where(primary):
        target = next((node for node in replicas if where(node) == to), None)
        if target is None:
            found.append(f"The wanted primary {to} is no replica of {where(primary)}.")
        elif not priority_of(target):
            found.append(f"The wanted primary {target['host']} ({to}) may not become primary: its replica-priority is 0.")
    for sentinel in sentinels:
        for node in electable:
            known = sentinel.get("known", {}).get(where(node))
            if known and not known["link"]:
                found.append(
                    f"Sentinel on {sentinel['host']} ({where(sentinel)}) has not yet seen the link of the replica on {node['host']} ({where(node)})."
                )
    return found


def describe(nodes, sentinels):
    """What was seen, one line a server."""
    primary = next((node["offset"] for node in nodes if node.get("role") == "master"), None)
    lines = []
    for node in nodes:
        label = f"Redis on {node['host']} ({where(node)}):"
        if node.get("error"):
            lines.append(f"{label} no answer: {node['error']}")
        elif node["role"] == "master":
            lines.append(f"{label} primary, {node['connected']} replicas{', writes are paused' if node['paused'] else ''}")
        else:
            behind = "?" if primary is None else max(0, primary - node["offset"])
            lines.append(f"{label} replica of {node['primary']}, link {'up' if node['link'] else 'down'}, {behind} bytes behind")
    for sentinel in sentinels:
        label = f"Sentinel on {sentinel['host']} ({where(sentinel)}):"
        if sentinel.get("error"):
            lines.append(f"{label} no answer: {sentinel['error']}")
        else:
            quorum = "ok" if sentinel["quorum_ok"] else "missing"
            lines.append(f"{label} names {sentinel['primary'] or 'nobody'}, quorum {sentinel['quorum']} {quorum}")
    return lines


def leftovers(nodes):
    """The old primary of a switch that was interrupted, as ``(address, finished)``; (None, False) when there is no trace of one.

    ``finished`` tells that the Sentinels have made it a replica already, so that only its pause is left over.
    """
    alive = [node for node in nodes if not node.get("error")]
    old, new = _succession([node for node in alive if node["role"] == "master"])
    if new:
        return where(old), False
    stuck = [node for node in alive if node["role"] == "slave" and node["paused"]]
    return (where(stuck[0]), True) if stuck else (None, False)


def plan(nodes, sentinels, leave, to=None, quorum=None, ending=None, sent=False):
    """The next step. The Sentinels must have been asked before the servers, or a promotion may fall between the two looks.

    :param nodes: as for :func:`obstacles`, with ``paused`` (whether writes are held back there), ``history`` and ``history_before``
    :param leave: ``address:port`` that shall not be primary in the end; None when nothing is to be switched, only tidied up
    :param to: ``address:port`` of the wanted new primary, or None
    :param ending: why the switch shall not begin any more (time is over, or something was undone), or None
    :param sent: whether a promotion may have been ordered, so that a Sentinel which does not answer may be at it
    :returns: a :class:`Step` with ``action``

        ========  ==========================================================================================
        wait      look again
        hold      look again, and see to it that the pause of ``address`` does not end meanwhile
        prefer    raise the priority of ``address``, so that the Sentinels do not choose it
        pause     pause writes on ``address``
        failover  let a Sentinel promote a replica
        demote    make ``address`` a replica of the new primary, and end its pause with that
        unpause   end the pause of ``address``
        restore   give ``address`` its former priority
        refuse    stop; ``why`` tells all reasons
        done      all agree, nothing is left over
        ========  ==========================================================================================
    """
    alive = [node for node in nodes if not node.get("error")]
    masters = [node for node in alive if node["role"] == "master"]
    running = any(sentinel.get("failover") or (sent and sentinel.get("error")) for sentinel in sentinels)
    problems = agree(nodes, sentinels, quorum=quorum)["problems"]

    if not masters:
        if ending:
            return Step("refuse", None, " ".join([ending, *problems]))
        return Step("wait", None, "No Redis says that it is the primary; a promotion may be on its way.")
    if len(masters) > 1:
        return _two_primaries(masters, sentinels, running, problems, ending)
    (primary,) = masters
    if where(primary) == leave:
        return _before(alive, primary, nodes, sentinels, running, to, quorum, ending)
    return _after(alive, problems, running, ending)


def _two_primaries(masters, sentinels, running, problems, ending):
    """The promotion has happened, or two servers claim to be primary for a reason that is not ours."""
    old, new = _succession(masters)
    if new is None:
        return Step("refuse", None, " ".join(problems))
    backed = running or any(sentinel.get("primary") == where(new) for sentinel in sentinels)
    if not old["paused"]:
        return Step(
            "refuse",
            None,
            f"{new['host']} ({where(new)}) was promoted, but {old['host']} ({where(old)}) still says it is the primary and accepts writes. "
            f"The Sentinels make it a replica within some 10 s, and what was written there meanwhile is lost with that. " + " ".join(problems),
        )
    if backed:
        return Step("demote", where(old), f"{new['host']} ({where(new)}) is the primary now.")
    if ending:
        return Step("refuse", None, " ".join([ending, *problems]))
    return Step("hold", where(old), f"No Sentinel stands behind {new['host']} ({where(new)}) yet.")


def _before(alive, primary, nodes, sentinels, running, to, quorum, ending):
    """The old primary is still the only one."""
    here = where(primary)
    if running and primary["paused"]:
        # Even when time is over: whoever unpaused now could lose what is written until the promotion.
        return Step("hold", here, "The Sentinels are promoting a replica.")
    reasons = obstacles(nodes, sentinels, quorum, to)
    if ending or reasons:
        why = " ".join(([ending] if ending else []) + reasons)
        if not ending and any(raised(node) for node in alive) and not any(node["paused"] for node in alive):
            # Nobody waits for this yet: what a Sentinel has lost sight of for a moment may come back.
            return Step("wait", None, why)
        return _tidy(alive, why) or Step("refuse", None, why)
    if to:
        for node in alive:
            if where(node) not in (here, to) and node["priority"] and not raised(node):
                return Step("prefer", where(node), f"The Sentinels shall choose {to}.")
        target = next(node for node in alive if where(node) == to)
        if raised(target):
            return Step("restore", to, f"{to} was passed over by an earlier switch.")
        if not _chosen(to, alive, sentinels):
            return Step("wait", None, "The Sentinels read priorities every 10 s.")
    else:
        for node in alive:
            if raised(node):
                return Step("restore", where(node), "An earlier switch preferred another one.")
    if not primary["paused"]:
        return Step("pause", here, "Nothing may be written that the new primary does not have.")
    behind = [node for node in alive if node is not primary and node["offset"] < primary["offset"]]
    if behind:
        names = " and ".join(f"{node['host']} ({primary['offset'] - node['offset']} bytes)" for node in behind)
        return Step("wait", None, f"Behind the primary: {names}.")
    return Step("failover", here, "Every replica has all writes.")


def _after(alive, problems, running, ending):
    """Another one is the primary."""
    for node in alive:
        if running and node["paused"] and node["role"] == "master":
            return Step("hold", where(node), "The Sentinels are promoting a replica.")
    step = _tidy(alive, "The switch is done.")
    if step:
        return step
    if problems:
        return Step("refuse", None, " ".join([ending, *problems])) if ending else Step("wait", None, " ".join(problems))
    return Step("done", None, "All agree on the primary.")


def _tidy(alive, why):
    """End a pause, then restore a priority; None when neither is left over."""
    for node in alive:
        if node["paused"]:
            return Step("unpause", where(node), why)
    for node in alive:
        if raised(node):
            return Step("restore", where(node), why)
    return None


def _succession(masters):
    """Of two primaries the one whose history the other one continued, and the other one; (None, None) if it is not so."""
    if len(masters) == 2:
        for old, new in (masters, masters[::-1]):
            if new["history_before"] == old["history"] and old["history_before"] != new["history"]:
                return old, new
    return None, None


def _chosen(to, alive, sentinels):
    """Whether every Sentinel has read priorities that make it choose ``to``."""
    wanted = {where(node): node["priority"] for node in alive if node["role"] == "slave"}
    seen = [{address: one["priority"] for address, one in sentinel["known"].items() if address in wanted} for sentinel in sentinels]
    return all(one == wanted for one in seen)
