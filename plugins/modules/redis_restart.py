#!/usr/bin/python
# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_restart
short_description: Restart the Redis server or Sentinel of this host when it must be, and only when the others can do without
version_added: "0.1.0"
author:
  - The openclaw.ha contributors (@openclaw-ha)
description:
  - Decides from what runs whether a restart is needed - the installed program is another one, a setting differs that is read only at the start,
    or the unit was changed after the process was started. So an interrupted run is taken up by the next one, and a finished one changes nothing.
  - Restarts only while all servers and Sentinels agree, every replica is linked and caught up, and no append-only file is in trouble. A primary is
    switched away first, as M(openclaw.ha.redis_failover) does it.
  - Waits until the server has loaded its data, is linked and caught up, and all agree again; else it fails, and the gate stops the next host.
  - A single Redis is restarted at once, since nobody can stand in for it.
  - Run it with C(throttle=1), first with O(skip_primary), then without.
options:
  host:
    description: This host's C(host) in O(redis) or O(sentinels).
    type: str
    required: true
  server:
    description: What is restarted.
    type: str
    choices: [redis, sentinel]
    default: redis
  unit:
    description: Its systemd unit; by default C(redis-server.service) or C(redis-sentinel.service).
    type: str
  program:
    description: Its program.
    type: path
    default: /usr/bin/redis-server
  settings:
    description: Settings that the Redis server shall have, by name; only those that it takes at its start matter here.
    type: dict
    default: {}
  because:
    description: Reasons for a restart that are known otherwise, one sentence each.
    type: list
    elements: str
    default: []
  skip_primary:
    description: Whether a primary is left alone, for its turn comes last.
    type: bool
    default: false
  wait:
    description: Seconds for the gates to open before the restart, and again for all to be well after it.
    type: float
    default: 120
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
- name: Restart the replicas that must be, one after the other
  openclaw.ha.redis_restart:
    host: "{{ inventory_hostname }}"
    redis: "{{ topology_cluster.redis }}"
    sentinels: "{{ topology_cluster.sentinels }}"
    name: "{{ topology_cluster.monitor.name }}"
    settings:
      databases: 32
    skip_primary: true
  throttle: 1
"""

RETURN = r"""
reasons:
  description: Why a restart is needed, one sentence each; empty when it is not.
  type: list
  elements: str
  returned: always
role:
  description: What the Redis server was when the module came, V(primary), V(replica) or V(single); V(sentinel) for a Sentinel.
  type: str
  returned: when a restart is needed
switch:
  description: Result of the switch, as of M(openclaw.ha.redis_failover).
  type: dict
  returned: when the primary was switched away
seconds:
  description: Seconds from the restart until all was well.
  type: float
  returned: when restarted
msg:
  description: What was done.
  type: str
  returned: always
"""

import os
import time

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.openclaw.ha.plugins.module_utils import redis_client
from ansible_collections.openclaw.ha.plugins.module_utils.redis_cluster import OPTIONS, Cluster, Refused, paragraph, switch
from ansible_collections.openclaw.ha.plugins.module_utils.redis_restart import parse_version, reasons
from ansible_collections.openclaw.ha.plugins.module_utils.redis_switch import obstacles
from ansible_collections.openclaw.ha.plugins.module_utils.redis_view import agree, differences, where
from ansible_collections.openclaw.ha.plugins.module_utils.systemd import SystemdError, Units


class Restart:
    """One server of this host, and the cluster it belongs to."""

    def __init__(self, parameters, units, run_command):
        self.kind = parameters["server"]
        self.unit = parameters["unit"] or f"redis-{'server' if self.kind == 'redis' else 'sentinel'}.service"
        self.cluster = Cluster(parameters, parameters["timeout"])
        self.node = next((node for node in parameters["redis" if self.kind == "redis" else "sentinels"] if node["host"] == parameters["host"]), None)
        self.label = f"{'Redis' if self.kind == 'redis' else 'Sentinel'} on {parameters['host']}"
        self.alone = self.kind == "redis" and len(parameters["redis"]) == 1
        self._elsewhere = parameters["elsewhere"] if parameters["standby"] else None
        self._parameters = parameters
        self._units = units
        self._run_command = run_command

    def reasons(self):
        """See :func:`redis_restart.reasons`; raises the redis library's errors, ValueError and OSError."""
        client = self.cluster.client(self.node, self.kind)
        info = client.info("server")
        rc, out, err = self._run_command([self._parameters["program"], "--version"])
        wanted, found = self._parameters["settings"], {}
        if wanted and self.kind == "redis":
            found = client.config_get(*wanted)
        started, files = self._units.start_and_files(self.unit)
        return reasons(
            (info["redis_version"], str(info["redis_build_id"])),
            parse_version(out + err),
            wanted if self.kind == "redis" else {},
            found,
            redis_client.pinned_settings(client, {name: found[name] for name in differences(wanted, found) if name in found}),
            started or 0,
            {path: os.stat(path).st_mtime for path in files if started},
            self._units.show(self.unit).get("NeedDaemonReload") == "yes",
        )

    def is_primary(self):
        """Whether this Redis says so of itself."""
        return self.cluster.client(self.node).info("replication")["role"] == "master"

    def obstacles(self):
        """What stands against a restart of this server, as sentences. Of a single Redis only that it is not ready itself."""
        nodes, sentinels = self.cluster.look()
        if self.alone:
            return [f"{self.label}: {node.get('error') or 'it is loading its data'}." for node in nodes if node.get("error") or node["loading"]]
        if self.kind == "sentinel":
            return agree(nodes, sentinels, quorum=self.cluster.quorum, elsewhere=self._elsewhere)["problems"]
        return obstacles(nodes, sentinels, self.cluster.quorum, switching=False, elsewhere=self._elsewhere)

    def wait(self, seconds):
        """Wait until nothing stands against a restart; the obstacles that are left at the deadline."""
        deadline = time.monotonic() + seconds
        while True:
            left = self.obstacles()
            if not left or time.monotonic() >= deadline:
                return left
            time.sleep(0.3)  # between two looks, until the deadline

    def restart(self):
        """Restart the unit; raises SystemdError."""
        self._units.do("daemon-reload")
        self._units.do("restart", "--", self.unit)


def main():
    module = AnsibleModule(
        argument_spec={
            **OPTIONS,
            "host": {"type": "str", "required": True},
            "server": {"type": "str", "choices": ["redis", "sentinel"], "default": "redis"},
            "unit": {"type": "str"},
            "program": {"type": "path", "default": "/usr/bin/redis-server"},
            "settings": {"type": "dict", "default": {}},
            "because": {"type": "list", "elements": "str", "default": []},
            "skip_primary": {"type": "bool", "default": False},
            "wait": {"type": "float", "default": 120},
            "timeout": {"type": "float", "default": 2},
        },
        supports_check_mode=True,
    )
    redis_client.require_redis(module)
    one = Restart(module.params, Units(module.run_command), module.run_command)
    if one.node is None:
        module.fail_json(msg=f"{one.label} is not one of the servers that were given.")
    try:
        module.exit_json(**act(one, module.params, module.check_mode))
    except Refused as refusal:
        module.fail_json(msg=f"{one.label}: {refusal}", **refusal.report)
    except (redis_client.redis.RedisError, SystemdError, ValueError, OSError) as error:
        module.fail_json(msg=f"{one.label}: {error}")


def act(one, parameters, check):
    """Restart the server if it must be and may be; the module's result. Raises :class:`Refused` and what the I/O raises."""
    why = one.reasons() + parameters["because"]
    if not why:
        return {"changed": False, "reasons": [], "msg": f"{one.label} runs as it should."}
    primary = one.kind == "redis" and not one.alone and one.is_primary()
    role = "sentinel" if one.kind == "sentinel" else "single" if one.alone else "primary" if primary else "replica"
    result = {"changed": True, "reasons": why, "role": role}
    if primary and parameters["skip_primary"]:
        return {**result, "changed": False, "msg": f"{one.label} is the primary; its turn comes last. {' '.join(why)}"}
    what = f"{one.label} ({role})" + (", which nobody can stand in for," if one.alone else "")
    left = []
    try:
        if primary:
            result["switch"] = switch(one.cluster, leave=where(one.node), patience=parameters["wait"], dry=check)
        elif check and not one.alone:
            left = one.obstacles()
    except Refused as refusal:
        if not check:
            raise
        left = [str(refusal)]  # it would be waited for, and a dry run does not wait
    if check:
        return {**result, "msg": " ".join([f"{what} would be restarted, as soon as nothing stands against it.", *why, *left])}
    left = [] if one.alone else one.wait(parameters["wait"])
    if left:
        raise Refused(f"Not restarted. {' '.join(left)}", {**result, "changed": primary})
    started = time.monotonic()
    one.restart()
    left = one.wait(parameters["wait"]) or one.reasons()
    result["seconds"] = round(time.monotonic() - started, 2)
    if left:
        raise Refused(f"Restarted, but after {result['seconds']:.0f} s not all is well. {' '.join(left)}", result)
    told = [paragraph(one.cluster, result["switch"])] if primary else []
    return {**result, "msg": " ".join([*told, f"{what} was restarted; all is well after {result['seconds']:.1f} s.", *why])}


if __name__ == "__main__":
    main()
