#!/usr/bin/python
# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_failover
short_description: Switch the Redis primary without losing a write
version_added: "0.1.0"
author:
  - The openclaw.ha contributors (@openclaw-ha)
description:
  - Pauses writes on the primary, waits until every replica has all of them, lets a Sentinel promote one, and makes the old primary its
    replica before the pause ends. A plain C(SENTINEL FAILOVER) loses what clients write until the old primary is told, some 8 s later.
  - Refuses, with every reason, while anything stands against it - no agreement on the primary, a server or a Sentinel that does not answer, no
    quorum, tilt, a failover in progress, a replica without link or far behind, an append-only file that cannot be written or rewritten, a
    rewrite, a snapshot or a load in progress, too few replicas.
  - A run that was interrupted is finished or undone by the next one, whatever step it was at. The pause ends by itself after 30 s in any case.
  - Without O(to) and O(leave) every call switches once.
options:
  to:
    description:
      - The Redis host that shall be primary, by its C(host) in O(redis); nothing is done when it is.
      - The priorities of the other replicas are raised by 1000000 meanwhile; the Sentinels need up to 10 s to see that, before writes are paused.
    type: str
  leave:
    description: The Redis host that shall not be primary, by its C(host) in O(redis); nothing is done when it is not.
    type: str
  wait:
    description: Seconds for obstacles to go away before the switch, and again for all to agree after it.
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
- name: Switch the primary to another host
  openclaw.ha.redis_failover:
    redis: "{{ topology_cluster.redis }}"
    sentinels: "{{ topology_cluster.sentinels }}"
    name: "{{ topology_cluster.monitor.name }}"
    to: node2
    redis_access:
      password: "{{ redis_password }}"
    sentinel_access:
      password: "{{ sentinel_password }}"
  run_once: true
"""

RETURN = r"""
primary:
  description: Address and port of the primary.
  type: str
  returned: always
former:
  description: Address and port of the primary that was left; null when nothing was to be switched.
  type: str
  returned: always
steps:
  description: What was done (in check mode the first step that would be), each with C(step), C(node), C(why) and C(seconds) since the module began.
  type: list
  elements: dict
  returned: always
seen:
  description: What was seen when the module came, one line for each Redis server and each Sentinel.
  type: list
  elements: str
  returned: always
write_gap:
  description: Seconds from the pause until the new primary took writes; null when nothing was switched.
  type: float
  returned: always
lost_bytes:
  description: Bytes of the old primary's history that the new one lacks, by their replication offsets; anything but V(0) is a failure.
  type: int
  returned: always
seconds:
  description: Seconds that all of it took.
  type: float
  returned: always
msg:
  description: The same in one paragraph.
  type: str
  returned: always
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.openclaw.ha.plugins.module_utils import redis_client
from ansible_collections.openclaw.ha.plugins.module_utils.redis_cluster import OPTIONS, Cluster, Refused, paragraph, switch
from ansible_collections.openclaw.ha.plugins.module_utils.redis_view import where


def main():
    module = AnsibleModule(
        argument_spec={
            **OPTIONS,
            "to": {"type": "str"},
            "leave": {"type": "str"},
            "wait": {"type": "float", "default": 60},
            "timeout": {"type": "float", "default": 2},
        },
        mutually_exclusive=[("to", "leave")],
        supports_check_mode=True,
    )
    redis_client.require_redis(module)
    parameters = module.params
    addresses = {node["host"]: where(node) for node in parameters["redis"]}
    for option in ("to", "leave"):
        if parameters[option] is not None and parameters[option] not in addresses:
            module.fail_json(msg=f"There is no Redis on a host {parameters[option]!r}; there is one on {', '.join(sorted(addresses))}.")
    cluster = Cluster(parameters, parameters["timeout"])
    try:
        done = switch(cluster, addresses.get(parameters["to"]), addresses.get(parameters["leave"]), parameters["wait"], module.check_mode)
    except Refused as refusal:
        module.fail_json(msg=str(refusal), **refusal.report)
    module.exit_json(msg=paragraph(cluster, done, module.check_mode), **done)


if __name__ == "__main__":
    main()
