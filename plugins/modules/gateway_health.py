#!/usr/bin/python

# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: gateway_health
short_description: Wait until gateway replicas are healthy
version_added: "0.1.0"
author:
  - The openclaw.ha contributors (@openclaw-ha)
description:
  - Probes gateway replicas side by side until each has answered healthily O(successes) times in a row.
  - A probe is judged by its JSON, because the gateway answers unknown paths with status 200.
  - Stops waiting at once for a replica whose systemd unit has failed for good, and shows the last lines of that
    unit's journal.
  - Never changes anything. In check mode it probes once and reports, without failing.
options:
  replicas:
    description: The replicas to wait for.
    type: list
    elements: dict
    required: true
    suboptions:
      id:
        description: Name of the replica in messages and results.
        type: str
        required: true
      address:
        description: Address to probe.
        type: str
        required: true
      port:
        description: Port to probe.
        type: int
        required: true
      unit:
        description: The replica's systemd unit, when it runs on the host where the module runs.
        type: str
  path:
    description: The probe. C(/startupz) tells whether a replica takes traffic, C(/readyz) includes its channels,
      C(/healthz) tells only that it lives, C(/api/v1/health) tells about Redis and Ollama too. C(/health) is the verdict of
      the agent, on the replica's C(verdict_port); good is C(ok) or C(degraded) with a gateway that answers, and what is wrong
      is named check by check.
    type: str
    choices: [/startupz, /readyz, /healthz, /api/v1/health, /health]
    default: /startupz
  token:
    description: The gateway's token. With it the replica tells its version too.
    type: str
  version:
    description: The version that must answer; any by default.
    type: str
    default: ''
  successes:
    description: Consecutive healthy answers that open the gate.
    type: int
    default: 2
  interval:
    description: Seconds between two probes of a replica.
    type: float
    default: 1.0
  timeout:
    description: Seconds that one probe may take.
    type: float
    default: 2.0
  deadline:
    description: Seconds after which a replica counts as not healthy.
    type: float
    default: 120.0
  turn:
    description:
      - Text of a message that each replica has to answer once it is healthy, as clients send it; none by default. A replica may get ready and
        fail every turn. Not in check mode. The conversation is one of its own, of the channel C(health), and is forgotten as others are.
    type: str
    default: ''
  turn_timeout:
    description: Seconds that the answer may take.
    type: float
    default: 150.0
attributes:
  check_mode:
    description: Probes once and never fails.
    support: full
  diff_mode:
    description: Nothing changes.
    support: none
"""

EXAMPLES = r"""
- name: Wait for this host's replica
  openclaw.ha.gateway_health:
    replicas:
      - id: node1-1
        address: 192.0.2.11
        port: 18789
        unit: openclaw-gateway@1.service
    token: "{{ gateway_token }}"
    version: 2026.9.6

- name: Wait until the agent has found it good five times in a row
  openclaw.ha.gateway_health:
    replicas:
      - id: node1-1
        address: 192.0.2.11
        port: 18700
    path: /health
    successes: 5
    deadline: 60
"""

RETURN = r"""
replicas:
  description: What was seen of each replica, in the order given; returned on failure too.
  returned: always
  type: list
  elements: dict
  contains:
    id:
      description: Name of the replica.
      type: str
    healthy:
      description: Whether the gate opened.
      type: bool
    seen:
      description: The last probe in words.
      type: str
    version:
      description: Version that the replica told; empty when it did not.
      type: str
    seconds:
      description: Time until the verdict.
      type: float
    turn_seconds:
      description: Time that the answer to O(turn) took; 0 where none was asked for.
      type: float
    probes:
      description: Number of probes made.
      type: int
    verdict:
      description: The agent's verdict as it was answered last; only with the path C(/health), empty without an answer.
      type: dict
  sample: [{id: node1-1, healthy: true, seen: healthy, version: 2026.9.6, seconds: 9.4, turn_seconds: 0.0, probes: 9}]
"""

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.openclaw.ha.plugins.module_utils import health, systemd

JOURNAL_LINES = 30


def gate(replica, params, units, check_mode):
    """Wait for one replica; returns its result and, when it is not healthy, the message for people."""
    unit = replica.get("unit")

    def probe():
        return health.look(replica, params["path"], params["token"] or "", params["timeout"], params["version"])

    def given_up():
        return health.unit_failure(units.show(unit)) if unit else ""

    needed, deadline = (1, 0) if check_mode else (params["successes"], params["deadline"])
    opened, seen, seconds, reason = health.wait(probe, given_up, needed, params["interval"], deadline)
    result = {
        "id": replica["id"],
        "healthy": opened,
        "seen": seen.last.seen,
        "version": seen.last.version,
        "seconds": round(seconds, 1),
        "turn_seconds": 0.0,
        "probes": seen.probes,
    }
    if params["path"] == health.VERDICT:
        result["verdict"] = seen.last.verdict
    if opened and params["turn"] and not check_mode:
        began = time.monotonic()
        answered = health.turn(replica, params["token"] or "", params["turn"], params["turn_timeout"])
        result["turn_seconds"] = round(time.monotonic() - began, 1)
        opened = result["healthy"] = answered.ok
        seen.last = dataclasses.replace(seen.last, seen=answered.seen)
        result["seen"] = answered.seen
    if opened or check_mode:
        return result, ""
    url = f"http://{replica['address']}:{replica['port']}{params['path']}"
    journal = units.journal(unit, JOURNAL_LINES) if unit else ""
    return result, health.failure_message(replica["id"], url, seconds, seen.last.seen, reason, unit, journal)


def main():
    module = AnsibleModule(
        argument_spec={
            "replicas": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "id": {"type": "str", "required": True},
                    "address": {"type": "str", "required": True},
                    "port": {"type": "int", "required": True},
                    "unit": {"type": "str"},
                },
            },
            "path": {"type": "str", "default": "/startupz", "choices": list(health.PROBES)},
            "token": {"type": "str", "no_log": True},
            "version": {"type": "str", "default": ""},
            "successes": {"type": "int", "default": 2},
            "interval": {"type": "float", "default": 1.0},
            "timeout": {"type": "float", "default": 2.0},
            "deadline": {"type": "float", "default": 120.0},
            "turn": {"type": "str", "default": ""},
            "turn_timeout": {"type": "float", "default": 150.0},
        },
        supports_check_mode=True,
    )
    params = module.params
    for name, least in (("successes", 1), ("interval", 0.05), ("timeout", 0.05)):
        if params[name] < least:
            module.fail_json(msg=f"{name} is {params[name]}; it must be at least {least}.")
    units = systemd.Units(module.run_command)
    with ThreadPoolExecutor(max_workers=max(1, len(params["replicas"]))) as pool:
        outcomes = list(pool.map(lambda replica: gate(replica, params, units, module.check_mode), params["replicas"]))
    results = [result for result, message in outcomes]
    messages = [message for result, message in outcomes if message]
    if messages:
        module.fail_json(msg="\n\n".join(messages), replicas=results)
    module.exit_json(changed=False, replicas=results)


if __name__ == "__main__":
    main()
