# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of the dr_ playbooks."""

from __future__ import annotations

import json

from ansible_collections.openclaw.ha.plugins.module_utils import failover


def failover_plan(hostvars, names, to, gone):
    """See failover_plan.yml and module_utils/failover.py."""
    return failover.plan(_hosts(hostvars, names), to, gone)


def failback_plan(hostvars, names, to):
    """See failback_plan.yml and module_utils/failover.py."""
    return failover.plan_back(_hosts(hostvars, names), to)


def _hosts(hostvars, names):
    hosts = {}
    for name in names:
        said = hostvars[name]
        own = (said.get("topology_cluster") or {}).get("hosts", {}).get(name, {})
        seen = said.get("_dr_seen") or {}
        hosts[name] = {
            "datacenter": own.get("datacenter"),
            "groups": own.get("groups", []),
            "reached": not (said.get("_dr_fence") or {"unreachable": True}).get("unreachable", False),
            "seen": seen if seen.get("role") else None,
            "gateways": (said.get("_dr_gateways") or {}).get("replicas") or [],
            "contact": _contact(said),
            "fenced": (said.get("_dr_fence") or {}).get("stat", {}).get("exists", False),
        }
    return hosts


def _contact(said):
    try:
        return json.loads((said.get("_dr_last") or {}).get("stdout") or "{}").get("contact")
    except ValueError:
        return None


def failover_report(began, moments, facts):
    """See failover_report.yml. A template makes text of some numbers."""
    numbers = {name: None if facts[name] in (None, "") else int(facts[name]) for name in ("epoch", "offset")}
    return failover.report(float(began), moments, {**facts, **numbers, "active": facts["active"] or None})


def failover_seen(hostvars, takes, leaves):
    """See failover_seen.yml."""
    contacts = [contact for name in takes if (contact := _contact(hostvars[name]))]
    fenced = hostvars["localhost"].get("_dr_fenced_at")
    moments = {"fenced": float(fenced) if leaves and fenced else None}
    for step, names in (("rested", leaves), ("promoted", takes), ("answered", takes), ("dns", takes)):
        moments[step] = max((float(hostvars[name].get(f"_dr_{step}_at") or 0) for name in names), default=0) or None
    offsets = [found["offset"] for name in takes if (found := hostvars[name].get("_sentinel_promoted") or {}).get("offset") is not None]
    return {"moments": moments, "offset": max(offsets, default=None), "contact": max(contacts, key=lambda one: one["seen"], default=None)}


class FilterModule:
    """Ansible's entry point."""

    def filters(self):
        return {
            "failback_plan": failback_plan,
            "failover_plan": failover_plan,
            "failover_report": failover_report,
            "failover_paragraph": failover.paragraph,
            "failover_page": failover.page,
            "failover_seen": failover_seen,
        }
