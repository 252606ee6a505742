#!/usr/bin/python
# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: kernel_settings
short_description: Make settings of the running kernel what they should be, where the host lets them be changed
version_added: "0.1.0"
author:
  - The openclaw.ha contributors (@openclaw-ha)
description:
  - Writes the settings to a file of C(sysctl.d), for the next boot, and those that differ to C(/proc/sys), for now.
  - What the host does not let be changed, as a container does not, is left alone and named in RV(unchangeable).
options:
  settings:
    description: Whole numbers by the name of the setting, with dots.
    type: dict
    required: true
  file:
    description: File below C(/etc/sysctl.d).
    type: path
    required: true
  root:
    description: Where the running kernel's settings are.
    type: path
    default: /proc/sys
attributes:
  check_mode:
    description: Says what would be changed.
    support: full
  diff_mode:
    description: Shows the running values before and after.
    support: full
"""

EXAMPLES = r"""
- name: Let Redis fork when much of the memory is in use
  openclaw.ha.kernel_settings:
    file: /etc/sysctl.d/60-openclaw-redis.conf
    settings:
      vm.overcommit_memory: 1
"""

RETURN = r"""
unchangeable:
  description: Settings that have another value and cannot be changed on this host.
  type: list
  elements: str
  returned: always
"""

import os
import re

from ansible.module_utils.basic import AnsibleModule


def read(path):
    """Text of a file, empty where there is none."""
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except OSError:
        return ""


def main():
    module = AnsibleModule(
        argument_spec={
            "settings": {"type": "dict", "required": True},
            "file": {"type": "path", "required": True},
            "root": {"type": "path", "default": "/proc/sys"},
        },
        supports_check_mode=True,
    )
    settings, file, root = (module.params[name] for name in ("settings", "file", "root"))
    wanted = {}
    for name, value in settings.items():
        if not re.fullmatch(r"[a-z0-9_.-]+", name) or not re.fullmatch(r"\d+", str(value)):
            module.fail_json(msg=f"{name}: {value!r} is not a whole number, or the name is none of a kernel setting.")
        wanted[name] = str(value)

    paths = {name: os.path.join(root, *name.split(".")) for name in wanted}
    before = {name: read(path).strip() for name, path in paths.items()}
    # A read-only /proc/sys refuses root too.
    changeable = {name for name, path in paths.items() if os.access(path, os.W_OK)}
    live = {name for name in changeable if before[name] != wanted[name]}
    text = "".join(f"{name} = {wanted[name]}\n" for name in sorted(changeable))
    stale = bool(text) and read(file) != text
    if not module.check_mode:
        try:
            for name in sorted(live):
                with open(paths[name], "w", encoding="utf-8") as stream:
                    stream.write(wanted[name] + "\n")
            if stale:
                os.makedirs(os.path.dirname(file), exist_ok=True)
                with open(file, "w", encoding="utf-8") as stream:
                    stream.write(text)
                os.chmod(file, 0o644)
        except OSError as error:
            module.fail_json(msg=f"{error.filename}: {error.strerror}.")
    unchangeable = sorted(name for name in wanted if name not in changeable and before[name] != wanted[name])
    if unchangeable:
        what = ", ".join(f"{name} (is {before[name] or 'unknown'}, should be {wanted[name]})" for name in unchangeable)
        module.warn(f"This host does not let its kernel's settings be changed; set them where it does: {what}.")
    shown = {name: {"before": before[name], "after": wanted[name]} for name in sorted(live)}
    module.exit_json(
        changed=bool(live) or stale,
        unchangeable=unchangeable,
        diff={side: "".join(f"{name} = {values[side]}\n" for name, values in shown.items()) for side in ("before", "after")},
    )


if __name__ == "__main__":
    main()
