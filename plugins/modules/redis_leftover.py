#!/usr/bin/python
# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_leftover
short_description: Which turns are in the files of a Redis server, and not in those that have the conversations now
version_added: "0.1.0"
author:
  - The openclaw.ha contributors (@openclaw-ha)
description:
  - Loads the files of a Redis server that runs no more into one of its own - without network, on a copy, as the user nobody - and compares every
    conversation, turn by turn, with the primary among O(redis).
  - Writes what is only there to O(report), mode 0600, and changes nothing else.
options:
  directory:
    description: Directory with the files, an C(appendonlydir) or a C(dump.rdb).
    type: path
    required: true
  redis:
    description: The Redis servers that have the conversations now, each with C(address) and C(port); the one that is the primary is asked.
    type: list
    elements: dict
    required: true
  report:
    description: File to write, as JSON - the turns by conversation.
    type: path
    required: true
  program:
    description: The Redis server's program.
    type: path
    default: /usr/bin/redis-server
  wait:
    description: Seconds that loading the files may take.
    type: float
    default: 120
  timeout:
    description: Seconds to wait for one connection or one reply.
    type: float
    default: 10
extends_documentation_fragment:
  - openclaw.ha.access.redis
"""

EXAMPLES = r"""
- name: Count what only the old datacenter has
  openclaw.ha.redis_leftover:
    directory: /var/lib/openclaw-datacenter/kept/20261127021100
    report: /var/lib/openclaw-datacenter/kept/20261127021100/turns.json
    redis: "{{ topology_cluster.sites.west.redis }}"
    redis_access: "{{ redis_access_redis }}"
"""

RETURN = r"""
turns:
  description: Number of turns that only the files have.
  type: int
  returned: always
conversations:
  description: Number of conversations that they are of.
  type: int
  returned: always
compared:
  description: Number of turns in the files.
  type: int
  returned: always
"""

import json
import os
import pathlib

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.openclaw.ha.plugins.module_utils import redis_client
from ansible_collections.openclaw.ha.plugins.module_utils.redis_leftover import PREFIX, Loaded, Unreadable, conversations, only_there, primary


def main():
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "redis": {"type": "list", "elements": "dict", "required": True},
            "report": {"type": "path", "required": True},
            "program": {"type": "path", "default": "/usr/bin/redis-server"},
            "wait": {"type": "float", "default": 120},
            "timeout": {"type": "float", "default": 10},
            "redis_access": redis_client.ACCESS,
        },
        supports_check_mode=True,
    )
    redis_client.require_redis(module)
    parameters = module.params
    try:
        now = primary(parameters["redis"], parameters["redis_access"], parameters["timeout"])
        with Loaded(parameters["directory"], parameters["program"], parameters["wait"], module.run_command) as then:
            old = conversations(then)
        found = only_there(old, lambda name: now.lrange(f"{PREFIX}{name}", 0, -1))
    except (Unreadable, redis_client.redis.RedisError, OSError) as error:
        module.fail_json(msg=f"{error}.")
    document = json.dumps({name: [json.loads(raw) for raw in turns] for name, turns in sorted(found.items())}, indent=1) + "\n"
    path = pathlib.Path(parameters["report"])
    changed = not path.exists() or path.read_text(encoding="utf-8") != document
    if changed and not module.check_mode:
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(document)
    counts = {"turns": sum(map(len, found.values())), "conversations": len(found), "compared": sum(map(len, old.values()))}
    module.exit_json(changed=changed, **counts)


if __name__ == "__main__":
    main()
