#!/usr/bin/python

# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: npm_package_info
short_description: Tell whether a package version exists in the npm registry
version_added: "0.1.0"
author:
  - The openclaw.ha contributors (@openclaw-ha)
description:
  - Asks the npm registry that the host's npm is configured for. Changes nothing and never fails because of what the
    registry says.
options:
  name:
    description: Name of the package.
    type: str
    required: true
  version:
    description: Exact version to look for.
    type: str
    required: true
  executable:
    description: The npm to ask with. By default the first of O(candidates) that exists, else the one on PATH.
    type: path
  candidates:
    description: Places where npm may be; patterns with C(*) are allowed.
    type: list
    elements: str
    default: []
  environment:
    description: Additional environment variables for npm, such as C(NODE_EXTRA_CA_CERTS).
    type: dict
    default: {}
attributes:
  check_mode:
    description: Changes nothing.
    support: full
  diff_mode:
    description: Nothing changes.
    support: none
"""

EXAMPLES = r"""
- name: Look whether the version exists
  openclaw.ha.npm_package_info:
    name: openclaw
    version: 2026.9.6
    candidates:
      - /opt/openclaw/node/*/bin/npm
  register: package
"""

RETURN = r"""
available:
  description: V(true) or V(false) when the registry answered, V(unknown) when it could not be asked.
  returned: always
  type: str
  choices: ['true', 'false', unknown]
reason:
  description: One sentence for people; names the newest versions when the version does not exist.
  returned: always
  type: str
  sample: openclaw 2026.9.66 is not in the npm registry; the newest versions are 2026.9.6, 2026.9.5.
newest:
  description: The newest versions, newest first, when the version does not exist but the package does.
  returned: always
  type: list
  elements: str
executable:
  description: The npm that was asked; empty when there is none.
  returned: always
  type: str
"""

import glob
import json
import os
import shutil

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.openclaw.ha.plugins.module_utils import npm


def find(executable, candidates):
    """The npm to use, or an empty text: the named one, else the newest match of the first pattern, else PATH's."""
    if executable:
        return executable if os.access(executable, os.X_OK) else ""
    for pattern in candidates:
        for path in sorted(glob.glob(pattern), key=npm.version_key, reverse=True):
            if os.access(path, os.X_OK):
                return path
    return shutil.which("npm") or ""


def inquire(name, version, view):
    """Ask the registry through ``view(*words)``, which runs ``npm view`` and returns (rc, out, err).

    :returns: (available, reason, newest versions)
    """
    rc, out, err = view(f"{name}@{version}", "version", "--json")
    # Older npm answers with success and nothing when no version matches.
    if rc == 0 and version in out:
        return "true", f"{name} {version} is in the npm registry.", []
    if rc != 0:
        code, text = npm.error(out, err, rc)
        if not npm.is_missing(code):
            return "unknown", f"Whether {name} {version} exists could not be asked: {text}", []
    rc, out, err = view(name, "versions", "--json")
    if rc != 0:
        code, text = npm.error(out, err, rc)
        if npm.is_missing(code):
            return "false", f"There is no package {name} in the npm registry.", []
        return "false", f"{name} {version} is not in the npm registry.", []
    try:
        told = json.loads(out)
    except ValueError:
        told = []
    newest = npm.newest(told if isinstance(told, list) else [told])
    suffix = f"; the newest versions are {', '.join(newest)}" if newest else ""
    return "false", f"{name} {version} is not in the npm registry{suffix}.", newest


def main():
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "version": {"type": "str", "required": True},
            "executable": {"type": "path"},
            "candidates": {"type": "list", "elements": "str", "default": []},
            "environment": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    params = module.params
    executable = find(params["executable"], params["candidates"])
    if not executable:
        reason = (
            f"Whether {params['name']} {params['version']} exists could not be asked: there is no npm on this host yet."
        )
        module.exit_json(changed=False, available="unknown", reason=reason, newest=[], executable="")
    # One quick try: a host without a way to the registry must not hold up everything else for minutes.
    flags = ["--fetch-retries=0", "--fetch-timeout=15000", "--loglevel=error"]
    environment = npm.environment(os.environ, "", params["environment"], os.path.dirname(executable))

    def view(*words):
        return module.run_command([executable, "view", *words, *flags], environ_update=environment, cwd="/")

    available, reason, newest = inquire(params["name"], params["version"], view)
    module.exit_json(changed=False, available=available, reason=reason, newest=newest, executable=executable)


if __name__ == "__main__":
    main()
