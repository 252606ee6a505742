#!/usr/bin/python
# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: unread_files
short_description: Find what a running unit has not read yet
version_added: "0.1.0"
author:
  - The openclaw.ha contributors (@openclaw-ha)
description:
  - Finds files that are newer than what a unit works with. A run that ended between writing a file and the reload leaves such files, and a
    handler would not know; and a program that refuses a new configuration goes on with the old one while systemd calls the reload done.
  - Changes nothing. C(changed) says that there are such files, so that a task can notify a handler.
  - The program that the unit runs is unread, too, where another one was installed in its place.
  - A unit that does not run has nothing unread, because it reads everything when it is started.
options:
  unit:
    description: Name of the unit. Its own additions below C(/etc/systemd/system) are looked at too.
    type: str
    required: true
  paths:
    description: Files and directories, which are searched to the bottom. Those that do not exist are left out.
    type: list
    elements: path
    required: true
  since:
    description:
      - V(worker) is the start of the youngest process of the unit, for programs such as HAProxy and nginx, which start new workers for a new
        configuration and only when they have accepted it.
      - V(reload) is the last start or reload of the unit as systemd knows it, for programs that read their files without a new process.
    type: str
    choices: [worker, reload]
    default: worker
attributes:
  check_mode:
    description: It only looks.
    support: full
  diff_mode:
    description: It changes nothing.
    support: none
"""

EXAMPLES = r"""
- name: Look for what HAProxy has not read
  openclaw.ha.unread_files:
    unit: haproxy.service
    paths: [/etc/haproxy]
  notify: Reload the balancer
"""

RETURN = r"""
replaced:
  description: Whether the unit runs a program that is no longer the installed one, which is then among the files.
  type: bool
  returned: always
files:
  description: The files that the unit has not read, sorted.
  type: list
  elements: str
  returned: always
"""

import os

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.openclaw.ha.plugins.module_utils.processes import EXACT, children, replaced_program, started
from ansible_collections.openclaw.ha.plugins.module_utils.systemd import parse_show, parse_timestamp


def changed_at(path):
    """When a file was changed, seconds since 1970; None where there is none. Of a link, the later of its own time and its target's."""
    times = []
    for look in (os.lstat, os.stat):
        try:
            times.append(look(path).st_mtime)
        except OSError:
            continue
    return max(times, default=None)


def files_below(path):
    if not os.path.isdir(path) or os.path.islink(path):
        return [path]
    return [os.path.join(directory, name) for directory, _directories, names in os.walk(path) for name in names]


def unread(paths, since):
    """Files among and below ``paths`` that were changed after a moment (seconds since 1970), sorted."""
    return sorted(name for path in paths for name in files_below(path) if (changed_at(name) or 0) > since + EXACT)


def newest(process):
    """Number of the youngest of a process and its children."""
    return max([process, *children(process)], key=lambda one: started(one) or 0)


def main():
    module = AnsibleModule(
        argument_spec={
            "unit": {"type": "str", "required": True},
            "paths": {"type": "list", "elements": "path", "required": True},
            "since": {"type": "str", "choices": ["worker", "reload"], "default": "worker"},
        },
        supports_check_mode=True,
    )
    unit, paths = module.params["unit"], module.params["paths"]
    wanted = "--property=MainPID,StateChangeTimestamp"
    code, output, error = module.run_command(["systemctl", "show", "--timestamp=us+utc", wanted, "--", unit])
    if code != 0:
        module.fail_json(msg=f"{unit}: systemd does not say whether it runs: {(error or output).strip()}")
    shown = parse_show(output)
    main_process = int(shown.get("MainPID") or 0)
    if not main_process:
        module.exit_json(changed=False, files=[], replaced=False)
    youngest = newest(main_process)
    since = started(youngest) if module.params["since"] == "worker" else parse_timestamp(shown.get("StateChangeTimestamp", ""))
    if since is None:  # it ended just now
        module.exit_json(changed=False, files=[], replaced=False)
    program = replaced_program(youngest)
    files = unread([*paths, f"/etc/systemd/system/{unit}.d"], since) + [program] * bool(program)
    module.exit_json(changed=bool(files), files=files, replaced=bool(program))


if __name__ == "__main__":
    main()
