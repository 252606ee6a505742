# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which datacenter has the conversations, whom a standby follows, and when a datacenter has to stop. Pure, and used on the hosts too.

A datacenter *claims* the conversations under an epoch, a number that grows with each failover. The claim lies in Redis among the
conversations (:data:`KEY`), so a standby's copy tells it whose standby it is. Two claims are told apart by their epoch alone.

A standby follows a *replica* of the other datacenter, never its primary: so neither its WAIT nor its min-replicas-to-write ever counts a
server that is far away, and its Sentinels do not learn of it.
"""

from __future__ import annotations

import collections
import json

#: The key of the claim in Redis.
KEY = "oc:datacenter"

#: ``datacenter`` (name) and ``epoch`` (number, the first one is 1).
Claim = collections.namedtuple("Claim", "datacenter epoch")

#: ``action``: ``none``, ``follow`` (``address`` is whom) or ``fence``; ``state``: ``active``, ``standby``, ``fenced`` or ``unclaimed``; ``claim``
#: is the newest one, ``why`` a sentence.
Decision = collections.namedtuple("Decision", "action state claim address why")


def at(node):
    """``address:port`` of a node."""
    return f"{node['address']}:{node['port']}"


def parse(text):
    """The claim that a text says, or None; a text that is no claim is none, for whoever asks must not trip over it."""
    try:
        found = json.loads(text)
        return Claim(str(found["datacenter"]), int(found["epoch"]))
    except (KeyError, TypeError, ValueError):
        return None


def text(claim):
    """What lies under :data:`KEY`, and in the file of each host."""
    return json.dumps({"datacenter": claim.datacenter, "epoch": claim.epoch})


def newest(claims):
    """The claim with the highest epoch, None without any.

    :raises ValueError: when two datacenters claim the same epoch, which no run of the playbooks leads to
    """
    found = {claim for claim in claims if claim is not None}
    if not found:
        return None
    best = max(claim.epoch for claim in found)
    names = sorted(claim.datacenter for claim in found if claim.epoch == best)
    if len(names) > 1:
        raise ValueError(f"{' and '.join(names)} both claim the conversations with epoch {best}")
    return Claim(names[0], best)


def primary_of(nodes):
    """The node of a datacenter that its replicas follow, or None: of those that say they are the primary, the one with most of them linked.

    A primary that a partition has left alone has none of them; only where there is a single Redis does its own word count.

    :param nodes: what the datacenter's Redis servers say: ``address``, ``port``, and ``error`` or ``role`` (``master``/``slave``),
        ``primary`` (``address:port`` that a replica follows), ``link`` (bool)
    """
    alive = [node for node in nodes if not node.get("error")]
    votes = collections.Counter(node["primary"] for node in alive if node["role"] == "slave" and node["link"])
    masters = [node for node in alive if node["role"] == "master" and (votes[at(node)] or len(nodes) == 1)]
    return max(masters, key=lambda node: votes[at(node)], default=None)


def upstream(nodes, current=None):
    """Whom a standby should follow in the other datacenter, as a node, or None when nobody there can be followed now.

    It stays with whom it has as long as that one is a linked replica of the primary.

    :param nodes: as :func:`primary_of` takes them
    :param current: ``address:port`` that it follows now
    """
    primary = primary_of(nodes)
    if primary is None:
        return None
    if len(nodes) == 1:
        return primary
    fit = [node for node in nodes if not node.get("error") and node["role"] == "slave" and node["link"] and node["primary"] == at(primary)]
    return next((node for node in fit if at(node) == current), fit[0] if fit else None)


def decide(me, remembered, local, sites):
    """What one host of a datacenter has to do now.

    :param me: name of the host's datacenter
    :param remembered: the newest claim that this host has seen, or None; that of its own datacenter means that it was active, as does a primary
        here that has it
    :param local: what this host's own Redis says, None where it has none; see :func:`primary_of`, and ``size`` (keys)
    :param sites: what the Redis servers of each datacenter say, by its name, each also with ``claim``
    :raises ValueError: see :func:`newest`
    """
    claim = newest([remembered, *(node.get("claim") for nodes in sites.values() for node in nodes)])
    if claim is None:
        return Decision("none", "unclaimed", None, None, "No datacenter has claimed the conversations yet.")
    if claim.datacenter == me:
        return Decision("none", "active", claim, None, f"This datacenter has the conversations (epoch {claim.epoch}).")
    primaries = [node.get("claim") for node in [*sites.get(me, []), *([local] if local else [])] if node.get("role") == "master"]
    had = next((one for one in [remembered, *primaries] if one is not None and one.datacenter == me), None)
    if had is not None:
        why = f"The datacenter {claim.datacenter} has the conversations since epoch {claim.epoch}; this one had them in epoch {had.epoch}."
        return Decision("fence", "fenced", claim, None, why)
    stands_by = f"Standby of {claim.datacenter} (epoch {claim.epoch})"
    if local is None:
        return Decision("none", "standby", claim, None, f"{stands_by}.")
    if local.get("error"):
        return Decision("none", "standby", claim, None, f"{stands_by}; its own Redis does not answer: {local['error']}.")
    if local["role"] == "master" and local["size"]:
        why = f"{stands_by}, but its own Redis is a primary with {local['size']} keys; dr_failback.yml makes it a replica, and keeps what it has."
        return Decision("none", "standby", claim, None, why)
    if claim.datacenter not in sites:
        return Decision("none", "standby", claim, None, f"{stands_by}, which is not in the inventory that this host was set up from.")
    current = local["primary"] if local["role"] == "slave" else None
    wanted = upstream(sites[claim.datacenter], current)
    if wanted is None:
        return Decision("none", "standby", claim, None, f"{stands_by}; nobody there can be followed now.")
    if at(wanted) == current:
        return Decision("none", "standby", claim, current, f"{stands_by}, following {current}.")
    return Decision("follow", "standby", claim, at(wanted), f"{stands_by}; going over to {at(wanted)} ({current or 'nobody'} before).")
