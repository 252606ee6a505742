# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which replicas playbooks/drain.yml takes out or puts back, and whether it may. Pure."""

from __future__ import annotations

from ansible_collections.openclaw.ha.plugins.module_utils.status import columns

STATES = ("drained", "ready")
#: Verdicts of replicas that answer people.
GOOD = ("ok", "degraded")
#: The verdict of one whose switch has been turned.
DRAINED = "draining"


def chosen(topology, what):
    """The replicas that a word names: one by its id, or all of a host."""
    return [replica for replica in topology["replicas"] if what in (replica["id"], replica["host"])]


def serves(replica, topology, verdicts, balancers):
    """Whether a replica answers people now: its agent says so, and no balancer of its datacenter keeps requests from it.

    Where no agent answers, a balancer that checks its replicas (``takes`` true) is believed.
    """
    views = [
        server["takes"]
        for node in topology["balancers"]
        if node["datacenter"] == replica["datacenter"]
        for server in balancers.get(node["host"]) or []
        if server["id"] == replica["id"]
    ]
    if False in views:
        return False
    verdict = verdicts.get(replica["id"])
    return verdict in GOOD if verdict else True in views


def plan(topology, what, state, verdicts, balancers, force=False):
    """What to do, or why not.

    :param what: id of a replica or name of a host
    :param state: drained or ready
    :param verdicts: id of a replica -> status of its agent's verdict; no entry where the agent does not answer
    :param balancers: host -> its replicas as ``balancer_server`` returns them in ``servers``; None where it does not answer
    :returns: dict with ``replicas`` (ids), ``problem`` (a sentence, or empty) and ``serving`` (ids of those that serve now)
    """
    picked = chosen(topology, what)
    serving = [one["id"] for one in topology["replicas"] if serves(one, topology, verdicts, balancers)]
    found = {"replicas": [one["id"] for one in picked], "problem": "", "serving": serving}
    if state not in STATES:
        found["problem"] = f"drain_state is {state}; it must be {' or '.join(STATES)}."
    elif not picked:
        known = ", ".join([*dict.fromkeys(one["host"] for one in topology["replicas"]), *(one["id"] for one in topology["replicas"])])
        found["problem"] = f"drain is {what or 'not set'}; it must be a host with replicas or a replica: {known}."
    elif state == "drained" and not force:
        for datacenter in dict.fromkeys(one["datacenter"] for one in picked):
            here = [one["id"] for one in topology["replicas"] if one["datacenter"] == datacenter]
            left = [name for name in here if name in serving and name not in found["replicas"]]
            # The last one may be short of time just now: drained, it would be out when it is well again.
            if not left and any(verdicts.get(name) != DRAINED for name in found["replicas"]):
                others = ", ".join(f"{name} {verdicts.get(name) or 'does not answer'}" for name in here if name not in found["replicas"])
                now = "" if any(name in serving for name in found["replicas"]) else " They do not serve now, and drained they would not when they are well."
                found["problem"] = (
                    f"Without {', '.join(found['replicas'])} no replica of the datacenter {datacenter} would serve ({others or 'there is no other'}).{now} "
                    f"Bring another one back first, or say -e drain_force=true."
                )
    return found


def table(found, verdicts, balancers, check=False):
    """Lines about what was done: for each replica its agent's verdict, and its sessions and state on each balancer.

    :param verdicts: as in :func:`plan`, but afterwards
    :param balancers: host -> ``replicas`` as ``balancer_server`` returns them; None where it does not answer
    """
    rows = [("REPLICA", "AGENT", *(f"{host}: STATE, SESSIONS" for host in balancers), "SECONDS")]
    for name in found["replicas"]:
        mine = {host: next((one for one in answer or [] if one["id"] == name), None) for host, answer in balancers.items()}
        cells = [_cell(one, check) if one else "-" for one in mine.values()]
        seconds = max((one["seconds"] for one in mine.values() if one), default=0)
        rows.append((name, verdicts.get(name) or "no answer", *cells, "-" if check else f"{seconds:.1f}"))
    return columns(rows)


def _cell(one, check):
    if check:
        return f"{one['before']} -> {one['after']}, {one['sessions_before']} now"
    cut = f", {one['cut']} cut" if one["cut"] else ""
    return f"{one['after']}, {one['sessions_before']} -> {one['sessions_after']}{cut}"
