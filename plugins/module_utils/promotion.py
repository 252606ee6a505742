# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a standby datacenter's Redis takes over, as a function from what is seen to the next step. Pure.

Nothing is remembered between two steps, so a promotion that was killed anywhere goes on from what is true then. The Sentinels are
re-pointed in two phases, since one that still watches something else would talk the others out of what they were just told.
"""

from __future__ import annotations

import collections

from ansible_collections.openclaw.ha.plugins.module_utils.datacenter import Claim
from ansible_collections.openclaw.ha.plugins.module_utils.redis_view import agree, where

#: ``action``: ``promote``, ``attach``, ``electable``, ``claim``, ``unwatch``, ``watch``, ``wait``, ``done`` or ``refuse``; ``address`` of whom it is done to
#: or None, ``why`` (a sentence).
Step = collections.namedtuple("Step", "action address why")


def candidate(nodes):
    """The standby's server that has most of the conversations; the first one of equals. None when none answers."""
    alive = [node for node in nodes if not node.get("error")]
    return max(alive, key=lambda node: node["offset"], default=None)


def plan(nodes, sentinels, claim, quorum):
    """The next step on the way to a datacenter that has the conversations by itself.

    :param nodes: its Redis servers as :func:`redis_view.agree` takes them, with ``min_replicas``, ``good_replicas``, ``priority`` and ``claim``
    :param sentinels: its Sentinels, in the same way
    :param claim: the claim it is to have
    :param quorum: see :func:`redis_view.agree`
    """
    alive = [node for node in nodes if not node.get("error")]
    masters = [node for node in alive if node["role"] == "master"]
    if not alive:
        return Step("refuse", None, f"None of its Redis servers answers: {'; '.join(where(node) + ': ' + node['error'] for node in nodes)}.")
    if len(masters) > 1:
        return Step("refuse", None, f"More than one of its Redis servers is a primary: {', '.join(map(where, masters))}.")
    for node in alive:
        if node.get("claim") is not None and node["claim"].epoch > claim.epoch:
            return Step("refuse", None, f"{where(node)} knows of epoch {node['claim'].epoch} ({node['claim'].datacenter}); epoch {claim.epoch} is older.")
    if not masters:
        best = candidate(nodes)
        return Step("promote", where(best), f"It has most: offset {best['offset']}.")
    (primary,) = masters
    for node in alive:
        if node is not primary and node["primary"] != where(primary):
            return Step("attach", where(node), f"It follows {node['primary']}, not the new primary {where(primary)}.")
        if not node["priority"]:
            return Step("electable", where(node), "A standby is never elected; a server of the active datacenter must be.")
    unlinked = [where(node) for node in alive if not node["link"]]
    if unlinked:
        return Step("wait", None, f"{', '.join(unlinked)} is not linked to the new primary yet.")
    if primary["good_replicas"] < primary["min_replicas"]:
        return Step("wait", None, f"The new primary has {primary['good_replicas']} replicas in time; it accepts writes with {primary['min_replicas']}.")
    if primary["claim"] != claim:
        return Step("claim", where(primary), f"It accepts writes; the claim there is {_said(primary['claim'])}.")
    voters = [one for one in sentinels if not one.get("error")]
    for one in voters:
        if one["primary"] not in (None, where(primary)):
            return Step("unwatch", where(one), f"It watches {one['primary']}.")
    for one in voters:
        if one["primary"] is None:
            return Step("watch", where(one), "It watches nobody.")
    view = agree(nodes, sentinels, unanswered_ok=True, quorum=quorum)
    if view["problems"]:
        return Step("wait", None, " ".join(view["problems"]))
    return Step("done", where(primary), "All servers and Sentinels that answer agree.")


def gap(source, nodes):
    """Bytes that the standby lacks of what a primary has written, by the offsets of both; 0 when it has all of it.

    :param source: the primary that it follows, with ``offset``
    """
    best = candidate(nodes)
    return None if best is None else max(0, source["offset"] - best["offset"])


def _said(claim):
    return f"{claim.datacenter} (epoch {claim.epoch})" if isinstance(claim, Claim) else "none"
