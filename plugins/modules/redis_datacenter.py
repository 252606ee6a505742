#!/usr/bin/python
# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_datacenter
short_description: Which datacenter has the conversations, and its change
version_added: "0.1.0"
author:
  - The openclaw.ha contributors (@openclaw-ha)
description:
  - Each datacenter has Redis servers and Sentinels of its own. One of them has the conversations and says so by a claim in Redis, with an epoch that
    grows with each failover; the others are its standbys. What is decided from that is documented in docs/dr.md.
  - Runs on a host of the datacenter O(datacenter), and reaches the Redis servers of all of them.
options:
  state:
    description:
      - V(look) changes nothing.
      - V(claimed) lets O(datacenter) claim the conversations for the first time; does nothing when there is a claim.
      - V(caught_up) pauses the writes of the active datacenter, where all who could write must have been stopped before, until O(datacenter) has all
        that is there. The pause ends by itself after O(pause) seconds.
      - V(promoted) makes O(datacenter) the active one - the Redis server that has most becomes the primary, the others follow it, the claim is
        written, and the Sentinels watch it. Goes on from wherever an earlier run was interrupted.
    type: str
    choices: [look, claimed, caught_up, promoted]
    default: look
  datacenter:
    description: Name of the datacenter that this host belongs to, whose servers O(redis) and O(sentinels) are.
    type: str
    required: true
  sites:
    description: All datacenters by name, each with its Redis servers as C(redis), in the form of O(redis). The first one may claim what nobody has
      claimed.
    type: dict
    required: true
  epoch:
    description: Epoch of the new claim; needed with O(state=promoted).
    type: int
  remembered:
    description: File in which this host keeps the newest claim that it has seen; it speaks for datacenters that do not answer.
    type: path
    default: /var/lib/openclaw-datacenter/claim.json
  monitor_settings:
    description: What a Sentinel is told, by SENTINEL SET, of the primary that it begins to watch.
    type: dict
    default: {}
  monitor_password:
    description: The password with which it logs in there, its setting C(auth-pass).
    type: str
  pause:
    description: Seconds for which writes are paused.
    type: int
    default: 60
  wait:
    description: Seconds until the wanted state must be there.
    type: float
    default: 60
  timeout:
    description: Seconds to wait for one connection or one reply.
    type: float
    default: 2
extends_documentation_fragment:
  - openclaw.ha.access.redis
  - openclaw.ha.access.sentinel
  - openclaw.ha.cluster
"""

EXAMPLES = r"""
- name: See which datacenter has the conversations
  openclaw.ha.redis_datacenter:
    datacenter: "{{ topology_cluster.datacenter }}"
    sites: "{{ topology_cluster.sites }}"
    redis: "{{ topology_cluster.redis }}"
    sentinels: "{{ topology_cluster.sentinels }}"
    name: "{{ topology_cluster.monitor.name }}"
    redis_access:
      password: "{{ redis_password }}"
"""

RETURN = r"""
role:
  description: V(active), V(standby), or V(none) when nobody has claimed the conversations and O(datacenter) is not the first datacenter.
  type: str
  returned: always
claim:
  description: The newest claim, as C(datacenter) and C(epoch); null without any.
  type: dict
  returned: always
upstream:
  description: Address and port of whom a standby should follow; null when nobody there can be followed, and for the active one.
  type: str
  returned: always
seen:
  description: What the Redis servers of each datacenter said, by its name - C(role), C(primary), C(link), C(offset), C(lag), C(claim), or C(error).
  type: dict
  returned: always
problem:
  description: Why O(datacenter) cannot be set up as it is, one sentence; empty when it can.
  type: str
  returned: always
behind:
  description: Bytes that O(datacenter) lacks of what the active one has written; null when that does not answer.
  type: int
  returned: always
steps:
  description: What was done - C(step), C(node), C(why) and C(seconds) since the beginning.
  type: list
  elements: dict
  returned: when state is not V(look)
offset:
  description: Replication offset of the server that was promoted, before that.
  type: int
  returned: when it was promoted in this run
heard:
  description: Seconds since that server had heard of the one that it followed.
  type: int
  returned: when it was promoted in this run
primary:
  description: Address and port of the primary.
  type: str
  returned: with O(state=promoted)
msg:
  description: What was found or done.
  type: str
  returned: always
"""

import pathlib
import time

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.openclaw.ha.plugins.module_utils import datacenter, promotion, redis_client
from ansible_collections.openclaw.ha.plugins.module_utils.redis_cluster import OPTIONS, Cluster
from ansible_collections.openclaw.ha.plugins.module_utils.redis_view import where


class Refused(RuntimeError):
    """What was wanted is not so; the text tells why, and what the state is."""


class Datacenters:
    """The Redis servers of all datacenters, and the Sentinels of one."""

    def __init__(self, parameters):
        self.me = parameters["datacenter"]
        self.parameters = parameters
        names = {name: site["redis"] for name, site in parameters["sites"].items()}
        # One connection for each server, whichever datacenter it is in.
        everybody = [node for nodes in names.values() for node in nodes]
        self.cluster = Cluster({**parameters, "redis": everybody}, parameters["timeout"])
        self.names = {name: {where(node) for node in nodes} for name, nodes in names.items()}
        self.began = time.monotonic()
        self.steps = []

    def look(self, own=False):
        """``(sites, sentinels)``: what the Redis servers of each datacenter say, and the Sentinels of this one.

        :param own: whether only this one's Redis servers are asked; those of one that is gone would keep each look waiting
        """
        nodes, sentinels = self.cluster.look(self.names[self.me] if own else None)
        for node in nodes:
            node["claim"] = None if node.get("error") else self._claim(node)
        return {name: [node for node in nodes if where(node) in members] for name, members in self.names.items()}, sentinels

    def _claim(self, node):
        try:
            return datacenter.parse(self.cluster.at(where(node)).get(datacenter.KEY))
        except redis_client.redis.RedisError:
            return None  # it is loading, or a standby that has lost its link and serves nothing stale

    def done(self, step):
        """Note a step."""
        self.steps.append({"step": step.action, "node": step.address, "why": step.why, "seconds": round(time.monotonic() - self.began, 3)})

    def do(self, step, nodes, claim):
        """One step of :func:`promotion.plan`."""
        if step.action in ("unwatch", "watch"):
            client = self.cluster.client(next(one for one in self.parameters["sentinels"] if where(one) == step.address), "sentinel")
            name = self.parameters["name"]
            if step.action == "unwatch":
                redis_client.sentinel(client, "REMOVE", name)
                return
            primary = next(node for node in nodes if not node.get("error") and node["role"] == "master")
            redis_client.sentinel(client, "MONITOR", name, primary["address"], primary["port"], self.parameters["quorum"])
            password = self.parameters["monitor_password"]
            for setting, value in {**self.parameters["monitor_settings"], **({"auth-pass": password} if password else {})}.items():
                redis_client.sentinel(client, "SET", name, setting, value)
            return
        client = self.cluster.at(step.address)
        if step.action == "claim":
            client.set(datacenter.KEY, datacenter.text(claim))
            return
        if step.action == "promote":
            client.execute_command("REPLICAOF", "NO", "ONE")
        elif step.action == "attach":
            primary = next(node for node in nodes if not node.get("error") and node["role"] == "master")
            client.execute_command("REPLICAOF", primary["address"], primary["port"])
        client.config_set("replica-priority", 100)
        client.config_rewrite()


def remembered(path):
    """The claim in a file; None when there is none."""
    file = pathlib.Path(path)
    return datacenter.parse(file.read_text(encoding="utf-8")) if file.exists() else None


def report(all_of_them, sites, known):
    """What was found: the parts of the result that every state has."""
    me, names = all_of_them.me, list(all_of_them.names)
    claim = datacenter.newest([known, *(node["claim"] for nodes in sites.values() for node in nodes)])
    active = claim.datacenter if claim else names[0]
    source = datacenter.primary_of(sites.get(active, [])) if active != me else None
    follows = datacenter.upstream(sites.get(active, []), next((node.get("primary") for node in sites[me]), None)) if active != me else None
    return {
        "role": "active" if active == me else "standby" if claim else "none",
        "claim": claim._asdict() if claim else None,
        "upstream": where(follows) if follows else None,
        "behind": promotion.gap(source, sites[me]) if source else None,
        "seen": {name: [_plain(node) for node in nodes] for name, nodes in sites.items()},
        "problem": _problem(me, active, claim, follows, sites),
    }


def _problem(me, active, claim, follows, sites):
    """Why this datacenter cannot be set up now, a sentence; empty when it can."""
    if active == me or (claim is not None and follows is not None):
        return ""
    says = "; ".join(f"{where(node)}: {node['error'] if node.get('error') else node['role']}" for node in sites.get(active, []))
    if claim is None:
        return (
            f"{me}: no datacenter has claimed the conversations yet, and {active}, the first one of the inventory, has to be set up before the others: "
            f"run site.yml --limit {active}. Its Redis says: {says}."
        )
    return f"{me} is a standby of {active}, where no Redis is a replica that is linked to its primary, so there is nobody to follow ({says})."


def _plain(node):
    return {**node, "claim": node["claim"]._asdict() if node["claim"] else None}


def claim_first(all_of_them, sites, known, check):
    """Claim what nobody has claimed; returns whether there was anything to claim."""
    found = report(all_of_them, sites, known)
    if found["claim"]:
        return False
    if found["role"] != "active":
        raise Refused(f"Nobody has claimed the conversations, and {all_of_them.me} is not the first datacenter of the inventory, which may.")
    primary = datacenter.primary_of(sites[all_of_them.me])
    if primary is None:
        raise Refused(f"{all_of_them.me} has no Redis primary that its replicas follow.")
    step = promotion.Step("claim", where(primary), "Nobody has claimed the conversations yet.")
    if not check:
        all_of_them.do(step, sites[all_of_them.me], datacenter.Claim(all_of_them.me, 1))
    all_of_them.done(step)
    return True


def catch_up(all_of_them, sites, known, check):
    """Pause the active datacenter's writes and wait until this one has them all."""
    parameters = all_of_them.parameters
    found = report(all_of_them, sites, known)
    if found["role"] != "standby":
        raise Refused(f"{all_of_them.me} is no standby.")
    other = found["claim"]["datacenter"]
    source = datacenter.primary_of(sites.get(other, []))
    if source is None:
        said = "; ".join(f"{where(node)}: {node.get('error') or node['role']}" for node in sites.get(other, []))
        raise Refused(f"No Redis of {other} is a primary with linked replicas, so nobody knows what there is to catch up with ({said}).")
    if check:
        return
    client = all_of_them.cluster.at(where(source))
    client.execute_command("CLIENT", "PAUSE", parameters["pause"] * 1000, "WRITE")
    all_of_them.done(promotion.Step("pause", where(source), f"Writes are held back for {parameters['pause']} s."))
    limit = time.monotonic() + min(parameters["wait"], parameters["pause"] - 5)
    while True:
        sites, _sentinels = all_of_them.look()
        source = next((node for node in sites[other] if where(node) == where(source) and not node.get("error")), None)
        if source is None or source["role"] != "master":
            raise Refused(f"The primary of {other} went away while its writes were paused.")
        behind = promotion.gap(source, sites[all_of_them.me])
        if behind == 0:
            all_of_them.done(promotion.Step("equal", where(promotion.candidate(sites[all_of_them.me])), f"It has all, up to offset {source['offset']}."))
            return
        if time.monotonic() >= limit:
            client.execute_command("CLIENT", "UNPAUSE")
            lacks = "no Redis of it answers" if behind is None else f"it lacks {behind} bytes"
            raise Refused(f"{all_of_them.me} has not caught up with {other}: {lacks}. Writes go on there.")
        time.sleep(0.05)  # between two looks, until the limit, while writes stand still


def promote(all_of_them, sites, sentinels, check):
    """Take over; returns what the result has beside the steps."""
    parameters, me = all_of_them.parameters, all_of_them.me
    claim, told = datacenter.Claim(me, parameters["epoch"]), {}
    limit = time.monotonic() + parameters["wait"]
    while True:
        step = promotion.plan(sites[me], sentinels, claim, parameters["quorum"])
        late = time.monotonic() >= limit
        if step.action == "done":
            return {**told, "primary": step.address}
        if step.action == "refuse" or (late and step.action == "wait"):
            done = f" Done so far: {', '.join(one['step'] for one in all_of_them.steps)}." if all_of_them.steps else " Nothing was changed."
            raise Refused(f"{step.why}{done}")
        if step.action == "promote":
            node = next(one for one in sites[me] if where(one) == step.address)
            told = {"offset": node["offset"], "heard": node["lag"]}
        if check:
            all_of_them.done(step)
            return {**told, "primary": step.address}
        if step.action == "wait":
            time.sleep(0.1)  # between two looks, until the limit
        else:
            all_of_them.do(step, sites[me], claim)
            all_of_them.done(step)
        sites, sentinels = all_of_them.look(own=True)


def main():
    module = AnsibleModule(
        argument_spec={
            **OPTIONS,
            "state": {"type": "str", "choices": ["look", "claimed", "caught_up", "promoted"], "default": "look"},
            "datacenter": {"type": "str", "required": True},
            "sites": {"type": "dict", "required": True},
            "epoch": {"type": "int"},
            "remembered": {"type": "path", "default": "/var/lib/openclaw-datacenter/claim.json"},
            "monitor_settings": {"type": "dict", "default": {}},
            "monitor_password": {"type": "str", "no_log": True},
            "pause": {"type": "int", "default": 60},
            "wait": {"type": "float", "default": 60},
            "timeout": {"type": "float", "default": 2},
        },
        required_if=[("state", "promoted", ["epoch", "quorum"])],
        supports_check_mode=True,
    )
    redis_client.require_redis(module)
    if module.params["datacenter"] not in module.params["sites"]:
        module.fail_json(msg=f"datacenter is {module.params['datacenter']}; sites has {', '.join(module.params['sites'])}.")
    all_of_them = Datacenters(module.params)
    try:
        module.exit_json(**act(all_of_them, module.params["state"], module.check_mode))
    except (Refused, ValueError) as refusal:
        module.fail_json(msg=f"{all_of_them.me}: {refusal}", steps=all_of_them.steps, changed=bool(all_of_them.steps))
    except redis_client.redis.RedisError as error:
        done = f" Done so far: {', '.join(one['step'] for one in all_of_them.steps)}." if all_of_them.steps else ""
        module.fail_json(msg=f"{all_of_them.me}: {error}.{done} Run it again.", steps=all_of_them.steps, changed=bool(all_of_them.steps))


def act(all_of_them, state, check):
    """The module's result; raises :class:`Refused`, ValueError and the redis library's errors."""
    known = remembered(all_of_them.parameters["remembered"])
    sites, sentinels = all_of_them.look()
    more = {}
    if state == "claimed":
        claim_first(all_of_them, sites, known, check)
    elif state == "caught_up":
        catch_up(all_of_them, sites, known, check)
    elif state == "promoted":
        more = promote(all_of_them, sites, sentinels, check)
    if all_of_them.steps and not check:
        sites, sentinels = all_of_them.look()
    found = report(all_of_them, sites, known)
    result = {"changed": bool(all_of_them.steps), **found, **more}
    if state != "look":
        result["steps"] = all_of_them.steps
    claimed = f"{found['claim']['datacenter']} has the conversations (epoch {found['claim']['epoch']})" if found["claim"] else "nobody has claimed them"
    behind = "" if found["behind"] is None else f", {found['behind']} bytes behind"
    return {**result, "msg": f"{all_of_them.me} is {found['role']}; {claimed}{behind}."}


if __name__ == "__main__":
    main()
