#!/usr/bin/python
# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: gateway_watch
short_description: Watch a gateway replica for a while, and fail as soon as it gets worse
version_added: "0.1.0"
author:
  - The openclaw.ha contributors (@openclaw-ha)
description:
  - Runs on the replica's host. For O(seconds) it looks at the agent's verdict, at the number of restarts of the unit, and at the memory that
    its processes hold for good (anonymous memory, without the page cache) against the unit's C(MemoryMax).
  - Never changes anything.
options:
  replica:
    description: The replica, with C(id), C(address) and C(verdict_port), as in the topology.
    type: dict
    required: true
  unit:
    description: The replica's systemd unit.
    type: str
    required: true
  seconds:
    description: How long it must stay well.
    type: float
    required: true
  interval:
    description: Seconds between two looks.
    type: float
    default: 1
  memory_percent:
    description: Share of the unit's memory limit at which it counts as leaking.
    type: int
    default: 80
attributes:
  check_mode:
    description: It looks once.
    support: full
  diff_mode:
    description: It changes nothing.
    support: none
"""

EXAMPLES = r"""
- name: Let the first replica prove itself for a minute
  openclaw.ha.gateway_watch:
    replica: "{{ topology_cluster.replicas | first }}"
    unit: openclaw-gateway@1.service
    seconds: 60
"""

RETURN = r"""
looks:
  description: How often it was looked at.
  type: int
  returned: always
memory_percent:
  description: The largest share of its memory limit that was seen; null without a limit.
  type: float
  returned: always
"""

import time

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.openclaw.ha.plugins.module_utils import health, systemd
from ansible_collections.openclaw.ha.plugins.module_utils.processes import family, held
from ansible_collections.openclaw.ha.plugins.module_utils.rolling import SERVING


def memory_percent(shown):
    """Share of a unit's memory limit that its processes hold for good; None where there is no limit or no process.

    From the processes and not from their control group, which each version of control groups, and each container, has elsewhere.
    """
    limit, main_process = shown.get("MemoryMax", ""), int(shown.get("MainPID") or 0)
    if not (main_process and limit.isdigit() and int(limit)):
        return None
    return round(100 * sum(map(held, family(main_process))) / int(limit), 1)


#: Looks in a row without an answer of the agent that are forgiven: it may have nothing to run on for a moment.
SILENT_LOOKS = 5


def problem(seen, silent, shown, first, most):
    """What is wrong with a replica, as a clause; empty when it is well.

    :param silent: looks in a row in which its agent has not answered
    :param seen: its verdict, a ``health.Sight``
    :param shown: properties of its unit now; ``first``: those of the first look
    :param most: (share of memory that it holds or None, share at which it leaks)
    """
    share, limit = most
    if shown.get("ActiveState") != "active":
        return f"its unit is {shown.get('ActiveState') or 'unknown'}"
    if shown.get("NRestarts") != first.get("NRestarts") or shown.get("InvocationID") != first.get("InvocationID"):
        return f"its unit has been started anew (result {shown.get('Result') or 'unknown'})"
    if silent > SILENT_LOOKS or (not silent and seen.verdict.get("status") not in SERVING):
        return f"its agent says {seen.seen}"
    if share is not None and share >= limit:
        return f"it holds {share:g} % of its memory limit, and {limit} % counts as a leak"
    return ""


def main():
    module = AnsibleModule(
        argument_spec={
            "replica": {"type": "dict", "required": True},
            "unit": {"type": "str", "required": True},
            "seconds": {"type": "float", "required": True},
            "interval": {"type": "float", "default": 1},
            "memory_percent": {"type": "int", "default": 80},
        },
        supports_check_mode=True,
    )
    params = module.params
    replica, first, looks, silent, largest = params["replica"], None, 0, 0, None
    began = time.monotonic()
    while True:
        seen = health.look({**replica, "port": replica["verdict_port"]}, health.VERDICT)
        shown = systemd.Units(module.run_command).properties(
            params["unit"], "ActiveState", "NRestarts", "InvocationID", "Result", "MainPID", "MemoryMax"
        )
        first = first or shown
        share = memory_percent(shown)
        largest = share if largest is None else max(largest, share or 0)
        looks += 1
        silent = 0 if seen.verdict else silent + 1
        passed = time.monotonic() - began
        wrong = problem(seen, silent, shown, first, (share, params["memory_percent"]))
        if wrong:
            module.fail_json(msg=f"{replica['id']}: after {passed:.0f} s of {params['seconds']:g} s, {wrong}.", looks=looks, memory_percent=largest)
        if passed >= params["seconds"] or module.check_mode:
            module.exit_json(changed=False, looks=looks, memory_percent=largest)
        time.sleep(min(params["interval"], params["seconds"] - passed))  # between two looks, until its time is over


if __name__ == "__main__":
    main()
