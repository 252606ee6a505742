#!/usr/bin/python
# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: sentinel_info
short_description: The agreed view of Redis servers and Sentinels
version_added: "0.1.0"
author:
  - The openclaw.ha contributors (@openclaw-ha)
description:
  - Asks every Redis server and every Sentinel, and says who the primary is only when a majority of the Sentinels name it and it says so itself.
  - Lists every disagreement by name - servers that claim to be primary, Sentinels that name another one or nobody, see too few or too many others,
    have another quorum, are in tilt mode, fail over or regard a server as down, replicas that follow another one, lost their link or are unknown.
  - With O(wait) it asks again until there is nothing left to disagree about.
options:
  timeout:
    description: Seconds to wait for one connection or one reply.
    type: float
    default: 2
  wait:
    description: Seconds to go on asking until all agree and nothing is wrong; V(0) asks once and reports what is found.
    type: float
    default: 0
  unanswered_ok:
    description: Whether a server that does not answer is left out instead of being reported.
    type: bool
    default: false
extends_documentation_fragment:
  - openclaw.ha.access.redis
  - openclaw.ha.access.sentinel
  - openclaw.ha.cluster
"""

EXAMPLES = r"""
- name: Look at Redis
  openclaw.ha.sentinel_info:
    redis: "{{ topology_cluster.redis }}"
    sentinels: "{{ topology_cluster.sentinels }}"
    name: "{{ topology_cluster.monitor.name }}"
    redis_access:
      password: "{{ redis_password }}"
    sentinel_access:
      password: "{{ sentinel_password }}"
"""

RETURN = r"""
state:
  description: V(absent) when nothing answers, V(agreed) when there is one primary, V(standby) when all follow another datacenter, V(disagreed) otherwise.
  type: str
  returned: always
primary:
  description: Address and port of the agreed primary; null without agreement.
  type: str
  returned: always
problems:
  description: Every disagreement and every fault, one sentence each.
  type: list
  elements: str
  returned: always
redis:
  description: What each Redis server said - C(role), C(primary), C(link), C(offset) and C(behind) the primary in bytes,
    C(lag) in seconds since the primary was heard, C(connected) replicas, C(version), C(priority), state of the append-only file, or C(error).
  type: list
  elements: dict
  returned: always
sentinels:
  description: What each Sentinel said - C(primary), C(replicas) it knows and C(known) with their flags, C(others) (Sentinels), C(quorum), C(quorum_ok),
    C(tilt), C(failover) (whether one is in progress), C(flags), or C(error).
  type: list
  elements: dict
  returned: always
"""

import time

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.openclaw.ha.plugins.module_utils.redis_client import inspect_redis, inspect_sentinel, require_redis
from ansible_collections.openclaw.ha.plugins.module_utils.redis_cluster import OPTIONS
from ansible_collections.openclaw.ha.plugins.module_utils.redis_view import agree, with_lag


def look(parameters):
    """Ask everybody once; the view of :func:`agree` with what each one said."""
    timeout = parameters["timeout"]
    nodes = [inspect_redis(node, parameters["redis_access"], timeout) for node in parameters["redis"]]
    sentinels = [
        inspect_sentinel(node, parameters["name"], parameters["sentinel_access"], timeout, parameters["elsewhere"]) for node in parameters["sentinels"]
    ]
    view = agree(nodes, sentinels, parameters["unanswered_ok"], parameters["quorum"], parameters["elsewhere"] if parameters["standby"] else None)
    return {**view, "redis": with_lag(nodes, view["primary"]), "sentinels": sentinels}


def main():
    module = AnsibleModule(
        argument_spec={
            **OPTIONS,
            "timeout": {"type": "float", "default": 2},
            "wait": {"type": "float", "default": 0},
            "unanswered_ok": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    require_redis(module)
    deadline = time.monotonic() + module.params["wait"]
    while True:
        view = look(module.params)
        settled = view["state"] == ("standby" if module.params["standby"] else "agreed") and not view["problems"]
        if settled or time.monotonic() >= deadline:
            break
        time.sleep(0.5)  # between two looks, until the deadline
    if module.params["wait"] and not settled:
        module.fail_json(msg=f"Redis and Sentinel do not agree after {module.params['wait']:.0f} s. {' '.join(view['problems'])}")
    module.exit_json(changed=False, **view)


if __name__ == "__main__":
    main()
