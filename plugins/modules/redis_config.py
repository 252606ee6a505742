#!/usr/bin/python
# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_config
short_description: Make settings of a running Redis server or Sentinel what they should be
version_added: "0.1.0"
author:
  - The openclaw.ha contributors (@openclaw-ha)
description:
  - Compares CONFIG GET with the wanted settings and sends CONFIG SET for those that differ, so that a change goes live without a restart.
  - With O(sentinel) it does the same through SENTINEL MASTER and SENTINEL SET, for the settings of one watched primary.
  - Waits for the server to answer and to have loaded its data first.
  - Leaves alone what the server takes only at its start, and returns the names as RV(restart); see M(openclaw.ha.redis_restart).
  - Writes no file; the file that the server reads at its next start is the role's.
options:
  address:
    description: Address of the server.
    type: str
    required: true
  port:
    description: Port of the server.
    type: int
    required: true
  settings:
    description: Settings by name, as in redis.conf.
    type: dict
    default: {}
  secret_settings:
    description: Settings whose values are never shown, such as C(masterauth).
    type: dict
    default: {}
  sentinel:
    description: Name of the watched primary when the server is a Sentinel.
    type: str
  wait:
    description: Seconds to wait for the server to answer and to have loaded its data.
    type: float
    default: 30
extends_documentation_fragment:
  - openclaw.ha.access.redis
"""

EXAMPLES = r"""
- name: Give Redis more memory, live
  openclaw.ha.redis_config:
    address: 192.0.2.11
    port: 6379
    redis_access:
      password: "{{ redis_password }}"
    settings:
      maxmemory: 512mb
"""

RETURN = r"""
settings:
  description: Names of the settings that differed and were made live.
  type: list
  elements: str
  returned: always
restart:
  description: Names of the settings that differ and wait for a restart.
  type: list
  elements: str
  returned: always
"""

import time

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.openclaw.ha.plugins.module_utils import redis_client
from ansible_collections.openclaw.ha.plugins.module_utils.redis_view import differences


def wait_until_ready(client, seconds):
    """Ping until the server answers and has loaded its data; returns None, or the last error's text at the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            client.ping()
            return None
        except (redis_client.redis.AuthenticationError, redis_client.redis.ResponseError) as error:
            # A wrong password does not heal by waiting; "loading" does.
            if not isinstance(error, redis_client.redis.BusyLoadingError):
                return str(error)
            last = str(error)
        except redis_client.redis.RedisError as error:
            last = str(error)
        if time.monotonic() >= deadline:
            return last
        time.sleep(0.2)  # between two pings, until the deadline


def main():
    module = AnsibleModule(
        argument_spec={
            "address": {"type": "str", "required": True},
            "port": {"type": "int", "required": True},
            "redis_access": redis_client.ACCESS,
            "settings": {"type": "dict", "default": {}},
            "secret_settings": {"type": "dict", "default": {}, "no_log": True},
            "sentinel": {"type": "str"},
            "wait": {"type": "float", "default": 30},
        },
        supports_check_mode=True,
    )
    redis_client.require_redis(module)
    parameters = module.params
    wanted = {**parameters["settings"], **parameters["secret_settings"]}
    label = f"{'Sentinel' if parameters['sentinel'] else 'Redis'} at {parameters['address']}:{parameters['port']}"
    client = redis_client.connect(parameters, parameters["redis_access"], timeout=5)
    error = wait_until_ready(client, parameters["wait"])
    if error:
        module.fail_json(msg=f"{label} does not answer as it should: {error} (waited up to {parameters['wait']:.0f} s).")

    name = parameters["sentinel"]
    restart = []
    if name:
        found = redis_client.sentinel_settings(client, name)
    else:
        found = client.config_get(*wanted)
        differing = {key: found[key] for key in differences(parameters["settings"], found) if key in found}
        restart = sorted(redis_client.pinned_settings(client, differing))
        for key in restart:
            wanted.pop(key)
    changes = differences(wanted, found)
    if not module.check_mode:
        for setting, (_before, value) in changes.items():
            try:
                if name:
                    redis_client.sentinel(client, "SET", name, setting, value)
                else:
                    client.config_set(setting, value)
            except redis_client.redis.RedisError as refusal:
                module.fail_json(msg=f"{label} refuses {setting}: {refusal}")

    def shown(position):
        return {key: "(secret)" if key in parameters["secret_settings"] else values[position] for key, values in sorted(changes.items())}

    module.exit_json(changed=bool(changes), settings=sorted(changes), diff={"before": shown(0), "after": shown(1)}, restart=restart)


if __name__ == "__main__":
    main()
