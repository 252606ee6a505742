#!/usr/bin/python
# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugins/action/preflight_check.py, which does the work."""

from __future__ import annotations

DOCUMENTATION = r"""
module: preflight_check
short_description: Refuse a cluster that is unsafe or impossible
version_added: "0.1.0"
author:
  - The openclaw.ha contributors (@openclaw-ha)
description:
  - Judges the topology, the variables of all hosts with the defaults of the roles applied, and what is known about
    the hosts. Fails with one sentence for each problem, and warns of what works but costs something.
  - Runs on the controller alone, changes nothing and passes no variable on, so that no run prints a secret.
  - Variables are those of the inventory and of the command line, evaluated for each host; variables of a play are
    not seen.
options:
  topology:
    description: The fact C(topology_cluster).
    type: dict
    required: true
  host_facts:
    description: For each host of this run the result of M(openclaw.ha.preflight_host_info).
    type: dict
    required: true
  npm:
    description:
      - Results of M(openclaw.ha.npm_package_info) in a loop over the gateway versions that are not installed yet.
    type: list
    elements: dict
    default: []
  roles_path:
    description: Directory of the roles whose defaults and argument_specs apply.
    type: path
    required: true
attributes:
  action:
    description: Runs on the controller.
    support: full
  check_mode:
    description: Runs the same in check mode.
    support: full
  diff_mode:
    description: Has nothing to show.
    support: none
"""

EXAMPLES = r"""
- name: Refuse what is unsafe or impossible
  openclaw.ha.preflight_check:
    topology: "{{ topology_cluster }}"
    host_facts: "{{ dict(ansible_play_hosts_all | zip(ansible_play_hosts_all | map('extract', hostvars, 'host'))) }}"
    roles_path: "{{ role_path | dirname }}"
  run_once: true
"""

RETURN = r"""
msg:
  description: One line for each problem, in which no secret appears.
  type: str
  returned: always
  sample: |-
    Refused before any change, 1 problem:
      redis_maxmemory: found 64gb; allowed less than the 7.8 GiB of memory the host has; lower it.
"""
